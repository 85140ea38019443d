from __future__ import annotations

from typing import Any

import pytest

from transfergrid.data.geometry import preprocess_for, scratch_preprocess
from transfergrid.errors import ConfigError

WEIGHTS: dict[str, Any] = dict(
    resize_px=256, crop_px=224, interpolation="bicubic", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)
)


@pytest.mark.parametrize(
    ("image_size_px", "native_size_px", "expected"),
    [
        (None, 32, ("direct", 224, 224)),
        (None, 223, ("direct", 224, 224)),
        (None, 224, ("recipe", 256, 224)),
        (None, 500, ("recipe", 256, 224)),
        (None, None, ("recipe", 256, 224)),
        (64, 32, ("direct", 64, 64)),
        (64, 500, ("direct", 64, 64)),
        (300, None, ("direct", 300, 300)),
    ],
)
def test_small_images_go_straight_to_the_crop_size_and_a_size_asked_for_is_taken(
    image_size_px: int | None, native_size_px: int | None, expected: tuple[str, int, int]
) -> None:
    spec = preprocess_for(image_size_px=image_size_px, native_size_px=native_size_px, **WEIGHTS)
    assert (spec.mode, spec.resize_px, spec.crop_px) == expected
    assert (spec.interpolation, spec.mean, spec.std) == ("bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_from_scratch_images_keep_their_size_unless_another_is_asked_for() -> None:
    native = scratch_preprocess(image_size_px=None, native_size_px=32)
    assert (native.mode, native.crop_px, native.mean, native.std) == ("direct", 32, (0.5,) * 3, (0.5,) * 3)
    assert scratch_preprocess(image_size_px=28, native_size_px=32).crop_px == 28
    assert scratch_preprocess(image_size_px=28, native_size_px=None).crop_px == 28


def test_mixed_sizes_without_a_size_asked_for_and_sizes_below_one_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"images of mixed sizes have no native size .* give dataset.image_size_px=N"):
        scratch_preprocess(image_size_px=None, native_size_px=None)
    with pytest.raises(ConfigError, match=r"dataset.image_size_px=0; wanted a number of pixels, at least 1"):
        preprocess_for(image_size_px=0, native_size_px=32, **WEIGHTS)
