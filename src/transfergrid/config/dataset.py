"""The data set of a configuration: what is known of it without reading images."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from transfergrid import data
from transfergrid.config.keys import in_range
from transfergrid.config.pictures import pictures_of
from transfergrid.data import DatasetFacts, ValueRange
from transfergrid.errors import ConfigError, hints
from transfergrid.names import composed
from transfergrid.networks.classes import imagenet_places
from transfergrid.paths import CachePaths, StorePaths
from transfergrid.specs import DatasetSpec

_BITS = "8-bit"
_GIVE = "give dataset.value_range=[low,high], the values that become 0 and 255"


@dataclass(frozen=True)
class DatasetChoice:
    """A data set as one configuration names it: facts known without reading images, and where a folder lies."""

    spec: DatasetSpec
    facts: DatasetFacts
    folder: str | None
    table: str | None
    notes: tuple[str, ...]


def resolve_dataset(
    config: DictConfig,
    cache: CachePaths,
    *,
    keep: bool,
    progress: Callable[[int, int], None] | None = None,
    of_run: ValueRange | None = None,
) -> DatasetChoice:
    """keep: whether a folder's content hash may be written to the cache. Raises ConfigError or DataError.

    of_run: the value range of a finished run that is evaluated on this data set.
    """
    node = config.dataset
    if node.kind not in data.kinds():
        raise ConfigError(f"unknown dataset.kind {node.kind!r}", **hints(node.kind, data.kinds()))
    pictures = pictures_of(node, StorePaths(Path(config.store.dir)).splits, keep=keep)
    folder = pictures.folder
    facts = data.facts(
        node.kind,
        folder=folder,
        table=pictures.table,
        kept_hashes=cache.folder_hashes,
        keep=keep,
        progress=progress,
        max_megapixels=node.max_megapixels,
        skip_damaged=node.skip_damaged,
    )
    name = pictures.name
    if any(sign in "/\\\x7f" or sign < " " for sign in name) or name.startswith(".") or not name.strip():
        raise ConfigError(f"dataset.name={name!r} cannot name a folder; use letters, digits, . _ and -")
    if folder is not None and name in data.kinds():
        raise ConfigError(
            f"dataset.name={name!r} is a published data set's name; give the folder another name, as {name}-mine"
        )
    if node.max_images is not None:
        in_range("dataset.max_images", node.max_images, facts.num_classes, 1_000_000_000)
    if node.train_fraction is not None and node.shots is not None:
        raise ConfigError("dataset.train_fraction and dataset.shots both say how many images are trained on; give one")
    if node.classes == "imagenet":
        imagenet_places(facts.class_names, dataset=name)
    value_range = _value_range_of(node.value_range, facts, name, of_run)
    turns = node.orientation == "exif" and facts.turned > 0
    spec = DatasetSpec(
        name=name,
        kind=node.kind,
        fingerprint=facts.fingerprint,
        num_classes=facts.num_classes,
        max_images=node.max_images,
        value_range=value_range,
        orientation="exif" if turns else "stored",
        left_out=facts.left_out,
    )
    notes = list(_about_range(value_range, facts, name))
    if turns:
        notes.append(
            f"{name}: EXIF data turn these pictures: {facts.turned}; dataset.orientation=stored leaves them as stored"
        )
    if folder is not None and node.folder is not None and node.name is None:
        link = composed(os.path.basename(os.path.abspath(os.path.expanduser(node.folder))))
        if link != composed(folder.name):
            notes.append(f"{name}: named after what {link} links to; dataset.name={link} names it after the link")
    notes += pictures.notes
    return DatasetChoice(
        spec,
        facts,
        None if folder is None else str(folder),
        None if pictures.table is None else str(pictures.table),
        tuple(notes),
    )


# -------------------------------------------- which stored values of pictures deeper than 8 bits become 0 and 255
def _value_range_of(
    setting: Sequence[float] | None, facts: DatasetFacts, name: str, of_run: ValueRange | None
) -> ValueRange | None:
    """What is given; else that of the evaluated run; else the least and the largest value of train. None at 8 bits.

    Raises ConfigError where depths are mixed or train has no such pictures, so that no one range can be found.
    """
    range_of_user = None if setting is None else _checked(setting)
    deep = {depth: files for depth, files in facts.depths.items() if depth != _BITS}
    if not deep:
        if range_of_user is not None:
            raise ConfigError(f"dataset.value_range: all pictures of {name} have 8 bits, which stay as they are")
        return None
    if range_of_user or of_run:
        return range_of_user or of_run
    if len(facts.depths) > 1:
        depths = ", ".join(f"{count} {depth} ({first})" for depth, (count, first) in facts.depths.items())
        raise ConfigError(
            f"{name} mixes pictures of several depths: {depths}; make them alike, or {_GIVE} in the deeper ones"
            " (8-bit ones stay as they are; 16 bits used in full are [0,65535])"
        )
    extremes = facts.extremes.get("train", ())
    if not extremes:
        _, first = next(iter(deep.values()))
        raise ConfigError(f"{name} is deeper than 8 bits ({first}) and has no train/ to find its range on; {_GIVE}")
    low, high = min(low for low, _ in extremes), max(high for _, high in extremes)
    if low == high:
        raise ConfigError(f"{name}: every value in train/ is {_number(low)}, so there is no range; {_GIVE}")
    return low, high


def _about_range(value_range: ValueRange | None, facts: DatasetFacts, name: str) -> tuple[str, ...]:
    """Lines for the user: the range, what lies beyond it, and pictures that it does not concern."""
    if value_range is None:
        return ()
    low, high = value_range
    deep = sum(count for depth, (count, _) in facts.depths.items() if depth != _BITS)
    notes = [
        f"{name}: pictures deeper than 8 bits: {deep}; values {_number(low)} to {_number(high)} become 0 to 255"
        " (dataset.value_range)"
    ]
    for split, count in facts.beyond(value_range).items():
        notes.append(f"{name}: {split} pictures with values beyond that range, which become 0 or 255: {count}")
    if _BITS in facts.depths:
        notes.append(f"{name}: pictures of 8 bits, which stay as they are: {facts.depths[_BITS][0]}")
    return tuple(notes)


def _checked(limits: Sequence[float]) -> ValueRange:
    if len(limits) != 2 or not all(map(math.isfinite, limits)) or not limits[0] < limits[1]:
        raise ConfigError(f"dataset.value_range={list(limits)}; wanted two numbers, the lower first, as [0,4095]")
    return float(limits[0]), float(limits[1])


def _number(value: float) -> str:
    return f"{value:.6g}" if value != int(value) else str(int(value))
