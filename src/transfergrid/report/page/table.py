"""Tables as the page shows them: what the template needs to know of columns and cells."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transfergrid.report.analysis.rows import ComparisonRow, seconds_of
from transfergrid.report.blocks import Column, Table

LONG_WORD = 24  # characters: what is longer may break anywhere
SENTENCE = 40  # characters; a column with a longer cell needs room
FOLDED = ("study", "variant", "weights", "protocol")  # columns that leave their table where all lines say the same
_SHORT = frozenset(
    "dataset model phase variant test_accuracy val_accuracy published_accuracy delta_to_best_single verdict parameters"
    " status".split()
)


@dataclass(frozen=True, slots=True)
class Cell:
    """value: what sorting and data-value use: the raw number or text; empty for None. in_short: whether it shows before
    all columns are asked for."""

    column: Column[ComparisonRow]
    text: str
    value: str
    in_short: bool

    @property
    def classes(self) -> str:
        kind = "number" if self.column.is_number else "words"
        parts = re.split(r"[\s+]", self.text)
        extra = "" if self.in_short else " extra"
        phrase = " phrase" if kind == "words" and len(parts) > 2 else ""
        return kind + (" long" if max(map(len, parts)) > LONG_WORD else phrase) + extra


def short_names(rows: Sequence[ComparisonRow]) -> frozenset[str]:
    """Columns that show at first: the time that was measured, and what tells these rows apart, are among them."""
    short = set(_SHORT) | {seconds_of(rows)}
    if any(row.test_groups for row in rows):
        short = short - {"parameters"} | {"test_groups", "wilson95_low"}
    if any(row.use for row in rows):
        short = short - {"parameters"} | {"cpu_latency_ms", "gpu_latency_ms"}
    short |= {"grid"} if len({row.grid for row in rows}) > 1 else set()
    short = short - {"val_accuracy"} | {f"val_{row.select_by}" for row in rows}  # what choices are by
    short -= {"parameters"} if "grid" in short else set()  # at 1280 pixels nothing is cut off
    for name in ("protocol", "weights"):
        names = ["grid", "dataset", "model", "phase", "variant", *(n for n in ("protocol", "weights") if n in short)]
        if len({tuple(getattr(row, n) for n in names) for row in rows}) < len(rows):
            short.add(name)
    # A column that is empty throughout says nothing; it stands among all columns.
    return frozenset(name for name in short if any(row.cell(name) not in (None, "") for row in rows)) or _SHORT


def cells_of(row: ComparisonRow, columns: Mapping[str, Column[ComparisonRow]], short: frozenset[str]) -> list[Cell]:
    """Of all columns of comparison.csv, in its order."""
    return [Cell(c, c.text(row), _raw(row.cell(name)), name in short) for name, c in columns.items()]


def _raw(value: object) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


# --------------------------------------------------------------------------------------------- tables of the sections
@dataclass(frozen=True, slots=True)
class PageTable:
    """lines: of (text, CSS class). same: what holds for all lines and stands in no column: `weights random`."""

    header: list[tuple[str, str]]
    lines: list[list[tuple[str, str]]]
    same: str


def page_table(table: Table[Any]) -> PageTable:
    """Without the columns of FOLDED whose cells are all alike."""
    constant: dict[str, str] = {}
    for column in table.columns:
        texts = {column.text(row) for row in table.rows}
        if column.name in FOLDED and len(texts) == 1:
            constant[column.name] = texts.pop()
    table = table.without(list(constant))
    lines = table.texts()
    wide = [max(map(len, texts)) > SENTENCE for texts in zip(*lines, strict=True)]
    return PageTable(
        header=[(column.heading, "number" if column.is_number else "") for column in table.columns],
        lines=[
            [(text, _class(text, c, is_wide)) for text, c, is_wide in zip(line, table.columns, wide, strict=True)]
            for line in lines
        ],
        same=", ".join(f"{name} {text}" for name, text in constant.items() if text),
    )


def _class(text: str, column: Column[Any], is_wide: bool) -> str:
    if column.is_number:
        return "number"
    return "wide" if is_wide else "phrase" if text.count(" ") >= 2 else ""
