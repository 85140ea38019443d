"""Batches of network input from a run's images. N rows, B rows of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transfergrid.data import LabeledImages, augment
from transfergrid.data.preprocess import ImageSource, normalise, resize, to_device
from transfergrid.specs import PreprocessSpec, Split, TrainSettings


class NetworkInputs:
    """Batches of network input for one or several backbones at once, from images held (where they fit) on the device.

    Backbones that want the same preprocessing share their input tensor. Images of one size, none larger than the input,
    are kept as they are; others are brought to the input's size as they are read.
    """

    def __init__(
        self,
        splits: Mapping[Split, LabeledImages],
        preprocess: tuple[PreprocessSpec, ...],
        *,
        device: torch.device,
        resident_gb: float,
        rows: Mapping[Split, NDArray[np.int64]],
    ) -> None:
        self.device = device
        self.preprocess = preprocess
        self._num_images = {split: len(images) for split, images in splits.items()}
        self._sources: dict[tuple[Split, PreprocessSpec | None], ImageSource] = {}
        self._small: dict[Split, SmallImages] = {}
        budget_per_row = resident_gb * 1e9 / max(sum(len(index_N) for index_N in rows.values()), 1)
        for split, index_N in rows.items():
            images = splits[split]
            side_px = images.image_size_px
            as_they_are = side_px is not None and side_px <= max(spec.crop_px for spec in preprocess)
            specs = {None} if as_they_are else set(preprocess)
            if side_px is None:
                self._small[split] = SmallImages(images, budget_bytes=int(budget_per_row * len(index_N)))
            for spec in specs:
                budget = int(budget_per_row * len(index_N) / len(specs))
                self._sources[split, spec] = ImageSource(images, spec, device=device, budget_bytes=budget, rows=index_N)

    def indices_on(self, split: Split) -> torch.device:
        """Where batch() wants its indices: on the CPU where images are read by them."""
        sources = [source for (name, _), source in self._sources.items() if name == split]
        is_read = split in self._small or not all(source.resident for source in sources)
        return torch.device("cpu") if is_read else self.device

    def draw(self, plan: augment.AugmentPlan, split: Split, *, seed: int, epoch: int) -> augment.AugmentDraws:
        """One epoch's random numbers, for every image of the split."""
        return augment.draw(plan, num_images=self._num_images[split], seed=seed, epoch=epoch, device=self.device)

    def batch(
        self, split: Split, index_B: Tensor, *, draws: augment.AugmentDraws | None = None, augment_at: str = "native"
    ) -> list[Tensor]:
        """One normalised float32 input (B, 3, H, W) per backbone. augment_at: as in TrainSettings."""
        inputs: dict[PreprocessSpec, Tensor] = {}
        read: dict[PreprocessSpec | None, Tensor] = {}
        for spec in dict.fromkeys(self.preprocess):
            key = None if (split, None) in self._sources else spec
            source = self._sources[split, key]
            if key not in read:
                read[key] = source.batch(index_B)
            images_BHWC, prepared = read[key], source.prepared
            if draws is not None and augment_at == "native" and not prepared and images_BHWC.shape[1] < spec.crop_px:
                images_BHWC = augment.apply(images_BHWC, draws, index_B)
            elif draws is not None:
                images_BHWC = images_BHWC if prepared else resize(images_BHWC, spec)
                images_BHWC, prepared = augment.apply(images_BHWC, draws, index_B), True
                if augment_at == "native" and split in self._small:
                    images_BHWC = self._small[split].augmented(images_BHWC, index_B, draws, spec)
            inputs[spec] = normalise(images_BHWC, spec, prepared=prepared)
        return [inputs[spec] for spec in self.preprocess]

    def batches(self, split: Split, index_batches: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """batch() of each, unaugmented, in order; images that are not resident are read ahead of their use."""
        key_of = {spec: None if (split, None) in self._sources else spec for spec in self.preprocess}
        readers = {key: self._sources[split, key].batches(index_batches) for key in set(key_of.values())}
        for _ in index_batches:
            raw = {key: next(reader) for key, reader in readers.items()}
            inputs = {
                spec: normalise(raw[key], spec, prepared=self._sources[split, key].prepared)
                for spec, key in key_of.items()
            }
            yield [inputs[spec] for spec in self.preprocess]


def augment_plan(settings: TrainSettings) -> augment.AugmentPlan | None:
    """None where the settings ask for no augmentation."""
    plan = augment.AugmentPlan(**{f.name: getattr(settings, f.name) for f in fields(augment.AugmentPlan)})
    return plan if any((plan.flip, plan.shift_px, plan.perspective, plan.rotation_deg, plan.cutout_px)) else None


class SmallImages:
    """A split's images that are smaller than the input, among images of other sizes: augmented at their own size.

    So an image is changed as strongly as in a folder where all have its size. Those of up to budget_bytes stay in
    memory once they were read.
    """

    def __init__(self, images: LabeledImages, *, budget_bytes: int) -> None:
        self._images = images
        self._free_bytes = budget_bytes
        self._cache: dict[int, NDArray[np.uint8]] = {}

    def augmented(
        self, images_BHWC: Tensor, index_B: Tensor, draws: augment.AugmentDraws, spec: PreprocessSpec
    ) -> Tensor:
        """images_BHWC, the batch at the input's size, with every smaller image in the place it had at its own size.
        index_B: on the CPU."""
        shorter_B = self._images.shorter_edges_px[index_B.numpy()]
        rows = np.flatnonzero(shorter_B < spec.crop_px).tolist()
        if not rows:
            return images_BHWC
        images_BHWC = images_BHWC.clone()
        by_shape: dict[tuple[int, ...], list[tuple[int, NDArray[np.uint8]]]] = {}
        for row, image_HWC in zip(rows, self._read(index_B[rows].tolist()), strict=True):
            by_shape.setdefault(image_HWC.shape, []).append((row, image_HWC))
        for members in by_shape.values():
            of_shape = torch.tensor([row for row, _ in members])
            own_NHWC = to_device(torch.from_numpy(np.stack([image for _, image in members])), images_BHWC.device)
            own_NHWC = augment.apply(own_NHWC, draws, index_B[of_shape])
            images_BHWC[to_device(of_shape, images_BHWC.device)] = resize(own_NHWC, spec)
        return images_BHWC

    def _read(self, indices: list[int]) -> list[NDArray[np.uint8]]:
        missing = [index for index in dict.fromkeys(indices) if index not in self._cache]
        read = dict(zip(missing, self._images.read(missing), strict=True)) if missing else {}
        for index, image_HWC in read.items():
            if image_HWC.nbytes <= self._free_bytes:
                self._free_bytes -= image_HWC.nbytes
                self._cache[index] = image_HWC
        return [self._cache[index] if index in self._cache else read[index] for index in indices]
