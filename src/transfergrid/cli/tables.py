"""Tables as the terminal shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from transfergrid.names import readable
from transfergrid.report.analysis.cells import accuracy_with_interval, number, percent
from transfergrid.report.analysis.remarks import footnotes
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.analysis.top_errors import HEADER, TEXT_COLUMNS, TopError

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


def terminal_table(rows: Sequence[ComparisonRow], *, width: int = 100) -> Table:
    """Eight columns. Where they do not fit `width`, joins break after `+`, variants and failure classes get a line;
    where that is not enough, `published` and `verdict` go if they hold nothing.

    A published figure that was obtained with other settings is marked `*`; what makes a row doubtful has a letter, and
    stands below. Failed rows are red.
    """
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(width=10_000)
    table = _table(rows, joint=" ", gap=2)
    for gap, may_go in ((2, ()), (1, ()), (1, ("published", "verdict"))):
        if Measurement.get(console, console.options, table).maximum > width:
            table = _table(rows, joint="\n", gap=gap, may_go=may_go)
    return table


def errors_table(errors: Sequence[TopError]) -> Table:
    """Top-1 and top-5 errors of evaluations, in percent, beside published ones where one of them has any."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    cells = [error.cells() for error in errors]
    kept = _kept(HEADER, cells, ("variant", "differs", "as stated", "corrected"))
    for position in kept:
        table.add_column(HEADER[position], justify="left" if position < TEXT_COLUMNS else "right", overflow="fold")
    for row in cells:
        table.add_row(*_plain(*(row[position] for position in kept)))
    return table


def _table(rows: Sequence[ComparisonRow], *, joint: str, gap: int, may_go: Sequence[str] = ()) -> Table:
    """joint: what stands between phase and variant, status and failure class. gap: spaces between columns. may_go:
    columns that are left out where no row has anything in them."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    has_gpu = any(row.gpu_s for row in rows)
    table = Table(box=SIMPLE_HEAD, padding=(0, gap - 1, 0, 0), pad_edge=False, show_edge=False)
    names = (
        "dataset",
        "model",
        "phase",
        "test accuracy",
        "published",
        "verdict",
        "GPU s" if has_gpu else "wall s",
        "status",
    )
    marks, notes = footnotes(rows)
    cells = [_cells(row, mark, joint=joint, has_gpu=has_gpu) for row, mark in zip(rows, marks, strict=True)]
    kept = _kept(names, cells, may_go)
    for name in (names[position] for position in kept):
        if name in ("dataset", "model", "phase", "verdict"):
            table.add_column(name, overflow="fold")
        else:
            table.add_column(name, justify="left" if name == "status" else "right", no_wrap=True)
    for row, texts in zip(rows, cells, strict=True):
        table.add_row(*_plain(*(texts[position] for position in kept)), style="red" if row.failure_class else None)
    told = [f"{mark}: {text}" for mark, text in notes]
    if any(_published(row).endswith("*") for row in rows):
        told.append("* obtained with other settings: published_differs in comparison.csv names them")
    if told:
        table.caption = Text("\n".join(told))
        table.caption_justify = "left"
    return table


def _cells(row: ComparisonRow, mark: str, *, joint: str, has_gpu: bool) -> list[str]:
    model = row.model if joint == " " else row.model.replace("+", "+\n")
    phase = joint.join(part for part in (row.phase, row.variant) if part)
    status = joint.join(part for part in (row.status, row.failure_class) if part)
    accuracy = " ".join(filter(None, (accuracy_with_interval(row), mark)))
    names = [row.dataset, model, phase, accuracy, _published(row), row.verdict or ""]
    return [*names, _seconds(row, has_gpu=has_gpu), status]


def _kept(names: Sequence[str], rows: Sequence[Sequence[str]], may_go: Sequence[str]) -> list[int]:
    """Positions of the columns that are shown: all but those of `may_go` with no text in any row."""
    return [i for i, name in enumerate(names) if name not in may_go or any(row[i] for row in rows)]


def _plain(*cells: str) -> list[Text]:
    """Cells in which square brackets are brackets, not rich's markup."""
    from rich.text import Text

    return [Text(readable(cell)) for cell in cells]


def _published(row: ComparisonRow) -> str:
    return percent(row.published_accuracy) + ("*" if row.published_differs else "")


def _seconds(row: ComparisonRow, *, has_gpu: bool) -> str:
    """GPU seconds; in a grid that used no GPU at all, and for a row that did not, wall seconds."""
    if has_gpu and row.gpu_s:
        return number(row.gpu_s, digits=1)
    wall = number(row.wall_s, digits=1)
    return f"{wall} wall" if has_gpu and wall else wall
