"""The columns of the comparison table, each defined once: every output picks from them.

A column that is added to ComparisonRow appears in comparison.csv, in W&B and on the page. Give it a label here where
its name alone would not do, and add its name to the tables that shall show it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import TypeVar

from transfergrid.report.analysis.cells import accuracy_with_interval, number, percent, points
from transfergrid.report.analysis.families import Answer
from transfergrid.report.analysis.remarks import UNDERSTATES, footnotes
from transfergrid.report.analysis.rows import COLUMNS, ComparisonRow, names_of
from transfergrid.report.analysis.statistics import NotJudged, PairedComparison, p_text
from transfergrid.report.analysis.use import KINDS
from transfergrid.report.blocks import Column, Table, Value, figure, words

Row = TypeVar("Row")
USE_MEANS = "ms is the median for one image, images/s are of the fastest batch"
HEADS = {"knn": "kNN", "lda": "LDA", "qda": "QDA"}


def _rounded(digits: int) -> Callable[[float | None], str]:
    return lambda value: number(value, digits=digits)


def significant(value: float | None) -> str:
    """Three digits, of large numbers all."""
    return "" if value is None else f"{value:#.3g}".rstrip(".") if value < 1000 else number(value)


def _p(value: float | None) -> str:
    return "" if value is None else p_text(value, ".2g")


# name -> (label, unit, how its value is written)
_FIGURES: Mapping[str, tuple[str, str, Callable[[float | None], str]]] = {
    "n_seeds": ("seeds", "", number),
    "n_train": ("trained on", "images", number),
    "test_accuracy_std": ("test std", "points", percent),
    "ci95_low": ("95 % low", "%", percent),
    "ci95_high": ("95 % high", "%", percent),
    "val_accuracy": ("val", "%", percent),
    "train_accuracy": ("train", "%", percent),
    "test_loss": ("test loss", "nats", _rounded(4)),
    "macro_precision": ("macro precision", "%", percent),
    "macro_recall": ("macro recall", "%", percent),
    "macro_f1": ("macro F1", "%", percent),
    "lbfgs_test_accuracy": ("L-BFGS test", "%", percent),
    "published_accuracy": ("published", "%", percent),
    "delta_to_published": ("ours - published", "points", points),
    "delta_to_best_single": ("vs best single", "points", points),
    "p_value_vs_best_single": ("p (Holm)", "", _p),
    "epochs": ("epochs", "", number),
    "parameters": ("parameters", "", number),
    "trainable_parameters": ("trainable", "", number),
    "size_mb": ("size", "MB", _rounded(2)),
    "gflops_per_image": ("GFLOPs/image", "", _rounded(3)),
    "images_per_s": ("images/s", "", number),
    "wall_s": ("own wall\u00a0s", "", _rounded(1)),
    "phase_s": ("phase\u00a0s", "", _rounded(1)),
    "gpu_s": ("own GPU\u00a0s", "", _rounded(1)),
    "upstream_gpu_s": ("upstream GPU\u00a0s", "", _rounded(1)),
    "full_wall_s": ("full wall\u00a0s", "", _rounded(1)),
    "full_gpu_s": ("full GPU\u00a0s", "", _rounded(1)),
    "n_val": ("val images", "", number),
    "val_loss": ("val loss", "nats", _rounded(4)),
    "val_balanced_accuracy": ("val balanced accuracy", "%", percent),
    "val_macro_f1": ("val macro F1", "%", percent),
    "optimizer_steps": ("optimizer steps", "", number),
    "test_groups": ("groups", "", number),
    "cpu_latency_ms": ("CPU\u00a0ms", "", significant),
    "cpu_images_per_s": ("CPU images/s", "", number),
    "cpu_memory_mib": ("CPU memory", "MiB", _rounded(1)),
    "gpu_latency_ms": ("GPU\u00a0ms", "", significant),
    "gpu_images_per_s": ("GPU images/s", "", number),
    "gpu_memory_mib": ("GPU memory", "MiB", _rounded(1)),
    "wilson95_low": ("Wilson 95 % low", "%", percent),
    "wilson95_high": ("Wilson 95 % high", "%", percent),
}


def _column(name: str) -> Column[ComparisonRow]:
    if name == "test_accuracy":
        return test_accuracy("test", accuracy_with_interval)
    if name in _FIGURES:
        label, unit, spell = _FIGURES[name]
        return figure(name, spell, label=label, unit=unit)
    if name == "status":
        return figure(name, text=status_with_class, is_number=False)
    return words(name, lambda row: row.cell(name), label=name.replace("_", " "))


def test_accuracy(label: str, text: Callable[[ComparisonRow], str]) -> Column[ComparisonRow]:
    """With its interval; a row's footnote marks stand here."""
    more = {name: attrgetter(name) for name in ("ci95_low", "ci95_high")}
    return figure("test_accuracy", text=text, label=label, unit="%", beside="[95 %]", is_marked=True, more=more)


def _of_head(name: str, label: str) -> Column[ComparisonRow]:
    """Test accuracy of another head, marked where it says that a linear head understates the features."""

    def text(row: ComparisonRow) -> str:
        mark = f" {UNDERSTATES}" if name in row.better_than_head else ""
        return percent(getattr(row, f"{name}_test_accuracy")) + mark

    return figure(f"{name}_test_accuracy", text=text, label=f"{label} test", unit="%")


def status_with_class(row: ComparisonRow) -> str:
    """`failed (timeout)`"""
    return f"{row.status} ({row.failure_class})" if row.failure_class else row.status


COMPARISON: Mapping[str, Column[ComparisonRow]] = {name: _column(name) for name in COLUMNS} | {
    f"{name}_test_accuracy": _of_head(name, label) for name, label in HEADS.items()
}


def columns_of(rows: Sequence[ComparisonRow]) -> dict[str, Column[ComparisonRow]]:
    """Those of comparison.csv for these rows, what belongs to the interval behind it."""
    of_groups = {column.name: column for column in wilson(rows)}
    others = {name: COMPARISON.get(name) or _column(name) for name in names_of(rows) if name not in of_groups}
    behind = of_groups | {column.name: column for column in use(rows)}  # the accuracy
    columns: dict[str, Column[ComparisonRow]] = {}
    for name, column in others.items():
        columns |= {name: column, **(behind if name == "test_accuracy" else {})}
    return columns


def wilson(rows: Sequence[ComparisonRow]) -> list[Column[ComparisonRow]]:
    """How many groups the test images come from, and Wilson's interval for all images: where there are groups."""
    if not any(row.test_groups for row in rows):
        return []
    more = {"wilson95_high": attrgetter("wilson95_high")}
    column: Column[ComparisonRow] = figure("wilson95_low", str, label="Wilson", beside="[95 %]", unit="%", more=more)
    return [_column("test_groups"), replace(column, text=_wilson)]


def _wilson(row: ComparisonRow) -> str:
    return "" if row.wilson95_low is None else f"[{percent(row.wilson95_low)}, {percent(row.wilson95_high)}]"


def use(rows: Sequence[ComparisonRow]) -> list[Column[ComparisonRow]]:
    """What using a network costs, where some row was measured: latency of one image, images per second of the fastest
    batch. Where a kind of device is not one and the same, a number behind the latency names it."""
    columns = []
    for kind in KINDS:
        places = _places(rows, kind)
        latency, throughput = _column(f"{kind}_latency_ms"), _column(f"{kind}_images_per_s")
        if len(places) > 1:
            latency = replace(latency, text=partial(_with_place, latency, places))
        columns += [latency, throughput] if places else []
    return columns


def use_notes(rows: Sequence[ComparisonRow]) -> list[tuple[str, str]]:
    """On what the columns of `use` were measured: (mark, words)."""
    notes = []
    for kind in KINDS:
        places = _places(rows, kind)
        for i, place in enumerate(places, start=1):
            loads = [cost.load for row in rows for cost in row.use if cost.place == place and cost.is_beside_others]
            beside = f"; other work ran beside it (load up to {max(loads):.0f})" if loads else ""
            notes.append(
                (f"{kind.upper()} ({i})" if len(places) > 1 else kind.upper(), f"{place}{beside}; {USE_MEANS}")
            )
    return notes


def _places(rows: Sequence[ComparisonRow], kind: str) -> list[str]:
    return list(dict.fromkeys(cost.place for row in rows for cost in row.use if cost.kind == kind))


def _with_place(column: Column[ComparisonRow], places: Sequence[str], row: ComparisonRow) -> str:
    place = row.cell(column.name.replace("latency_ms", "measured_on"))
    return f"{column.text(row)} ({places.index(str(place)) + 1})" if place is not None else ""


def pick(names: str, **labels: str) -> list[Column[ComparisonRow]]:
    """Columns of the comparison by name, with spaces between; labels: name -> what shall stand above it instead."""
    columns = [COMPARISON[name] for name in names.split()]
    return [replace(c, label=labels[c.name], beside="") if c.name in labels else c for c in columns]


def of_rows(name: str, columns: Sequence[Column[ComparisonRow]], rows: Sequence[ComparisonRow]) -> Table[ComparisonRow]:
    """A table of comparison rows, with their footnotes."""
    marks, notes = footnotes(rows)
    is_measured = any(column.name in ("cpu_latency_ms", "gpu_latency_ms") for column in columns)
    return Table(name, columns, rows, marks=marks, notes=[*notes, *(use_notes(rows) if is_measured else ())])


def difference(name: str, label: str, read: Callable[[Row], PairedComparison | NotJudged | None]) -> Column[Row]:
    """`+0.03 [-0.05, +0.11]`, in percentage points; nothing where no comparison could be made."""

    def fact(field: str) -> Callable[[Row], Value]:
        return lambda row: getattr(read(row), field, None)

    def text(row: Row) -> str:
        result = read(row)
        if isinstance(result, NotJudged):
            return "not judged"
        return "" if result is None else f"{points(result.difference)} [{points(result.low)}, {points(result.high)}]"

    more = {f"{name}_low": fact("low"), f"{name}_high": fact("high")}
    return figure(name, value=fact("difference"), text=text, label=label, beside="[95 %]", more=more)


def adjusted_p(read: Callable[[Row], Answer]) -> Column[Row]:
    """p adjusted by Holm, and over how many comparisons; nothing where the comparison could not be made."""
    return figure(
        "p_holm",
        value=lambda row: read(row).p_adjusted,
        text=lambda row: read(row).p_text,
        label="p (Holm)",
        more={"family_size": lambda row: read(row).family_size},
    )
