"""The studies' published conclusions, and what a grid's own measurements say about each.

Outcomes: `confirmed` where the accuracy is higher in every comparison, `contradicted` where it is lower in at least
one, `not shown` otherwise; a comparison says higher or lower where its p, adjusted by Holm over the comparisons of its
claim, is below 5 % and its interval leaves out zero. `artefact`: the published evidence is of something else; what we
measured is told beside it. `not tested`: rows or predictions are missing, or hold a part of the data set only. Rows
trained for other numbers of epochs than their grid file says decide nothing: `not shown`, with the numbers.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from statistics import fmean
from typing import Literal

from transfergrid.config.spelling import command, launch_again
from transfergrid.errors import DataError, one_line
from transfergrid.report.analysis import paired_rows, statistics
from transfergrid.report.analysis.cells import in_points, percent
from transfergrid.report.analysis.claim_file import Claim, claims_for
from transfergrid.report.analysis.comparison import Comparison
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.analysis.selection import WORDS, best_on_val, choice_of, val_score
from transfergrid.report.analysis.statistics import PairedComparison
from transfergrid.report.blocks import Column, Section, Table, words
from transfergrid.store.records import RunRecord

Outcome = Literal["confirmed", "contradicted", "not shown", "artefact", "not tested"]
LEVEL = 0.05
_ACCURACIES = {"test_top1_error": "test_top1_accuracy", "test_top5_error": "test_top5_accuracy"}
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Two rows compared for a claim. Accuracies are means over the seeds compared; p_adjusted by Holm in the claim."""

    first: str
    second: str
    first_accuracy: float
    second_accuracy: float
    result: PairedComparison
    p_adjusted: float

    @property
    def direction(self) -> int:
        """1 higher, -1 lower, 0 no difference shown."""
        if self.p_adjusted >= LEVEL or self.result.low <= 0 <= self.result.high:
            return 0
        return 1 if self.result.difference > 0 else -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What one grid says about one claim on one dataset.

    difference, low, high: of the comparison that decides, in [-1, 1], 95 % and not adjusted; for an artefact ours minus
    the published figure; None where nothing was measured. text: one plain sentence. compared: all comparisons made.
    """

    claim: Claim
    grid: str
    dataset: str
    outcome: Outcome
    text: str
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    compared: tuple[Compared, ...] = ()

    @property
    def artefact_of(self) -> str | None:
        return self.claim.artefact_of


class _NotTested(DataError):
    """What is missing for a decision."""


# ------------------------------------------------------------------------------------------------------------ deciding
def decisions_of(comparison: Comparison) -> list[Decision]:
    """What this grid's own rows say about the claims that are decided in it; empty for most grids."""
    return decide(claims_for(comparison.grid), {comparison.grid: comparison})


def decide(claims: Sequence[Claim], comparisons: Mapping[str, Comparison]) -> list[Decision]:
    """One decision per claim and dataset of it that a comparison has rows of; `not tested` where there is none.

    comparisons: by grid name. A claim is decided only in grids it names.
    """
    decisions = []
    for claim in claims:
        grids = [grid for grid in claim.grids if grid in comparisons] or list(claim.grids[:1])
        for grid in grids:
            rows = comparisons[grid].rows if grid in comparisons else ()
            present = [d for d in claim.datasets if any((r.dataset, r.phase) == (d, claim.phase) for r in rows)]
            for dataset in present or claim.datasets[:1]:
                decisions.append(_decide(_Asked(claim, grid, dataset, comparisons.get(grid))))
    return decisions


Found = tuple[ComparisonRow, tuple[RunRecord, ...]]


@dataclass(frozen=True, slots=True)
class _Asked:
    """One claim, put to one dataset of one grid."""

    claim: Claim
    grid: str
    dataset: str
    comparison: Comparison | None

    @property
    def launch_again(self) -> str:
        if self.comparison is None:
            return command("launch_grid.py", f"grid={self.grid}")  # a claim's grids are files
        return launch_again(self.grid, self.comparison.store)

    def require(self) -> None:
        """Raises _NotTested with all that is missing, unless each row of the claim can be used."""
        problems = [self._problem(model, variant) for model, variant in (*self.claim.first, *self.claim.second)]
        if any(problems):
            raise _NotTested(", ".join(problem for problem in problems if problem))

    def row(self, model: str, variant: str) -> Found:
        """The row of that name, after `require`; of several choices `<variant>--<choice>` the best on val."""
        found = self._found(model, variant)
        return found[0] if len(found) == 1 else _best_found(found)

    def other_epochs(self) -> str:
        """`run with 2 epochs instead of 10`, by row where they differ; empty where all are as the grid file says."""
        texts: dict[str, str] = {}
        for model, variant in (*self.claim.first, *self.claim.second):
            meant = self.claim.epochs_of(variant)
            for row, runs in self._found(model, variant):
                epochs = getattr(runs[0].spec.settings, "epochs", None)
                if meant is not None and epochs != meant:
                    unit = "epoch" if epochs == 1 else "epochs"
                    texts[_name(row.model, row.variant)] = f"run with {epochs} {unit} instead of {meant}"
        distinct = set(texts.values())
        return distinct.pop() if len(distinct) == 1 else ", ".join(f"{name} {text}" for name, text in texts.items())

    def _found(self, model: str, variant: str) -> list[Found]:
        """Rows under protocol `fair`; an evaluation trains nothing, so it may have any."""
        pairs = zip(self.comparison.rows, self.comparison.runs, strict=True) if self.comparison else ()
        return [
            (row, runs)
            for row, runs in pairs
            if (row.dataset, row.model, row.phase) == (self.dataset, model, self.claim.phase)
            and variant == (choice_of(row.variant) or (row.variant,))[0]
            and (row.protocol == "fair" or self.claim.phase == "evaluate")
        ]

    def _problem(self, model: str, variant: str) -> str | None:
        choices = self._found(model, variant)
        if not choices:
            return f"{_name(model, variant)} is missing"
        if len({row.variant for row, _ in choices}) < len(choices):
            return f"{_name(model, variant)} stands in {len(choices)} rows"
        problems = [self._problem_of(*choice, chosen=len(choices) > 1) for choice in choices]
        return ", ".join(problem for problem in problems if problem) or None

    def _problem_of(self, row: ComparisonRow, runs: tuple[RunRecord, ...], *, chosen: bool) -> str | None:
        name = _name(row.model, row.variant)
        if row.status != "completed":
            return f"{name} is {row.status}" + (f" ({row.failure_class})" if row.failure_class else "")
        if (runs[0].spec.dataset.max_images, runs[0].spec.train_fraction, runs[0].spec.shots) != (None, None, None):
            return f"{name} saw a part of the data set only"
        chosen = chosen or self.claim.test == "best_beats_best"
        return f"{name} has no val {WORDS[row.select_by]} to choose by" if chosen and val_score(row) is None else None


def _best_found(found: Sequence[Found]) -> Found:
    """Of rows that all have a score on val, see `require`."""
    position = best_on_val([row for row, _ in found])
    assert position is not None
    return found[position]


def _decide(asked: _Asked) -> Decision:
    claim = asked.claim
    try:
        asked.require()
        decision = _against_published(asked) if claim.test == "published_value" else _against_rows(asked)
        if other := asked.other_epochs():
            text = f"{other}, so this decides nothing: {decision.text}"
            decision = replace(decision, outcome="not shown", text=text)
    except DataError as missing:
        again = command(*shlex.split(claim.command)) if claim.command else asked.launch_again
        text = f"{asked.dataset}: {one_line(missing)}; next: {again}"
        decision = Decision(claim=claim, grid=asked.grid, dataset=asked.dataset, outcome="not tested", text=text)
    if claim.artefact_of is None:
        return decision
    measured = decision.text if decision.outcome != "not tested" else f"not measured here ({decision.text})"
    return replace(decision, outcome="artefact", text=f"an artefact of {claim.artefact_of}. Ours: {measured}")


def _against_rows(asked: _Asked) -> Decision:
    compared = _with_holm([_compare(asked, *pair) for pair in _pairs(asked)])
    outcome, decides = _outcome(asked.claim, compared)
    return Decision(
        claim=asked.claim,
        grid=asked.grid,
        dataset=asked.dataset,
        outcome=outcome,
        text=_sentence(decides, asked.claim, len(compared)),
        difference=decides.result.difference,
        low=decides.result.low,
        high=decides.result.high,
        compared=tuple(compared),
    )


def _outcome(claim: Claim, compared: Sequence[Compared]) -> tuple[Outcome, Compared]:
    """And the comparison that decides: of those that say what the outcome says, the one with the lowest difference."""
    if claim.margin is not None:
        result = compared[0].result
        directions = [1 if result.low > -claim.margin else -1 if result.high < -claim.margin else 0]
    else:
        directions = [c.direction for c in compared]
    says = -1 if -1 in directions else min(directions)
    outcomes: dict[int, Outcome] = {1: "confirmed", 0: "not shown", -1: "contradicted"}
    alike = [c for c, direction in zip(compared, directions, strict=True) if direction == says]
    return outcomes[says], min(alike, key=lambda c: c.result.difference)


def _pairs(asked: _Asked) -> list[tuple[Found, Found]]:
    claim = asked.claim
    first, second = ([asked.row(*name) for name in side] for side in (claim.first, claim.second))
    if claim.test == "best_beats_best":  # chosen on val, so the test set has no say in what is compared on it
        return [(_best_found(first), _best_found(second))]
    return list(zip(first if claim.test == "each_beats_its_rival" else first * len(second), second, strict=True))


def _compare(asked: _Asked, first: Found, second: Found) -> Compared:
    assert asked.comparison is not None  # it has rows
    result = paired_rows.compare_rows(first[1], second[1], asked.comparison.stored)
    names = [_name(row.model, row.variant) for row, _ in (first, second)]
    if isinstance(result, str) or first[0].test_accuracy is None or second[0].test_accuracy is None:
        raise _NotTested(f"{names[0]} against {names[1]}: {result if isinstance(result, str) else 'no test accuracy'}")
    return Compared(
        first=names[0],
        second=names[1],
        first_accuracy=first[0].test_accuracy,
        second_accuracy=second[0].test_accuracy,
        result=result,
        p_adjusted=result.p_value,
    )


def _with_holm(compared: Sequence[Compared]) -> list[Compared]:
    adjusted = statistics.holm([c.result.p_value for c in compared])
    return [replace(c, p_adjusted=p) for c, p in zip(compared, adjusted, strict=True) if p is not None]


def _against_published(asked: _Asked) -> Decision:
    claim, (row, runs) = asked.claim, asked.row(*asked.claim.first[0])
    ours, images = [_value(run, claim.metric) for run in runs], [run.details.get("n_test") for run in runs]
    known = [value for value in ours if value is not None]
    if not known or len(known) < len(ours) or not images[0] or claim.published is None:
        raise _NotTested(f"{_name(*claim.first[0])} has no {claim.metric.replace('_', ' ')} in its records")
    if any(run.details.get("test_groups") for run in runs):
        raise _NotTested("its test images come in groups, and the published figure's interval is by image")
    published = claim.published
    mean = fmean(known)
    interval = statistics.difference_of_published(mean, int(images[0]), published.first, published.images)
    text = f"{row.model} {percent(mean)} against the published {percent(published.first)}: {in_points(*interval)}"
    return Decision(
        claim=claim,
        grid=asked.grid,
        dataset=asked.dataset,
        outcome="not shown",
        text=f"{text}, {_seeds(len(runs))}",
        difference=interval[0],
        low=interval[1],
        high=interval[2],
    )


def _value(run: RunRecord, metric: str) -> float | None:
    accuracy = run.metrics.get(_ACCURACIES.get(metric, metric))
    return accuracy if accuracy is None or metric not in _ACCURACIES else 1 - accuracy


# ---------------------------------------------------------------------------------------------------------------- words
def _name(model: str, variant: str) -> str:
    return f"{model} {variant}".strip()


def _seeds(count: int) -> str:
    return f"{_NUMBERS[count] if count < len(_NUMBERS) else count} seed{'' if count == 1 else 's'}"


def _sentence(decides: Compared, claim: Claim, comparisons: int) -> str:
    result = decides.result
    text = f"{decides.first} {percent(decides.first_accuracy)} against {decides.second} "
    text += f"{percent(decides.second_accuracy)}: {in_points(result.difference, result.low, result.high)}, "
    text += _seeds(result.seeds)
    if claim.margin is not None:
        return f"{text}; worse by at most {percent(claim.margin)} points is enough"
    if claim.test == "best_beats_best":
        return f"{text}; each is the best of its side on val"
    if comparisons > 1:
        p = f"p = {statistics.p_text(decides.p_adjusted, '.2g')} after Holm over these"
        return f"{text}; it decides among the {comparisons} comparisons of this claim, {p}"
    return text


_ABOUT = """\
What the studies conclude, and what the rows of this grid say about it. Intervals are 95 %, paired on seeds and test
images. A claim of several comparisons is confirmed if all of them say higher, after Holm over the comparisons of the
claim. It is contradicted if one says lower. The interval of a published difference is Newcombe's, from the two
figures alone."""


_COLUMNS: list[Column[Decision]] = [
    words("claim", "claim.statement"),
    words("outcome"),
    words("measured", "text", more={name: attrgetter(name) for name in ("difference", "low", "high")}),
    words("published", lambda d: d.claim.published.text if d.claim.published else None),
    words("caveat", "claim.caveat", label="about the published evidence"),
    words("dataset"),
    words("study", "claim.study"),
]


def section(decisions: Sequence[Decision]) -> Section | None:
    """None where the grid decides no claim."""
    if not decisions:
        return None
    table = Table("claims", _COLUMNS, decisions)
    return Section("claims", "Published claims", about=[_ABOUT], tables=[table])
