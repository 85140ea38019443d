"""The records of a grid -> one row per dataset x model x phase x variant x weights x protocol, over its seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any

from transfergrid.config.spelling import launch_again
from transfergrid.errors import ConfigError, DataError, one_line, remedy_of
from transfergrid.paths import StorePaths
from transfergrid.report.analysis import costs, statistics
from transfergrid.report.analysis.beyond_linear import better_than_head
from transfergrid.report.analysis.costs import Spent
from transfergrid.report.analysis.families import Answer, answers_about_joins, beside_best_parts
from transfergrid.report.analysis.predictions import StoredPredictions
from transfergrid.report.analysis.remarks import with_remarks
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.analysis.selection import METRICS
from transfergrid.report.studies import published
from transfergrid.specs import EvaluateSettings, RunSpec, SelectBy
from transfergrid.store import records
from transfergrid.store.attempts import read_spec
from transfergrid.store.records import GridEntry, RunRecord

WITHIN_POINTS = 1.0  # of grids that an older release launched


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A run that has no result, with the reason its record gives."""

    run_id: str
    failure_class: str
    error: str
    remedy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A grid's rows, its failed runs (extractions included), and what it cost.

    stored: the runs' test predictions, read once for all that is made from this comparison.
    runs: beside each row the records of its completed runs, in the order of their seeds. notes: which joins have no
    verdict and why, or one from fewer seeds than they have, or parts that are tied on val; a sentence each. joins: by a
    join's position in rows, what came out beside its best part. within_points: so much worse than the winner a cheaper
    row may be, in percentage points.
    """

    grid: str
    store: StorePaths
    stored: StoredPredictions = field(compare=False, repr=False)
    rows: tuple[ComparisonRow, ...]
    runs: tuple[tuple[RunRecord, ...], ...]
    failures: tuple[Failure, ...]
    spent: Spent
    notes: tuple[str, ...] = ()
    joins: Mapping[int, Answer] = field(default_factory=dict)
    within_points: float = WITHIN_POINTS

    @property
    def records(self) -> list[RunRecord]:
        """Of all completed runs, each once."""
        return list({record.run_id: record for runs in self.runs for record in runs}.values())


def comparison_rows(grid: str, store: StorePaths) -> list[ComparisonRow]:
    """The rows of a grid in the order it was launched. Raises as read_comparison does."""
    return list(read_comparison(grid, store).rows)


def read_comparison(
    grid: str, store: StorePaths, *, select_by: SelectBy | None = None, within_points: float | None = None
) -> Comparison:
    """select_by: the score on val that choices between rows are by. None for one = as the grid was launched.

    Raises ConfigError if the grid was never launched, DataError if one row would mix runs of different settings.
    """
    entries = _entries(grid, store)
    select_by = select_by or records.selected_by(store.grid(grid))
    found: dict[str, RunRecord] = {}
    failures: dict[str, Failure] = {}
    failed: dict[str, RunRecord] = {}  # what failed has cost something, too

    def read(run_id: str) -> None:
        if run_id in found or run_id in failures:
            return
        try:
            record = records.read_record(store.run(run_id))
        except DataError as error:
            failures[run_id] = Failure(
                run_id=run_id,
                failure_class=error.failure_class,
                error=one_line(error, with_remedy=False),
                remedy=remedy_of(error),
            )
            return
        if record is not None and record.run_id != run_id:
            another, remedy = f"its record.json belongs to {record.run_id}", "delete it and launch again"
            failures[run_id] = Failure(run_id=run_id, failure_class="data", error=another, remedy=remedy)
        elif record is not None and record.status == "completed":
            found[run_id] = record
        elif record is not None:
            failed[run_id] = record
            failures[run_id] = Failure(
                run_id=run_id,
                failure_class=record.failure_class or "code",
                error=record.error or "no reason recorded",
                remedy=record.remedy,
            )

    for entry in entries:
        read(entry.run_id)
    shared = {e.run_id for e in entries if e.phase == "extract"}
    shared |= {needed.run_id for r in list(found.values()) for needed in r.spec.extractions}
    for run_id in sorted(shared):
        read(run_id)
    groups = [_by_seed(group) for group in _groups(grid, store, entries, found)]
    stored = StoredPredictions(store)
    spent = costs.spent_on([entry.run_id for entry in entries], found | failed, store)
    rows = [replace(_row(grid, group, found, failures, stored, spent), select_by=select_by) for group in groups]
    runs = [tuple(found[e.run_id] for e in group if e.run_id in found) for group in groups]
    answers = answers_about_joins(rows, runs, stored)
    rows, notes = beside_best_parts(rows, answers)
    return Comparison(
        grid=grid,
        store=store,
        stored=stored,
        rows=tuple(with_remarks(rows, runs)),
        runs=tuple(runs),
        failures=tuple(failures.values()),
        spent=spent,
        notes=tuple(notes),
        joins={i: answer for (i, _), answer in answers.items()},
        within_points=_within_points(grid, store) if within_points is None else within_points,
    )


def _within_points(grid: str, store: StorePaths) -> float:
    launched = records.launched_with(store.grid(grid))
    return WITHIN_POINTS if launched is None else launched.report_within


def _entries(grid: str, store: StorePaths) -> list[GridEntry]:
    try:
        return records.read_grid(store.grid(grid))
    except FileNotFoundError:
        folder = store.grid(grid).parent
        launched = ", ".join(sorted(p.stem for p in folder.glob("*.json"))) or "none"
        raise ConfigError(
            f"grid {grid!r} was never launched into {store.root}; launched there: {launched}; "
            f"next: {launch_again(grid, store)}"
        ) from None


# --------------------------------------------------------------------------------------------------------------- rows
def _groups(
    grid: str, store: StorePaths, entries: Sequence[GridEntry], found: Mapping[str, RunRecord]
) -> list[list[GridEntry]]:
    """The entries of each row, without extractions. Raises DataError where one row would mix settings."""
    groups: dict[tuple[str, ...], list[GridEntry]] = {}
    for e in dict.fromkeys(entries):
        if e.phase != "extract":
            groups.setdefault((e.dataset, e.model, e.phase, e.variant, e.weights, e.protocol), []).append(e)
    for key, group in groups.items():
        specs = {_without_seed(found[e.run_id].spec) for e in group if e.run_id in found}
        # An evaluation has no seed of its own: those of a row differ in the run that each evaluates.
        if len(specs) > 1 or len({e.run_id if e.seed is None else e.seed for e in group}) < len(group):
            raise DataError(
                f"grid {grid!r}: the row {' '.join(part for part in key if part)} holds runs of different settings "
                f"({', '.join(e.run_id for e in group)}); next: {launch_again(grid, store)}"
            )
    return list(groups.values())


def _by_seed(group: Sequence[GridEntry]) -> list[GridEntry]:
    return sorted(group, key=lambda e: -1 if e.seed is None else e.seed)


def _without_seed(spec: RunSpec) -> RunSpec:
    # What a run is made from has the run's seed in its id, so ids of needs differ where settings do not.
    settings = spec.settings
    if isinstance(settings, EvaluateSettings) and spec.needs:
        settings = replace(settings, source="run")
    return replace(spec, seed=None, needs=(), settings=settings)


def _row(
    grid: str,
    group: Sequence[GridEntry],
    found: Mapping[str, RunRecord],
    failures: Mapping[str, Failure],
    stored: StoredPredictions,
    spent: Spent,
) -> ComparisonRow:
    first = group[0]
    done = [found[e.run_id] for e in group if e.run_id in found]
    failed = [failures[e.run_id] for e in group if e.run_id in failures]
    row = ComparisonRow(
        grid=grid,
        dataset=first.dataset,
        model=first.model,
        phase=first.phase,
        variant=first.variant,
        weights=first.weights,
        protocol=first.protocol,
        n_seeds=len(done),
        n_launched=len(group),
        status=_status(total=len(group), completed=len(done), failed=len(failed)),
        failure_class="; ".join(dict.fromkeys(f.failure_class for f in failed)) or None,
    )
    return _beside_published(_with_numbers(row, done, stored, spent), done, stored)


def _status(*, total: int, completed: int, failed: int) -> str:
    if completed == total:
        return "completed"
    if completed:
        return f"{completed}/{total} completed"
    return "failed" if failed else "missing"


def _with_numbers(
    row: ComparisonRow, done: Sequence[RunRecord], stored: StoredPredictions, spent: Spent
) -> ComparisonRow:
    if not done:
        return row

    def metric(name: str) -> float | None:
        return _mean([r.metrics.get(name) for r in done])

    def on_val(name: str) -> float | None:
        # Under `published` nothing is chosen on val, so a number there would only mislead.
        return None if row.protocol == "published" else metric(f"val_{name}")

    def mean_of(read: Callable[[RunRecord], float | None]) -> float | None:
        return _mean([read(r) for r in done])

    test_accuracy = metric("test_accuracy")
    accuracies = [] if test_accuracy is None else [r.metrics["test_accuracy"] for r in done]
    low, high = _interval(accuracies, done[0], stored)
    return replace(
        row,
        n_train=done[0].n_train,
        test_accuracy=test_accuracy,
        test_accuracy_std=stdev(accuracies) if len(accuracies) > 1 else None,
        ci95_low=low,
        ci95_high=high,
        val_accuracy=on_val("accuracy"),
        train_accuracy=metric("train_accuracy"),
        test_loss=metric("test_loss"),
        macro_precision=metric("test_macro_precision"),
        macro_recall=metric("test_macro_recall"),
        macro_f1=metric("test_macro_f1"),
        lbfgs_test_accuracy=metric("lbfgs_test_accuracy"),
        knn_test_accuracy=metric("knn_test_accuracy"),
        lda_test_accuracy=metric("lda_test_accuracy"),
        qda_test_accuracy=metric("qda_test_accuracy"),
        better_than_head=better_than_head(done),
        epochs=done[0].epochs,
        parameters=done[0].parameters,
        trainable_parameters=done[0].trainable_parameters,
        size_mb=done[0].size_mb,
        gflops_per_image=done[0].gflops_per_image,
        images_per_s=mean_of(lambda r: r.images_per_s),
        wall_s=spent.mean([r.run_id for r in done], "wall_s"),
        phase_s=mean_of(lambda r: r.phase_s),
        gpu_s=spent.mean([r.run_id for r in done], "gpu_s"),
        upstream_gpu_s=spent.upstream_gpu_s([r.run_id for r in done]),
        n_val=None if row.protocol == "published" else _n_val(done[0], stored),
        val_loss=on_val("loss"),
        val_balanced_accuracy=on_val(METRICS["balanced_accuracy"]),
        val_macro_f1=on_val(METRICS["macro_f1"]),
        optimizer_steps=_count(done[0], "optimizer_steps"),
    )


def _n_val(record: RunRecord, stored: StoredPredictions) -> int | None:
    stated = _count(record, "n_val")
    return stored.n_val(record.run_id) if stated is None else stated


def _count(record: RunRecord, name: str) -> int | None:
    """A whole number among the details; None where the run stated none."""
    stated: Any = record.details.get(name)
    return stated if isinstance(stated, int) and not isinstance(stated, bool) else None


def _mean(values: Sequence[float | None]) -> float | None:
    """None unless every completed seed has the value: a mean over some of them would not say which."""
    known = [v for v in values if v is not None]
    return fmean(known) if known and len(known) == len(values) else None


def _interval(
    accuracies: Sequence[float], first: RunRecord, stored: StoredPredictions
) -> tuple[float | None, float | None]:
    if len(set(accuracies)) > 1:  # where all seeds agree, what is left is chance among images
        low, high = statistics.t_interval(accuracies)
        return max(0.0, low), min(1.0, high)
    n_test = _n_test(first, stored) if accuracies else None
    return statistics.wilson(round(accuracies[0] * n_test), n_test) if n_test else (None, None)


def _n_test(record: RunRecord, stored: StoredPredictions) -> int | None:
    """How many test images an accuracy rests on: the record's `n_test`, else the length of the stored predictions."""
    stated: Any = record.details.get("n_test")
    if stated is not None:
        return int(stated)
    try:
        return len(stored.of(record.run_id).index_N)
    except DataError:
        return None


# ------------------------------------------------------------------------------------------------- beside other figures
def _beside_published(row: ComparisonRow, done: Sequence[RunRecord], stored: StoredPredictions) -> ComparisonRow:
    figure = published.lookup(grid=row.grid, dataset=row.dataset, model=row.model, phase=row.phase, variant=row.variant)
    if figure is None:
        return row
    row = replace(row, published_accuracy=figure.value, published_rule=figure.rule)
    if not done:
        return row
    names = published.differs(figure, done[0].spec, probe=_probe_of(done[0].spec, stored.store))
    comparable = row.test_accuracy is not None and published.NO_MATTER.issuperset(names)
    return replace(
        row,
        published_differs=names,
        delta_to_published=row.test_accuracy - figure.value if comparable and row.test_accuracy is not None else None,
    )


def _probe_of(spec: RunSpec, store: StorePaths) -> RunSpec | None:
    """What a fine-tuning started from; None where it had a random head, or nobody knows any more."""
    if spec.phase != "finetune" or not spec.needs:
        return None
    return read_spec(store.run(spec.needs[0]))
