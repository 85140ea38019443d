"""What a report says, as objects: sections that hold tables and sentences, and findings about single runs.

The modules of `analysis` build them. Five renderers write them down: cli/tables.py (terminal), report/markdown.py,
report/latex.py, page/ (HTML) and report/wandb_report.py (W&B). None of them reads text back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter, itemgetter
from typing import Any, Generic, TypeVar, cast

Value = str | int | float | None
Row = TypeVar("Row")
Other = TypeVar("Other")


@dataclass(frozen=True, slots=True, kw_only=True)
class Column(Generic[Row]):
    """One column of a table whose lines are of type Row.

    name: of the fact, as comparison.csv and W&B call it. label: above the column, without `unit` and without what the
    brackets hold (`beside`: `[95 %]`). value: the fact in full, for sorting and for W&B. text: as a person reads it.
    is_number: stands to the right. is_marked: the footnote marks of a line stand in this column. more: further facts
    that the text tells, by their names; in W&B each is a column of its own.
    """

    name: str
    label: str
    value: Callable[[Row], Value]
    text: Callable[[Row], str]
    unit: str = ""
    beside: str = ""
    is_number: bool = False
    is_marked: bool = False
    more: Mapping[str, Callable[[Row], Value]] = field(default_factory=dict)

    @property
    def heading(self) -> str:
        """`test [95 %]`, with common spaces"""
        return f"{self.label} {self.beside}".strip().replace("\u00a0", " ")

    @property
    def heading_with_unit(self) -> str:
        """`test, % [95 %]`; a sign such as `%` stays on the line of its label, a word may leave it."""
        space = "\u00a0" if len(self.unit) <= 2 else " "
        unit = f",{space}{self.unit}" if self.unit else ""
        return f"{self.label}{unit} {self.beside}".strip()

    def of(self, row: Callable[[Other], Row]) -> Column[Other]:
        """The same column of a table whose lines have such a row."""
        column: Any = self
        more = {name: _after(read, row) for name, read in self.more.items()}
        return cast(
            "Column[Other]", replace(column, value=_after(self.value, row), text=_after(self.text, row), more=more)
        )


def _after(read: Callable[[Row], Any], row: Callable[[Other], Row]) -> Callable[[Other], Any]:
    return lambda line: read(row(line))


def words(name: str, value: str | Callable[[Row], str | None] = "", *, label: str = "", **more: Any) -> Column[Row]:
    """A column of text; nothing where there is none. value: a function, or an attribute's path; default: the name."""
    read = value if callable(value) else attrgetter(value or name)
    return Column(name=name, label=label or name, value=read, text=lambda row: read(row) or "", **more)


def figure(
    name: str,
    spelled: Callable[[Any], str] = str,
    value: str | Callable[[Row], Value] = "",
    *,
    text: Callable[[Row], str] | None = None,
    label: str = "",
    **more: Any,
) -> Column[Row]:
    """A column of numbers. spelled: how one is written; it gets None where there is none. value: as of `words`. text:
    in place of `spelled`, where a reader is told more than the number."""
    read = value if callable(value) else attrgetter(value or name)
    spell = text or (lambda row: spelled(read(row)))
    return Column(name=name, label=label or name, value=read, text=spell, **{"is_number": True} | more)


@dataclass(frozen=True, slots=True)
class Table(Generic[Row]):
    """name: of this table in W&B. title: a line above it. marks: beside each row; notes: (mark, what it says)."""

    name: str
    columns: Sequence[Column[Row]]
    rows: Sequence[Row]
    title: str = ""
    marks: Sequence[str] = ()
    notes: Sequence[tuple[str, str]] = ()

    def texts(self) -> list[list[str]]:
        """Every line as it is read, its mark behind the cell that takes it."""
        marks = self.marks or [""] * len(self.rows)
        return [
            [f"{c.text(row)} {mark}".strip() if mark and c.is_marked else c.text(row) for c in self.columns]
            for row, mark in zip(self.rows, marks, strict=True)
        ]

    def facts(self) -> tuple[tuple[str, ...], tuple[tuple[Value, ...], ...]]:
        """Names, and every line in full: the facts of all columns; empty texts are None."""
        readers: dict[str, Callable[[Row], Value]] = {}
        for column in self.columns:
            readers |= {column.name: column.value, **column.more}
        rows = tuple(tuple(None if (v := read(row)) == "" else v for read in readers.values()) for row in self.rows)
        return tuple(readers), rows

    def without(self, names: Sequence[str]) -> Table[Row]:
        return replace(self, columns=[column for column in self.columns if column.name not in names])


def plain(header: Sequence[str], lines: Sequence[Sequence[str]], *, left: int) -> Table[Sequence[str]]:
    """A table of texts; the first `left` columns are words, the others numbers."""
    columns: list[Column[Sequence[str]]] = [
        words(label, itemgetter(i), is_number=i >= left) for i, label in enumerate(header)
    ]
    return Table(name="", columns=columns, rows=lines)


@dataclass(frozen=True, slots=True)
class Section:
    """Paragraphs, tables, a list, and paragraphs below it, in this order; text may hold `code` in backticks.

    name: what the section is, whatever its title says. grid: whose, in a report of several grids.
    """

    name: str
    title: str = ""
    about: Sequence[str] = ()
    tables: Sequence[Table[Any]] = ()
    items: Sequence[str] = ()
    below: Sequence[str] = ()
    grid: str = ""

    @property
    def heading(self) -> str:
        return ": ".join(part for part in (self.grid, self.title) if part)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a reader must know of a run. kind: a few words, for beside a row. text: in full, without the run."""

    run_id: str
    kind: str
    text: str

    @property
    def sentence(self) -> str:
        return f"{self.run_id}: {self.text}"
