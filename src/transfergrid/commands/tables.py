"""Tables as the terminal shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from transfergrid.report.comparison import ComparisonRow
from transfergrid.report.documents import accuracy_with_interval, number, percent

if TYPE_CHECKING:
    from rich.table import Table


def terminal_table(rows: Sequence[ComparisonRow], *, width: int = 100) -> Table:
    """Eight columns. Where they do not fit `width` columns, joins are broken after `+`, and variants get a line.

    A published figure that was obtained with other settings is marked `*`. Failed rows are red.
    """
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(width=10_000)
    table = _table(rows, on_one_line=True)
    if Measurement.get(console, console.options, table).maximum > width:
        table = _table(rows, on_one_line=False)
    return table


def _table(rows: Sequence[ComparisonRow], *, on_one_line: bool) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    has_gpu = any(row.gpu_s for row in rows)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in ("dataset", "model", "phase"):
        table.add_column(name, overflow="fold")
    table.add_column("test accuracy", justify="right", no_wrap=True)
    table.add_column("published", justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    table.add_column("GPU s" if has_gpu else "wall s", justify="right", no_wrap=True)
    table.add_column("status", overflow="fold")
    for row in rows:
        phase = [row.phase, row.variant] if row.variant else [row.phase]
        status = [row.status, f"({row.failure_class})"] if row.failure_class else [row.status]
        table.add_row(
            *_plain(row.dataset, row.model if on_one_line else row.model.replace("+", "+\n")),
            *_plain((" " if on_one_line else "\n").join(phase), accuracy_with_interval(row)),
            *_plain(_published(row), row.verdict or "", _seconds(row, has_gpu=has_gpu)),
            *_plain((" " if on_one_line else "\n").join(status)),
            style="red" if row.failure_class else None,
        )
    if any(_published(row).endswith("*") for row in rows):
        table.caption = "* obtained with other settings: published_differs in comparison.csv names them"
        table.caption_justify = "left"
    return table


def _plain(*cells: str) -> list[str]:
    """Cells in which square brackets are brackets, not rich's markup."""
    from rich.markup import escape

    return [escape(cell) for cell in cells]


def _published(row: ComparisonRow) -> str:
    return percent(row.published_accuracy) + ("*" if row.published_differs else "")


def _seconds(row: ComparisonRow, *, has_gpu: bool) -> str:
    """GPU seconds; in a grid that used no GPU at all, and for a row that did not, wall seconds."""
    if has_gpu and row.gpu_s:
        return number(row.gpu_s, digits=1)
    wall = number(row.wall_s, digits=1)
    return f"{wall} wall" if has_gpu and wall else wall
