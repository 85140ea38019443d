"""How many epochs: each number with a schedule of its own length, beside one long run read where it passes it.

From variants named `epochs_<n>` and `along_one_run` of the same model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from statistics import fmean

from transfergrid.errors import DataError
from transfergrid.paths import StorePaths
from transfergrid.report.analysis.cells import percent
from transfergrid.report.analysis.comparison import Comparison
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.analysis.selection import RULE, best_first, epochs_of
from transfergrid.report.blocks import Column, Section, Table, figure, words
from transfergrid.store.metrics_log import read_metrics
from transfergrid.store.records import RunRecord

ALONG = "along_one_run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """row: trained for so many epochs, schedule and all. along_val: accuracy of the long run on val after as many, mean
    over seeds, in [0, 1]; None where there is no such run or epoch."""

    row: ComparisonRow
    epochs: int
    along_val: float | None


def lengths(comparison: Comparison) -> tuple[Length, ...]:
    """By dataset and model, shortest first; none for a grid without `along_one_run`."""
    network = attrgetter("dataset", "model")
    long_runs = {
        network(row): runs for row, runs in zip(comparison.rows, comparison.runs, strict=True) if row.variant == ALONG
    }
    lengths_by_model = []
    for key, runs in long_runs.items():
        curves = [_val_by_epoch(run, comparison.store) for run in runs]
        row_by_epochs = {epochs_of(row.variant): row for row in comparison.rows if network(row) == key}
        for epochs in sorted(epochs for epochs in row_by_epochs if epochs is not None):
            along = [curve[epochs] for curve in curves if epochs in curve]
            along_val = fmean(along) if along and len(along) == len(curves) else None
            lengths_by_model.append(Length(row=row_by_epochs[epochs], epochs=epochs, along_val=along_val))
    return tuple(lengths_by_model)


_COLUMNS: list[Column[Length]] = [
    words("dataset", "row.dataset"),
    words("model", "row.model"),
    figure("epochs", str),
    figure("own_test", percent, "row.test_accuracy", label="own schedule: test"),
    figure("own_val", percent, "row.val_accuracy", label="own schedule: val"),
    figure("along_val", percent, label="along one run: val"),
]
_ABOUT = """\
The first columns have a run of its own for each number of epochs. The last column reads one run at a constant
rate as it passes that number. A fall along one run says that its weights got worse. The first columns say whether
more epochs are worse."""


def section(comparison: Comparison) -> Section | None:
    """None for a grid without `along_one_run`."""
    rows = lengths(comparison)
    if not rows:
        return None
    table = Table("number_of_epochs_both_ways", _COLUMNS, rows)
    items = list(_best_lengths(rows))
    return Section("lengths", "Number of epochs, both ways", about=[_ABOUT], tables=[table], items=items)


def _best_lengths(lengths: Sequence[Length]) -> Iterator[str]:
    """Per dataset and model the number of epochs that is best on val, ties and ends of what was tried included."""
    for (dataset, model), group in groupby(lengths, attrgetter("row.dataset", "row.model")):
        rows = [length.row for length in group if length.row.status == "completed"]
        ordered = best_first(rows)
        if ordered:
            numbers = [str(rows[i].epochs) for i in ordered[0]]
            best = f"{numbers[0]} epochs" if len(numbers) == 1 else f"tied: {' and '.join(numbers)} epochs ({RULE})"
            yield f"{dataset} {model}, best on val: {'; '.join((best, *rows[ordered[0][0]].remarks))}."


def _val_by_epoch(run: RunRecord, store: StorePaths) -> dict[int, float]:
    """Empty where the run's metrics are gone or damaged, which leaves the column empty."""
    try:
        lines = read_metrics(store.run(run.run_id).metrics)
        with_val = [line for line in lines if line["kind"] == "epoch" and "val/accuracy" in line]
        return {int(line["epoch"]): float(line["val/accuracy"]) for line in with_val}
    except (DataError, KeyError, TypeError, ValueError):
        return {}
