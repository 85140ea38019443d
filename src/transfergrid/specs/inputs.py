"""What a run is made of: weights, what a network is fed, data, and the features that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from transfergrid.specs.declared import later
from transfergrid.specs.identity import digest

Split = Literal["train", "val", "test"]
Precision = Literal["fp32", "tf32", "bf16"]

RANDOM_RULE_VERSION = 1  # of weights=random: constructor under a seed, then BatchNorm statistics from seeded noise
FEATURE_FORMAT_VERSION = 1  # of the HDF5 layout and of everything else a FeatureKey does not name
VAL_FRACTION = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsSpec:
    """What a backbone starts from.

    label: what tables show (`IMAGENET1K_V1`, `random`, `file-<12 hex of its sha256>`, `builtin`).
    identity: what makes it what it is: `tag:<file name with torchvision's own hash>`, `random:v<rule>:<seed>`,
    `file:<sha256>`, `builtin:<sha256>`. Where the bytes lie is the Runtime's business.
    """

    label: str
    identity: str

    @property
    def kind(self) -> str:
        """`tag`, `random`, `file` or `builtin`"""
        return self.identity.partition(":")[0]

    @property
    def is_file(self) -> bool:
        """Whether they are a file of the user's."""
        return self.kind == "file"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessSpec:
    """uint8 RGB image of any size -> normalised float32 (3, crop_px, crop_px).

    mode `direct`: resize to crop_px x crop_px whatever the aspect ratio; `recipe`: resize the shorter edge to
    resize_px, then centre-crop crop_px (the weights' own published transform). Interpolation on uint8 with antialias,
    bit-equal to PIL on the CPU; grey images are repeated to three channels. mean and std are in units of [0, 1].
    normalise `image`: each image by its own mean and standard deviation per channel, and `mean` and `std` go unused.
    small `whole`: a `recipe` in which an edge shorter than crop_px becomes crop_px instead of resize_px.
    """

    mode: Literal["direct", "recipe"]
    resize_px: int
    crop_px: int
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    antialias: bool = True
    channels: Literal["rgb"] = "rgb"
    normalise: Literal["constants", "image"] = "constants"
    small: Literal["recipe", "whole"] = later("recipe")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneSpec:
    """A feature extractor f(x) -> (N, D): name in the catalog, where it is tapped, its weights, what it is fed."""

    name: str
    tap: str
    weights: WeightsSpec
    preprocess: PreprocessSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSpec:
    """name: as paths and tables show it. kind: the module in `data/`. fingerprint: published checksums or content hash.

    max_images: at most so many per split, class shares kept; None = all.
    value_range: the stored values that become 0 and 255, for pictures deeper than 8 bits; None = 8 bits as stored.
    orientation: whether pictures are turned as their EXIF data say, or left as their pixels lie.
    left_out: how many files of a folder `dataset.skip_damaged` leaves out.
    """

    name: str
    kind: str
    fingerprint: str
    num_classes: int
    max_images: int | None = None
    value_range: tuple[float, float] | None = later(None)
    orientation: Literal["stored", "exif"] = later("stored")
    left_out: int = later(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureKey:
    """Identity of one cached feature file: one backbone over one split. Any change is a miss, never a warning."""

    backbone: BackboneSpec
    dataset: DatasetSpec
    split: Split
    bn_statistics: Literal["imagenet", "target"]
    precision: Precision
    storage: Literal["float16", "float32"]
    version: int = FEATURE_FORMAT_VERSION

    @property
    def digest(self) -> str:
        """16 hex digits of sha256 over all fields."""
        return digest(self, 16)
