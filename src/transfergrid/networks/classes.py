"""Which of a network's classes the classes of a data set are: by name, in whatever order its folders sort."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from transfergrid import data
from transfergrid.errors import ConfigError, DataError
from transfergrid.names import composed, some
from transfergrid.paths import RunPaths
from transfergrid.specs import RunSpec
from transfergrid.store.records import read_record

IMAGENET_CLASSES = 1000
_MOST_NAMES = 6  # in a message


def classes_of_run(spec: RunSpec, paths: RunPaths) -> tuple[str, ...] | None:
    """A run's class names in the order of its logits: its record's, or those of a published data set.

    None where neither tells: a run on an image folder that has not finished yet.
    """
    record = read_record(paths)
    if record is not None and "class_names" in record.details:
        return tuple(record.details["class_names"])
    return None if spec.dataset.kind == "image_folder" else data.facts(spec.dataset.kind).class_names


def match_classes(own: Sequence[str], names: Sequence[str], *, run_id: str, dataset: str) -> NDArray[np.int64]:
    """For each class of a data set (`names`) its position among the run's (`own`), (S,).

    Some of the run's classes may be missing. Raises DataError naming those that the run does not know.
    """
    position = {composed(name): i for i, name in enumerate(own)}
    unknown = [name for name in names if composed(name) not in position]
    if unknown:
        raise DataError(
            f"classes are matched by name: {dataset} has {_some(unknown)}, which run={run_id!r} does not know;"
            f" it knows {_some(own)}"
        )
    return np.array([position[composed(name)] for name in names], dtype=np.int64)


@lru_cache(maxsize=1)
def imagenet_wnids() -> tuple[str, ...]:
    """ImageNet's 1,000 classes in the order of published logits, which is that of their names: ILSVRC 2012's, as timm
    has them. Raises DataError where timm is not installed as it was tested."""
    # Found without importing timm, which takes seconds.
    spec = importlib.util.find_spec("timm")
    for location in (spec.submodule_search_locations or []) if spec else []:
        file = Path(location) / "data" / "_info" / "imagenet_synsets.txt"
        if file.is_file():
            return tuple(file.read_text(encoding="ascii").split())
    raise DataError("the names of ImageNet's classes were not found inside timm; install timm as pyproject.toml says")


def imagenet_places(names: Sequence[str], *, dataset: str) -> NDArray[np.int64]:
    """For each folder its place among ImageNet's classes, (S,): by wnid, all or some, or 0 to 999 as numbers.

    Raises ConfigError where the folders are neither.
    """
    position = {wnid: i for i, wnid in enumerate(imagenet_wnids())}
    if not position.keys() >= set(names):
        position = {str(i): i for i in range(IMAGENET_CLASSES)}
        if position.keys() != set(names):
            raise ConfigError(
                f"{dataset}: its {len(names)} folders are not named as ImageNet's classes; wanted wnids (n01440764),"
                f" all or some, or 0 to 999; got {_some(names)}"
            )
    return np.array([position[name] for name in names], dtype=np.int64)


def names_imagenet_anew(names: Sequence[str]) -> bool:
    """Are these ImageNet's classes, but not all of them in the order in which folders sort?"""
    try:
        return bool(imagenet_places(names, dataset="").tolist() != list(range(IMAGENET_CLASSES)))
    except ConfigError:
        return False


@dataclass(frozen=True, slots=True)
class NamedLogits:
    """What logits that carry no names are taken for.

    class_names: in the order of the logits that are kept. columns: which are kept, None = all. place_S: for each class
    of the data set its place among them. note: a line for the log, where the folders' own order is not followed.
    """

    class_names: tuple[str, ...]
    columns: NDArray[np.int64] | None
    place_S: NDArray[np.int64]
    note: str | None = None


def name_logits(names: Sequence[str], num_logits: int, *, model: str, dataset: str, kind: str) -> NamedLogits:
    """A published head or a checkpoint on a data set: ImageNet's 1,000 classes by name, others in the stored order.

    Of some of ImageNet's classes only their own logits are compared, as ImageNet-A and ImageNet-R are scored
    (Hendrycks et al. 2021, arXiv 1907.07174). Raises DataError where the numbers of classes differ.
    """
    in_order = NamedLogits(tuple(names), None, np.arange(len(names)))
    if num_logits == IMAGENET_CLASSES and kind == "image_folder":
        try:
            place_S = imagenet_places(names, dataset=dataset)
        except ConfigError as error:
            if num_logits != len(names):
                raise DataError(str(error)) from error
            return in_order  # a thousand classes of the user's own
        if len(names) < IMAGENET_CLASSES:
            note = (
                f"{dataset} has {len(names)} of ImageNet's {IMAGENET_CLASSES} classes: only their logits are compared"
            )
            return NamedLogits(tuple(names), place_S, in_order.place_S, note)
        note = f"{dataset}: folders 0 to 999 are taken as numbers, in the order of ImageNet's classes"
        by_place = tuple(name for _, name in sorted(zip(place_S.tolist(), names, strict=True)))
        return NamedLogits(by_place, None, place_S, note if "0" in names else None)
    if num_logits != len(names):
        raise DataError(f"{model} has {num_logits} classes, {dataset} has {len(names)}")
    return in_order


def _some(names: Sequence[str]) -> str:
    return some(list(map(repr, names)), _MOST_NAMES)
