"""claims.toml: the studies' published conclusions, the figures they rest on, and the test that decides each."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from transfergrid.report.analysis import statistics
from transfergrid.report.analysis.cells import in_points, percent
from transfergrid.report.analysis.selection import epochs_of

Test = Literal["best_beats_best", "beats_each", "each_beats_its_rival", "not_worse", "published_value"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedEvidence:
    """The figures a statement rests on, in [0, 1], on a test set of `images`; second: None where it is one figure."""

    first: float
    images: int
    second: float | None = None

    @property
    def text(self) -> str:
        """With the 95 % interval, Newcombe's of a difference."""
        if self.second is None:
            low, high = statistics.published_interval(self.first, self.images)
            return f"{percent(self.first)} [{percent(low)}, {percent(high)}]"
        difference = statistics.difference_of_published(self.first, self.images, self.second, self.images)
        return f"{percent(self.first)} against {percent(self.second)}: {in_points(*difference)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One [[claim]] of claims.toml, which explains the fields. first, second: (model, variant) of the rows compared."""

    id: str
    study: str
    statement: str
    source: str
    grids: tuple[str, ...]
    datasets: tuple[str, ...]
    phase: str
    test: Test
    first: tuple[tuple[str, str], ...]
    second: tuple[tuple[str, str], ...] = ()
    epochs: int | None = None
    metric: str = "test_accuracy"
    margin: float | None = None
    published: PublishedEvidence | None = None
    caveat: str | None = None
    artefact_of: str | None = None
    command: str | None = None

    def epochs_of(self, variant: str) -> int | None:
        """That the grid file trains this variant's row for; None of an evaluation."""
        epochs = epochs_of(variant)
        return self.epochs if epochs is None else epochs


def claims_for(grid: str) -> list[Claim]:
    """The claims that a report of this grid decides; empty for most grids."""
    return [claim for claim in all_claims() if grid in claim.grids]


@lru_cache(maxsize=1)
def all_claims() -> tuple[Claim, ...]:
    """claims.toml, in its order."""
    content = tomllib.loads((Path(__file__).parents[1] / "studies" / "claims.toml").read_text(encoding="utf-8"))
    return tuple(_claim(entry) for entry in content["claim"])


def _claim(entry: dict[str, Any]) -> Claim:
    values = entry | {name: tuple(entry[name]) for name in ("grids", "datasets")}
    for side in ("first", "second"):
        values[side] = tuple(text.partition(" ")[::2] for text in entry.get(side, ()))
    if "published" in entry:
        values["published"] = PublishedEvidence(**entry["published"])
    claim = Claim(**values)
    fits = {
        "best_beats_best": bool(claim.first and claim.second),
        "beats_each": len(claim.first) == 1 and bool(claim.second),
        "each_beats_its_rival": len(claim.first) == len(claim.second) > 0,
        "not_worse": len(claim.first) == len(claim.second) == 1 and claim.margin is not None,
        # That our figure differs from a published one confirms or contradicts nothing, unless it is known why.
        "published_value": len(claim.first) == 1 and claim.published is not None and claim.artefact_of is not None,
    }
    assert fits[claim.test] and (claim.margin is None or claim.test == "not_worse"), claim
    return claim
