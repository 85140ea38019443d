"""A folder of the user's: train/<class>/*, and test/<class>/* or val/<class>/*; with both, val/ is the val split.

Names of splits may be written in capitals, and valid/ or validation/ serve as val/. Without train/ it serves evaluation
alone, and may hold some of the classes that the evaluated network knows. Images of any size and mode become 8-bit RGB
as they are read, by the data set's rules. Hidden files, thumbnails of file servers and files that are no images by
their name are left out, and counted (_inventory.py). With a table, its rows say what is read, from that folder on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from transfergrid.data import _inventory as inventory
from transfergrid.data import tables
from transfergrid.data._decode import AS_STORED, PictureRules, decoded
from transfergrid.data._folder_hash import State, content_of, fingerprint, state
from transfergrid.data._folder_scan import Scan, scan
from transfergrid.data._formats import MAX_MEGAPIXELS, NEWER_SUFFIXES
from transfergrid.data._image_size import HEAD_BYTES, size_px, unreadable
from transfergrid.data._inventory import Inventory, Listing
from transfergrid.data._threads import in_threads
from transfergrid.data.damaged import DamagedImage, DamagedImages
from transfergrid.data.images import DatasetFacts, FolderFiles
from transfergrid.data.tables import Row
from transfergrid.errors import ConfigError, DataError
from transfergrid.specs import Split

T = TypeVar("T")


def facts(
    *,
    folder: Path,
    table: Path | None = None,
    kept_hashes: Path | None,
    keep: bool,
    progress: Callable[[int, int], None] | None,
    max_megapixels: float = MAX_MEGAPIXELS,
    skip_damaged: bool = False,
) -> DatasetFacts:
    """Raises DamagedImages where pictures cannot be used; with skip_damaged they are left out, unless a later try may
    read them."""
    rows, tree = _found(folder, table)
    listing = tree.listing
    relative_paths = [path for classes in listing.values() for paths in classes.values() for path in paths]
    content = content_of(
        folder,
        relative_paths,
        kept_hashes=kept_hashes,
        keep=keep,
        progress=progress,
        max_megapixels=max_megapixels,
    )
    listing = _usable(folder, listing, content.damaged, skip_damaged=skip_damaged)
    pictures, sha256_of = content.pictures, content.sha256_of
    sizes_px = {(p.width_px, p.height_px) for p in pictures.values()}
    depths: dict[str, tuple[int, str]] = {}
    for path, picture in pictures.items():
        count, first = depths.get(picture.depth, (0, path))
        depths[picture.depth] = (count + 1, first)
    deep = {path: (p.low, p.high) for path, p in pictures.items() if p.depth != "8-bit"}
    class_names = tuple(next(iter(listing.values())))
    return DatasetFacts(
        kind="image_folder",
        fingerprint=tables.fingerprint(rows, listing, sha256_of) if rows else fingerprint(pictures, sha256_of),
        num_classes=len(class_names),
        class_names=class_names,
        image_size_px=_side_px(sizes_px),
        mirror_ok=True,
        num_images={split: sum(map(len, classes.values())) for split, classes in listing.items()},
        train_counts=tuple(map(len, listing.get("train", {}).values())),
        shortest_px=min(min(size) for size in sizes_px),
        newly_read={s: n for s in NEWER_SUFFIXES if (n := sum(p.lower().endswith(s) for p in pictures))},
        inventory=Inventory(
            per_class=inventory.per_class(listing),
            folders=tree.renamed,
            skipped=tree.skipped,
            unused=tree.unused,
            respelled=tree.respelled,
            copies=inventory.copies(listing, sha256_of),
            damaged={path: image.reason for path, image in content.damaged.items()},
        ),
        turned=sum(p.turned for p in pictures.values()),
        depths=depths,
        extremes={
            split: tuple(deep[path] for paths in classes.values() for path in paths if path in deep)
            for split, classes in listing.items()
        },
        files=FolderFiles(
            listing,
            {
                split: np.array([content.state_of[path] for paths in classes.values() for path in paths], np.int64)
                for split, classes in listing.items()
            },
            tables.groups_of(rows, listing),
        ),
    )


def _found(folder: Path, table: Path | None) -> tuple[Sequence[Row], Scan]:
    """The rows of the table, none without one, and what they or the folder say is there."""
    if table is None:
        return (), scan(folder)
    rows = tables.read_rows(table, folder)
    return rows, tables.scan_of(rows, table)


def _usable(
    folder: Path, listing: Listing, damaged: Mapping[str, DamagedImage], *, skip_damaged: bool
) -> dict[str, dict[str, list[str]]]:
    """The listing without what cannot be used. Raises DamagedImages, and DataError where a class has nothing left."""
    refused = [image for image in damaged.values() if image.may_pass or not skip_damaged]
    if refused:
        raise DamagedImages(folder, refused)
    usable = {
        split: {name: [path for path in paths if path not in damaged] for name, paths in classes.items()}
        for split, classes in listing.items()
    }
    for classes, before in zip(usable.values(), listing.values(), strict=True):
        for name, paths in classes.items():
            if not paths:
                raise DataError(f"no picture of {(folder / before[name][0]).parent} can be used; mend or remove it")
    return usable


def load(
    *,
    split: Split,
    folder: Path,
    table: Path | None = None,
    rules: PictureRules = AS_STORED,
    files: FolderFiles | None = None,
) -> FolderImages:
    """files: of the facts that were taken; without them the folder is read as it lies now."""
    listing = _found(folder, table)[1].listing if files is None else files.listing
    if split not in listing:
        raise ConfigError(f"{folder} has no split {split!r}; it has: {', '.join(listing)}")
    classes = listing[split]
    return FolderImages(
        [folder / path for paths in classes.values() for path in paths],
        np.repeat(np.arange(len(classes)), [len(paths) for paths in classes.values()]).astype(np.int64),
        class_names=tuple(classes),
        rules=rules,
        states_N2=None if files is None else files.states[split],
    )


def find(*, folder: Path, table: Path | None = None) -> None:
    _found(folder, table)


class FolderImages:
    """Images decoded when they are read, by a few threads.

    states_N2: each file's bytes and time of change in ns as planned; one that differs when it is read is refused.
    """

    def __init__(
        self,
        paths: list[Path],
        labels_N: NDArray[np.int64],
        *,
        class_names: tuple[str, ...],
        rules: PictureRules = AS_STORED,
        states_N2: NDArray[np.int64] | None = None,
    ) -> None:
        self.paths = paths
        self.labels_N = labels_N
        self.class_names = class_names
        self._rules = rules
        self._states_N2 = states_N2

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
        side_px = self.image_size_px
        if side_px is None:
            return self.each(indices, lambda image_HW3: image_HW3)
        rows = [int(index) for index in indices]
        images_NHWC = np.empty((len(rows), side_px, side_px, 3), dtype=np.uint8)

        def fill(row: int) -> None:
            images_NHWC[row] = self._made(rows[row], lambda image_HW3: image_HW3)

        in_threads(fill, range(len(rows)))
        return images_NHWC

    def each(self, indices: Sequence[int] | NDArray[np.integer], made: Callable[[NDArray[np.uint8]], T]) -> list[T]:
        return in_threads(lambda index: self._made(index, made), [int(index) for index in indices])

    def _made(self, index: int, made: Callable[[NDArray[np.uint8]], T]) -> T:
        """Raises DamagedImage, and DataError for a file that is not the one that was planned with."""
        try:
            with decoded(self.paths[index], self._rules) as picture:
                result = made(picture.pixels_HW3)
        except DamagedImage:
            self._assert_unchanged(index)
            raise
        self._assert_unchanged(index)
        return result

    def _assert_unchanged(self, index: int) -> None:
        """Asked after a file is read: one that had changed before that shows another time, or is gone."""
        if self._states_N2 is None:
            return
        path = self.paths[index]
        try:
            now: State | None = state(path)
        except (OSError, DamagedImage):
            now = None
        if now != tuple(self._states_N2[index]):
            raise DataError(f"{path} has changed since this run was planned", remedy="launch again")

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
