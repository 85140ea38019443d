"""Images that are smaller than the network's input, among images of other sizes: augmented at their own size.

An image is changed as strongly as it would be in a folder where all have its size. B rows of a batch.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transfergrid.data import LabeledImages, augment
from transfergrid.data.preprocess import resize
from transfergrid.specs import PreprocessSpec


class SmallImages:
    """Of one split. Those of up to budget_bytes are kept in memory once they were read."""

    def __init__(self, images: LabeledImages, *, budget_bytes: int) -> None:
        self._images = images
        self._free_bytes = budget_bytes
        self._kept: dict[int, NDArray[np.uint8]] = {}

    def augmented(
        self, images_BHWC: Tensor, index_B: Tensor, draws: augment.AugmentDraws, spec: PreprocessSpec
    ) -> Tensor:
        """images_BHWC, the batch at the input's size, with every smaller image in the place it had at its own size."""
        shorter_B = self._images.shorter_edges_px[index_B.cpu().numpy()]
        rows = np.flatnonzero(shorter_B < spec.crop_px).tolist()
        if not rows:
            return images_BHWC
        images_BHWC = images_BHWC.clone()
        by_shape: dict[tuple[int, ...], list[tuple[int, NDArray[np.uint8]]]] = {}
        for row, image_HWC in zip(rows, self._read([int(index_B[row]) for row in rows]), strict=True):
            by_shape.setdefault(image_HWC.shape, []).append((row, image_HWC))
        for members in by_shape.values():
            of_shape = torch.tensor([row for row, _ in members])
            own_NHWC = torch.from_numpy(np.stack([image for _, image in members])).to(images_BHWC.device)
            own_NHWC = augment.apply(own_NHWC, draws, index_B[of_shape.to(index_B.device)])
            images_BHWC[of_shape.to(images_BHWC.device)] = resize(own_NHWC, spec)
        return images_BHWC

    def _read(self, indices: list[int]) -> list[NDArray[np.uint8]]:
        missing = [index for index in dict.fromkeys(indices) if index not in self._kept]
        read = dict(zip(missing, self._images.read(missing), strict=True)) if missing else {}
        for index, image_HWC in read.items():
            if image_HWC.nbytes <= self._free_bytes:
                self._free_bytes -= image_HWC.nbytes
                self._kept[index] = image_HWC
        return [self._kept[index] if index in self._kept else read[index] for index in indices]
