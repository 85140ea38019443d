"""The answer of a grid: per data set what won, by how much, whether that is real, what it cost, and how to use it.

`answer.json` is this object. Every view prints it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal

from transfergrid.config.spelling import command
from transfergrid.errors import DataError
from transfergrid.paths import StorePaths
from transfergrid.report.analysis import integrity, power
from transfergrid.report.analysis.cells import accuracy_with_interval, in_points
from transfergrid.report.analysis.comparison import Comparison
from transfergrid.report.analysis.families import Answer as PairAnswer
from transfergrid.report.analysis.families import Pair, answers, p_in_words
from transfergrid.report.analysis.paired_rows import Verdict, correct_of_both
from transfergrid.report.analysis.rerun import commands_of
from transfergrid.report.analysis.selection import val_score
from transfergrid.report.analysis.statistics import holm, non_inferiority, p_text
from transfergrid.report.analysis.worth import Winner, contests_about, row_names, told_elsewhere, winners
from transfergrid.specs import SelectBy
from transfergrid.store.records import RunRecord

FORMAT = 1
LEVEL = 0.05
MOST_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Seconds of all attempts, on all their GPUs for gpu_s; what several runs share is counted once."""

    wall_s: float
    gpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRow:
    """A row of the comparison. Accuracies in [0, 1] with the table's 95 % interval; cost: of one seed, with all that it
    is made from; val_score: what rows are chosen by. run_ids: of its completed runs, in the order of their seeds."""

    name: str
    model: str
    phase: str
    variant: str
    weights: str
    protocol: str
    run_ids: tuple[str, ...]
    test_accuracy: float
    ci95_low: float | None
    ci95_high: float | None
    val_score: float | None
    cost: Cost
    parameters: int | None
    gflops_per_image: float | None
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """Another row beside the winner. verdict: on the winner, `better` than the row. difference: the winner's accuracy
    minus the row's, with its 95 % interval, all in [-1, 1]; p_value: two-sided, adjusted by Holm over `family_size`
    comparisons. None where the two cannot be compared, which `reason` explains. seeds_needed, images_needed: what would
    show the observed difference with 80 % power; None where no number would, or one seed cannot say."""

    row: AnswerRow
    verdict: Verdict | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    family_size: int = 0
    seeds_needed: int | None = None
    images_needed: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cheapest:
    """The row of the lowest cost that is not worse than the winner by the margin or more. p_value: one-sided, adjusted
    by Holm over `family_size` cheaper rows."""

    row: AnswerRow
    p_value: float
    family_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """The run to use: of the winner's, the best on val. weights: the file; None where a run keeps none. The commands
    hold the words IMAGES and FOLDER, which the reader fills in."""

    run_id: str
    weights: str | None
    predict: str
    export: str
    again: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetAnswer:
    """Of one data set. chosen_on: the split that chooses; on test nothing is tested. tied: rows with the winner's score
    on val. candidates: rows it is the best of. n_test: test images. runner_up: the first of the tied rows, else the
    next on val; None where there is no other, or nothing is chosen on val. not_told_apart, better_on_test: of the other
    candidates, the best on val first. decided: the winner is better than every other candidate. cost: of all runs of
    the data set's rows and all they are made from."""

    dataset: str
    n_test: int | None
    winner: AnswerRow
    chosen_on: Literal["val", "test"]
    select_by: SelectBy
    candidates: int
    tied: tuple[AnswerRow, ...]
    runner_up: Rival | None
    not_told_apart: tuple[Rival, ...]
    better_on_test: tuple[Rival, ...]
    decided: bool
    cheapest: Cheapest | None
    cost: Cost
    use: Use


@dataclass(frozen=True, slots=True, kw_only=True)
class GridAnswer:
    """within: the margin of non-inferiority, in [0, 1]. unanswered: data sets of which no row has a result yet.
    open_rows: rows that have not completed. cost: of all runs of the grid and all they are made from."""

    grid: str
    within: float
    datasets: tuple[DatasetAnswer, ...]
    unanswered: tuple[str, ...]
    open_rows: int
    cost: Cost

    @property
    def decided(self) -> bool:
        return not self.unanswered and not self.open_rows and all(answer.decided for answer in self.datasets)

    def as_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "decided": self.decided, **asdict(self)}


def answer_of(comparison: Comparison) -> GridAnswer:
    within = comparison.within_points / 100
    datasets = tuple(_of_dataset(comparison, winner, within) for winner in winners(comparison))
    known = {answer.dataset for answer in datasets}
    return GridAnswer(
        grid=comparison.grid,
        within=within,
        datasets=datasets,
        unanswered=tuple(d for d in dict.fromkeys(row.dataset for row in comparison.rows) if d not in known),
        open_rows=sum(row.status != "completed" for row in comparison.rows),
        cost=_cost(comparison, None),
    )


def _of_dataset(comparison: Comparison, winner: Winner, within: float) -> DatasetAnswer:
    rows = comparison.rows
    best = winner.first[0]
    positions = [i for i, row in enumerate(rows) if row.dataset == winner.dataset]
    names = dict(zip(positions, row_names(*(rows[i] for i in positions)), strict=True))
    of_rows = {i: _row(comparison, i, names[i]) for i in positions if rows[i].test_accuracy is not None}
    others = [] if winner.on_test else [i for i in _candidates(comparison, winner) if i != best]
    beside = _beside(comparison, winner, others)

    def rivals(*verdicts: Verdict | None) -> tuple[Rival, ...]:
        return tuple(_rival(of_rows[i], beside[best, i]) for i in others if beside[best, i].verdict in verdicts)

    runs = [run.run_id for i in positions for run in comparison.runs[i]]
    return DatasetAnswer(
        dataset=winner.dataset,
        n_test=_n_test(comparison, best),
        winner=of_rows[best],
        chosen_on="test" if winner.on_test else "val",
        select_by=rows[best].select_by,
        candidates=winner.candidates,
        tied=tuple(of_rows[i] for i in winner.first[1:]),
        runner_up=next((_rival(of_rows[b], beside[best, b]) for _, b in winner.pairs), None),
        not_told_apart=rivals("no difference shown", None),
        better_on_test=rivals("worse"),
        decided=not winner.on_test and not rivals("no difference shown", None, "worse"),
        cheapest=_cheapest(comparison, best, others, of_rows, within),
        cost=_cost(comparison, runs),
        use=use_of(comparison.runs[best], comparison.store),
    )


def _n_test(comparison: Comparison, i: int) -> int | None:
    try:
        return len(comparison.stored.of(comparison.runs[i][0].run_id).index_N)
    except DataError:
        return None


def _candidates(comparison: Comparison, winner: Winner) -> list[int]:
    """Every row that could have won, the best on val first."""
    rows = comparison.rows
    trusted = [i for i in integrity.trusted(comparison) if rows[i].dataset == winner.dataset]
    scored = [i for i in trusted if rows[i].test_accuracy is not None and val_score(rows[i]) is not None]
    seen: dict[tuple[str, ...], int] = {}
    for i in scored:  # one row of several grids is one candidate
        seen.setdefault(tuple(run.run_id for run in comparison.runs[i]), i)
    return sorted(seen.values(), key=lambda i: -(val_score(rows[i]) or 0.0))


def _row(comparison: Comparison, i: int, name: str) -> AnswerRow:
    row = comparison.rows[i]
    assert row.test_accuracy is not None
    costs = [_cost(comparison, [run.run_id]) for run in comparison.runs[i]]
    return AnswerRow(
        name=name,
        model=row.model,
        phase=row.phase,
        variant=row.variant,
        weights=row.weights,
        protocol=row.protocol,
        run_ids=tuple(run.run_id for run in comparison.runs[i]),
        test_accuracy=row.test_accuracy,
        ci95_low=row.ci95_low,
        ci95_high=row.ci95_high,
        val_score=val_score(row),
        cost=Cost(wall_s=fmean(c.wall_s for c in costs), gpu_s=fmean(c.gpu_s for c in costs)),
        parameters=row.parameters,
        gflops_per_image=row.gflops_per_image,
        remarks=row.remarks,
    )


def _cost(comparison: Comparison, run_ids: Sequence[str] | None) -> Cost:
    """Of these runs and all they are made from, each once; of all runs of the grid."""
    spent = comparison.spent
    whole = None if run_ids is None else {*run_ids, *(need for run_id in run_ids for need in spent.upstream(run_id))}
    wall_s, gpu_s = spent.total(whole)
    return Cost(wall_s=wall_s, gpu_s=gpu_s)


# ---------------------------------------------------------------------------------------------------------- is it real
def _beside(comparison: Comparison, winner: Winner, others: Sequence[int]) -> dict[Pair, PairAnswer]:
    """The winner minus each other row. Two rows have one p wherever they meet, so what another table of the report
    says of them stands; the rest are one family."""
    pairs = [(winner.first[0], other) for other in others]
    elsewhere = {pair: told_elsewhere(pair, comparison) for pair in pairs}
    known = {pair: answer for pair, answer in elsewhere.items() if answer is not None}
    contests = contests_about(comparison, "winner", winner.dataset)
    known |= {pair: contest.second.answer for pair, contest in zip(winner.pairs, contests, strict=True)}
    rest = [pair for pair in pairs if pair not in known]
    return known | answers(rest, comparison.runs, comparison.stored)


def _rival(row: AnswerRow, answer: PairAnswer) -> Rival:
    result = answer.result
    if isinstance(result, str):
        return Rival(row=row, reason=result)
    return Rival(
        row=row,
        verdict=answer.verdict,
        difference=result.difference,
        low=result.low,
        high=result.high,
        p_value=answer.p_adjusted,
        family_size=answer.family_size,
        seeds_needed=power.seeds_needed(result),
        images_needed=power.images_needed(result),
    )


def _cheapest(
    comparison: Comparison, best: int, others: Sequence[int], rows: Mapping[int, AnswerRow], within: float
) -> Cheapest | None:
    """None where no cheaper row is shown to be good enough."""
    on_gpu = any(rows[i].cost.gpu_s for i in (best, *others))

    def seconds(i: int) -> float:
        return rows[i].cost.gpu_s if on_gpu else rows[i].cost.wall_s

    cheaper = sorted((i for i in others if seconds(i) < seconds(best)), key=seconds)
    p_values: list[float | None] = []
    for i in cheaper:
        try:
            both = correct_of_both(comparison.runs[best], comparison.runs[i], comparison.stored)
            p_values.append(non_inferiority(*both, margin=within))
        except DataError:
            p_values.append(None)
    size = sum(p is not None for p in p_values)
    for i, p in zip(cheaper, holm(p_values), strict=True):
        if p is not None and p < LEVEL:
            return Cheapest(row=rows[i], p_value=p, family_size=size)
    return None


def use_of(runs: Sequence[RunRecord], store: StorePaths) -> Use:
    """How to use a row of these runs, which has one at least."""
    run = max(runs, key=lambda run: run.metrics.get("val_accuracy", -1.0))  # the first of several equal ones
    weights = store.run(run.run_id).weights
    place = [] if str(store.root) == "results" else [f"store.dir={store.root}"]
    return Use(
        run_id=run.run_id,
        weights=str(weights) if weights.is_file() else None,
        predict=command("predict.py", f"run={run.run_id}", "images=IMAGES", *place),
        export=command("predict.py", f"run={run.run_id}", "export=FOLDER", *place),
        again=commands_of([run.spec], store)[0].line,
    )


# ------------------------------------------------------------------------------------------------------------ in words
def in_words(answer: GridAnswer) -> Iterator[str]:
    """A few sentences per data set, a paragraph each: what is as good, what is cheaper, the cost, how to use it."""
    for of_dataset in answer.datasets:
        if of_dataset.tied:
            tied = (f"{row.name} ({accuracy_with_interval(row)} %)" for row in of_dataset.tied)
            yield f"Tied with it on {of_dataset.chosen_on}: {', '.join(tied)}."
        yield from _real(of_dataset)
        if of_dataset.cheapest is not None:
            yield _cheapest_in_words(of_dataset.cheapest, answer.within, of_dataset)
        yield f"All of {of_dataset.dataset} cost {seconds_in_words(of_dataset.cost)}."
        yield f"Use it: {of_dataset.use.predict}"


def _real(answer: DatasetAnswer) -> Iterator[str]:
    rivals, others = answer.not_told_apart, answer.candidates - 1
    if answer.chosen_on == "test" or not others:
        return
    if answer.decided:
        yield f"It is better than every other of the {answer.candidates} rows."
    if answer.better_on_test:
        yield f"Val missed {_named(answer.better_on_test)}: better on the test images."
    if not rivals:
        return
    verb = "is" if len(rivals) == 1 else "are"
    yield f"{len(rivals)} of {others} other rows {verb} not told apart from it: {_named(rivals)}."
    if effort := _effort(rivals[0]):
        yield f"To tell it from {rivals[0].row.name} takes {effort}."


def _named(rivals: Sequence[Rival]) -> str:
    more = f" and {len(rivals) - MOST_NAMED} more" if len(rivals) > MOST_NAMED else ""
    return ", ".join(_rival_in_words(rival) for rival in rivals[:MOST_NAMED]) + more


def _rival_in_words(rival: Rival) -> str:
    if rival.difference is None or rival.low is None or rival.high is None or rival.p_value is None:
        return f"{rival.row.name} (not compared: {rival.reason})"
    difference = in_points(rival.difference, rival.low, rival.high)
    return f"{rival.row.name} ({difference}, p {p_in_words(rival.p_value)})"


def _effort(rival: Rival) -> str:
    ways = [(rival.seeds_needed, "seeds"), (rival.images_needed, "test images")]
    return " or ".join(f"about {number:,} {noun}" for number, noun in ways if number is not None)


def _cheapest_in_words(cheapest: Cheapest, within: float, answer: DatasetAnswer) -> str:
    own, best = seconds_in_words(cheapest.row.cost), seconds_in_words(answer.winner.cost)
    return (
        f"{cheapest.row.name} costs {own} in place of {best}, and is not worse by more than {100 * within:g} points"
        f" (p = {p_text(cheapest.p_value, '.3f')})."
    )


def seconds_in_words(cost: Cost) -> str:
    """`1.2 GPU hours`, `34 GPU seconds`; where nothing ran on a GPU, of the clock: `3.1 minutes`."""
    seconds, kind = (cost.gpu_s, "GPU ") if cost.gpu_s else (cost.wall_s, "")
    for size, unit in ((3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {kind}{unit}"
    return f"{seconds:.0f} {kind}seconds" if seconds >= 10 else f"{seconds:.1f} {kind}seconds"
