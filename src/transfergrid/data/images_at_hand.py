"""The images this machine has: where a launch into the store read them, or in TRANSFERGRID_DATA_DIR. No downloads."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transfergrid.data import LabeledImages
from transfergrid.data.folds import open_split
from transfergrid.errors import GridError
from transfergrid.paths import StorePaths
from transfergrid.specs import DatasetSpec, Runtime, Split, from_dict
from transfergrid.store import durable

DATA_DIR_VARIABLE = "TRANSFERGRID_DATA_DIR"
# Of a split of a data set, or None where they are not to be had.
Images = Callable[[DatasetSpec, Split], LabeledImages | None]


def images_at_hand(store: StorePaths) -> Images:
    """Gives a split's images, each split loaded once, or None where they are not here or are no longer the same."""
    data_dir = os.environ.get(DATA_DIR_VARIABLE, "cache/data")
    own = Runtime(store_dir=str(store.root), cache_dir="cache", data_dir=data_dir, weights_dir="cache/weights")
    return _AtHand((*_launched(store), own))


@dataclass(frozen=True, slots=True)
class _AtHand:
    """A class, not a function in a function, because figures are drawn in processes that it is sent to."""

    places: tuple[Runtime, ...]
    loaded: dict[tuple[str, str, str], LabeledImages | None] = field(default_factory=dict)

    def __call__(self, dataset: DatasetSpec, split: Split) -> LabeledImages | None:
        key = (dataset.name, dataset.fingerprint, split)
        if key not in self.loaded:
            candidates = (_load(dataset, split, runtime) for runtime in self.places)
            self.loaded[key] = next((one for one in candidates if one is not None), None)
        return self.loaded[key]


def _load(dataset: DatasetSpec, split: Split, runtime: Runtime) -> LabeledImages | None:
    try:
        return open_split(dataset, split, runtime, download=False)
    except (GridError, OSError):
        return None


def _launched(store: StorePaths) -> list[Runtime]:
    """Of the grids as they were last launched, then of the launches that are still there, the newest first."""
    runtimes: list[Runtime] = []
    grids, launches = store.grid("any").parent.glob("*.json"), store.launches.glob("*/specs.json")
    for path in (*sorted(grids), *sorted(launches, reverse=True)):
        try:
            content: Any = durable.read_json(path)
            runtime = from_dict(Runtime, content["runtime"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # being removed, or of another version
        if runtime not in runtimes:
            runtimes.append(runtime)
    return runtimes
