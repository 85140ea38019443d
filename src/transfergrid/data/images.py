"""What a data set is to the rest of the project: facts for the plan, images and labels for a job."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from transfergrid.data._inventory import Inventory, Listing
from transfergrid.data._threads import in_threads

T = TypeVar("T")

# N images, H W pixels, C channels (1 grey, 3 RGB)


@dataclass(frozen=True, slots=True)
class FolderFiles:
    """What is read of a folder. states: split -> (N, 2) int64, each file's bytes and its time of change in ns, in the
    listing's order. groups: split -> (N,) int64, the number of each file's group; empty where a table names none."""

    listing: Listing
    states: Mapping[str, NDArray[np.int64]]
    groups: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFacts:
    """What the plan knows of a data set without reading its images.

    fingerprint: digest over the published checksums, or over a folder's contents.
    image_size_px: the side of the images where all are squares of one size, else None.
    mirror_ok: whether an image keeps its class when it is flipped left to right.
    num_images: split -> images as published; its keys are the splits there are.
    train_counts: images of each class in train; empty where there is no train.
    shortest_px: the shortest edge of any image, where they are not all squares of one size.
    turned: how many images are shown otherwise where EXIF data are followed.
    depths: 8-bit, integer, float -> how many files, and the first of them. extremes: split -> the least and the largest
    value of each image that is deeper than 8 bits.
    newly_read: suffix -> files, of the kinds that the first release left out. inventory: of a folder of the user's.
    files: of such a folder, as they were when the fingerprint was taken.
    """

    kind: str
    fingerprint: str
    num_classes: int
    class_names: tuple[str, ...]
    image_size_px: int | None
    mirror_ok: bool
    num_images: dict[str, int]
    train_counts: tuple[int, ...]
    shortest_px: int | None = None
    turned: int = 0
    depths: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    extremes: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    newly_read: Mapping[str, int] = field(default_factory=dict)
    inventory: Inventory | None = None
    files: FolderFiles | None = field(default=None, repr=False, compare=False)

    @property
    def groups(self) -> Mapping[str, NDArray[np.int64]]:
        """Of FolderFiles; a published data set has none."""
        return {} if self.files is None else self.files.groups

    def paths(self, split: str) -> list[str] | None:
        """The files of a split in its order, from the folder on; None of a published data set, which has none."""
        return None if self.files is None else [p for paths in self.files.listing[split].values() for p in paths]

    @property
    def left_out(self) -> int:
        """Files of a folder that cannot be used, and are left out."""
        return 0 if self.inventory is None else len(self.inventory.damaged)

    def beyond(self, value_range: tuple[float, float]) -> dict[str, int]:
        """split -> how many images hold values outside the range, where there are any."""
        low, high = value_range
        counts = {s: sum(not (low <= least and most <= high) for least, most in e) for s, e in self.extremes.items()}
        return {split: count for split, count in counts.items() if count}


class LabeledImages(Protocol):
    """One split, in the data set's own order. labels_N: int64 in [0, num_classes); image_size_px as in DatasetFacts.

    shorter_edges_px: of each image, where image_size_px is None.
    """

    @property
    def labels_N(self) -> NDArray[np.int64]: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def image_size_px(self) -> int | None: ...
    @property
    def shorter_edges_px(self) -> NDArray[np.int64]: ...

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int] | NDArray[np.integer]) -> Sequence[NDArray[np.uint8]] | NDArray[np.uint8]:
        """HWC uint8 images, in the order asked for: one NHWC array where image_size_px is known, else a list."""

    def each(self, indices: Sequence[int] | NDArray[np.integer], make: Callable[[NDArray[np.uint8]], T]) -> list[T]:
        """make(HWC uint8 image), in the order asked for, by threads: only a few images are in memory at full size."""

    def array(self) -> NDArray[np.uint8]:
        """The whole split as NHWC uint8. Raises ValueError where image_size_px is None."""


@dataclass(frozen=True, slots=True, eq=False)
class ArrayImages:
    """A split that lies in memory as one NHWC uint8 array."""

    images_NHWC: NDArray[np.uint8]
    labels_N: NDArray[np.int64]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        assert self.images_NHWC.dtype == np.uint8 and self.images_NHWC.ndim == 4, self.images_NHWC.shape
        assert self.labels_N.dtype == np.int64 and self.labels_N.shape == self.images_NHWC.shape[:1]

    @property
    def image_size_px(self) -> int | None:
        height_px, width_px = self.images_NHWC.shape[1:3]
        return int(height_px) if height_px == width_px else None

    @property
    def shorter_edges_px(self) -> NDArray[np.int64]:
        return np.full(len(self), min(self.images_NHWC.shape[1:3]))

    def __len__(self) -> int:
        return len(self.labels_N)

    def read(self, indices: Sequence[int] | NDArray[np.integer]) -> NDArray[np.uint8]:
        return self.images_NHWC[np.asarray(indices, dtype=np.int64)]

    def each(self, indices: Sequence[int] | NDArray[np.integer], make: Callable[[NDArray[np.uint8]], T]) -> list[T]:
        return in_threads(lambda index: make(self.images_NHWC[index]), [int(index) for index in indices])

    def array(self) -> NDArray[np.uint8]:
        return self.images_NHWC
