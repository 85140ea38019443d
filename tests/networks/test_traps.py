"""The known ways in which frozen features go wrong, one test each, by the numbers of the project's notes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from backbone_files import from_file, images, random_trunk, reference, spec_of
from PIL import Image
from torch import Tensor, nn

from transfergrid.data.geometry import preprocess_for
from transfergrid.data.preprocess import normalise, resize, resize_by_taps
from transfergrid.errors import ConfigError
from transfergrid.networks import backbones
from transfergrid.networks.backbones.build import Frozen, build


@pytest.fixture(scope="module")
def googlenet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As published: with auxiliary heads."""
    path = tmp_path_factory.mktemp("weights") / "googlenet.pth"
    torch.save(reference("googlenet").state_dict(), path)
    return path


def relative(a_ND: Tensor, b_ND: Tensor) -> float:
    return float((a_ND.detach() - b_ND).norm() / b_ND.norm())


def test_T01_extraction_moves_no_batchnorm_statistic_even_if_the_model_is_set_to_train() -> None:
    frozen = Frozen(random_trunk("resnet18", size_px=32))
    model = nn.Sequential(frozen, nn.Linear(512, 10))
    before = {name: buffer.clone() for name, buffer in frozen.named_buffers()}
    expected = frozen(images(4, 32))
    model.train()
    assert model.training and not any(module.training for module in frozen.modules())
    assert torch.equal(frozen(images(4, 32)), expected)
    assert len(before) == 60 and all(torch.equal(before[n], b) for n, b in frozen.named_buffers())
    trained_mode = random_trunk("resnet18", size_px=32).train()
    assert relative(trained_mode(images(4, 32)), expected) > 0.1  # what the wrapper prevents


def test_T02_dropout_sleeps_two_passes_are_bit_equal() -> None:
    for name in ("alexnet", "googlenet"):
        trunk = random_trunk(name, size_px=64)
        awake = trunk.train()
        assert not torch.equal(awake(images(2, 64)), awake(images(2, 64)))
        frozen = Frozen(trunk).train()
        assert torch.equal(frozen(images(2, 64)), frozen(images(2, 64)))


def test_T03_googlenet_keeps_the_transform_of_its_input(googlenet_file: Path) -> None:
    plain = reference("googlenet")
    plain.set_submodule("fc", nn.Identity())
    trunk = from_file("googlenet", googlenet_file)
    with torch.no_grad():
        expected = plain(images(2, 64))
        assert torch.equal(trunk(images(2, 64)), expected)
        without = nn.Sequential(*(m for n, m in trunk.named_children() if n != "fc"), nn.Flatten())
        assert relative(without(images(2, 64)), expected) > 0.05  # children in a row: the usual way to lose it


def test_T04_googlenet_from_a_file_with_or_without_auxiliary_heads_is_the_same_network(
    googlenet_file: Path, tmp_path: Path
) -> None:
    whole = torch.load(googlenet_file, weights_only=True)
    assert "aux1.fc2.weight" in whole
    torch.save({k: v for k, v in whole.items() if not k.startswith("aux")}, tmp_path / "no_aux.pth")
    first, second = from_file("googlenet", googlenet_file), from_file("googlenet", tmp_path / "no_aux.pth")
    for trunk in (first, second, random_trunk("googlenet", size_px=32), random_trunk("inception_v3", size_px=75)):
        assert getattr(trunk, "transform_input") is True  # noqa: B009  (not a field of nn.Module)
        assert not any(name.startswith(("aux", "AuxLogits")) for name, _ in trunk.named_parameters())
    assert torch.equal(first(images(2, 32)), second(images(2, 32)))
    assert isinstance(first.train()(images(2, 32)), Tensor)


@pytest.mark.slow
def test_T05_vgg_is_tapped_at_fc7_after_relu_and_the_global_average_is_another_backbone() -> None:
    trunk = random_trunk("vgg11", size_px=32)
    with torch.no_grad():
        features_ND = trunk(images(2, 32))
        maps = trunk.get_submodule("features")(images(2, 32))
        pooled = nn.functional.adaptive_avg_pool2d(maps, 7).flatten(1)
        fc6, fc7 = (trunk.get_submodule(f"classifier.{index}") for index in (0, 3))
        assert torch.equal(features_ND, fc7(fc6(pooled).relu()).relu())
    assert features_ND.shape == (2, 4096) and float(features_ND.min()) == 0.0
    assert (backbones.entry("vgg16").tap, backbones.entry("vgg16_gap").tap) == ("fc7", "global_average")
    gap = random_trunk("vgg16_gap", size_px=64)
    with torch.no_grad():
        expected = gap.get_submodule("features")(images(2, 64)).mean(dim=(2, 3))
    torch.testing.assert_close(gap(images(2, 64)), expected)


def test_T06_preprocessing_is_the_tags_own_and_the_default_tag_never_moves() -> None:
    resnet50 = backbones.entry("resnet50").weights
    assert (resnet50["IMAGENET1K_V1"].resize_px, resnet50["IMAGENET1K_V2"].resize_px) == (256, 232)
    features = backbones.entry("vgg16_gap").weights["IMAGENET1K_FEATURES"]
    assert features.std == (1 / 255, 1 / 255, 1 / 255) and features.mean == (0.48235, 0.45882, 0.40784)
    assert "IMAGENET1K_FEATURES" not in backbones.entry("vgg16").weights
    assert backbones.entry("resnet50").default_weights == "IMAGENET1K_V1"
    with pytest.raises(ConfigError, match="name a tag: IMAGENET1K_V1, IMAGENET1K_V2"):
        backbones.weights_spec("resnet50", "DEFAULT")


def test_T07_images_are_resized_with_antialias_to_pillows_own_pixels() -> None:
    noise_HWC = np.random.default_rng(0).integers(0, 256, (500, 500, 3), dtype=np.uint8)
    spec = replace(spec_of("resnet18", "random", size_px=64).preprocess, resize_px=64, crop_px=64)
    assert spec.antialias
    pillow = np.asarray(Image.fromarray(noise_HWC).resize((64, 64), Image.Resampling.BILINEAR))
    images_1HWC = torch.from_numpy(noise_HWC)[None]
    assert np.array_equal(resize(images_1HWC, spec)[0].numpy(), pillow)
    assert np.array_equal(resize_by_taps(images_1HWC, spec)[0].numpy(), pillow)
    aliased = nn.functional.interpolate(images_1HWC.permute(0, 3, 1, 2).float(), size=(64, 64), mode="bilinear")
    assert float((aliased[0].permute(1, 2, 0) - torch.from_numpy(pillow.copy())).abs().max()) > 100  # the trap


def test_T08_grey_images_become_rgb_and_take_the_weights_own_mean_and_std() -> None:
    grey_1HW1 = torch.arange(0, 256, dtype=torch.uint8).reshape(1, 16, 16, 1)
    backbone = spec_of("resnet18", "IMAGENET1K_V1", size_px=16)
    assert backbone.preprocess.mean == (0.485, 0.456, 0.406) and backbone.preprocess.std == (0.229, 0.224, 0.225)
    made_3HW = normalise(grey_1HW1, backbone.preprocess)[0]
    as_rgb = np.asarray(Image.fromarray(grey_1HW1[0, :, :, 0].numpy()).convert("RGB"))
    assert np.array_equal(as_rgb, grey_1HW1[0].expand(-1, -1, 3).numpy())
    for channel, (mean, std) in enumerate(zip(backbone.preprocess.mean, backbone.preprocess.std, strict=True)):
        expected = (torch.from_numpy(as_rgb[:, :, channel].copy()) / 255 - mean) / std
        torch.testing.assert_close(made_3HW[channel], expected, rtol=0, atol=1e-6)
    assert float((made_3HW[0] - made_3HW[1]).abs().min()) > 0.05  # one channel normalised thrice would be equal


def test_T09_small_images_are_resized_whole_so_their_border_is_seen() -> None:
    images_1HWC = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    images_1HWC[:, :2] = 255  # two rows at the border
    known = backbones.entry("resnet18").weights["IMAGENET1K_V1"]
    published = {
        "resize_px": known.resize_px,
        "crop_px": known.crop_px,
        "interpolation": known.interpolation,
        "mean": known.mean,
        "std": known.std,
    }
    chosen = preprocess_for(image_size_px=None, native_size_px=32, **published)  # type: ignore[arg-type]
    recipe = preprocess_for(image_size_px=None, native_size_px=500, **published)  # type: ignore[arg-type]
    assert (chosen.mode, chosen.crop_px, recipe.mode, recipe.resize_px) == ("direct", 224, "recipe", 256)
    assert int(resize(images_1HWC, chosen)[0, 0].min()) == 255
    assert int(resize(images_1HWC, recipe)[0].max()) < 255  # the trap: the crop has cut it off


def test_T10_storage_and_compute_precision_drift_within_their_bounds() -> None:
    frozen = Frozen(random_trunk("resnet18", size_px=64))
    features_ND = frozen(images(8, 64))
    assert relative(features_ND.half().float(), features_ND) < 2**-11
    assert relative(features_ND.bfloat16().float(), features_ND) < 2**-8
    with torch.autocast("cpu", dtype=torch.bfloat16):
        drift = relative(frozen(images(8, 64)), features_ND)
    assert 2**-11 < drift < 0.05  # so it has to be part of a feature file's key


def test_T11_a_row_does_not_depend_on_the_images_beside_it_when_the_last_batch_is_padded() -> None:
    frozen = Frozen(random_trunk("resnet18", size_px=32))
    batch = images(8, 32)
    full_ND = frozen(batch)
    padded = torch.cat([batch[5:8], torch.zeros(5, 3, 32, 32)])
    rotated_ND = frozen(torch.cat([batch[3:], batch[:3]]))
    assert torch.equal(frozen(padded)[:3], full_ND[5:8])
    assert torch.equal(torch.cat([rotated_ND[5:], rotated_ND[:5]]), full_ND)


def test_weights_from_a_tag_and_from_a_file_go_through_one_loader(
    googlenet_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of("googlenet", "IMAGENET1K_V1", size_px=32)
    known = backbones.entry("googlenet").weights["IMAGENET1K_V1"]
    monkeypatch.setattr(type(known), "hash_prefix", "")
    (tmp_path / known.file).write_bytes(googlenet_file.read_bytes())
    tagged = build(spec, weights_dir=tmp_path, weights_files={}, download=False)
    assert torch.equal(tagged(images(2, 32)), from_file("googlenet", googlenet_file)(images(2, 32)))
