"""Tables as the terminal shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from transfergrid.report.cells import accuracy_with_interval, number, percent
from transfergrid.report.comparison import ComparisonRow
from transfergrid.report.top_errors import HEADER, TEXT_COLUMNS, TopError

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


def terminal_table(rows: Sequence[ComparisonRow], *, width: int = 100) -> Table:
    """Eight columns. Where they do not fit `width`, joins break after `+`, variants and failure classes get a line.

    A published figure that was obtained with other settings is marked `*`. Failed rows are red.
    """
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(width=10_000)
    table = _table(rows, joint=" ", gap=2)
    for gap in (2, 1):
        if Measurement.get(console, console.options, table).maximum > width:
            table = _table(rows, joint="\n", gap=gap)
    return table


def errors_table(errors: Sequence[TopError]) -> Table:
    """Top-1 and top-5 errors of evaluations, in percent, beside published ones."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for position, name in enumerate(HEADER):
        table.add_column(name, justify="left" if position < TEXT_COLUMNS else "right", overflow="fold")
    for error in errors:
        table.add_row(*_plain(*error.cells()))
    return table


def _table(rows: Sequence[ComparisonRow], *, joint: str, gap: int) -> Table:
    """joint: what stands between phase and variant, status and failure class. gap: spaces between columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    has_gpu = any(row.gpu_s for row in rows)
    table = Table(box=SIMPLE_HEAD, padding=(0, gap - 1, 0, 0), pad_edge=False, show_edge=False)
    for name in ("dataset", "model", "phase"):
        table.add_column(name, overflow="fold")
    table.add_column("test accuracy", justify="right", no_wrap=True)
    table.add_column("published", justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    table.add_column("GPU s" if has_gpu else "wall s", justify="right", no_wrap=True)
    table.add_column("status", overflow="fold")
    for row in rows:
        model = row.model if joint == " " else row.model.replace("+", "+\n")
        phase = joint.join(part for part in (row.phase, row.variant) if part)
        status = joint.join(part for part in (row.status, row.failure_class) if part)
        table.add_row(
            *_plain(row.dataset, model, phase, accuracy_with_interval(row), _published(row), row.verdict or ""),
            *_plain(_seconds(row, has_gpu=has_gpu), status),
            style="red" if row.failure_class else None,
        )
    if any(_published(row).endswith("*") for row in rows):
        table.caption = "* obtained with other settings: published_differs in comparison.csv names them"
        table.caption_justify = "left"
    return table


def _plain(*cells: str) -> list[Text]:
    """Cells in which square brackets are brackets, not rich's markup."""
    from rich.text import Text

    return [Text(cell) for cell in cells]


def _published(row: ComparisonRow) -> str:
    return percent(row.published_accuracy) + ("*" if row.published_differs else "")


def _seconds(row: ComparisonRow, *, has_gpu: bool) -> str:
    """GPU seconds; in a grid that used no GPU at all, and for a row that did not, wall seconds."""
    if has_gpu and row.gpu_s:
        return number(row.gpu_s, digits=1)
    wall = number(row.wall_s, digits=1)
    return f"{wall} wall" if has_gpu and wall else wall
