"""Tables as the terminal shows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from transfergrid.names import readable
from transfergrid.report.analysis.cells import percent
from transfergrid.report.analysis.columns import COMPARISON, of_rows, pick, wilson
from transfergrid.report.analysis.rows import ComparisonRow, seconds_of
from transfergrid.report.blocks import Column, Table, words

if TYPE_CHECKING:
    from rich.table import Table as RichTable

WITH_OTHER_SETTINGS = ("*", "obtained with other settings: published_differs in comparison.csv names them")


def terminal_table(rows: Sequence[ComparisonRow], *, width: int = 100) -> RichTable:
    """Eight columns. Where they do not fit `width`, joins break after `+`, variants and failure classes get a line;
    where that is not enough, `published` and `verdict` go if they hold nothing.

    A published figure that was obtained with other settings is marked `*`; what makes a row doubtful has a letter, and
    stands below. Failed rows are red.
    """
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(width=10_000)
    table = _comparison(rows, joint=" ", gap=2)
    for gap, may_go in ((2, ()), (1, ()), (1, ("published_accuracy", "verdict"))):
        if Measurement.get(console, console.options, table).maximum > width:
            table = _comparison(rows, joint="\n", gap=gap, may_go=may_go)
    return table


def rich_table(
    table: Table[Any],
    *,
    gap: int = 2,
    may_go: Sequence[str] = (),
    whole: Sequence[str] = (),
    style: Callable[[Any], str | None] = lambda _: None,
) -> RichTable:
    """gap: spaces between columns. may_go: columns that are left out where no line has anything in them. whole: columns
    of text that are not broken. style: of a line."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    empty = [c.name for c in table.columns if c.name in may_go and not any(c.text(row) for row in table.rows)]
    table = table.without(empty)
    drawn = RichTable(box=SIMPLE_HEAD, padding=(0, gap - 1, 0, 0), pad_edge=False, show_edge=False)
    for column in table.columns:
        no_wrap = column.is_number or column.name in whole
        drawn.add_column(
            column.heading, justify="right" if column.is_number else "left", no_wrap=no_wrap, overflow="fold"
        )
    for row, texts in zip(table.rows, table.texts(), strict=True):
        # In a Text square brackets are brackets, not rich's markup.
        drawn.add_row(*(Text(readable(text)) for text in texts), style=style(row))
    if table.notes:
        drawn.caption = Text("\n".join(f"{mark} {text}" for mark, text in table.notes))
        drawn.caption_justify = "left"
    return drawn


def _comparison(rows: Sequence[ComparisonRow], *, joint: str, gap: int, may_go: Sequence[str] = ()) -> RichTable:
    """joint: what stands between phase and variant, status and failure class."""
    table = of_rows("comparison", _columns(rows, joint), rows)
    notes = [(f"{mark}:", text) for mark, text in table.notes]
    if any(row.published_differs for row in rows):
        notes.append(WITH_OTHER_SETTINGS)
    return rich_table(
        replace(table, notes=notes),
        gap=gap,
        may_go=may_go,
        whole=["status"],
        style=lambda row: "red" if row.failure_class else None,
    )


def _columns(rows: Sequence[ComparisonRow], joint: str) -> list[Column[ComparisonRow]]:
    dataset, accuracy, verdict = pick("dataset test_accuracy verdict", test_accuracy="test accuracy")
    return [
        dataset,
        words("model", lambda row: ("+" if joint == " " else "+\n").join(row.parts)),
        words("phase", lambda row: joint.join(part for part in (row.phase, row.variant) if part)),
        accuracy,
        *wilson(rows),
        replace(COMPARISON["published_accuracy"], text=_published),
        verdict,
        _seconds(rows),
        words("status", lambda row: joint.join(part for part in (row.status, row.failure_class) if part)),
    ]


def _published(row: ComparisonRow) -> str:
    return percent(row.published_accuracy) + ("*" if row.published_differs else "")


def _seconds(rows: Sequence[ComparisonRow]) -> Column[ComparisonRow]:
    """GPU seconds; in a grid that used no GPU at all, and for a row that did not, wall seconds."""
    column = COMPARISON[seconds_of(rows)]
    wall, own = COMPARISON[column.name.replace("gpu", "wall")], COMPARISON[column.name.removeprefix("full_")]

    def text(row: ComparisonRow) -> str:
        if row.cell(column.name) is None:
            return f"{own.text(row)} own" if own.text(row) else ""
        return column.text(row) if row.cell(column.name) else f"{wall.text(row)} wall"

    return replace(column, label=column.label.replace(" ", "\n"), text=text)  # narrow, as its numbers are
