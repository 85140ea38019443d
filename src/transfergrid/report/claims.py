"""The studies' published conclusions, and what a grid's own measurements say about each.

Outcomes: `confirmed` where the accuracy is higher in every comparison, `contradicted` where it is lower in at least
one, `not shown` otherwise; a comparison says higher or lower where its p, adjusted by Holm over the comparisons of its
claim, is below 5 % and its interval leaves out zero. `artefact`: the published evidence is of something else; what we
measured is told beside it. `not tested`: rows or predictions are missing, or hold a part of the data set only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from transfergrid.errors import DataError, one_line
from transfergrid.records import RunRecord
from transfergrid.report import statistics
from transfergrid.report.cells import in_points, markdown_table, percent
from transfergrid.report.claim_file import Claim, Test, claims_for
from transfergrid.report.comparison import Comparison, ComparisonRow
from transfergrid.report.predictions import StoredPredictions, correct_SN, paired
from transfergrid.report.statistics import PairedComparison

Outcome = Literal["confirmed", "contradicted", "not shown", "artefact", "not tested"]
LEVEL = 0.05
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
    stored = {grid: StoredPredictions(comparison.store) for grid, comparison in comparisons.items()}
    decisions = []
    for claim in claims:
        grids = [grid for grid in claim.grids if grid in comparisons] or list(claim.grids[:1])
        for grid in grids:
            rows = comparisons[grid].rows if grid in comparisons else ()
            present = [d for d in claim.datasets if any((r.dataset, r.phase) == (d, claim.phase) for r in rows)]
            for dataset in present or claim.datasets[:1]:
                decisions.append(_decide(_Asked(claim, grid, dataset, comparisons.get(grid), stored.get(grid))))
    return decisions


@dataclass(frozen=True, slots=True)
class _Asked:
    """One claim, put to one dataset of one grid."""

    claim: Claim
    grid: str
    dataset: str
    comparison: Comparison | None
    stored: StoredPredictions | None

    def require(self) -> None:
        """Raises _NotTested with all that is missing, unless each row of the claim can be used."""
        problems = [self._problem(model, variant) for model, variant in (*self.claim.first, *self.claim.second)]
        if any(problems):
            raise _NotTested(", ".join(problem for problem in problems if problem))

    def row(self, model: str, variant: str) -> tuple[ComparisonRow, tuple[RunRecord, ...]]:
        """The one row of that name, after `require`."""
        return self._found(model, variant)[0]

    def _found(self, model: str, variant: str) -> list[tuple[ComparisonRow, tuple[RunRecord, ...]]]:
        """Rows under protocol `fair`; an evaluation trains nothing, so it may have any."""
        wanted = (self.dataset, model, self.claim.phase, variant)
        pairs = zip(self.comparison.rows, self.comparison.runs, strict=True) if self.comparison else ()
        return [
            (row, runs)
            for row, runs in pairs
            if (row.dataset, row.model, row.phase, row.variant) == wanted
            and (row.protocol == "fair" or self.claim.phase == "evaluate")
        ]

    def _problem(self, model: str, variant: str) -> str | None:
        name, found = _name(model, variant), self._found(model, variant)
        if len(found) != 1:
            return f"{name} stands in {len(found)} rows" if found else f"{name} is missing"
        row, runs = found[0]
        if row.status != "completed":
            return f"{name} is {row.status}" + (f" ({row.failure_class})" if row.failure_class else "")
        spec = runs[0].spec
        part = (spec.dataset.max_images, spec.train_fraction, spec.shots) != (None, None, None)
        return f"{name} saw a part of the data set only" if part else None


def _decide(asked: _Asked) -> Decision:
    claim = asked.claim
    try:
        asked.require()
        if claim.test == "at_least":
            decision = _against_bar(asked)
        elif claim.test == "published_value":
            decision = _against_published(asked)
        else:
            decision = _against_rows(asked)
    except DataError as missing:
        again = f"next: python jobs/launch_grid.py grid={asked.grid}"
        text = f"{asked.dataset}: {one_line(missing)}; {again}"
        decision = Decision(claim=claim, dataset=asked.dataset, outcome="not tested", text=text)
    if claim.artefact_of is None:
        return decision
    measured = decision.text if decision.outcome != "not tested" else f"not measured here ({decision.text})"
    return replace(decision, outcome="artefact", text=f"an artefact of {claim.artefact_of}. Ours: {measured}")


def _against_rows(asked: _Asked) -> Decision:
    compared = _with_holm([_compare(asked, *pair) for pair in _pairs(asked)])
    directions = [c.direction for c in compared]
    outcome: Outcome = "contradicted" if -1 in directions else "confirmed" if all(directions) else "not shown"
    deciding_direction = {"contradicted": -1, "confirmed": 1, "not shown": 0}[outcome]
    candidates = [c for c in compared if c.direction == deciding_direction]
    decides = min(candidates, key=lambda c: c.result.difference)
    return Decision(
        claim=asked.claim,
        dataset=asked.dataset,
        outcome=outcome,
        text=_sentence(decides, asked.claim.test, len(compared)),
        difference=decides.result.difference,
        low=decides.result.low,
        high=decides.result.high,
        compared=tuple(compared),
    )


def _pairs(asked: _Asked) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    claim = asked.claim
    if claim.test == "best_beats_best":
        return [(_best_on_val(asked, claim.first), _best_on_val(asked, claim.second))]
    firsts = claim.first if claim.test == "each_beats_its_rival" else claim.first * len(claim.second)
    return list(zip(firsts, claim.second, strict=True))


def _best_on_val(asked: _Asked, rows: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """Chosen on val, so that the test set has no say in which rows are compared on it."""
    accuracies = {name: asked.row(*name)[0].val_accuracy for name in rows}
    without = [_name(*name) for name, accuracy in accuracies.items() if accuracy is None]
    if without:
        raise _NotTested(f"{', '.join(without)} has no val accuracy to choose by")
    return max(accuracies, key=lambda name: accuracies[name] or 0.0)


def _compare(asked: _Asked, first: tuple[str, str], second: tuple[str, str]) -> Compared:
    sides = {_name(*side): asked.row(*side)[1] for side in (first, second)}
    assert asked.stored is not None  # a grid that has rows has a store
    try:
        _, sets = paired({name: asked.stored.by_seed(runs) for name, runs in sides.items()})
    except DataError as error:
        raise _NotTested("; ".join([one_line(error), *asked.stored.notes])) from error
    first_SN, second_SN = (correct_SN(sets[name]) for name in sides)
    result = statistics.compare(first_SN, second_SN)
    return Compared(
        first=_name(*first),
        second=_name(*second),
        first_accuracy=float(first_SN.mean()),
        second_accuracy=float(second_SN.mean()),
        result=result,
        p_adjusted=result.p_value,
    )


def _with_holm(compared: Sequence[Compared]) -> list[Compared]:
    adjusted = statistics.holm([c.result.p_value for c in compared])
    return [replace(c, p_adjusted=p) for c, p in zip(compared, adjusted, strict=True) if p is not None]


def _against_bar(asked: _Asked) -> Decision:
    claim, (row, _) = asked.claim, asked.row(*asked.claim.first[0])
    if row.test_accuracy is None or row.ci95_low is None or row.ci95_high is None or claim.bar is None:
        raise _NotTested(f"{_name(*claim.first[0])} has no test accuracy with an interval")
    difference, low, high = (value - claim.bar for value in (row.test_accuracy, row.ci95_low, row.ci95_high))
    outcome: Outcome = "confirmed" if low > 0 else "contradicted" if high < 0 else "not shown"
    text = f"{row.model} {percent(row.test_accuracy)} against {percent(claim.bar)} asked for: "
    text += f"{in_points(difference, low, high)}, {_seeds(row.n_seeds)}"
    return Decision(
        claim=claim, dataset=asked.dataset, outcome=outcome, text=text, difference=difference, low=low, high=high
    )


def _against_published(asked: _Asked) -> Decision:
    claim, (row, runs) = asked.claim, asked.row(*asked.claim.first[0])
    ours, images = [_value(run, claim.metric) for run in runs], [run.details.get("n_test") for run in runs]
    known = [value for value in ours if value is not None]
    if not known or len(known) < len(ours) or not images[0] or claim.published is None:
        raise _NotTested(f"{_name(*claim.first[0])} has no {claim.metric.replace('_', ' ')} in its records")
    published = claim.published
    mean = fmean(known)
    interval = statistics.difference_of_published(mean, int(images[0]), published.first, published.images)
    text = f"{row.model} {percent(mean)} against the published {percent(published.first)}: {in_points(*interval)}"
    return Decision(
        claim=claim,
        dataset=asked.dataset,
        outcome="not shown",
        text=f"{text}, {_seeds(len(runs))}",
        difference=interval[0],
        low=interval[1],
        high=interval[2],
    )


def _value(run: RunRecord, metric: str) -> float | None:
    if not metric.endswith("_error"):
        return run.metrics.get(metric)
    accuracy = run.metrics.get(metric.removesuffix("_error") + "_accuracy")
    return None if accuracy is None else 1 - accuracy


# ---------------------------------------------------------------------------------------------------------------- words
def _name(model: str, variant: str) -> str:
    return f"{model} {variant}".strip()


def _seeds(count: int) -> str:
    return f"{_NUMBERS[count] if count < len(_NUMBERS) else count} seed{'' if count == 1 else 's'}"


def _sentence(decides: Compared, test: Test, comparisons: int) -> str:
    result = decides.result
    text = f"{decides.first} {percent(decides.first_accuracy)} against {decides.second} "
    text += f"{percent(decides.second_accuracy)}: {in_points(result.difference, result.low, result.high)}, "
    text += _seeds(result.seeds)
    if test == "best_beats_best":
        return f"{text}; each is the best of its side on val"
    if comparisons > 1:
        return f"{text}; it decides among {comparisons} comparisons, p = {decides.p_adjusted:.2g} after Holm"
    return text


_ABOUT = """\
What the studies conclude, and what the rows of this grid say about it. Intervals are 95 %, paired on seeds and test
images. A claim of several comparisons is confirmed only if all of them say higher, after Holm, and contradicted if one
says lower. The interval of a published difference is Newcombe's, from the two figures alone.
"""


def as_markdown(decisions: Sequence[Decision]) -> str:
    """A section, or nothing where the grid decides no claim."""
    if not decisions:
        return ""
    header = ["claim", "study", "dataset", "outcome", "measured", "published", "about the published evidence"]
    lines = [
        [
            d.claim.statement,
            d.claim.study,
            d.dataset,
            d.outcome,
            d.text,
            d.claim.published.text if d.claim.published else "",
            d.claim.caveat or "",
        ]
        for d in decisions
    ]
    return f"## Published claims\n\n{_ABOUT}\n" + markdown_table(header, lines, left=len(header))
