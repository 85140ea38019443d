"""The records of a grid -> one row per dataset x model x phase x variant x weights x protocol, over its seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from operator import attrgetter
from statistics import fmean, stdev
from typing import Any, TypeVar

from transfergrid.config.spelling import launch_again, never_launched
from transfergrid.errors import ConfigError, DataError, next_step, one_line, remedy_of
from transfergrid.paths import StorePaths
from transfergrid.report.analysis import costs, statistics
from transfergrid.report.analysis.costs import Spent
from transfergrid.report.analysis.families import Answer, answers_about_joins, beside_best_parts
from transfergrid.report.analysis.grouped import with_groups
from transfergrid.report.analysis.predictions import StoredPredictions
from transfergrid.report.analysis.remarks import with_remarks
from transfergrid.report.analysis.rows import NAMES, ComparisonRow
from transfergrid.report.analysis.use import as_columns, use_of_runs
from transfergrid.report.studies import published
from transfergrid.specs import EvaluateSettings, RunSpec, SelectBy
from transfergrid.store import records
from transfergrid.store.attempts import read_spec
from transfergrid.store.records import GridEntry, RunRecord
from transfergrid.training.evaluation import mcnemar_exact

# Column -> the metric of which it is the mean. Those on val are empty under `published`: nothing is chosen there, so a
# number would only mislead.
_MEANS = {
    **{name: name for name in ("test_accuracy", "val_accuracy", "train_accuracy", "test_loss", "val_loss")},
    **{name: name for name in ("lbfgs_test_accuracy", "knn_test_accuracy", "lda_test_accuracy", "qda_test_accuracy")},
    **{name: f"test_{name}" for name in ("macro_precision", "macro_recall", "macro_f1")},
    "val_macro_f1": "val_macro_f1",
    "val_balanced_accuracy": "val_macro_recall",  # balanced accuracy is the mean recall over the classes
}
# Columns that are one for all seeds.
_ALIKE = ("n_train", "epochs", "parameters", "trainable_parameters", "size_mb", "gflops_per_image")

Found = TypeVar("Found")
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
    found: dict[object, Any] = field(init=False, compare=False, repr=False, default_factory=dict)  # see `once`

    @property
    def records(self) -> list[RunRecord]:
        """Of all completed runs, each once."""
        return list({record.run_id: record for runs in self.runs for record in runs}.values())


def once(find: Callable[[Comparison], Found]) -> Callable[[Comparison], Found]:
    """What is found about a comparison is kept on it, and found once. One that was `replace`d has nothing yet."""

    @wraps(find)
    def kept(comparison: Comparison) -> Found:
        if find not in comparison.found:
            comparison.found[find] = find(comparison)
        found: Found = comparison.found[find]
        return found

    return kept


def comparison_rows(grid: str, store: StorePaths) -> list[ComparisonRow]:
    """The rows of a grid in the order it was launched. Raises as read_comparison does."""
    return list(read_comparison(grid, store).rows)


def read_comparison(
    grid: str,
    store: StorePaths,
    *,
    select_by: SelectBy | None = None,
    within_points: float | None = None,
    stored: StoredPredictions | None = None,
) -> Comparison:
    """select_by: the score on val that choices between rows are by. None for one = as the grid was launched. stored:
    of this store, which several grids of one report share.

    Raises ConfigError if the grid was never launched, DataError if one row would mix runs of different settings.
    """
    try:
        entries = records.read_grid(store.grid(grid))
    except FileNotFoundError:
        raise ConfigError(never_launched(grid, store), remedy=f"next: {launch_again(grid, store)}") from None
    select_by = select_by or records.selected_by(store.grid(grid))
    outcomes = {entry.run_id: _outcome(entry.run_id, store) for entry in entries}
    completed = {i: r for i, r in outcomes.items() if isinstance(r, RunRecord) and r.status == "completed"}
    extractions = {run.run_id for record in completed.values() for run in record.spec.extractions}
    outcomes |= {run_id: _outcome(run_id, store) for run_id in sorted(extractions - outcomes.keys())}
    failures = {run_id: failure for run_id, outcome in outcomes.items() if (failure := _failure(outcome))}
    groups = _groups(grid, store, entries, completed)
    runs = [tuple(completed[e.run_id] for e in group if e.run_id in completed) for group in groups]
    stored = stored or StoredPredictions(store)
    # What failed has cost something, too.
    run_records = {run_id: outcome for run_id, outcome in outcomes.items() if isinstance(outcome, RunRecord)}
    spent = costs.spent_on([entry.run_id for entry in entries], run_records, store)
    rows = []
    for group, row_runs in zip(groups, runs, strict=True):
        row = _row(grid, group, row_runs, [failures[e.run_id] for e in group if e.run_id in failures], select_by)
        row = replace(row, **as_columns(use_of_runs(row_runs, store)))
        row = with_groups(_with_numbers(row, row_runs, stored, spent), row_runs, stored)
        rows.append(_beside_published(row, row_runs, stored))
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


# --------------------------------------------------------------------------------------------------- records, failures
def _outcome(run_id: str, store: StorePaths) -> RunRecord | Failure | None:
    """The record, whatever it says; why it cannot be used; None where there is none yet."""
    try:
        record = records.read_record(store.run(run_id))
    except DataError as error:
        reason = one_line(error, with_remedy=False)
        return Failure(run_id=run_id, failure_class=error.failure_class, error=reason, remedy=remedy_of(error))
    if record is not None and record.run_id != run_id:
        reason, remedy = f"its record.json belongs to {record.run_id}", "delete it and launch again"
        return Failure(run_id=run_id, failure_class="data", error=reason, remedy=remedy)
    return record


def _failure(outcome: RunRecord | Failure | None) -> Failure | None:
    if not isinstance(outcome, RunRecord) or outcome.status == "completed":
        return outcome if isinstance(outcome, Failure) else None
    return Failure(
        run_id=outcome.run_id,
        failure_class=outcome.failure_class or "code",
        error=outcome.error or "no reason recorded",
        remedy=outcome.remedy,
    )


def failure_lines(failures: Sequence[Failure]) -> list[str]:
    """Runs, class, reason and next step of those that end alike; in the order of the first run that ended so."""
    runs_by_reason: dict[tuple[str, str, str], list[str]] = {}
    for failure in failures:
        step = next_step(failure.failure_class, failure.remedy)
        key = (failure.failure_class, " ".join(failure.error.split()), step)
        runs_by_reason.setdefault(key, []).append(f"`{failure.run_id}`")
    return [
        f"{', '.join(run_ids)}: {failure_class}: {reason}." + (f" Next: {step}." if step else "")
        for (failure_class, reason, step), run_ids in runs_by_reason.items()
    ]


# --------------------------------------------------------------------------------------------------------------- rows
def _groups(
    grid: str, store: StorePaths, entries: Sequence[GridEntry], completed: Mapping[str, RunRecord]
) -> list[list[GridEntry]]:
    """The entries of each row by seed, without extractions. Raises DataError where one row would mix settings."""
    groups: dict[tuple[str, ...], list[GridEntry]] = {}
    for e in dict.fromkeys(entries):
        if e.phase != "extract":
            groups.setdefault(attrgetter(*NAMES.split())(e), []).append(e)
    for key, group in groups.items():
        specs = {_without_seed(completed[e.run_id].spec) for e in group if e.run_id in completed}
        # An evaluation has no seed of its own: those of a row differ in the run that each evaluates.
        if len(specs) > 1 or len({e.run_id if e.seed is None else e.seed for e in group}) < len(group):
            raise DataError(
                f"grid {grid!r}: the row {' '.join(part for part in key if part)} holds runs of different settings "
                f"({', '.join(e.run_id for e in group)}); next: {launch_again(grid, store)}"
            )
    return [sorted(group, key=lambda e: -1 if e.seed is None else e.seed) for group in groups.values()]


def _without_seed(spec: RunSpec) -> RunSpec:
    # What a run is made from has the run's seed in its id, so ids of needs differ where settings do not.
    settings = spec.settings
    if isinstance(settings, EvaluateSettings) and spec.needs:
        settings = replace(settings, source="run")
    return replace(spec, seed=None, needs=(), settings=settings)


def _row(
    grid: str, group: Sequence[GridEntry], runs: Sequence[RunRecord], failures: Sequence[Failure], select_by: SelectBy
) -> ComparisonRow:
    """What it is, without numbers."""
    names: dict[str, Any] = {name: getattr(group[0], name) for name in NAMES.split()}
    status = "failed" if failures else "missing"
    if runs:
        status = "completed" if len(runs) == len(group) else f"{len(runs)}/{len(group)} completed"
    return ComparisonRow(
        grid=grid,
        **names,
        n_seeds=len(runs),
        n_launched=len(group),
        status=status,
        failure_class="; ".join(dict.fromkeys(failure.failure_class for failure in failures)) or None,
        select_by=select_by,
    )


def _with_numbers(
    row: ComparisonRow, runs: Sequence[RunRecord], stored: StoredPredictions, spent: Spent
) -> ComparisonRow:
    if not runs:
        return row
    first, has_val = runs[0], row.protocol != "published"
    means: dict[str, Any] = {
        column: _mean([record.metrics.get(metric) for record in runs])
        for column, metric in _MEANS.items()
        if has_val or not metric.startswith("val_")
    }
    alike: dict[str, Any] = {name: getattr(first, name) for name in _ALIKE}
    accuracies = [] if means["test_accuracy"] is None else [record.metrics["test_accuracy"] for record in runs]
    images = _images(first, "test", stored)
    is_known = accuracies and (images or len(set(accuracies)) > 1)  # seeds that differ need no number of images
    low, high = statistics.accuracy_interval(accuracies, images=images or 0) if is_known else (None, None)
    return replace(
        row,
        **means,
        **alike,
        test_accuracy_std=stdev(accuracies) if len(accuracies) > 1 else None,
        ci95_low=low,
        ci95_high=high,
        better_than_head=better_than_head(runs),
        images_per_s=_mean([record.images_per_s for record in runs]),
        **spent.means(record.run_id for record in runs),
        phase_s=_mean([record.phase_s for record in runs]),
        n_val=_images(first, "val", stored) if has_val else None,
        optimizer_steps=_count(first, "optimizer_steps"),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """None unless every completed seed has the value: a mean over some of them would not say which."""
    numbers = [v for v in values if v is not None]
    return fmean(numbers) if numbers and len(numbers) == len(values) else None


def _images(record: RunRecord, split: str, stored: StoredPredictions) -> int | None:
    """How many val or test images a score rests on: as the record states, else as many as have a stored prediction."""
    number = _count(record, f"n_{split}")
    return stored.sizes(record.run_id).get(split) if number is None else number


def _count(record: RunRecord, name: str) -> int | None:
    """A whole number among the details; None where the run stated none."""
    number: Any = record.details.get(name)
    return number if isinstance(number, int) and not isinstance(number, bool) else None


def better_than_head(runs: Sequence[RunRecord]) -> tuple[str, ...]:
    """Other heads (`knn`, `lda`, `qda`) that have more test images right than the probe's own in every run of a row.

    By the exact McNemar test at 5 %, or by group where there are any, Holm-adjusted within a run. It decides nothing
    but the mark beside the row.
    """
    names_by_run = []
    for record in runs:
        references: Mapping[str, Mapping[str, Any]] = record.details.get("references", {})
        counts = [(other["only_right"], other["only_head_right"]) for other in references.values()]
        others = zip(references.values(), counts, strict=True)
        adjusted = statistics.holm([other.get("p_by_group", mcnemar_exact(*pair)) for other, pair in others])
        better = [
            name
            for name, (only_right, only_head), p in zip(references, counts, adjusted, strict=True)
            if only_right > only_head and p is not None and p < 1 - statistics.CONFIDENCE
        ]
        names_by_run.append(better)
    return tuple(name for name in names_by_run[0] if all(name in names for names in names_by_run))


# ------------------------------------------------------------------------------------------------- beside other figures
def _beside_published(row: ComparisonRow, runs: Sequence[RunRecord], stored: StoredPredictions) -> ComparisonRow:
    figure = published.lookup(*published.KEY(row))
    if figure is None:
        return row
    row = replace(row, published_accuracy=figure.value, published_rule=figure.rule)
    if not runs:
        return row
    spec = runs[0].spec
    # None where a fine-tuning had a random head, or nobody knows any more what it started from.
    probe = read_spec(stored.store.run(spec.needs[0])) if spec.phase == "finetune" and spec.needs else None
    names = published.differs(figure, spec, probe=probe)
    comparable = row.test_accuracy is not None and published.NO_MATTER.issuperset(names)
    delta = row.test_accuracy - figure.value if comparable and row.test_accuracy is not None else None
    return replace(row, published_differs=names, delta_to_published=delta)
