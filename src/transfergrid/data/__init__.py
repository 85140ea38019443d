"""Data sets, one file per kind in `sets/`, found by its name.

A published kind is a module with FACTS, load(split=, data_dir=, download=) and find(data_dir=, download=), most often
those of a published.PublishedSet. A kind that lives in a folder of the user's has facts(folder=, ...), load(split=,
folder=) and find(folder=) instead.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import cast

from transfergrid.data import sets
from transfergrid.data._decode import AS_STORED, PictureRules, ValueRange
from transfergrid.data._formats import MAX_MEGAPIXELS
from transfergrid.data.images import ArrayImages, DatasetFacts, FolderFiles, LabeledImages
from transfergrid.errors import ConfigError
from transfergrid.specs import Split

__all__ = [
    "AS_STORED",
    "MAX_MEGAPIXELS",
    "ArrayImages",
    "DatasetFacts",
    "LabeledImages",
    "PictureRules",
    "ValueRange",
    "facts",
    "find",
    "kinds",
    "load",
]


def kinds() -> tuple[str, ...]:
    """Every kind there is a module for, sorted."""
    names = (module.name for module in pkgutil.iter_modules(sets.__path__))
    return tuple(sorted(name for name in names if not name.startswith("_")))


def facts(
    kind: str,
    *,
    folder: Path | None = None,
    table: Path | None = None,
    kept_hashes: Path | None = None,
    keep: bool = True,
    progress: Callable[[int, int], None] | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
    skip_damaged: bool = False,
) -> DatasetFacts:
    """What the plan needs to know; reads images only where a folder must be hashed, and imports nothing heavy.

    table: which pictures of the folder, and of which split and group (tables.py).
    kept_hashes: the folder where content hashes are kept; keep=False reads what is kept and writes nothing.
    progress(done, total) is called now and then while files are hashed and decoded. max_megapixels: of a picture of a
    folder. skip_damaged: leaves out what cannot be used of a folder, which else raises DamagedImages.
    """
    module = _module(kind, folder)
    if folder is None:
        return cast(DatasetFacts, module.FACTS)
    folder_facts = module.facts(
        folder=folder,
        table=table,
        kept_hashes=kept_hashes,
        keep=keep,
        progress=progress,
        max_megapixels=max_megapixels,
        skip_damaged=skip_damaged,
    )
    return cast(DatasetFacts, folder_facts)


def load(
    kind: str,
    *,
    split: Split,
    data_dir: Path,
    folder: Path | None = None,
    table: Path | None = None,
    download: bool = True,
    rules: PictureRules = AS_STORED,
    files: FolderFiles | None = None,
) -> LabeledImages:
    """One split. Published files are verified first, and fetched where they are missing and download is True.

    rules: how the pictures of a folder are read; published data sets have 8 bits and no EXIF data. files: those of the
    folder's facts, from which nothing may have changed; without them the folder is read as it lies now.

    Raises DataError for files that are missing or damaged, ConfigError for a split the data set does not have.
    """
    module = _module(kind, folder)
    if folder is None:
        splits = tuple(cast(DatasetFacts, module.FACTS).num_images)
        if split not in splits:
            raise ConfigError(f"{kind} has no split {split!r}; it has: {', '.join(splits)}")
        return cast(LabeledImages, module.load(split=split, data_dir=data_dir, download=download))
    return cast(LabeledImages, module.load(split=split, folder=folder, table=table, rules=rules, files=files))


def find(
    kind: str, *, data_dir: Path, folder: Path | None = None, table: Path | None = None, download: bool = True
) -> None:
    """Make sure that all files of all splits are there and verified; fetch what is missing where download is True."""
    module = _module(kind, folder)
    if folder is None:
        module.find(data_dir=data_dir, download=download)
    else:
        module.find(folder=folder, table=table)


def _module(kind: str, folder: Path | None) -> ModuleType:
    if kind not in kinds():
        raise ConfigError(f"unknown kind of data set {kind!r}; known: {', '.join(kinds())}")
    module = importlib.import_module(f"{sets.__name__}.{kind}")
    published = hasattr(module, "FACTS")
    if published and folder is not None:
        raise ConfigError(f"data set {kind!r} does not take a folder (got {folder}); give data.dir= instead")
    if not published and folder is None:
        raise ConfigError(f"data set kind {kind!r} needs dataset.folder= with train/<class>/ and test/<class>/")
    return module
