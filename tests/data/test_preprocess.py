from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import tiny_data
import torch
from PIL import Image

from transfergrid import data
from transfergrid.data import ArrayImages, LabeledImages, preprocess
from transfergrid.data.preprocess import ImageSource, normalise, prepare_images, prepare_one, resize, resize_by_taps
from transfergrid.errors import ConfigError, DataError
from transfergrid.specs import PreprocessSpec

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
CPU = torch.device("cpu")


def spec_of(
    mode: Literal["direct", "recipe"], resize_px: int, crop_px: int, interpolation: Literal["bilinear", "bicubic"]
) -> PreprocessSpec:
    return PreprocessSpec(
        mode=mode, resize_px=resize_px, crop_px=crop_px, interpolation=interpolation, mean=MEAN, std=STD
    )


def uniform(num_images: int, side_px: int, num_channels: int = 3) -> ArrayImages:
    images_NHWC = tiny_data.random_images(num_images, side_px, side_px, num_channels)
    return ArrayImages(images_NHWC, np.zeros(num_images, dtype=np.int64), class_names=("only",))


def mixed(folder: Path) -> LabeledImages:
    """Six images, of 40 x 40 and 25 x 25 in turn."""
    tiny_data.write_folder(folder, sizes_px=(40, 25))
    return data.load("image_folder", split="train", data_dir=folder, folder=folder)


# ------------------------------------------------------------------------------------------------------------ resize
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("native_px", "size_px"), [(8, 64), (28, 224), (32, 224), (33, 299), (97, 32), (256, 224), (300, 64), (64, 64)]
)
def test_sums_of_taps_resize_to_pillows_pixels_to_the_last_bit(
    native_px: int, size_px: int, interpolation: Literal["bilinear", "bicubic"]
) -> None:
    # Besides noise a checkerboard: its overshoot is what bicubic clipping, and its order, shows in.
    checkerboard = (np.indices((native_px, native_px)).sum(0) % 2 * 255).astype(np.uint8)
    images_NHWC = np.stack([tiny_data.random_images(native_px, native_px, 3), np.stack([checkerboard] * 3, 2)])
    spec = spec_of("direct", size_px, size_px, interpolation)
    resized = resize_by_taps(torch.from_numpy(images_NHWC), spec).numpy()
    for image_HWC, resized_HWC in zip(images_NHWC, resized, strict=True):
        pillow = np.asarray(Image.fromarray(image_HWC).resize((size_px, size_px), RESAMPLING[interpolation]))
        assert np.abs(resized_HWC.astype(int) - pillow).max() == 0


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("native_px", "resize_px", "crop_px"), [(300, 64, 56), (40, 64, 57), (64, 64, 56), (56, 64, 56)]
)
def test_the_recipe_on_the_device_is_torchvisions_transform_of_a_pillow_image(
    native_px: int, resize_px: int, crop_px: int, interpolation: Literal["bilinear", "bicubic"]
) -> None:
    from torchvision.transforms import InterpolationMode, v2

    spec = spec_of("recipe", resize_px, crop_px, interpolation)
    images = uniform(2, native_px)
    theirs = v2.Compose(
        [
            v2.Resize(resize_px, interpolation=InterpolationMode(interpolation), antialias=True),
            v2.CenterCrop(crop_px),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    expected = torch.stack([theirs(Image.fromarray(image)) for image in images.array()])
    images_NHWC = prepare_images(images, [0, 1], None)
    assert torch.allclose(normalise(images_NHWC, spec), expected, rtol=0, atol=1e-6)
    assert torch.equal(resize_by_taps(images_NHWC, spec), resize(images_NHWC, spec))


def test_a_batch_larger_than_a_chunk_gives_the_same_pixels_as_its_images_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preprocess, "_CHUNK_BYTES", 3 * 8 * 100 * 100)
    images_NHWC = torch.from_numpy(tiny_data.random_images(40, 16, 16, 1))
    spec = spec_of("direct", 100, 100, "bilinear")
    for function in (resize, resize_by_taps):
        one_by_one = torch.cat([function(images_NHWC[i : i + 1], spec) for i in range(40)])
        assert torch.equal(function(images_NHWC, spec), one_by_one)
        assert function(images_NHWC[:0], spec).shape == (0, 100, 100, 1)
    assert torch.equal(resize(images_NHWC, spec), resize_by_taps(images_NHWC, spec))


@pytest.mark.gpu
def test_a_gpu_gives_pillows_pixels_too() -> None:
    images_NHWC = torch.from_numpy(tiny_data.random_images(300, 32, 32, 3))
    spec = spec_of("recipe", 256, 224, "bicubic")
    assert torch.equal(resize(images_NHWC.cuda(), spec).cpu(), resize(images_NHWC, spec))


# --------------------------------------------------------------------------------------------------------- normalise
def test_normalised_images_are_float32_rgb_in_channels_last_memory() -> None:
    inputs = normalise(torch.from_numpy(uniform(3, 28).array()), spec_of("direct", 32, 32, "bilinear"))
    assert inputs.shape == (3, 3, 32, 32)
    assert inputs.dtype == torch.float32
    assert inputs.is_contiguous(memory_format=torch.channels_last)


def test_black_and_white_become_minus_mean_and_one_minus_mean_over_std_in_each_channel() -> None:
    images_NHWC = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 4, 4, 3)
    inputs = normalise(images_NHWC, spec_of("direct", 4, 4, "bilinear"))
    for channel in range(3):
        for image, level in ((0, 0.0), (1, 1.0)):
            values = inputs[image, channel].flatten().tolist()
            assert values == pytest.approx([(level - MEAN[channel]) / STD[channel]] * 16)


def test_an_image_normalised_by_itself_has_mean_zero_and_standard_deviation_one_in_each_channel() -> None:
    images_NHWC = torch.randint(40, 200, (3, 8, 8, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images_NHWC[2] = 7
    spec = PreprocessSpec(
        mode="direct",
        resize_px=8,
        crop_px=8,
        interpolation="bilinear",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        normalise="image",
    )
    made = normalise(images_NHWC, spec)
    assert made[:2].mean((2, 3)).abs().max() < 1e-6
    # Over all pixels, as numpy's std; 1e-4 is added to it, so that the flat image gives zeros.
    assert made[:2].std((2, 3), correction=0).sub(1).abs().max() == pytest.approx(1e-4 / 0.18, rel=0.1)
    assert made[2].abs().max() == 0


def test_grey_images_are_repeated_to_three_channels_before_normalising() -> None:
    grey_NHWC = torch.from_numpy(uniform(3, 28, 1).array())
    spec = spec_of("direct", 64, 64, "bicubic")
    assert torch.equal(normalise(grey_NHWC, spec), normalise(grey_NHWC.expand(-1, -1, -1, 3), spec))


def test_prepared_images_are_not_resized_again() -> None:
    spec = spec_of("recipe", 256, 224, "bilinear")
    # Of crop size by chance, these still take the whole recipe; prepared ones do not.
    images_NHWC = torch.from_numpy(uniform(1, 224).array())
    resized_NHWC = resize(images_NHWC, spec)
    assert torch.equal(normalise(resized_NHWC, spec, prepared=True), normalise(images_NHWC, spec))
    assert not torch.equal(normalise(images_NHWC, spec, prepared=True), normalise(images_NHWC, spec))
    with pytest.raises(AssertionError):
        normalise(images_NHWC[:, :100, :100], spec, prepared=True)


# -------------------------------------------------------------------------------------------------------- host stage
def test_images_of_one_size_leave_the_host_stage_as_they_are() -> None:
    images = uniform(4, 28, 1)
    assert np.array_equal(prepare_images(images, [2, 0], None).numpy(), images.array()[[2, 0]])


@pytest.mark.parametrize("shape", [(500, 375), (375, 500), (90, 301), (64, 200), (50, 40)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_host_stage_is_torchvisions_resize_and_crop_of_a_pillow_image(
    shape: tuple[int, int], interpolation: Literal["bilinear", "bicubic"]
) -> None:
    from torchvision.transforms import InterpolationMode, v2

    image_HWC = tiny_data.random_images(*shape, 3)
    mode = InterpolationMode(interpolation)
    recipe = v2.Compose([v2.Resize(64, interpolation=mode), v2.CenterCrop(57)])(Image.fromarray(image_HWC))
    assert np.array_equal(prepare_one(image_HWC, spec_of("recipe", 64, 57, interpolation)), np.asarray(recipe))
    direct = v2.Resize((57, 57), interpolation=mode)(Image.fromarray(image_HWC))
    assert np.array_equal(prepare_one(image_HWC, spec_of("direct", 57, 57, interpolation)), np.asarray(direct))


def test_images_of_mixed_sizes_come_out_in_one_size_in_the_order_asked_for(tmp_path: Path) -> None:
    images = mixed(tmp_path)
    spec = spec_of("recipe", 32, 28, "bilinear")
    prepared_NHWC = prepare_images(images, np.array([5, 0, 1]), spec)
    assert prepared_NHWC.shape == (3, 28, 28, 3)
    for row, index in enumerate((5, 0, 1)):
        assert np.array_equal(prepared_NHWC[row].numpy(), prepare_one(images.read([index])[0], spec))


def test_mixed_sizes_without_a_size_to_bring_them_to_are_the_users_to_settle(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mixed sizes; give dataset.image_size_px=N to bring them to N x N"):
        prepare_images(mixed(tmp_path), [0], None)


# ------------------------------------------------------------------------------------------------------------ source
def test_resident_and_streamed_sources_give_the_same_batches(tmp_path: Path) -> None:
    spec = spec_of("recipe", 32, 28, "bilinear")
    for images, fed, shape in (
        (uniform(6, 28, 1), None, (28, 28, 1)),
        (uniform(6, 30, 1), spec, (28, 28, 3)),
        (mixed(tmp_path), spec, (28, 28, 3)),
    ):
        prepared = fed is not None
        num_bytes = 6 * 28 * 28 * shape[2]
        resident = ImageSource(images, fed, device=CPU, budget_bytes=num_bytes)
        streamed = ImageSource(images, fed, device=CPU, budget_bytes=num_bytes - 1)
        assert (resident.resident, streamed.resident) == (True, False)
        assert resident.prepared is streamed.prepared is prepared
        assert len(resident) == len(streamed) == 6
        order = [torch.tensor(part) for part in ([4, 1], [0], [5, 2, 3], [1], [2])]
        for source in (resident, streamed):
            batches = list(source.batches(order))
            assert [tuple(batch.shape) for batch in batches] == [(len(part), *shape) for part in order]
            for part, batch in zip(order, batches, strict=True):
                assert torch.equal(batch, prepare_images(images, part.numpy(), fed))
                assert torch.equal(batch, source.batch(part))


def test_a_source_of_some_rows_keeps_only_those_and_is_still_asked_by_the_data_sets_indices() -> None:
    images = uniform(1000, 8)
    rows = np.array([3, 500, 999])
    source = ImageSource(images, None, device=CPU, budget_bytes=3 * 8 * 8 * 3, rows=rows)
    assert source.resident
    assert np.array_equal(source.batch(torch.tensor([999, 3])).numpy(), images.array()[[999, 3]])


def test_an_unreadable_image_met_while_reading_ahead_ends_the_loop_with_its_name(tmp_path: Path) -> None:
    images = mixed(tmp_path)
    assert images.image_size_px is None
    path = tmp_path / "train" / "dog" / "0.png"
    path.write_bytes(path.read_bytes()[:100])
    source = ImageSource(images, spec_of("direct", 16, 16, "bilinear"), device=CPU, budget_bytes=0)
    seen = 0
    with pytest.raises(DataError, match="dog/0.png cannot be read as an image"):
        for batch in source.batches(torch.tensor([[0], [1], [2], [3], [4], [5]])):
            seen += len(batch)
    assert seen == 3
