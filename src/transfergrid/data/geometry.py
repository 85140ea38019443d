"""Which size and shape images are fed in: preprocessing chosen from sizes alone."""

from __future__ import annotations

from typing import Literal

from transfergrid.errors import ConfigError
from transfergrid.specs import PreprocessSpec, ScratchSettings


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


def scratch_preprocess(settings: ScratchSettings) -> PreprocessSpec:
    """The preprocessing of a network trained from scratch: straight to its input size, bilinear."""
    return PreprocessSpec(
        mode="direct",
        resize_px=settings.image_size_px,
        crop_px=settings.image_size_px,
        interpolation="bilinear",
        mean=settings.mean,
        std=settings.std,
        normalise=settings.normalise,
    )


def _check(image_size_px: int | None) -> None:
    if image_size_px is not None and image_size_px < 1:
        raise ConfigError(f"dataset.image_size_px={image_size_px}; wanted a number of pixels, at least 1")
