"""Which size and shape images are fed in: preprocessing chosen from sizes alone."""

from __future__ import annotations

from typing import Literal

from transfergrid.errors import ConfigError
from transfergrid.specs import PreprocessSpec, ScratchSettings


def preprocess_for(
    *,
    image_size_px: int | None,
    native_size_px: int | None,
    shortest_px: int | None = None,
    small: Literal["recipe", "whole"] = "whole",
    resize_px: int,
    crop_px: int,
    interpolation: Literal["bilinear", "bicubic"],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> PreprocessSpec:
    """The preprocessing of a backbone whose weights publish resize_px, crop_px, interpolation, mean and std.

    image_size_px, the user's, goes straight to that size. Without it each image is judged by its shorter edge: if that
    is below the crop size, it becomes the crop size, because the weights' own transform would cut away a border that
    holds content; other images take that transform. So a square goes the same way among images of its own size
    (native_size_px) and among others (native_size_px None; shortest_px: the shortest edge there is). small=recipe: the
    weights' own transform for every image, as in the figures that are published of them.
    """
    if image_size_px is not None and image_size_px < 1:
        raise ConfigError(f"dataset.image_size_px={image_size_px}; wanted a number of pixels, at least 1")
    whole = small == "whole"
    smaller = whole and native_size_px is not None and native_size_px < crop_px
    some_smaller = whole and native_size_px is None and shortest_px is not None and shortest_px < crop_px
    size_px = image_size_px or (crop_px if smaller else None)
    return PreprocessSpec(
        mode="recipe" if size_px is None else "direct",
        resize_px=size_px or resize_px,
        crop_px=size_px or crop_px,
        interpolation=interpolation,
        mean=mean,
        std=std,
        small="whole" if some_smaller and size_px is None else "recipe",
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
