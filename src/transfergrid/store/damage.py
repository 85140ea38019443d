"""Damaged files of a store and its cache: what is wrong with each, and how it is set aside so that a launch remakes it.

Whatever has a checksum is read whole: features and weights at about 1 GB/s.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from transfergrid.errors import CorruptFeatures, DataError
from transfergrid.paths import ASIDE, CachePaths, RunPaths, StorePaths
from transfergrid.store import durable, feature_store
from transfergrid.store.attempts import read_spec
from transfergrid.store.checkpoints import checkpoint_files
from transfergrid.store.metrics_log import read_metrics
from transfergrid.store.records import assert_as_recorded, read_grid, read_predictions, read_record

Kind = Literal["grid", "run", "checkpoint", "features", "weights"]
_NAMES_ITS_HASH = re.compile(r"-([0-9a-f]{8,64})\.(?:pth|pt|safetensors)")


@dataclass(frozen=True, slots=True)
class Damage:
    """A damaged file. reason: a sentence that names it. aside: the files that go for it to be made again, under the
    same names with `.damaged`."""

    path: Path
    reason: str
    kind: Kind
    aside: tuple[Path, ...]
    run_id: str | None = None


def find_damage(
    store: StorePaths, cache: CachePaths, weights_dir: Path, *, show: Callable[[int, int], None] = lambda *_: None
) -> list[Damage]:
    """Grids, runs that are not under way, features and downloaded weights; show(done, total) of these."""
    checks: list[Callable[[], Iterator[Damage]]] = [
        *(partial(_of_grid, path) for path in sorted(store.grid("x").parent.glob("*.json"))),
        *(partial(_of_run, store.run(path.name)) for path in sorted(store.runs.glob("*")) if path.is_dir()),
        *(partial(_of_features, path, cache) for path in sorted((cache.root / "features").glob("*/*/*.h5"))),
        *(partial(_of_weights, path) for path in sorted(weights_dir.glob("*"))),
    ]
    damages: list[Damage] = []
    for number, check in enumerate(checks, start=1):
        damages += check()
        show(number, len(checks))
    return damages


def set_aside(damage: Damage, *, since_s: float) -> bool:
    """Nothing is lost by it: the file stays beside its place, under another name, until it is collected. since_s: when
    the search for damage began; what a launch has made again since then stays, and the answer is False."""
    if not damage.path.exists() or damage.path.stat().st_mtime > since_s:
        return False
    for path in damage.aside:
        if path.exists():
            os.replace(path, path.with_name(path.name + ASIDE))
            durable.fsync_folder(path.parent)
    return True


def _of_grid(path: Path) -> Iterator[Damage]:
    try:
        read_grid(path)
    except DataError as error:
        yield Damage(path, error.what, "grid", (path,))


def _of_run(paths: RunPaths) -> Iterator[Damage]:
    if durable.is_locked(paths.lock):
        return
    run_id = paths.root.name
    if paths.spec.exists() and read_spec(paths) is None:
        yield Damage(
            paths.spec, f"{paths.spec} is not the specification of a run", "run", (paths.spec, paths.record), run_id
        )
        return
    reads: tuple[tuple[Path, Callable[[], object]], ...] = (
        (paths.record, partial(read_record, paths)),
        (paths.weights, partial(assert_as_recorded, paths, paths.weights)),
        (paths.predictions, partial(read_predictions, paths)),
        (paths.metrics, partial(read_metrics, paths.metrics)),
    )
    for path, read in reads:
        try:
            if path.exists():
                read()
        except DataError as error:
            yield Damage(path, error.what, "run", (paths.record, path), run_id)
            return  # the whole run is made again
    for checkpoint in checkpoint_files(paths):
        if not durable.sha256_of(checkpoint.path).startswith(checkpoint.sha256_16):
            yield Damage(checkpoint.path, _of_another(checkpoint.path), "checkpoint", (checkpoint.path,), run_id)


def _of_features(path: Path, cache: CachePaths) -> Iterator[Damage]:
    try:
        feature_store.assert_sound(cache, path)
    except CorruptFeatures as error:
        yield Damage(path, error.what, "features", (path,))


def _of_weights(path: Path) -> Iterator[Damage]:
    named = _NAMES_ITS_HASH.search(path.name)
    if named is None or not path.name.endswith(named[0]) or not path.is_file():
        return
    if not durable.sha256_of(path).startswith(named[1]):
        yield Damage(path, _of_another(path), "weights", (path,))


def _of_another(path: Path) -> str:
    return f"{path} is damaged: its content has another checksum than its name tells"
