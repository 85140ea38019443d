"""The data set of a configuration: what is known of it without reading images."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omegaconf import DictConfig

from transfergrid import data
from transfergrid.config.keys import in_range
from transfergrid.config.pictures import pictures_of
from transfergrid.config.value_range import about_range, value_range_of
from transfergrid.data import ValueRange
from transfergrid.errors import ConfigError, hints
from transfergrid.names import composed
from transfergrid.networks.classes import imagenet_places
from transfergrid.paths import CachePaths, StorePaths
from transfergrid.specs import DatasetSpec


@dataclass(frozen=True)
class DatasetChoice:
    """A data set as one configuration names it: facts known without reading images, and where a folder lies."""

    spec: DatasetSpec
    facts: data.DatasetFacts
    folder: str | None
    table: str | None
    image_size_px: int | None
    val_seed: int
    train_fraction: float | None
    shots: int | None
    small_pictures: Literal["whole", "recipe"]
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
    linked = _about_link(name, node.folder, folder) if folder and node.folder and node.name is None else ()
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
    value_range = value_range_of(node.value_range, facts, name, of_run)
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
    turned = (
        f"{name}: EXIF data turn these pictures: {facts.turned}; dataset.orientation=stored leaves them as stored",
    )
    return DatasetChoice(
        spec,
        facts,
        None if folder is None else str(folder),
        None if pictures.table is None else str(pictures.table),
        node.image_size_px,
        node.val_seed,
        node.train_fraction,
        node.shots,
        node.small_pictures,
        (
            *about_range(value_range, facts, name),
            *(turned if turns else ()),
            *linked,
            *pictures.notes,
        ),
    )


def _about_link(name: str, typed: str, folder: Path) -> tuple[str, ...]:
    """What the plan says of a folder that was typed as a link of another name."""
    link = composed(os.path.basename(os.path.abspath(os.path.expanduser(typed))))
    if link == composed(folder.name):
        return ()
    return (f"{name}: named after what {link} links to; dataset.name={link} names it after the link",)
