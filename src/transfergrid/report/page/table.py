"""The comparison table of the page: every column of comparison.csv, as text to read and as a raw value to sort by."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transfergrid.report.analysis.cells import accuracy_with_interval, number, percent, points
from transfergrid.report.analysis.rows import COLUMNS, ComparisonRow
from transfergrid.report.analysis.statistics import p_text

LONG_WORD = 24  # characters: what is longer may break anywhere
Shown = Callable[[ComparisonRow], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """name: of comparison.csv. text: of a row's cell. in_short: whether it shows before all columns are asked for."""

    name: str
    label: str
    text: Shown
    is_number: bool
    in_short: bool


@dataclass(frozen=True, slots=True)
class Cell:
    """value: what sorting and data-value use: the raw number or text; empty for None."""

    column: Column
    text: str
    value: str

    @property
    def classes(self) -> str:
        kind = "number" if self.column.is_number else "words"
        parts = re.split(r"[\s+]", self.text)
        extra = "" if self.column.in_short else " extra"
        phrase = " phrase" if kind == "words" and len(parts) > 2 else ""
        return kind + (" long" if max(map(len, parts)) > LONG_WORD else phrase) + extra


# name -> (label, how its value is spelled). What is not listed is shown as it stands in comparison.csv.
_SPELLED: dict[str, tuple[str, Callable[[float | None], str]]] = {
    "test_accuracy_std": ("test std, points", percent),
    "ci95_low": ("95 % low, %", percent),
    "ci95_high": ("95 % high, %", percent),
    "val_accuracy": ("val,\u00a0%", percent),
    "train_accuracy": ("train,\u00a0%", percent),
    "test_loss": ("test loss, nats", lambda v: number(v, digits=4)),
    "macro_precision": ("macro precision, %", percent),
    "macro_recall": ("macro recall, %", percent),
    "macro_f1": ("macro F1, %", percent),
    "lbfgs_test_accuracy": ("L-BFGS test, %", percent),
    "knn_test_accuracy": ("kNN test, %", percent),
    "lda_test_accuracy": ("LDA test, %", percent),
    "qda_test_accuracy": ("QDA test, %", percent),
    "published_accuracy": ("published,\u00a0%", percent),
    "delta_to_published": ("ours − published, points", points),
    "delta_to_best_single": ("vs best single, points", points),
    "p_value_vs_best_single": ("p (Holm)", lambda v: "" if v is None else p_text(v, ".2g")),
    "n_seeds": ("seeds", number),
    "n_train": ("trained on, images", number),
    "epochs": ("epochs", number),
    "parameters": ("parameters", number),
    "trainable_parameters": ("trainable", number),
    "size_mb": ("size, MB", lambda v: number(v, digits=2)),
    "gflops_per_image": ("GFLOPs/image", lambda v: number(v, digits=3)),
    "images_per_s": ("images/s", number),
    "wall_s": ("wall\u00a0s", lambda v: number(v, digits=1)),
    "phase_s": ("phase\u00a0s", lambda v: number(v, digits=1)),
    "gpu_s": ("GPU\u00a0s", lambda v: number(v, digits=1)),
    "upstream_gpu_s": ("upstream GPU\u00a0s", lambda v: number(v, digits=1)),
    "n_val": ("val images", number),
    "val_loss": ("val loss, nats", lambda v: number(v, digits=4)),
    "val_balanced_accuracy": ("val balanced accuracy,\u00a0%", percent),
    "val_macro_f1": ("val macro F1,\u00a0%", percent),
    "optimizer_steps": ("optimizer steps", number),
}
_SHORT = frozenset(
    {
        *("dataset", "model", "phase", "variant", "test_accuracy", "val_accuracy", "published_accuracy"),
        *("delta_to_best_single", "verdict", "parameters", "status"),
    }
)


def columns(rows: Sequence[ComparisonRow]) -> tuple[Column, ...]:
    """All of COLUMNS in their order. In short: the time that was measured, and what tells these rows apart."""
    short = set(_SHORT) | {"gpu_s" if any(row.gpu_s for row in rows) else "wall_s"}
    short |= {"grid"} if len({row.grid for row in rows}) > 1 else set()
    short = short - {"val_accuracy"} | {f"val_{row.select_by}" for row in rows}  # what choices are by
    for name in ("protocol", "weights"):
        names = ("grid", "dataset", "model", "phase", "variant", *(n for n in ("protocol", "weights") if n in short))
        if len({tuple(getattr(row, n) for n in names) for row in rows}) < len(rows):
            short.add(name)
    # A column that is empty throughout says nothing; it stands among all columns.
    short = {name for name in short if any(getattr(row, name) not in (None, "") for row in rows)} or set(_SHORT)
    return tuple(_column(name, in_short=name in short) for name in COLUMNS)


def _column(name: str, *, in_short: bool) -> Column:
    if name == "test_accuracy":
        return Column(
            name=name, label="test,\u00a0% [95\u00a0%]", text=accuracy_with_interval, is_number=True, in_short=in_short
        )
    if name in _SPELLED:
        label, spelled = _SPELLED[name]
        return Column(
            name=name,
            label=label,
            text=lambda row: spelled(getattr(row, name)),
            is_number=True,
            in_short=in_short,
        )
    if name == "status":
        return Column(name=name, label=name, text=status_with_class, is_number=False, in_short=in_short)
    return Column(
        name=name,
        label=name.replace("_", " "),
        text=lambda row: "" if (value := getattr(row, name)) is None else str(value),
        is_number=False,
        in_short=in_short,
    )


def status_with_class(row: ComparisonRow) -> str:
    """`failed (timeout)`"""
    return f"{row.status} ({row.failure_class})" if row.failure_class else row.status


def cells(row: ComparisonRow, shown: Sequence[Column]) -> list[Cell]:
    return [Cell(column, column.text(row), _raw(getattr(row, column.name))) for column in shown]


def _raw(value: object) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)
