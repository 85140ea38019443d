"""A folder of the user's: train/<class>/*, and test/<class>/* or val/<class>/*; with both, val/ is the val split.

Names of splits may be written in capitals, and valid/ or validation/ serve as val/. Without train/ it serves evaluation
alone, and may hold some of the classes that the evaluated network knows. Images of any size and mode become 8-bit RGB
as they are read, by the data set's rules. Hidden files, thumbnails of file servers and files that are no images by
their name are left out, and counted (inventory.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from transfergrid.data import inventory
from transfergrid.data._decode import AS_STORED, PictureRules, decode, decoded
from transfergrid.data._folder_hash import content_of
from transfergrid.data._formats import MAX_MEGAPIXELS, NEWER_SUFFIXES, suffixes, too_large, why_unread
from transfergrid.data._image_size import HEAD_BYTES, size_px, unreadable
from transfergrid.data._images import DatasetFacts
from transfergrid.data._threads import in_threads
from transfergrid.data.damaged import DamagedImage
from transfergrid.data.inventory import Inventory
from transfergrid.errors import ConfigError, DataError
from transfergrid.specs import Split

T = TypeVar("T")
_NAMES = {"val": ("val", "valid", "validation")}
_OF_FILE_SERVERS = ("@eaDir", "__MACOSX", "#recycle", "@Recycle")  # thumbnails, forks of resources, bins


def facts(
    *,
    folder: Path,
    kept_hashes: Path | None,
    keep: bool,
    progress: Callable[[int, int], None] | None,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> DatasetFacts:
    found = _scan(folder)
    listing = found.listing
    relative_paths = [path for classes in listing.values() for paths in classes.values() for path in paths]
    fingerprint, pictures, sha256_of = content_of(
        folder,
        relative_paths,
        kept_hashes=kept_hashes,
        keep=keep,
        progress=progress,
        max_megapixels=max_megapixels,
    )
    for path, picture in pictures.items():  # those that are kept were read under another limit
        reason = too_large(picture.width_px, picture.height_px, max_megapixels)
        if reason is not None:
            raise DamagedImage(folder / path, reason)
    sizes_px = {(p.width_px, p.height_px) for p in pictures.values()}
    depths: dict[str, tuple[int, str]] = {}
    for path, picture in pictures.items():
        count, first = depths.get(picture.depth, (0, path))
        depths[picture.depth] = (count + 1, first)
    deep = {path: (p.low, p.high) for path, p in pictures.items() if p.depth != "8-bit"}
    class_names = tuple(next(iter(listing.values())))
    return DatasetFacts(
        kind="image_folder",
        fingerprint=fingerprint,
        num_classes=len(class_names),
        class_names=class_names,
        image_size_px=_side_px(sizes_px),
        mirror_ok=True,
        num_images={split: sum(map(len, classes.values())) for split, classes in listing.items()},
        train_counts=tuple(map(len, listing.get("train", {}).values())),
        shortest_px=min(min(size) for size in sizes_px),
        newly_read={s: n for s in NEWER_SUFFIXES if (n := sum(p.lower().endswith(s) for p in relative_paths))},
        inventory=Inventory(
            per_class=inventory.per_class(listing),
            folders=found.renamed,
            skipped=found.skipped,
            unused=found.unused,
            copies=inventory.copies(listing, sha256_of),
        ),
        turned=sum(p.turned for p in pictures.values()),
        depths=depths,
        extremes={
            split: tuple(deep[path] for paths in classes.values() for path in paths if path in deep)
            for split, classes in listing.items()
        },
    )


def load(*, split: Split, folder: Path, rules: PictureRules = AS_STORED) -> FolderImages:
    listing = _scan(folder).listing
    if split not in listing:
        raise ConfigError(f"{folder} has no split {split!r}; it has: {', '.join(listing)}")
    classes = listing[split]
    return FolderImages(
        [folder / path for paths in classes.values() for path in paths],
        np.repeat(np.arange(len(classes)), [len(paths) for paths in classes.values()]).astype(np.int64),
        class_names=tuple(classes),
        rules=rules,
    )


def find(*, folder: Path) -> None:
    _scan(folder)


def image_files(folder: Path) -> list[str]:
    """Every image below a folder, by name, sorted, relative to it, whatever becomes of reading it; hidden files and
    folders do not count."""
    return sorted(path.removeprefix("./") for path in _images_below(folder, ".", unread=True))


class FolderImages:
    """Images decoded when they are read, by a few threads."""

    def __init__(
        self,
        paths: list[Path],
        labels_N: NDArray[np.int64],
        *,
        class_names: tuple[str, ...],
        rules: PictureRules = AS_STORED,
    ) -> None:
        self.paths = paths
        self.labels_N = labels_N
        self.class_names = class_names
        self._rules = rules
        self._decode = partial(decode, rules=rules)

    @cached_property
    def _sizes_px(self) -> list[tuple[int, int]]:
        """From the headers, which costs a second or two for 60,000 files, once."""
        return in_threads(_header_size_px, self.paths)

    @cached_property
    def image_size_px(self) -> int | None:
        return _side_px(set(self._sizes_px))

    @cached_property
    def shorter_edges_px(self) -> NDArray[np.int64]:
        return np.array([min(size) for size in self._sizes_px], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: Sequence[int] | NDArray[np.integer]) -> Sequence[NDArray[np.uint8]] | NDArray[np.uint8]:
        paths = [self.paths[int(index)] for index in indices]
        side_px = self.image_size_px
        if side_px is None:
            return in_threads(self._decode, paths)
        images_NHWC = np.empty((len(paths), side_px, side_px, 3), dtype=np.uint8)

        def fill(row: int) -> None:
            images_NHWC[row] = self._decode(paths[row])

        in_threads(fill, range(len(paths)))
        return images_NHWC

    def each(self, indices: Sequence[int] | NDArray[np.integer], made: Callable[[NDArray[np.uint8]], T]) -> list[T]:
        def read(index: int) -> T:
            with decoded(self.paths[index], self._rules) as picture:
                return made(picture.pixels_HW3)

        return in_threads(read, [int(index) for index in indices])

    def array(self) -> NDArray[np.uint8]:
        if self.image_size_px is None:
            raise ValueError("images of mixed sizes are no array; read() them and bring them to one size")
        return cast(NDArray[np.uint8], self.read(range(len(self))))


def _side_px(sizes_px: set[tuple[int, int]]) -> int | None:
    """The side of the images where all are squares of one size."""
    width_px, height_px = next(iter(sizes_px)) if len(sizes_px) == 1 else (0, 1)
    return width_px if width_px == height_px else None


def _header_size_px(path: Path) -> tuple[int, int]:
    try:
        with open(path, "rb", buffering=0) as file:
            return size_px(path, file.read(HEAD_BYTES))
    except OSError as error:
        raise unreadable(path, error) from error


@dataclass(frozen=True, slots=True)
class _Scan:
    """listing: split -> class -> paths relative to the folder, classes and paths sorted. The rest as in Inventory."""

    listing: dict[str, dict[str, list[str]]]
    renamed: dict[str, str]
    skipped: dict[str, tuple[int, str]]
    unused: tuple[str, ...]


def _scan(folder: Path) -> _Scan:
    """Everything in a folder, by its place. Checks the layout."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder; dataset.folder= wants one with train/<class>/ and test/<class>/")
    beside = _folders_in(folder)
    source_of = _sources(beside)
    present = list(source_of)
    if not present:
        raise DataError(
            f"{folder} has no train/, val/ or test/; wanted train/<class>/* and test/<class>/* (or val/<class>/*)"
        )
    if present == ["train"]:
        raise DataError(f"{folder} has neither test/ nor val/; wanted one of them, with the classes of train/")
    if "test" not in present:
        source_of["test"] = source_of.pop("val")
    skipped: dict[str, tuple[int, str]] = {}
    listing = {split: _classes(folder, source, skipped) for split, source in source_of.items()}
    first, classes = next(iter(listing.items()))
    if first == "train" and len(classes) < 2:
        raise DataError(f"{folder}: train/ has one class, {next(iter(classes))!r}; wanted two or more to tell apart")
    for split, source in source_of.items():
        if listing[split].keys() != classes.keys():
            odd = sorted(listing[split].keys() ^ classes.keys())[0]
            where = source if odd in listing[split] else source_of[first]
            raise DataError(
                f"{folder}: class {odd!r} is in {where}/ only; {source}/ and {source_of[first]}/ need the same classes"
            )
    renamed = {split: source for split, source in source_of.items() if source not in (split, "val")}
    unused = tuple(name for name in beside if name not in source_of.values() and name not in _OF_FILE_SERVERS)
    return _Scan(listing, renamed, skipped, unused)


def _folders_in(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if not e.name.startswith(".") and os.path.isdir(e.path))
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}); mend or remove it") from error


def _sources(folders: Sequence[str]) -> dict[str, str]:
    """split -> its folder: of the names that stand for it the first that is there, then such a name in capitals."""
    found = {}
    for split in inventory.SPLITS:
        named = _NAMES.get(split, (split,))
        exact = [name for name in named if name in folders]
        alike = [name for wanted in named for name in folders if name.lower() == wanted]
        if exact or alike:
            found[split] = (exact or alike)[0]
    return found


def _classes(folder: Path, split_folder: str, skipped: dict[str, tuple[int, str]]) -> dict[str, list[str]]:
    names = [name for name in _folders_in(folder / split_folder) if name not in _OF_FILE_SERVERS]
    for name in sorted(os.listdir(folder / split_folder)):
        if name in _OF_FILE_SERVERS:
            inventory.skip(skipped, inventory.THUMBNAILS, f"{split_folder}/{name}")
        elif name not in names and name.lower().endswith(suffixes()):
            inventory.skip(skipped, inventory.OUTSIDE, f"{split_folder}/{name}")
    if not names:
        raise DataError(f"{folder / split_folder} has no class folders; wanted {split_folder}/<class>/*")
    classes = {name: sorted(_images_below(folder, f"{split_folder}/{name}", skipped=skipped)) for name in names}
    for name, paths in classes.items():
        if not paths:
            raise DataError(
                f"{folder / split_folder / name} has no images; wanted files ending in {' '.join(suffixes())}"
            )
    return classes


def _images_below(
    folder: Path,
    relative: str,
    above: tuple[tuple[int, int], ...] = (),
    *,
    unread: bool = False,
    skipped: dict[str, tuple[int, str]] | None = None,
) -> list[str]:
    """above: device and inode of the folders that lead here. unread: also what cannot be read on this machine, links to
    nothing and pipes among it, to be named when it is read. skipped: is told of what is left out.

    Raises DataError for what is no file or folder to read.
    """
    path = folder / relative
    try:
        found: list[str] = []
        stat = os.stat(path)
        here = (stat.st_dev, stat.st_ino)
        if here in above and unread:
            return []  # all of it is there already
        if here in above:
            raise DataError(f"{path} is a link to a folder that holds it; remove the link")
        with os.scandir(path) as entries:
            for entry in entries:
                name = f"{relative}/{entry.name}"
                if entry.name.startswith("."):
                    inventory.skip(skipped, inventory.HIDDEN, name)
                    continue
                kind = Path(entry.path) if entry.is_symlink() else entry  # a link may lead to itself
                if kind.is_dir() and entry.name in _OF_FILE_SERVERS and not unread:
                    inventory.skip(skipped, inventory.THUMBNAILS, name)
                elif kind.is_dir():
                    found += _images_below(folder, name, (*above, here), unread=unread, skipped=skipped)
                elif entry.name.lower().endswith(suffixes()) or (unread and why_unread(entry.name)):
                    if not (unread or kind.is_file()):
                        raise DataError(f"{entry.path} is a pipe, a device or a link to nothing; mend or remove it")
                    found.append(name)
                else:
                    lacking = why_unread(entry.name)
                    kind_of_it = Path(entry.name).suffix.lower() or "without a suffix"
                    inventory.skip(skipped, f"{kind_of_it}, {lacking}" if lacking else kind_of_it, name)
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read ({error.strerror}); mend or remove it") from error
    return found
