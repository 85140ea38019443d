"""Tables as the terminal shows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from transfergrid.cli.fitting import Fitting
from transfergrid.names import readable
from transfergrid.report.analysis.cells import accuracy_with_interval, number, percent
from transfergrid.report.analysis.columns import COMPARISON, of_rows, pick, significant, use, use_notes, wilson
from transfergrid.report.analysis.rows import ComparisonRow, seconds_of
from transfergrid.report.blocks import Column, Table, words

MOST_LINES = 10  # below the table
WITH_OTHER_SETTINGS = ("*", "obtained with other settings: published_differs in comparison.csv names them")


def terminal_table(rows: Sequence[ComparisonRow], *, width: int = 100) -> Fitting:
    """Eight columns; `published` only where a figure is; what using a network costs where it was measured. Where they
    do not fit `width`, joins break after `+`, variants and failure classes get a line; where that is not enough, what
    using costs goes below the table, then `verdict` if it holds nothing, and intervals get a line.

    A published figure that was obtained with other settings is marked `*`; what makes a row doubtful has a letter, and
    stands below. Failed rows are red.
    """
    measured = use(rows)
    table = _comparison(rows, measured, joint=" ")
    if table.whole_width <= width:
        return table
    for columns in (measured, [column for column in measured if column.name.endswith("_latency_ms")], ()):
        table = _comparison(rows, columns, joint="\n")
        if table.least_width <= width:
            return table
    return _comparison(rows, (), joint="\n", narrower=True)


def rich_table(
    table: Table[Any],
    *,
    may_go: Sequence[str] = (),
    whole: Sequence[str] = (),
    folded: Sequence[str] = (),
    style: Callable[[Any], str | None] = lambda _: None,
) -> Fitting:
    """may_go: columns that are left out where no line has anything in them. whole, folded: columns of text that are not
    broken, or also within a word. style: of a line."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    empty = [c.name for c in table.columns if c.name in may_go and not any(c.text(row) for row in table.rows)]
    table = table.without(empty)
    drawn = RichTable(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in table.columns:
        drawn.add_column(column.heading, justify="right" if column.is_number else "left", overflow="fold")
    for row, texts in zip(table.rows, table.texts(), strict=True):
        # In a Text square brackets are brackets, not rich's markup.
        drawn.add_row(*(Text(readable(text)) for text in texts), style=style(row))
    if table.notes:
        drawn.caption = Text("\n".join(f"{mark} {text}" for mark, text in table.notes))
        drawn.caption_justify = "left"
    stays = (i for i, column in enumerate(table.columns) if column.is_number or column.name in whole)
    folds = (i for i, column in enumerate(table.columns) if column.name in folded)
    return Fitting(drawn, whole=frozenset(stays), folded=frozenset(folds))


def _comparison(
    rows: Sequence[ComparisonRow],
    measured: Sequence[Column[ComparisonRow]],
    *,
    joint: str,
    narrower: bool = False,
) -> Fitting:
    """measured: the columns of what using a network costs; without any, it stands in lines below the table.
    joint: what stands between phase and variant, status and failure class. narrower: an empty verdict goes, the
    interval stands below its accuracy, and a status breaks between words."""
    table = of_rows("comparison", _columns(rows, measured, joint, narrower), rows)
    notes = [(f"{mark}:", text) for mark, text in table.notes]
    notes += [] if measured else _in_lines(rows)
    if any(row.published_differs for row in rows):
        notes.append(WITH_OTHER_SETTINGS)
    return rich_table(
        replace(table, notes=notes),
        may_go=("published_accuracy", "verdict") if narrower else ("published_accuracy",),
        whole=() if narrower else ("status",),
        style=lambda row: "red" if row.failure_class else None,
    )


def _in_lines(rows: Sequence[ComparisonRow]) -> list[tuple[str, str]]:
    """What using a row's network costs, a line each."""
    lines = [
        (
            f"{cost.kind.upper()}:",
            f"{row.title}: {significant(cost.latency_ms)} ms, {number(cost.images_per_s)} images/s",
        )
        for row in rows
        for cost in row.use
    ]
    more = [("", f"and {len(lines) - MOST_LINES} more: comparison.csv has them")] if len(lines) > MOST_LINES else []
    return [*lines[:MOST_LINES], *more, *((f"{mark}:", text) for mark, text in use_notes(rows))]


def _columns(
    rows: Sequence[ComparisonRow], measured: Sequence[Column[ComparisonRow]], joint: str, narrower: bool
) -> list[Column[ComparisonRow]]:
    dataset, accuracy, verdict = pick("dataset test_accuracy verdict", test_accuracy="test accuracy")
    if narrower:
        accuracy = replace(accuracy, text=lambda row: accuracy_with_interval(row).replace(" [", "\n[", 1))
    return [
        dataset,
        words("model", lambda row: ("+" if joint == " " else "+\n").join(row.parts)),
        words("phase", lambda row: joint.join(part for part in (row.phase, row.variant) if part)),
        accuracy,
        *wilson(rows),
        *measured,
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
