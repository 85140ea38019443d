from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_data
import torch
from PIL import Image
from report_cases import spec

from transfergrid import data
from transfergrid.config import load_run
from transfergrid.data import augment, preprocess
from transfergrid.data.batches import NetworkInputs
from transfergrid.data.geometry import preprocess_for, scratch_preprocess
from transfergrid.data.preprocess import normalise, prepare_one
from transfergrid.errors import ConfigError
from transfergrid.specs import PreprocessSpec, ScratchSettings, Split

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


# ------------------------------------------------------------------------------- one picture, alone or among others
def folder_facts(folder: Path) -> data.DatasetFacts:
    return data.facts("image_folder", folder=folder)


def fed(folder: Path) -> PreprocessSpec:
    facts = folder_facts(folder)
    return preprocess_for(
        image_size_px=None, native_size_px=facts.image_size_px, shortest_px=facts.shortest_px, **WEIGHTS
    )


def inputs(folder: Path, specs: tuple[PreprocessSpec, ...]) -> NetworkInputs:
    images = data.load("image_folder", split="train", data_dir=folder, folder=folder)
    rows: dict[Split, Any] = {"train": np.arange(len(images))}
    return NetworkInputs({"train": images}, specs, device=torch.device("cpu"), resident_gb=1.0, rows=rows)


@pytest.fixture
def uniform_and_mixed(tmp_path: Path) -> tuple[Path, Path]:
    """Six pictures of 32 px a split; in the second folder the last training picture is 33 px wide."""
    uniform, mixed = (tiny_data.write_folder(tmp_path / n, sizes_px=(32,)) for n in ("uniform", "mixed"))
    tiny_data.save_image(mixed / "train" / "dog" / "2.png", tiny_data.random_images(32, 33, 3))
    return uniform, mixed


def test_one_odd_picture_in_a_folder_changes_nothing_for_the_others(uniform_and_mixed: tuple[Path, Path]) -> None:
    specs = [fed(folder) for folder in uniform_and_mixed]
    assert [(s.mode, s.small) for s in specs] == [("direct", "recipe"), ("recipe", "whole")]
    alone, among = (inputs(f, (s,)) for f, s in zip(uniform_and_mixed, specs, strict=True))
    index_B = torch.arange(5)
    assert torch.equal(alone.batch("train", index_B)[0], among.batch("train", index_B)[0])
    [[batch]] = list(among.batches("train", [index_B]))
    assert torch.equal(alone.batch("train", index_B)[0], batch)


@pytest.mark.parametrize("resident_gb", [0.0, 1.0])
def test_augmentation_moves_a_small_picture_by_as_much_among_others_as_alone(
    uniform_and_mixed: tuple[Path, Path], resident_gb: float
) -> None:
    plan = augment.AugmentPlan(flip=True, shift_px=4, rotation_deg=10, cutout_px=8)
    draws = augment.draw(plan, num_images=6, seed=3, epoch=1)
    index_B = torch.tensor([4, 0, 3])
    made = []
    for folder in uniform_and_mixed:
        images = data.load("image_folder", split="train", data_dir=folder, folder=folder)
        rows: dict[Split, Any] = {"train": np.arange(6)}
        of_folder = NetworkInputs(
            {"train": images}, (fed(folder),), device=torch.device("cpu"), resident_gb=resident_gb, rows=rows
        )
        made.append([of_folder.batch("train", index_B, draws=draws)[0] for _ in range(2)])
    assert torch.equal(made[0][0], made[1][0]) and torch.equal(made[1][0], made[1][1])
    # 4 pixels of 32, not of 224; and with augment_at=input of 224, in both.
    at_input = [
        inputs(f, (fed(f),)).batch("train", index_B, draws=draws, augment_at="input")[0] for f in uniform_and_mixed
    ]
    assert torch.equal(at_input[0], at_input[1]) and not torch.equal(at_input[0], made[0][0])


def test_augmentation_of_pictures_larger_than_the_input_acts_at_its_size_alone_and_among_others(tmp_path: Path) -> None:
    uniform, mixed = (tiny_data.write_folder(tmp_path / n, sizes_px=(300,)) for n in ("uniform", "mixed"))
    tiny_data.save_image(mixed / "train" / "dog" / "2.png", tiny_data.random_images(300, 301, 3))
    specs = tuple(fed(folder) for folder in (uniform, mixed))
    assert specs[0] == specs[1] and specs[0].small == "recipe"  # no picture is small: as in the first release
    draws = augment.draw(augment.AugmentPlan(shift_px=4, cutout_px=8), num_images=6, seed=3, epoch=1)
    index_B = torch.tensor([1, 4])
    made = [inputs(f, specs[:1]).batch("train", index_B, draws=draws)[0] for f in (uniform, mixed)]
    assert torch.equal(made[0], made[1])
    images_NHWC = torch.stack(
        [
            torch.from_numpy(prepare_one(np.asarray(Image.open(uniform / "train" / name)), specs[0]))
            for name in ("cat/1.png", "dog/1.png")
        ]
    )
    assert torch.equal(made[0], normalise(augment.apply(images_NHWC, draws, index_B), specs[0], prepared=True))


def test_a_small_picture_keeps_its_aspect_and_its_shorter_edge_whole() -> None:
    spec = preprocess_for(image_size_px=None, native_size_px=None, shortest_px=20, **WEIGHTS)
    image_HWC = tiny_data.random_images(20, 40, 3)
    whole = Image.fromarray(image_HWC).resize((448, 224), Image.Resampling.BICUBIC)
    assert np.array_equal(prepare_one(image_HWC, spec), np.asarray(whole.crop((112, 0, 336, 224))))
    large_HWC = tiny_data.random_images(230, 240, 3)
    recipe = Image.fromarray(large_HWC).resize((256 * 240 // 230, 256), Image.Resampling.BICUBIC)
    left_px = round((recipe.width - 224) / 2)
    assert np.array_equal(prepare_one(large_HWC, spec), np.asarray(recipe.crop((left_px, 16, left_px + 224, 240))))


@pytest.mark.parametrize("shape", [(1, 90), (90, 1), (3, 700), (500, 7), (400, 300)])
@pytest.mark.parametrize("small", ["whole", "recipe"])
def test_a_picture_that_would_be_a_giant_is_cropped_before_it_is_resized_to_the_same_pixels(
    shape: tuple[int, int], small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(preprocess_for(image_size_px=None, native_size_px=None, **WEIGHTS), small=small)
    for channels in (1, 3):
        image_HWC = tiny_data.random_images(*shape, channels)
        monkeypatch.setattr(preprocess, "_GIANT_PX", 2**40)
        by_pillow = prepare_one(image_HWC, spec)
        monkeypatch.setattr(preprocess, "_GIANT_PX", 0)
        assert np.array_equal(prepare_one(image_HWC, spec), by_pillow)


@pytest.mark.slow
def test_a_line_of_65000_pixels_is_no_giant(tmp_path: Path) -> None:
    """Once 12.8 GB: the limit on address space is what one process may take."""
    code = (
        "import dataclasses, resource; import numpy as np; import torch\n"
        "from transfergrid.data.preprocess import prepare_one\n"
        "from transfergrid.specs import PreprocessSpec\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))\n"
        "spec = PreprocessSpec(mode='recipe', resize_px=256, crop_px=224, interpolation='bilinear', mean=(0, 0, 0),"
        " std=(1, 1, 1), small='whole')\n"
        "line = np.full((1, 65000, 3), 9, np.uint8)\n"
        "for rules in (spec, dataclasses.replace(spec, small='recipe')):\n"
        "    for image in (line, line.reshape(65000, 1, 3)):\n"
        "        assert (prepare_one(image, rules) == 9).all()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------------------------------------------------- identity
SCRATCH = ("model=tinynet", "phase=scratch", "dataset=image_folder")


def test_only_folders_whose_numbers_change_are_other_runs(uniform_and_mixed: tuple[Path, Path], tmp_path: Path) -> None:
    uniform, mixed = uniform_and_mixed
    large = tiny_data.write_folder(tmp_path / "large", sizes_px=(80, 90))
    places = (f"store.dir={tmp_path}", f"cache.dir={tmp_path / 'cache'}")

    def rules(folder: Path, *more: str, size_px: int = 64) -> int:
        asked = load_run([*SCRATCH, f"dataset.folder={folder}", f"dataset.image_size_px={size_px}", *places, *more])
        return asked.configurations[0].run.rules

    assert rules(uniform) == rules(large) == 1  # at its own size, 32 px; at the input's, 64 px: as in the first release
    assert rules(mixed) == 2  # once at the input's size, now at 32 px
    assert rules(uniform, size_px=16) == 2  # once at 32 px, now at the input's size
    for unchanged in ("phase.scratch.augment_at=input", "phase.scratch.shift_px=0"):
        others = ("phase.scratch.flip=false", "phase.scratch.cutout_px=0") if "shift" in unchanged else ()
        assert rules(mixed, unchanged, *others) == 1


def test_imagenets_pictures_take_the_published_transform_however_small(tmp_path: Path) -> None:
    spec = preprocess_for(image_size_px=None, native_size_px=None, shortest_px=20, small="recipe", **WEIGHTS)
    assert (spec.mode, spec.resize_px, spec.crop_px, spec.small) == ("recipe", 256, 224, "recipe")
    alike = preprocess_for(image_size_px=None, native_size_px=100, small="recipe", **WEIGHTS)
    assert alike == spec
