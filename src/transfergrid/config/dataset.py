"""The data set of a configuration: what is known of it without reading images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from transfergrid import data
from transfergrid.config.compose import nearest
from transfergrid.config.settings import ABOVE_ZERO, in_range
from transfergrid.errors import ConfigError
from transfergrid.paths import CachePaths
from transfergrid.specs import DatasetSpec


@dataclass(frozen=True)
class DatasetChoice:
    """A data set as one configuration names it: facts known without reading images, and where a folder lies."""

    spec: DatasetSpec
    facts: data.DatasetFacts
    folder: str | None
    image_size_px: int | None
    val_seed: int
    train_fraction: float | None
    shots: int | None


def resolve_dataset(
    config: DictConfig, cache: CachePaths, *, keep: bool, progress: Callable[[int, int], None] | None = None
) -> DatasetChoice:
    """keep: whether a folder's content hash may be written to the cache. Raises ConfigError or DataError."""
    node = config.dataset
    if node.kind not in data.kinds():
        raise ConfigError(f"unknown dataset.kind {node.kind!r}{nearest(node.kind, data.kinds())}")
    if (node.folder is None) == (node.kind == "image_folder"):
        if node.kind == "image_folder":
            raise ConfigError(
                f"dataset={node.name or node.kind} needs dataset.folder=DIR, with DIR/train/<class>/* and DIR/test/..."
            )
        raise ConfigError(
            f"dataset.folder={node.folder!r}: {node.kind} lies in data.dir; only image_folder takes a folder"
        )
    folder = None if node.folder is None else Path(node.folder).expanduser().resolve()
    facts = data.facts(node.kind, folder=folder, kept_hashes=cache.folder_hashes, keep=keep, progress=progress)
    name = node.name or (folder.name if folder is not None else node.kind)
    if any(sign in name for sign in "/\\\n\0") or name.startswith(".") or not name.strip():
        raise ConfigError(f"dataset.name={name!r} cannot name a folder; use letters, digits, . _ and -")
    if folder is not None and name in data.kinds():
        raise ConfigError(
            f"dataset.name={name!r} is a published data set's name; give the folder another, as {name}-mine"
        )
    if node.max_images is not None:
        in_range("dataset.max_images", node.max_images, facts.num_classes, 1_000_000_000)
    if node.image_size_px is not None:
        in_range("dataset.image_size_px", node.image_size_px, 1, 4096)
    in_range("dataset.val_seed", node.val_seed, 0, 2**31)
    if node.train_fraction is not None and node.shots is not None:
        raise ConfigError("dataset.train_fraction and dataset.shots both say how many images are trained on; give one")
    if node.train_fraction is not None:
        in_range("dataset.train_fraction", node.train_fraction, ABOVE_ZERO, 1)
    if node.shots is not None:
        in_range("dataset.shots", node.shots, 1, 1_000_000_000)
    spec = DatasetSpec(
        name=name,
        kind=node.kind,
        fingerprint=facts.fingerprint,
        num_classes=facts.num_classes,
        max_images=node.max_images,
    )
    return DatasetChoice(
        spec,
        facts,
        None if folder is None else str(folder),
        node.image_size_px,
        node.val_seed,
        node.train_fraction,
        node.shots,
    )
