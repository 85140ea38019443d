from __future__ import annotations

from typing import Any

import pytest
from report_cases import spec

from transfergrid.data.geometry import preprocess_for, scratch_preprocess
from transfergrid.errors import ConfigError
from transfergrid.specs import ScratchSettings

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


def test_a_network_from_scratch_is_fed_at_its_own_size_normalised_as_its_settings_say() -> None:
    settings = spec("scratch", "baseline_cnn", image_size_px=28, mean=(0.1, 0.2, 0.3), normalise="image").settings
    assert isinstance(settings, ScratchSettings)
    made = scratch_preprocess(settings)
    assert (made.mode, made.resize_px, made.crop_px) == ("direct", 28, 28)
    assert (made.normalise, made.mean, made.std) == ("image", (0.1, 0.2, 0.3), (0.5, 0.5, 0.5))


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"dataset.image_size_px=0; wanted a number of pixels, at least 1"):
        preprocess_for(image_size_px=0, native_size_px=32, **WEIGHTS)
