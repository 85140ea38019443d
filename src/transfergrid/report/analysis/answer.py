"""The answer of a grid: per data set what won, by how much, whether that is real, what it cost, and how to use it.

`answer.json` is this object. Every view prints it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from transfergrid.config.spelling import command
from transfergrid.errors import DataError
from transfergrid.paths import StorePaths
from transfergrid.report.analysis import integrity, power
from transfergrid.report.analysis.cells import accuracy_with_interval, in_points, points
from transfergrid.report.analysis.comparison import Comparison
from transfergrid.report.analysis.families import Answer as PairAnswer
from transfergrid.report.analysis.families import Pair, answers, p_in_words
from transfergrid.report.analysis.grouped import NotJudged, non_inferiority
from transfergrid.report.analysis.paired_rows import Verdict, correct_of_both
from transfergrid.report.analysis.rerun import commands_of
from transfergrid.report.analysis.selection import val_score
from transfergrid.report.analysis.statistics import holm
from transfergrid.report.analysis.worth import Winner, contests_about, row_names, told_elsewhere, winners
from transfergrid.specs import EvaluateSettings, SelectBy
from transfergrid.store.attempts import read_spec
from transfergrid.store.records import RunRecord, read_grid

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
    is made from; val_score: what rows are chosen by. run_ids: of its completed runs, in the order of their seeds.
    test_groups: of its test images, where these come in groups."""

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
    test_groups: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """Another row beside the winner. verdict: on the winner, `better` than the row. difference: the winner's accuracy
    minus the row's, with its 95 % interval, all in [-1, 1]; p_value: two-sided, adjusted by Holm over `family_size`
    comparisons. None where the two cannot be compared, which `reason` explains; where test images come from too few
    groups to be judged, the difference alone stays. seeds_needed, images_needed: what would show the observed
    difference, or power.SMALLEST_DIFFERENCE where it is 0, with 80 % power; None where no number would, or one seed
    cannot say. groups_needed: in place of images, where test images come in groups; else answer.json leaves it out."""

    row: AnswerRow
    verdict: Verdict | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    family_size: int = 0
    seeds_needed: int | None = None
    images_needed: int | None = None
    groups_needed: int | None = None
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
    """The run to use: of the winner's, the best on val; of an evaluation, the run that it evaluates. weights: the file,
    which of a probe holds the head alone; None where none is kept, and then nothing predicts or exports. The commands
    hold the words IMAGES, FOLDER and FILE, which the reader fills in."""

    run_id: str
    weights: str | None
    predict: str | None
    export: str | None
    again: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetAnswer:
    """Of one data set. chosen_on: the split that chooses; on test nothing is tested. tied: rows with the winner's score
    on that split. candidates: rows it is the best of. n_test: test images. runner_up: the first of the tied rows, else
    the next on val; None where there is no other, or nothing is chosen on val. not_told_apart, better_on_test: of the
    other
    candidates, the best on val first. decided: the winner is better than every other candidate. cost: of all runs of
    the data set, failed ones too, and all they are made from."""

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
        return {"format": FORMAT, "decided": self.decided, **asdict(self, dict_factory=_without_groups)}


def _without_groups(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in fields if name not in ("groups_needed", "test_groups") or value is not None}


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
        return tuple(
            _rival(of_rows[best], of_rows[i], beside[best, i]) for i in others if beside[best, i].verdict in verdicts
        )

    grids = dict.fromkeys(row.grid for row in rows)
    entries = [entry for grid in grids for entry in read_grid(comparison.store.grid(grid))]
    return DatasetAnswer(
        dataset=winner.dataset,
        n_test=_n_test(comparison, best),
        winner=of_rows[best],
        chosen_on="test" if winner.on_test else "val",
        select_by=rows[best].select_by,
        candidates=winner.candidates,
        tied=tuple(of_rows[i] for i in winner.first[1:]),
        runner_up=next((_rival(of_rows[best], of_rows[b], beside[best, b]) for _, b in winner.pairs), None),
        not_told_apart=rivals("no difference shown", "not judged", None),
        better_on_test=rivals("worse"),
        decided=winner.candidates == 1
        or (not winner.on_test and not rivals("no difference shown", "not judged", None, "worse")),
        cheapest=_cheapest(comparison, best, others, of_rows, within),
        cost=_cost(comparison, [entry.run_id for entry in entries if entry.dataset == winner.dataset]),
        use=use_of(comparison.runs[best], comparison.store, rows[best].select_by),
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
        test_groups=row.test_groups,
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


def _rival(best: AnswerRow, row: AnswerRow, answer: PairAnswer) -> Rival:
    result = answer.result
    if isinstance(result, NotJudged):
        return Rival(row=row, difference=best.test_accuracy - row.test_accuracy, reason=f"not judged: {result}")
    if isinstance(result, str):
        return Rival(row=row, reason=result)
    needed, by_group = power.images_needed(result), result.test == "by_group"
    return Rival(
        row=row,
        verdict=answer.verdict,
        difference=result.difference,
        low=result.low,
        high=result.high,
        p_value=answer.p_adjusted,
        family_size=answer.family_size,
        seeds_needed=power.seeds_needed(result),
        images_needed=None if by_group else needed,
        groups_needed=needed if by_group else None,
    )


def _cheapest(
    comparison: Comparison, best: int, others: Sequence[int], rows: Mapping[int, AnswerRow], within: float
) -> Cheapest | None:
    """None where no cheaper row is shown to be good enough. A row whose whole cost is not known is none of them."""
    on_gpu = any(rows[i].cost.gpu_s for i in (best, *others))

    def seconds(i: int) -> float:
        return rows[i].cost.gpu_s if on_gpu else rows[i].cost.wall_s

    known = [i for i in others if comparison.rows[i].upstream_gpu_s is not None]
    cheaper = sorted((i for i in known if seconds(i) < seconds(best)), key=seconds)
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


def use_of(runs: Sequence[RunRecord], store: StorePaths, select_by: SelectBy) -> Use:
    """How to use a row of these runs, which has one at least."""
    metric = "val_macro_recall" if select_by == "balanced_accuracy" else f"val_{select_by}"
    run = max(runs, key=lambda run: run.metrics.get(metric, -1.0))  # the first of several equal ones
    source = run.spec.settings.source if isinstance(run.spec.settings, EvaluateSettings) else ""
    network = (read_spec(store.run(run.spec.needs[0])) if source.startswith("run:") else None) or run.spec
    weights = store.run(network.run_id).weights
    is_kept = weights.is_file() and network.phase != "evaluate"
    # The weights of a probe are its head: its backbones come from where they came from.
    parts = network.backbones if network.phase == "probe" else ()
    files = [f"weights_files.{part.name}=FILE" for part in parts if part.weights.is_file]
    place = [] if store.root.absolute() == Path("results").absolute() else [f"store.dir={store.root}"]
    run_argument = f"run={network.run_id}"
    return Use(
        run_id=network.run_id,
        weights=str(weights) if is_kept else None,
        predict=command("predict.py", run_argument, "images=IMAGES", *files, *place) if is_kept else None,
        export=command("predict.py", run_argument, "export=FOLDER", *files, *place) if is_kept else None,
        again=commands_of([network], store)[0].line,
    )


# ------------------------------------------------------------------------------------------------------------ in words
def in_words(answer: GridAnswer) -> Iterator[str]:
    """A few sentences per data set, a paragraph each: what is as good, what is cheaper, the cost, how to use it."""
    are_several = len(answer.datasets) > 1
    for of_dataset in answer.datasets:
        of = f"{of_dataset.dataset}: " if are_several else ""
        yield from (of + sentence for sentence in _of_dataset_in_words(of_dataset, answer.within))
    if are_several:
        yield f"The whole grid cost {seconds_in_words(answer.cost)}."


def _of_dataset_in_words(answer: DatasetAnswer, within: float) -> Iterator[str]:
    if answer.tied:
        tied = (f"{row.name} ({accuracy_with_interval(row)} %)" for row in answer.tied)
        yield f"Tied with it on {answer.chosen_on}: {', '.join(tied)}."
    yield from _real(answer)
    if answer.cheapest is not None:
        yield _cheapest_in_words(answer.cheapest, within, answer)
    yield f"All of {answer.dataset} cost {seconds_in_words(answer.cost)}."
    yield _use_in_words(answer.use, answer.winner)


def _use_in_words(use: Use, winner: AnswerRow) -> str:
    if use.predict:
        return f"Use it: {use.predict}"
    if (
        winner.phase == "evaluate" and use.run_id in winner.run_ids
    ):  # of a file or a published head: it makes no weights
        return f"Run it again: {use.again}"
    return f"No weights of it are here. To make them, delete its record.json, and run: {use.again}"


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
    first = rivals[0]
    numbers = ((first.images_needed, answer.n_test), (first.seeds_needed, len(answer.winner.run_ids)))
    if any(needed is not None and there is not None and needed <= there for needed, there in numbers):
        if first.difference:
            yield f"The difference from {first.row.name} would be shown if it were the only comparison."
    elif effort := _effort(first):
        least = "" if first.difference else f" by {100 * power.SMALLEST_DIFFERENCE:g} points"
        yield f"To tell it from {first.row.name}{least} takes {effort}."


def _named(rivals: Sequence[Rival]) -> str:
    more = f" and {len(rivals) - MOST_NAMED} more" if len(rivals) > MOST_NAMED else ""
    return ", ".join(_rival_in_words(rival) for rival in rivals[:MOST_NAMED]) + more


def _rival_in_words(rival: Rival) -> str:
    if rival.difference is not None and rival.low is None:
        return f"{rival.row.name} ({points(rival.difference)} points, {rival.reason})"
    if rival.difference is None or rival.low is None or rival.high is None or rival.p_value is None:
        return f"{rival.row.name} (not compared: {rival.reason})"
    difference = in_points(rival.difference, rival.low, rival.high)
    return f"{rival.row.name} ({difference}, {_p_in_words(rival.p_value, rival.family_size)})"


def _p_in_words(p_value: float, family_size: int) -> str:
    """`p = 0.012 after Holm over 3`"""
    over = f" after Holm over {family_size}" if family_size > 1 else ""
    return f"p {p_in_words(p_value)}{over}"


def _effort(rival: Rival) -> str:
    ways = [
        (rival.seeds_needed, "seeds"),
        (rival.images_needed, "test images"),
        (rival.groups_needed, "groups of test images"),
    ]
    return " or ".join(f"about {number:,} {noun}" for number, noun in ways if number is not None)


def _cheapest_in_words(cheapest: Cheapest, within: float, answer: DatasetAnswer) -> str:
    own, best = seconds_in_words(cheapest.row.cost), seconds_in_words(answer.winner.cost)
    return (
        f"{cheapest.row.name} costs {own} in place of {best}, and is not worse by more than {100 * within:g}"
        f" {'point' if within == 0.01 else 'points'} ({_p_in_words(cheapest.p_value, cheapest.family_size)})."
    )


def seconds_in_words(cost: Cost) -> str:
    """`1.2 GPU hours`, `34 GPU seconds`; where nothing ran on a GPU, of the clock: `3.1 minutes`."""
    seconds, kind = (cost.gpu_s, "GPU ") if cost.gpu_s else (cost.wall_s, "")
    for size, unit in ((3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {kind}{unit}"
    return f"{seconds:.0f} {kind}seconds" if seconds >= 10 else f"{seconds:.1f} {kind}seconds"
