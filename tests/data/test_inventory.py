"""What a folder of images holds is said in one sentence, with all that is not read and all that is there twice."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from PIL import Image

from transfergrid.cli.cautions import inventories
from transfergrid.data import DatasetFacts
from transfergrid.data.sets import image_folder
from transfergrid.errors import DataError


def picture(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes; train 3 and 2 pictures, test 1 and 1, all different."""
    for value, name in enumerate(("train/cat/0", "train/cat/1", "train/cat/2", "train/dog/0", "train/dog/1")):
        picture(tmp_path / "pets" / f"{name}.png", value)
    for value, name in enumerate(("test/cat/0", "test/dog/0"), 100):
        picture(tmp_path / "pets" / f"{name}.png", value)
    return tmp_path / "pets"


def facts_of(folder: Path) -> DatasetFacts:
    return image_folder.facts(folder=folder, kept_hashes=None, keep=False, progress=None)


def told(folder: Path) -> tuple[str, bool]:
    [found] = inventories({"pets": facts_of(folder)})
    return found


COUNTS = "pets: train 5 images (2 to 3 per class), test 2 images (1 per class)"


def test_a_plain_folder_is_told_by_its_counts(folder: Path) -> None:
    assert told(folder) == (COUNTS, False)


def test_what_is_not_read_is_counted_by_its_reason_with_the_first_of_each(folder: Path) -> None:
    fingerprint = facts_of(folder).fingerprint
    for name in ("cat/a.jp2", "cat/b.jp2", "dog/notes.txt", "dog/.DS_Store", "dog/LICENSE", "stray.png"):
        (folder / "train" / name).touch()
    picture(folder / "train/cat/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg", 7)
    picture(folder / "train/@eaDir/x.jpg", 8)
    (folder / "extra").mkdir()
    (folder / ".git").mkdir()
    text, is_odd = told(folder)
    counts, skipped, unused = text.split("; ")
    assert counts == COUNTS and is_odd and unused == "not used: extra/"
    assert sorted(skipped.removeprefix("not read: ").split(", ")) == [
        "1 .txt (as train/dog/notes.txt)",
        "1 hidden (as train/dog/.DS_Store)",
        "1 outside of class folders (as train/stray.png)",
        "1 without a suffix (as train/dog/LICENSE)",
        "2 .jp2 (as train/cat/a.jp2)",
        "2 folders of thumbnails (as train/@eaDir)",
    ]
    assert facts_of(folder).fingerprint == fingerprint  # nothing of it is part of the data set
    inventory = facts_of(folder).inventory
    assert inventory is not None
    details = inventory.as_details()
    assert details["unused"] == ["extra"]
    assert sorted(cast(dict[str, int], details["skipped"]).values()) == [1, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("name", ["valid", "validation", "Val", "VALID"])
def test_valid_beside_train_and_test_is_the_val_and_that_is_said(folder: Path, name: str) -> None:
    fingerprint = facts_of(folder).fingerprint
    for value, label in enumerate(("cat", "dog"), 200):
        picture(folder / name / label / "0.png", value)
    facts = facts_of(folder)
    assert facts.num_images == {"train": 5, "val": 2, "test": 2} and facts.fingerprint != fingerprint
    assert told(folder)[0].split("; ")[1:] == [f"val is {name}/"]


def test_val_wins_over_valid_which_is_told_as_unused_and_serves_as_test_where_there_is_none(folder: Path) -> None:
    shutil.copytree(folder / "test", folder / "valid")
    shutil.copytree(folder / "test", folder / "val")
    assert "; not used: valid/; " in told(folder)[0]
    shutil.rmtree(folder / "test")
    shutil.rmtree(folder / "val")
    assert facts_of(folder).num_images == {"train": 5, "test": 2}
    assert told(folder)[0].endswith("; test is valid/")


def test_names_of_splits_in_capitals_are_taken(folder: Path) -> None:
    (folder / "train").rename(folder / "Train")
    (folder / "test").rename(folder / "TEST")
    assert facts_of(folder).num_images == {"train": 5, "test": 2}
    assert told(folder)[0].split("; ")[1:] == ["train is Train/", "test is TEST/"]
    shutil.rmtree(folder / "TEST/dog")
    with pytest.raises(DataError, match="class 'dog' is in Train/ only; TEST/ and Train/ need the same classes"):
        facts_of(folder)


def test_the_same_picture_in_two_places_is_told_by_where_they_are(folder: Path) -> None:
    shutil.copy(folder / "train/cat/0.png", folder / "train/cat/again.png")
    assert told(folder) == (
        "pets: train 6 images (2 to 4 per class), test 2 images (1 per class)"
        "; the same picture: 1 more than once in train",
        False,
    )
    shutil.copy(folder / "train/cat/1.png", folder / "test/cat/leaked.png")
    (folder / "test/cat/linked.png").symlink_to(folder / "train/cat/2.png")
    shutil.copy(folder / "train/dog/0.png", folder / "train/cat/odd.png")
    text, is_odd = told(folder)
    assert is_odd and set(text.rpartition("the same picture: ")[2].split(", ")) == {
        "1 more than once in train",
        "2 in train and in test",
        "1 in two classes or more",
    }


def test_depth_and_newer_kinds_stand_in_the_sentence(folder: Path) -> None:
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(folder / "train/cat/deep.png")
    (folder / "train/dog/0.png").rename(folder / "train/dog/0.jfif")
    parts = told(folder)[0].split("; ")
    assert "deeper than 8 bits: 1 integer" in parts and "read, and left out by earlier releases: 1 .jfif" in parts
