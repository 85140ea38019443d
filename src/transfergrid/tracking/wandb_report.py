"""What a grid's report is in W&B: tables, figures and texts that the report has made already, and how they are named.
Nothing here computes a number: rows and cells are those of comparison.csv and of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from transfergrid.errors import DataError
from transfergrid.specs import digest
from transfergrid.store.durable import sha256_of
from transfergrid.tracking.description import grid_tag, named_tag, shortened

MOST_TABLE_ROWS = 200_000  # of a wandb.Table; W&B cuts there
NAMELESS_SUFFIXES = (".csv", ".tex")  # of the report's files, which hold rows and numbers alone
# Columns that say which row it is: the others are what was measured.
KEY = ("grid", "dataset", "model", "phase", "variant", "weights", "protocol")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Cells are numbers, texts or None; each column holds one kind."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The row of a data set that the verdict names, and its completed runs."""

    title: str
    run_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WandbReport:
    """grid: the report's name, `A-vs-B` for several `grids`. rows: those of comparison.csv, None for an empty cell.

    tables: what W&B shows as final/<name>; `comparison` is one of them. figures: PNG by name. single: the names of
    those figures that show one row. files: kept as the artifact, under their own names. headline, markdown_table,
    failures: Markdown. runs: how many runs the grids have, which is what charts must have room for.
    """

    grid: str
    grids: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]
    tables: Mapping[str, Table]
    figures: Mapping[str, Path]
    single: tuple[str, ...] = ()
    files: Sequence[Path]
    headline: str
    markdown_table: str
    failures: str
    notes: tuple[str, ...] = ()
    chosen: tuple[Chosen, ...] = ()
    runs: int

    def validate(self) -> None:
        """Raises DataError for a table of which W&B would silently keep only a part."""
        for name, table in self.tables.items():
            if len(table.rows) > MOST_TABLE_ROWS:
                what = f"table {name} has {len(table.rows):,} rows, W&B keeps {MOST_TABLE_ROWS:,}"
                raise DataError(what, remedy="publish fewer rows")

    def without_pictures(self) -> WandbReport:
        """Without figures, and without the files that hold them or name files of the user's."""
        files = [path for path in self.files if path.suffix in NAMELESS_SUFFIXES]
        return replace(self, figures={}, single=(), files=files)

    @property
    def content(self) -> str:
        """A hash of what the report run holds: tables, figures, files and verdict."""
        files = [[path.name, sha256_of(path)] for path in (*self.figures.values(), *self.files)]
        tables = [[name, table.columns, table.rows] for name, table in self.tables.items()]
        return digest([self.headline, files, tables], 16)

    @property
    def grid_tags(self) -> tuple[str, ...]:
        """Every run of the grids carries one of them."""
        return tuple(grid_tag(grid) for grid in self.grids)

    def tag(self, kind: Literal["report", "summary", "former"]) -> str:
        """Of the W&B run with tables, figures and artifact; of those that stand for the rows of the table, one each; of
        such runs whose row the table no longer has."""
        return named_tag(kind, self.grid)

    @property
    def report_id(self) -> str:
        return f"report-{shortened(self.grid, 80)}"

    def summary_id(self, row: Mapping[str, Any]) -> str:
        return f"summary-{shortened(self.grid, 80)}-{digest([row[name] for name in KEY], 12)}"

    @property
    def artifact_name(self) -> str:
        # W&B takes no + in it; a hash keeps `a+b` apart from `a_b`.
        name = shortened(self.grid, 80)
        return f"final-tables-{name.replace('+', '_')}" + (f"-{digest(name, 12)}" if "+" in name else "")


def row_title(row: Mapping[str, Any]) -> str:
    return " · ".join(str(row[name]) for name in ("dataset", "model", "phase", "variant") if row[name])


def row_config(row: Mapping[str, Any]) -> dict[str, Any]:
    """current: whether the table still has this row."""
    return {name: row[name] for name in KEY} | {"current": True}


def row_summary(row: Mapping[str, Any]) -> dict[str, Any]:
    """Every number and text of the row under its column's name; nothing for an empty cell."""
    return {name: value for name, value in row.items() if name not in KEY and value is not None}
