"""A grid's report as W&B gets it: what comparison.csv, comparison.md and the page say, from the same functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transfergrid.errors import DataError, next_step, one_line
from transfergrid.names import readable, readable_in
from transfergrid.report import several, wording
from transfergrid.report.analysis import worth
from transfergrid.report.analysis.columns import columns_of, of_rows
from transfergrid.report.analysis.comparison import Comparison
from transfergrid.report.analysis.per_class import confusion_of
from transfergrid.report.analysis.rows import ComparisonRow, names_of
from transfergrid.report.blocks import Section
from transfergrid.report.figures.material import row_name, row_title
from transfergrid.report.markdown import list_text, table_text
from transfergrid.report.page.table import short_names
from transfergrid.report.write import report_name
from transfergrid.store.records import read_grid
from transfergrid.tracking.wandb_report import KEY, MOST_TABLE_ROWS, Chosen, Table, WandbReport

FILES = ("comparison.csv", "comparison.md", "comparison.tex", "index.html")
OF_ONE_ROW = ("errors", "curves", "architecture")  # how the names of such figures begin
MOST_FIGURES = 300  # beyond it, of single rows only those that the verdict names


def wandb_report_of(comparisons: Sequence[Comparison], folder: Path, *, figures: bool = True) -> WandbReport:
    """folder: where report/write.py has just written these grids. figures: whether it made them, too."""
    comparison = several.joined(comparisons)
    grids = tuple(dict.fromkeys(row.grid for row in comparison.rows)) or (comparison.grid,)
    chosen = _chosen(comparison)
    per_class, notes = _per_class(comparison)
    names = names_of(comparison.rows)
    cells = [row.cells(names) for row in comparison.rows]
    rows = Table(columns=names, rows=tuple(tuple(of_row.values()) for of_row in cells))
    tables = {"comparison": rows, "per_class": per_class, "failures": _failures(comparison)}
    tables |= _tables(several.sections(comparisons))
    pictures, more_notes = _figures(folder, chosen) if figures else ({}, [])
    return WandbReport(
        grid=report_name(grids),
        grids=grids,
        rows=readable_in(tuple(cells)),
        tables={name: Table(columns=t.columns, rows=readable_in(t.rows)) for name, t in tables.items()},
        figures=pictures,
        single=tuple(name for name in pictures if _is_of_one_row(name)),
        files=[folder / name for name in FILES],
        headline=readable(wording.verdict(comparison)),
        markdown_table=readable(short_table(comparison.rows)),
        failures=readable(list_text(wording.missing(comparison))),
        notes=readable_in((*notes, *more_notes)),
        chosen=tuple(
            Chosen(title=readable(row_title(row)), run_ids=tuple(r.run_id for r in runs)) for row, runs in chosen
        ),
        runs=len({entry.run_id for grid in grids for entry in read_grid(comparison.store.grid(grid))}),
    )


def short_table(rows: Sequence[ComparisonRow]) -> str:
    """The columns that the page shows before all are asked for, as it spells them: texts first, then numbers."""
    short = short_names(rows)
    columns = sorted((c for name, c in columns_of(rows).items() if name in short), key=lambda column: column.is_number)
    return table_text(of_rows("short", columns, rows), units=True)


# ------------------------------------------------------------------------------------------------------------- tables
def _failures(comparison: Comparison) -> Table:
    lines = [
        (f.run_id, f.failure_class, " ".join(f.error.split()), next_step(f.failure_class, f.remedy))
        for f in comparison.failures
    ]
    return Table(columns=("run_id", "failure_class", "error", "next"), rows=tuple(lines))


def _per_class(comparison: Comparison) -> tuple[Table, list[str]]:
    """Precision, recall and F1 of each class of each row, its seeds summed, as its figure shows them; and notes on rows
    without predictions."""
    lines: list[tuple[Any, ...]] = []
    notes = []
    for row, runs in zip(comparison.rows, comparison.runs, strict=True):
        if not runs or row.test_accuracy is None:
            continue
        try:
            scored = confusion_of(runs, comparison.stored).classes
        except DataError as error:
            notes.append(f"no scores per class of {row_title(row)}: {one_line(error)}")
            continue
        if len(lines) + len(scored) > MOST_TABLE_ROWS:
            notes.append(
                f"no scores per class from {row_title(row)} on: W&B holds {MOST_TABLE_ROWS:,} lines of a table"
            )
            break
        key = tuple(getattr(row, name) for name in KEY)
        lines += [(*key, c.name, c.images, c.precision or 0.0, c.recall or 0.0, c.f1) for c in scored]
    return Table(columns=(*KEY, "class", "images", "precision", "recall", "f1"), rows=tuple(lines)), notes


def _tables(sections: Sequence[Section]) -> dict[str, Table]:
    """What the sections below the comparison show, in full: the facts of their columns, not their texts."""
    tables = {}
    for section in sections:
        grid = re.sub(r"[^a-z0-9]+", "_", section.grid.lower()).strip("_")
        for table in section.tables if section.title else ():
            if not table.name:
                continue  # what it says is in another table
            columns, rows = table.facts()
            tables[f"{grid}_{table.name}" if grid else table.name] = Table(columns=columns, rows=rows)
    return tables


# ------------------------------------------------------------------------------------------------- figures and verdict
def _chosen(comparison: Comparison) -> list[tuple[ComparisonRow, Sequence[Any]]]:
    """Per data set the rows that the verdict names first, with their runs."""
    return [(comparison.rows[i], comparison.runs[i]) for winner in worth.winners(comparison) for i in winner.first]


def _figures(folder: Path, chosen: Sequence[tuple[ComparisonRow, Any]]) -> tuple[Mapping[str, Path], list[str]]:
    pictures = {path.stem: path for path in sorted((folder / "figures").glob("*.png"))}
    if len(pictures) <= MOST_FIGURES:
        return pictures, []
    names = {row_name(kind, row) for kind in OF_ONE_ROW for row, _ in chosen}
    general = {name: path for name, path in pictures.items() if name in names or not _is_of_one_row(name)}
    note = f"{len(pictures) - len(general)} figures of single rows are in the folder of the report and on its page only"
    return general, [note]


def _is_of_one_row(name: str) -> bool:
    return name.startswith(tuple(f"{kind}-" for kind in OF_ONE_ROW))
