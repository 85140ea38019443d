"""A table of pictures, FILE.csv with the columns path,label[,split][,group]: read, checked, written.

Paths start from a folder. Pictures of one group (a patient, a video, the tiles of one scene) stand in one split.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from transfergrid.data._folder_scan import Scan
from transfergrid.data._inventory import SPLITS, Listing
from transfergrid.data._threads import in_threads
from transfergrid.errors import ConfigError
from transfergrid.names import composed, readable

_SPLIT_OF = {word: word for word in SPLITS} | {"valid": "val", "validation": "val"}
KIND = "table:"  # how the fingerprint of such a data set begins


@dataclass(frozen=True, slots=True)
class Row:
    """One picture. path: from the data set's folder, or absolute. split, group: empty where the table has none."""

    path: str
    label: str
    split: str = ""
    group: str = ""


COLUMNS = tuple(f.name for f in fields(Row))


# A dry run writes nothing, and all that plans with it reads the table that it would have written.
_UNWRITTEN: dict[Path, tuple[Row, ...]] = {}


def hold(table: Path, rows: tuple[Row, ...]) -> None:
    """In this process, as if they were written."""
    _UNWRITTEN[table] = rows


def read_rows(table: Path, folder: Path) -> tuple[Row, ...]:
    """Raises ConfigError, one line each, for a table that cannot be read as one or whose files are not there."""
    if table in _UNWRITTEN:
        return _UNWRITTEN[table]
    rows, lines = _lines(table, folder)
    there = in_threads(lambda row: os.path.lexists(folder / row.path), rows)
    missing = [row.path for row, is_there in zip(rows, there, strict=True) if not is_there]
    if missing:
        others = f", and {len(missing) - 1} more files are missing" if len(missing) > 1 else ""
        raise ConfigError(f"{table} line {lines[missing[0]]}: {folder / missing[0]} is not there{others}")
    _check_groups(table, rows)
    return tuple(rows)


def rows_of(table: Path) -> list[Row]:
    """Whatever has become of its files. Raises ConfigError."""
    return _lines(table, table.parent)[0]


def _lines(table: Path, folder: Path) -> tuple[list[Row], dict[str, int]]:
    """The rows, and by path the line of each."""
    rows: list[Row] = []
    lines: dict[str, int] = {}
    for line, cells in _cells(table):
        row = _row(cells, folder, f"{table} line {line}")
        if row.path in lines:
            raise ConfigError(f"{table}: lines {lines[row.path]} and {line} both name {row.path}; keep one of them")
        lines[row.path] = line
        rows.append(row)
    if not rows:
        raise ConfigError(f"{table} has no rows; wanted one for each picture, with {', '.join(COLUMNS[:2])}")
    return rows, lines


def _cells(table: Path) -> list[tuple[int, dict[str, str]]]:
    """Of each row its line in the file, and its cells by column."""
    try:
        content = table.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"dataset.table={table} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"{table} line {line} is not UTF-8; save the table as CSV in UTF-8") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    lines: list[tuple[int, dict[str, str]]] = []
    try:
        columns = _columns(table, next(reader, []))
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(columns):
                raise ConfigError(f"{table} line {reader.line_num} has {len(cells)} cells; wanted {len(columns)}")
            lines.append((reader.line_num, dict(zip(columns, cells, strict=True))))
    except csv.Error as error:
        raise ConfigError(f"{table} line {reader.line_num} is not CSV ({error})") from error
    return lines


def _columns(table: Path, header: Sequence[str]) -> list[str]:
    columns = [name.strip().lower() for name in header]
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown:
        more = "; separate columns by commas" if any(sign in "".join(header) for sign in ";\t") else ""
        raise ConfigError(f"{table} has an unknown column {unknown[0]!r}{more}", known=COLUMNS)
    if len(set(columns)) < len(columns):
        raise ConfigError(f"{table} has a column twice: {', '.join(columns)}")
    lacking = [name for name in COLUMNS[:2] if name not in columns]
    if lacking:
        raise ConfigError(f"{table} has no column {lacking[0]!r}; wanted path,label and, if you have them, split,group")
    return columns


def _row(cells: Mapping[str, str], folder: Path, where: str) -> Row:
    empty = [name for name, cell in cells.items() if not cell.strip()]
    if empty:
        raise ConfigError(f"{where} has no {empty[0]}")
    split = cells.get("split", "").strip()
    if split and split.lower() not in _SPLIT_OF:
        raise ConfigError(f"{where}: the split {split!r} is unknown", known=SPLITS)
    path, label = _path(cells["path"], folder), composed(cells["label"].strip())
    return Row(path, label, _SPLIT_OF.get(split.lower(), ""), composed(cells.get("group", "").strip()))


def _path(cell: str, folder: Path) -> str:
    """One spelling for each file: from the folder where it lies below that."""
    if "\\" in cell and not os.path.lexists(folder / cell):
        cell = cell.replace("\\", "/")  # written on Windows
    path = Path(os.path.normpath(cell))
    return str(path.relative_to(folder) if path.is_absolute() and path.is_relative_to(folder) else path)


def _check_groups(table: Path, rows: Sequence[Row]) -> None:
    first: dict[str, Row] = {}
    for row in rows:
        other = first.setdefault(row.group, row) if row.group and row.split else row
        if other.split != row.split:
            raise ConfigError(
                f"{table}: group {row.group!r} is in {other.split} ({other.path}) and in {row.split} ({row.path});"
                " move all its rows to one split"
            )


# --------------------------------------------------------------------------------------------------- what is made of it
def as_csv(rows: Sequence[Row]) -> bytes:
    """The table with its splits, sorted by path: the same bytes for the same rows.

    Raises ConfigError for a name that is not UTF-8, which no such file can hold.
    """
    columns = [name for name in COLUMNS if any(getattr(row, name) for row in rows)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([getattr(row, name) for name in columns] for row in sorted(rows, key=lambda row: row.path))
    try:
        return text.getvalue().encode()
    except UnicodeEncodeError as error:
        name = next(row.path for row in rows if readable(row.path) != row.path)
        raise ConfigError(f"{readable(name)} is not UTF-8, so no table can name it; rename it") from error


def scan_of(rows: Sequence[Row], where: Path) -> Scan:
    """Classes by name, pictures by path. Without test, val is the test split, as in a folder. where: for messages.

    Raises ConfigError where one split lacks a class that another has, or a training split has nothing beside it.
    """
    source_of = {split: split for split in SPLITS if any(row.split == split for row in rows)}
    if list(source_of) == ["train"]:
        raise ConfigError(f"{where} has neither test nor val rows; wanted one of them, or no column split")
    if "test" not in source_of:
        source_of["test"] = source_of.pop("val")
    listing: dict[str, dict[str, list[str]]] = {}
    for split, source in source_of.items():
        paths: dict[str, list[str]] = {}
        for row in rows:
            if row.split == source:
                paths.setdefault(row.label, []).append(row.path)
        listing[split] = {label: sorted(paths[label]) for label in sorted(paths)}
    first, classes = next(iter(listing.items()))
    if first == "train" and len(classes) < 2:
        raise ConfigError(f"{where}: train has one class, {next(iter(classes))!r}; wanted two or more")
    for split, own in listing.items():
        if odd := sorted(own.keys() ^ classes.keys()):
            here, there = (split, first) if odd[0] in own else (first, split)
            raise ConfigError(
                f"{where}: class {odd[0]!r} is in {source_of[here]} only; {source_of[there]} needs it, too"
            )
    renamed = {split: source for split, source in source_of.items() if split != source}
    return Scan(listing, renamed, {}, (), ())


def groups_of(rows: Sequence[Row], listing: Listing) -> dict[str, NDArray[np.int64]]:
    """Split -> the group of each picture as a number, in the listing's order; empty where the table has no groups."""
    names = {name: number for number, name in enumerate(sorted({row.group for row in rows if row.group}))}
    if not names:
        return {}
    group_of = {row.path: names[row.group] for row in rows}
    return {
        split: np.array([group_of[path] for paths in classes.values() for path in paths], np.int64)
        for split, classes in listing.items()
    }


def fingerprint(rows: Sequence[Row], listing: Listing, sha256_of: Mapping[str, str]) -> str:
    """Over splits, classes, groups, paths and bytes; how the table was written down does not matter."""
    group_of = {row.path: row.group for row in rows}
    whole = hashlib.sha256()
    for split, classes in sorted(listing.items()):
        for label, paths in classes.items():
            for path in paths:
                facts = (split, label, group_of[path], path, sha256_of[path])
                whole.update("\0".join(facts).encode() + b"\n")
    return f"{KIND}{whole.hexdigest()[:32]}"
