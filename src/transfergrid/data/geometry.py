"""Which size and shape images are fed in: preprocessing chosen from sizes alone."""

from __future__ import annotations

from typing import Literal

from transfergrid.errors import ConfigError
from transfergrid.specs import PreprocessSpec

SCRATCH_MEAN = (0.5, 0.5, 0.5)
SCRATCH_STD = (0.5, 0.5, 0.5)


def preprocess_for(
    *,
    image_size_px: int | None,
    native_size_px: int | None,
    resize_px: int,
    crop_px: int,
    interpolation: Literal["bilinear", "bicubic"],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> PreprocessSpec:
    """The preprocessing of a backbone whose weights publish resize_px, crop_px, interpolation, mean and std.

    image_size_px, the user's, goes straight to that size. Without it, images smaller than the crop size go straight to
    the crop size, because a centre crop would cut away a border that holds content; others (and mixed sizes:
    native_size_px None) take the weights' own transform.
    """
    _check(image_size_px)
    smaller = native_size_px is not None and native_size_px < crop_px
    size_px = image_size_px or (crop_px if smaller else None)
    return PreprocessSpec(
        mode="recipe" if size_px is None else "direct",
        resize_px=size_px or resize_px,
        crop_px=size_px or crop_px,
        interpolation=interpolation,
        mean=mean,
        std=std,
    )


def scratch_preprocess(
    *,
    image_size_px: int | None,
    native_size_px: int | None,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
) -> PreprocessSpec:
    """The preprocessing of a network trained from scratch: native size unless the user asks for another, to [-1, 1].

    Raises ConfigError where the images have mixed sizes and the user named none.
    """
    _check(image_size_px)
    size_px = image_size_px or native_size_px
    if size_px is None:
        raise ConfigError("images of mixed sizes have no native size to train at; give dataset.image_size_px=N")
    return PreprocessSpec(
        mode="direct",
        resize_px=size_px,
        crop_px=size_px,
        interpolation=interpolation,
        mean=SCRATCH_MEAN,
        std=SCRATCH_STD,
    )


def _check(image_size_px: int | None) -> None:
    if image_size_px is not None and image_size_px < 1:
        raise ConfigError(f"dataset.image_size_px={image_size_px}; wanted a number of pixels, at least 1")
