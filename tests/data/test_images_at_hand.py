"""Which images the report may show: those that this machine has and that are still the ones trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transfergrid import data
from transfergrid.data.images_at_hand import DATA_DIR_VARIABLE, images_at_hand
from transfergrid.paths import StorePaths
from transfergrid.planning.job import write_payload
from transfergrid.specs import DatasetSpec, Runtime
from transfergrid.store.records import write_grid

DIGITS = DatasetSpec(name="digits", kind="digits", fingerprint=data.facts("digits").fingerprint, num_classes=10)


def test_digits_are_always_at_hand(tmp_path: Path) -> None:
    images = images_at_hand(StorePaths(tmp_path))
    train = images(DIGITS, "train")
    assert train is not None and len(train) == 1_437
    assert images(DIGITS, "train") is train


def test_a_data_set_that_is_not_here_or_has_changed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path / "nothing"))
    images = images_at_hand(StorePaths(tmp_path))
    mnist = DatasetSpec(name="mnist", kind="mnist", fingerprint=data.facts("mnist").fingerprint, num_classes=10)
    assert images(mnist, "test") is None
    assert images(replace(DIGITS, fingerprint="of other images"), "test") is None


def test_a_folder_is_found_where_the_launch_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "pets"
    for split in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True)
            image = np.full((5, 7, 3), 40 * number, dtype=np.uint8)
            Image.fromarray(image).save(folder / split / name / "0.png")
    facts = data.facts("image_folder", folder=folder)
    pets = DatasetSpec(name="pets", kind="image_folder", fingerprint=facts.fingerprint, num_classes=2)
    store = StorePaths(tmp_path / "results")
    nothing = str(tmp_path / "nothing")
    runtime = Runtime(store_dir=str(store.root), cache_dir=nothing, data_dir=nothing, weights_dir=nothing)
    write_payload([], replace(runtime, data_folders={"pets": str(folder)}))
    (store.launches / "damaged").mkdir()
    (store.launches / "damaged" / "specs.json").write_text("{")
    test = images_at_hand(store)(pets, "test")
    assert test is not None and test.class_names == ("cat", "dog")
    assert test.read([1])[0].shape == (5, 7, 3)
    assert images_at_hand(store)(replace(pets, fingerprint="content:before"), "test") is None
    # A local launch leaves no folder of its own behind: its grid remembers.
    other = StorePaths(tmp_path / "other")
    write_grid(other.grid("g"), grid="g", entries=[], runtime=replace(runtime, data_folders={"pets": str(folder)}))
    assert images_at_hand(other)(pets, "test") is not None
