"""Where the pictures of a data set lie, and what says which of them are in which split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from transfergrid.config.spelling import folder_value
from transfergrid.data import tables
from transfergrid.data._folder_scan import scan_classes
from transfergrid.data._inventory import SPLITS
from transfergrid.data.draws import TEST_FRACTION, with_splits
from transfergrid.data.tables import Row
from transfergrid.errors import ConfigError
from transfergrid.names import composed, existing
from transfergrid.specs import digest, safe_name
from transfergrid.store import durable


@dataclass(frozen=True, slots=True)
class Pictures:
    """folder: None for a published data set. table: what says which pictures of the folder are read; None = its layout.

    name: the data set's. notes: lines of the plan.
    """

    folder: Path | None
    table: Path | None
    name: str
    notes: tuple[str, ...] = ()


def pictures_of(node: DictConfig, splits: Path, *, keep: bool) -> Pictures:
    """node: config.dataset. splits: the folder for tables whose split is drawn here. keep: whether one may be written.

    Raises ConfigError, and DataError for a folder of classes that cannot be read.
    """
    if node.kind != "image_folder":
        for key in ("folder", "table"):
            if node[key] is not None:
                raise ConfigError(
                    f"dataset.{key}={node[key]!r}: {node.kind} lies in data.dir; only image_folder takes a {key}"
                )
        if node.test_fraction is not None:
            raise ConfigError(f"dataset.test_fraction={node.test_fraction}: {node.kind} has a test split of its own")
        return Pictures(None, None, composed(node.name or node.kind))
    if node.folder is None and node.table is None:
        raise ConfigError(
            f"dataset={node.name or node.kind} needs dataset.folder=DIR, with DIR/train/<class>/* and DIR/test/...,"
            " or dataset.table=FILE.csv"
        )
    table = None if node.table is None else existing(Path(node.table).expanduser()).resolve()
    if table is not None and not table.is_file():
        raise ConfigError(
            f"dataset.table={node.table!r} is not a file; wanted a CSV file with path,label[,split][,group]"
        )
    if node.folder is not None:
        folder = existing(Path(node.folder).expanduser()).resolve()
    else:
        assert table is not None
        folder = table.parent
    if table is not None and not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder; dataset.folder= says where the paths of {table} start")
    name = composed(node.name or (folder.name if table is None or node.folder is not None else table.stem))
    rows, skipped = _without_split(folder, table)
    if rows is None:
        if node.test_fraction is not None:
            raise ConfigError(f"dataset.test_fraction={node.test_fraction}: {table or folder} has splits of its own")
        return Pictures(folder, table, name)
    fraction = TEST_FRACTION if node.test_fraction is None else node.test_fraction
    drawn = with_splits(rows, test_fraction=fraction, where=table or folder)
    file, notes = _written(drawn, splits, f"{safe_name(name)[:60]}-test-{fraction:g}", keep=keep)
    named = "" if name == composed(folder.name) else f" dataset.name={folder_value(name)}"
    again = f"dataset.table={folder_value(str(file))} dataset.folder={folder_value(str(folder))}{named}"
    by = "by group" if any(row.group for row in drawn) else "by class"
    counts = ", ".join(f"{sum(row.split == split for row in drawn)} {split}" for split in SPLITS if split != "val")
    place = f"it is in {file}" if keep else f"a launch writes it to {file}"
    drawn_how = f"{name}: it has no split, so one is drawn {by} ({counts}); {place}; to share it: {again}"
    return Pictures(folder, file, name, (drawn_how, *skipped, *notes))


def _without_split(folder: Path, table: Path | None) -> tuple[tuple[Row, ...] | None, tuple[str, ...]]:
    """The rows of a table without splits, or of a folder of classes, and what of that is not read; None where there are
    splits."""
    if table is not None:
        rows = tables.read_rows(table, folder)
        return (None if rows[0].split else rows), ()
    scan = scan_classes(folder)
    if scan is None:
        return None, ()
    of_folder = tuple(Row(path, label) for label, paths in scan.listing["all"].items() for path in paths)
    counted = ", ".join(f"{count} {why} (as {first})" for why, (count, first) in scan.skipped.items())
    return of_folder, ((f"{folder.name}: not read: {counted}",) if counted else ())


def _written(rows: Sequence[Row], splits: Path, stem: str, *, keep: bool) -> tuple[Path, tuple[str, ...]]:
    """The file that holds the split, and what changed since the last one of this name."""
    content = tables.as_csv(rows)
    file = (splits / f"{stem}-{digest(content.decode(), 8)}.csv").resolve()
    former = [path for path in splits.glob(f"{stem}-????????.csv") if path.name != file.name]
    notes = _moved(rows, max(former, key=lambda path: path.stat().st_mtime), file) if former else ()
    if not keep:
        tables.hold(file, tuple(sorted(rows, key=lambda row: row.path)))
    elif not file.exists() or file.read_bytes() != content:  # or somebody edited it
        durable.make_folder(splits)
        durable.write_bytes(file, content)
    return file, notes


def _moved(rows: Sequence[Row], former: Path, file: Path) -> tuple[str, ...]:
    """Pictures that stand on another side than in the former table: such a split must not be mixed with that one."""
    try:
        before = {row.path: row.split for row in tables.rows_of(former)}
    except ConfigError:
        return ()  # edited or damaged by others; it is only compared with
    moved = [row.path for row in rows if before.get(row.path, row.split) != row.split]
    if not moved:
        return ()
    return (
        f"{file.name}: {len(moved)} of {len(before)} pictures change sides against {former.name} (as {moved[0]});"
        " the pictures have changed since",
    )
