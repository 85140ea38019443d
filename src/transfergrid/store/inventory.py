"""What takes the space of a store and its cache, and what of it no grid of the store refers to."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from transfergrid.errors import DataError
from transfergrid.paths import ASIDE, CachePaths, RunPaths, StorePaths
from transfergrid.specs import Split, safe_name
from transfergrid.store import durable
from transfergrid.store.attempts import read_spec
from transfergrid.store.records import GridEntry, read_grid, record_head

_OF_A_RUN = {"weights.pt": "weights of runs", "checkpoints": "checkpoints"}
_OF_THE_STORE = {
    **{name: name for name in ("launches", "reports", "sweeps", "grids")},
    **{"wandb": "W&B", "splits": "tables of drawn splits"},
}


@dataclass(frozen=True, slots=True)
class Space:
    """Some files. bytes: as the disk counts them; a link takes none."""

    files: int = 0
    bytes: int = 0

    def __add__(self, other: Space) -> Space:
        return Space(self.files + other.files, self.bytes + other.bytes)


def space_of(path: Path) -> Space:
    """Of a file, or of all that lies below a folder. What goes meanwhile is left out."""
    if path.is_dir() and not path.is_symlink():
        return sum((_of_file(file) for file in _files(path)), Space())
    return _of_file(path)


def space_by_part(store: StorePaths, cache: CachePaths) -> dict[str, Space]:
    """The largest part first."""
    parts: dict[str, Space] = {}
    for root, name_of in ((store.root, _part_of_store), (cache.root, _part_of_cache)):
        for file in _files(root):
            name = name_of(file.relative_to(root).parts)
            parts[name] = parts.get(name, Space()) + _of_file(file)
    return dict(sorted(parts.items(), key=lambda part: -part[1].bytes))


def _files(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        yield from (Path(place, name) for name in names)


def _of_file(file: Path) -> Space:
    try:
        return Space(1, file.lstat().st_blocks * 512)
    except FileNotFoundError:
        return Space()


def _part_of_store(parts: tuple[str, ...]) -> str:
    if parts[0] == "runs":
        return _OF_A_RUN.get(parts[2] if len(parts) > 2 else "", "records, predictions and logs of runs")
    if parts[0] == "launches" and "code" in parts[2:3]:
        return "code copies of launches"
    return _OF_THE_STORE.get(parts[0], "other files of the store")


def _part_of_cache(parts: tuple[str, ...]) -> str:
    return f"cache: {parts[0]}" if len(parts) > 1 else "cache: other files"


# ----------------------------------------------------------------------------------------------------------- references
@dataclass(frozen=True, slots=True)
class Unreferenced:
    """Folders of runs and feature files that no grid of the store needs."""

    runs: tuple[Path, ...]
    features: tuple[Path, ...]


def unreferenced(store: StorePaths, cache: CachePaths, *, sent: Container[str] = ()) -> Unreferenced:
    """A run is needed by a grid that lists it, and by a needed run that is made from it; features by the runs that read
    them. Of a data set with a listed run that has not begun, everything counts as needed: what that run reads is only
    known when it begins. sent: runs that SLURM may still have, which stay, as links do. Raises DataError while a grid
    file is damaged, or set aside and not made again, and where there is none: what is needed is not known then.
    """
    for path in _lists_set_aside(store):
        raise DataError(
            f"{path} listed runs, and its grid was not launched again", remedy="launch it, or delete the file"
        )
    grids = sorted(store.grids.glob("*.json"))
    if not grids:
        raise DataError(f"{store.root} has no grid that tells what is needed", remedy="name its store with store.dir=")
    entries = [entry for path in grids for entry in read_grid(path)]
    runs, features, open_datasets = _needed(entries, store, cache)
    return Unreferenced(
        tuple(
            folder
            for folder in sorted(path for path in store.runs.glob("*") if path.is_dir() and not path.is_symlink())
            if folder.name not in runs and _is_at_rest(store, folder.name, sent, open_datasets)
        ),
        tuple(
            path
            for path in sorted((cache.root / "features").glob("*/*/*.h5"))
            if path not in features and path.parts[-3] not in open_datasets
        ),
    )


def _needed(entries: list[GridEntry], store: StorePaths, cache: CachePaths) -> tuple[set[str], set[Path], set[str]]:
    """The ids of runs, the feature files, and the folder names of data sets of which everything counts as needed."""
    runs, features, open_datasets = set[str](), set[Path](), set[str]()
    frontier = [(entry.run_id, entry.dataset) for entry in entries]
    while frontier:
        run_id, dataset = frontier.pop()
        if run_id in runs:
            continue
        runs.add(run_id)
        spec = read_spec(store.run(run_id))
        if spec is None:
            open_datasets.add(safe_name(dataset))
            continue
        for extraction in (spec, *spec.extractions) if spec.phase == "extract" else spec.extractions:
            runs.add(extraction.run_id)
            keys = (extraction.feature_key(extraction.backbones[0], split) for split in get_args(Split))
            features |= {cache.features(key) for key in keys}
        frontier += [(need, dataset) for need in spec.needs]
    return runs, features, open_datasets


def _is_at_rest(store: StorePaths, run_id: str, sent: Container[str], open_datasets: Container[str]) -> bool:
    paths = store.run(run_id)
    spec = read_spec(paths)
    if spec is None or safe_name(spec.dataset.name) in open_datasets or durable.is_locked(paths.lock):
        return False
    return paths.record.is_file() or run_id not in sent


# ------------------------------------------------------------------------------------------------------ what has served
def old_checkpoints(store: StorePaths) -> list[Path]:
    """checkpoints/ of completed runs that nobody holds: an attempt that was killed at its very end leaves them."""
    own = (path for path in sorted(store.runs.glob("*/checkpoints")) if not path.is_symlink())
    folders = (store.run(path.parent.name) for path in own)
    return [paths.checkpoints for paths in folders if is_completed(paths) and not durable.is_locked(paths.lock)]


def is_completed(paths: RunPaths) -> bool:
    head = record_head(paths)
    return head is not None and head.status == "completed"


def _lists_set_aside(store: StorePaths) -> list[Path]:
    """Damaged grid files whose grid has no other now."""
    files = sorted(store.grid("x").parent.glob(f"*.json{ASIDE}"))
    return [path for path in files if not path.with_name(path.name.removesuffix(ASIDE)).exists()]


def leftovers(store: StorePaths, cache: CachePaths) -> list[Path]:
    """What was set aside as damaged, and temporary files of ended processes of this machine."""
    folders = (store.root, cache.root)
    aside = {path for folder in folders for path in folder.rglob(f"*{ASIDE}") if path.is_file()}
    aside -= set(_lists_set_aside(store))
    return sorted([*aside, *(path for folder in folders for path in durable.abandoned(folder, "**/.*.tmp"))])
