"""The studies' published conclusions, and what a grid's own measurements say about each.

Outcomes: `confirmed` and `contradicted` as _ABOUT says, where the interval leaves out zero, too; else `not shown`, also
of rows trained for other numbers of epochs than their grid file says. `artefact`: the published evidence is of
something else; what we measured is told beside it. `not tested`: rows or predictions are missing, or hold a part of
the data set only.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from statistics import fmean
from typing import Literal

from transfergrid.config.spelling import command, launch_again
from transfergrid.errors import DataError, one_line
from transfergrid.report.analysis import statistics
from transfergrid.report.analysis.cells import in_points, percent
from transfergrid.report.analysis.claim_file import Claim, claims_for
from transfergrid.report.analysis.comparison import Comparison
from transfergrid.report.analysis.paired_rows import compare_rows
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
    first_accuracy: float | None
    second_accuracy: float | None
    result: PairedComparison
    p_adjusted: float

    @property
    def direction(self) -> int:
        """1 higher, -1 lower, 0 no difference shown."""
        if self.p_adjusted >= LEVEL or self.result.low <= 0 <= self.result.high:
            return 0
        return 1 if self.result.difference > 0 else -1


@dataclass(frozen=True, slots=True)
class Decision:
    """What one grid says about one claim on one dataset.

    text: one plain sentence. difference, low, high: of the comparison that decides, in [-1, 1], 95 % and not adjusted;
    for an artefact ours minus the published figure; None where nothing was measured. compared: all comparisons made.
    """

    claim: Claim
    dataset: str
    outcome: Outcome
    text: str
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    compared: tuple[Compared, ...] = ()


class _NotTested(DataError):
    """What is missing for a decision."""


# ------------------------------------------------------------------------------------------------------------ deciding
def decisions_of(comparison: Comparison) -> list[Decision]:
    """What this grid's own rows say about the claims that are decided in it; empty for most grids.

    One decision per claim and dataset of it that the grid has rows of; `not tested` where it has rows of none.
    """
    decisions = []
    for claim in claims_for(comparison.grid):
        present = [d for d in claim.datasets if any((r.dataset, r.phase) == (d, claim.phase) for r in comparison.rows)]
        decisions += [_decide(_Question(claim, dataset, comparison)) for dataset in present or claim.datasets[:1]]
    return decisions


RowAndRuns = tuple[ComparisonRow, tuple[RunRecord, ...]]


@dataclass(frozen=True, slots=True)
class _Question:
    """One claim, put to one dataset of a grid."""

    claim: Claim
    dataset: str
    comparison: Comparison

    def require(self) -> None:
        """Raises _NotTested with all that is missing, unless each row of the claim can be used."""
        problems = [text for name in (*self.claim.first, *self.claim.second) for text in self._problems(*name)]
        if problems:
            raise _NotTested(", ".join(problems))

    def rows(self, side: Sequence[tuple[str, str]]) -> list[RowAndRuns]:
        """The row of each name, after `require`; of several choices `<variant>--<choice>` the best on val."""
        return [_best(self._candidates(*name)) for name in side]

    def other_epochs(self) -> str:
        """`run with 2 epochs instead of 10`, by row where they differ; empty where all are as the grid file says."""
        texts: dict[str, str] = {}
        for model, variant in (*self.claim.first, *self.claim.second):
            expected = self.claim.epochs_of(variant)
            for row, runs in self._candidates(model, variant):
                epochs = getattr(runs[0].spec.settings, "epochs", None)
                if expected is not None and epochs != expected:
                    unit = "epoch" if epochs == 1 else "epochs"
                    texts[_name(row.model, row.variant)] = f"run with {epochs} {unit} instead of {expected}"
        distinct = set(texts.values())
        return distinct.pop() if len(distinct) == 1 else ", ".join(f"{name} {text}" for name, text in texts.items())

    def _candidates(self, model: str, variant: str) -> list[RowAndRuns]:
        """Rows under protocol `fair`; an evaluation trains nothing, so it may have any."""
        return [
            (row, runs)
            for row, runs in zip(self.comparison.rows, self.comparison.runs, strict=True)
            if (row.dataset, row.model, row.phase) == (self.dataset, model, self.claim.phase)
            and variant == (choice_of(row.variant) or (row.variant,))[0]
            and (row.protocol == "fair" or self.claim.phase == "evaluate")
        ]

    def _problems(self, model: str, variant: str) -> Iterator[str]:
        candidates = self._candidates(model, variant)
        if not candidates:
            yield f"{_name(model, variant)} is missing"
        if len({row.variant for row, _ in candidates}) < len(candidates):
            yield f"{_name(model, variant)} stands in {len(candidates)} rows"
            return
        is_choice = len(candidates) > 1 or self.claim.test == "best_beats_best"
        for row, runs in candidates:
            name = _name(row.model, row.variant)
            if row.status != "completed":
                yield f"{name} is {row.status}" + (f" ({row.failure_class})" if row.failure_class else "")
            elif (spec := runs[0].spec) and (spec.dataset.max_images, spec.train_fraction, spec.shots) != (None,) * 3:
                yield f"{name} saw a part of the data set only"
            elif is_choice and val_score(row) is None:
                yield f"{name} has no val {WORDS[row.select_by]} to choose by"


def _best(candidates: Sequence[RowAndRuns]) -> RowAndRuns:
    """On val; after `require` only a single row can be without a score there."""
    return candidates[best_on_val([row for row, _ in candidates]) or 0]


def _decide(question: _Question) -> Decision:
    claim = question.claim
    try:
        question.require()
        decision = _against_published(question) if claim.test == "published_value" else _against_rows(question)
        if other := question.other_epochs():
            text = f"{other}, so this decides nothing: {decision.text}"
            decision = replace(decision, outcome="not shown", text=text)
    except DataError as missing:
        own_command = command(*shlex.split(claim.command)) if claim.command else None
        again = own_command or launch_again(question.comparison.grid, question.comparison.store)
        text = f"{question.dataset}: {one_line(missing)}; next: {again}"
        decision = Decision(claim, question.dataset, "not tested", text)
    if claim.artefact_of is None:
        return decision
    measurement = decision.text if decision.outcome != "not tested" else f"not measured here ({decision.text})"
    return replace(decision, outcome="artefact", text=f"an artefact of {claim.artefact_of}. Ours: {measurement}")


def _against_rows(question: _Question) -> Decision:
    pairs = _pairs(question)
    results = [_result(question, *pair) for pair in pairs]
    adjusted = statistics.holm([result.p_value for result in results])
    compared = tuple(
        Compared(
            first=_name(first.model, first.variant),
            second=_name(second.model, second.variant),
            first_accuracy=first.test_accuracy,
            second_accuracy=second.test_accuracy,
            result=result,
            p_adjusted=p,
        )
        for ((first, _), (second, _)), result, p in zip(pairs, results, adjusted, strict=True)
        if p is not None
    )
    outcome, decisive = _outcome(question.claim, compared)
    text, result = _sentence(decisive, question.claim, len(compared)), decisive.result
    interval = result.difference, result.low, result.high
    return Decision(question.claim, question.dataset, outcome, text, *interval, compared=compared)


def _outcome(claim: Claim, compared: Sequence[Compared]) -> tuple[Outcome, Compared]:
    """And the comparison that decides: of those that say what the outcome says, the one with the lowest difference."""
    if claim.margin is not None:
        result = compared[0].result
        directions = [1 if result.low > -claim.margin else -1 if result.high < -claim.margin else 0]
    else:
        directions = [c.direction for c in compared]
    direction_of_all = -1 if -1 in directions else min(directions)
    outcomes: dict[int, Outcome] = {1: "confirmed", 0: "not shown", -1: "contradicted"}
    alike = [c for c, direction in zip(compared, directions, strict=True) if direction == direction_of_all]
    return outcomes[direction_of_all], min(alike, key=lambda c: c.result.difference)


def _pairs(question: _Question) -> list[tuple[RowAndRuns, RowAndRuns]]:
    claim = question.claim
    first, second = question.rows(claim.first), question.rows(claim.second)
    if claim.test == "best_beats_best":  # chosen on val, so the test set has no say in what is compared on it
        return [(_best(first), _best(second))]
    return list(zip(first if claim.test == "each_beats_its_rival" else first * len(second), second, strict=True))


def _result(question: _Question, first: RowAndRuns, second: RowAndRuns) -> PairedComparison:
    result = compare_rows(first[1], second[1], question.comparison.stored)
    if first[0].test_accuracy is None or second[0].test_accuracy is None:
        result = result if isinstance(result, str) else "no test accuracy"
    if isinstance(result, str):
        names = [_name(row.model, row.variant) for row, _ in (first, second)]
        raise _NotTested(f"{' against '.join(names)}: {result}")
    return result


def _against_published(question: _Question) -> Decision:
    claim, published = question.claim, question.claim.published
    ((row, runs),) = question.rows(claim.first)
    metric = _ACCURACIES.get(claim.metric, claim.metric)
    ours = [run.metrics[metric] for run in runs if metric in run.metrics]
    ours = ours if metric == claim.metric else [1 - accuracy for accuracy in ours]
    images = runs[0].details.get("n_test")
    if len(ours) < len(runs) or not images or published is None:
        raise _NotTested(f"{_name(*claim.first[0])} has no {claim.metric.replace('_', ' ')} in its records")
    if any(run.details.get("test_groups") for run in runs):
        raise _NotTested("its test images come in groups, and the published figure's interval is by image")
    mean = fmean(ours)
    interval = statistics.difference_of_published(mean, int(images), published.first, published.images)
    text = f"{row.model} {percent(mean)} against the published {percent(published.first)}: {in_points(*interval)}"
    return Decision(claim, question.dataset, "not shown", f"{text}, {_seeds(len(runs))}", *interval)


# ---------------------------------------------------------------------------------------------------------------- words
def _name(model: str, variant: str) -> str:
    return f"{model} {variant}".strip()


def _seeds(count: int) -> str:
    return f"{_NUMBERS[count] if count < len(_NUMBERS) else count} seed{'' if count == 1 else 's'}"


def _sentence(decisive: Compared, claim: Claim, comparisons: int) -> str:
    result = decisive.result
    text = f"{decisive.first} {percent(decisive.first_accuracy)} against {decisive.second} "
    text += f"{percent(decisive.second_accuracy)}: {in_points(result.difference, result.low, result.high)}, "
    text += _seeds(result.seeds)
    if claim.margin is not None:
        return f"{text}; worse by at most {percent(claim.margin)} points is enough"
    if claim.test == "best_beats_best":
        return f"{text}; each is the best of its side on val"
    if comparisons > 1:
        p = f"p = {statistics.p_text(decisive.p_adjusted, '.2g')} after Holm over these"
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
