"""What a data set is to the rest of the project: facts for the plan, images and labels for a job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# N images, H W pixels, C channels (1 grey, 3 RGB)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFacts:
    """What the plan knows of a data set without reading its images.

    fingerprint: digest over the published checksums, or over a folder's contents.
    image_size_px: the side of the images where all are squares of one size, else None.
    mirror_ok: whether an image keeps its class when it is flipped left to right.
    num_images: split -> images as published; its keys are the splits there are.
    train_counts: images of each class in train; empty where there is no train.
    """

    kind: str
    fingerprint: str
    num_classes: int
    class_names: tuple[str, ...]
    image_size_px: int | None
    mirror_ok: bool
    num_images: dict[str, int]
    train_counts: tuple[int, ...]


class LabeledImages(Protocol):
    """One split, in the data set's own order. labels_N: int64 in [0, num_classes); image_size_px as in DatasetFacts."""

    @property
    def labels_N(self) -> NDArray[np.int64]: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def image_size_px(self) -> int | None: ...

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int] | NDArray[np.integer]) -> Sequence[NDArray[np.uint8]] | NDArray[np.uint8]:
        """HWC uint8 images, in the order asked for: one NHWC array where image_size_px is known, else a list."""
        ...

    def array(self) -> NDArray[np.uint8]:
        """The whole split as NHWC uint8. Raises ValueError where image_size_px is None."""
        ...


class ArrayImages:
    """A split that lies in memory as one NHWC uint8 array."""

    def __init__(
        self, images_NHWC: NDArray[np.uint8], labels_N: NDArray[np.int64], *, class_names: tuple[str, ...]
    ) -> None:
        assert images_NHWC.dtype == np.uint8 and images_NHWC.ndim == 4, (images_NHWC.dtype, images_NHWC.shape)
        assert labels_N.dtype == np.int64 and labels_N.shape == images_NHWC.shape[:1], labels_N.shape
        self._images_NHWC = images_NHWC
        self._labels_N = labels_N
        self._class_names = class_names

    @property
    def labels_N(self) -> NDArray[np.int64]:
        return self._labels_N

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._class_names

    @property
    def image_size_px(self) -> int | None:
        height_px, width_px = self._images_NHWC.shape[1:3]
        return int(height_px) if height_px == width_px else None

    def __len__(self) -> int:
        return len(self._labels_N)

    def read(self, indices: Sequence[int] | NDArray[np.integer]) -> NDArray[np.uint8]:
        return self._images_NHWC[np.asarray(indices, dtype=np.int64)]

    def array(self) -> NDArray[np.uint8]:
        return self._images_NHWC
