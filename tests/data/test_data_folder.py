from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_data
from picture_files import decode
from PIL import Image

from transfergrid import data
from transfergrid.data import DatasetFacts, LabeledImages
from transfergrid.data._folder_scan import image_files
from transfergrid.data._image_size import HEAD_BYTES, size_px
from transfergrid.data.sets.image_folder import FolderImages
from transfergrid.errors import ConfigError, DataError


def facts_of(folder: Path, *, kept: Path | None = None, keep: bool = True) -> tuple[DatasetFacts, int]:
    """The facts, and how many files were read for them."""
    read = [0]
    facts = data.facts(
        "image_folder", folder=folder, kept_hashes=kept, keep=keep, progress=lambda _, total: read.append(total)
    )
    return facts, read[-1]


def load(folder: Path, split: str = "train") -> LabeledImages:
    return data.load("image_folder", split=split, data_dir=folder, folder=folder)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------ layout
def test_classes_are_the_sorted_folder_names_and_images_come_in_sorted_order(tmp_path: Path) -> None:
    folder = tiny_data.write_folder(tmp_path)
    tiny_data.save_image(folder / "train" / "dog" / "10.png", tiny_data.random_images(8, 8, 3, seed=99))
    images = load(folder)
    assert images.class_names == ("cat", "dog")
    assert images.labels_N.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert np.array_equal(images.array()[5], tiny_data.random_images(8, 8, 3, seed=99))  # 0, 1, 10, 2
    assert np.array_equal(images.array()[1], tiny_data.random_images(8, 8, 3, seed=1))


def test_the_test_split_is_val_where_there_is_no_test_and_val_is_its_own_where_there_is(tmp_path: Path) -> None:
    with_val = tiny_data.write_folder(tmp_path / "a", splits=("train", "val"))
    assert facts_of(with_val)[0].num_images == {"train": 6, "test": 6}
    assert np.array_equal(load(with_val, "test").array()[0], tiny_data.random_images(8, 8, 3, seed=100))
    with pytest.raises(ConfigError, match="has no split 'val'; it has: train, test"):
        load(with_val, "val")

    with_both = tiny_data.write_folder(tmp_path / "b", splits=("train", "val", "test"))
    assert facts_of(with_both)[0].num_images == {"train": 6, "val": 6, "test": 6}
    assert np.array_equal(load(with_both, "val").array()[0], tiny_data.random_images(8, 8, 3, seed=100))
    assert np.array_equal(load(with_both, "test").array()[0], tiny_data.random_images(8, 8, 3, seed=200))


def test_hidden_files_other_files_and_nested_folders_are_treated_as_torchvision_does(tmp_path: Path) -> None:
    folder = tiny_data.write_folder(tmp_path)
    before = replace(facts_of(folder)[0], inventory=None)
    (folder / "train" / ".cache").mkdir()
    (folder / "train" / "cat" / ".0.png").write_bytes(b"")
    (folder / "train" / "cat" / "notes.txt").write_bytes(b"")
    (folder / "train" / "README.png").write_bytes(b"")
    assert replace(facts_of(folder)[0], inventory=None) == before
    tiny_data.save_image(folder / "train" / "cat" / "more" / "3.PNG", tiny_data.random_images(8, 8, 3))
    assert facts_of(folder)[0].num_images == {"train": 7, "test": 6}


def test_a_folder_that_is_not_there_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pets is not a folder; dataset.folder= wants one with train/<class>/"):
        data.facts("image_folder", folder=tmp_path / "pets")


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_folder_with_test_or_val_alone_has_that_as_its_test_split(tmp_path: Path, split: str) -> None:
    folder = tiny_data.write_folder(tmp_path, splits=(split,))
    facts = facts_of(folder)[0]
    assert (facts.num_images, facts.class_names) == ({"test": 6}, ("cat", "dog"))
    assert load(folder, "test").labels_N.tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(ConfigError, match="has no split 'train'; it has: test"):
        load(folder)


def test_images_are_found_below_a_folder_sorted_by_their_names(tmp_path: Path) -> None:
    for name in ("b.png", "sub/a.JPG", "sub/.hidden.png", ".cache/x.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert image_files(tmp_path) == ["b.png", "sub/a.JPG"]


@pytest.mark.parametrize(
    ("remove", "add", "complaint"),
    [
        (("train", "test"), (), r"has no train/, val/ or test/; wanted train/<class>/"),
        (("test",), (), r"has neither test/ nor val/; wanted one of them"),
        (("test/dog",), (), r"class 'dog' is in train/ only; test/ and train/ need the same classes"),
        ((), ("test/emu/0.png",), r"class 'emu' is in test/ only; test/ and train/ need the same classes"),
        ((), ("train/emu/notes.txt", "test/emu/0.png"), r"train/emu has no images; wanted files ending in .jpg"),
        (("test/cat", "test/dog"), (), r"test has no class folders; wanted test/<class>/\*"),
    ],
)
def test_a_layout_that_does_not_fit_is_named(
    tmp_path: Path, remove: tuple[str, ...], add: tuple[str, ...], complaint: str
) -> None:
    folder = tiny_data.write_folder(tmp_path)
    for name in remove:
        (folder / name).rename(tmp_path / f"elsewhere-{name.replace('/', '-')}")
    for name in add:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    for call in (lambda: data.facts("image_folder", folder=folder), lambda: load(folder)):
        with pytest.raises(DataError, match=complaint):
            call()
    with pytest.raises(DataError, match=complaint):
        data.find("image_folder", data_dir=tmp_path, folder=folder)


# ------------------------------------------------------------------------------------------------------- fingerprint
def test_the_fingerprint_is_of_names_and_bytes_alone(tmp_path: Path) -> None:
    first = tiny_data.write_folder(tmp_path / "first")
    copy = tiny_data.write_folder(tmp_path / "copy")
    os.utime(copy / "train" / "cat" / "0.png", ns=(1, 1))
    fingerprint = facts_of(first)[0].fingerprint
    assert facts_of(copy)[0].fingerprint == fingerprint

    (copy / "train" / "cat" / "0.png").rename(copy / "train" / "cat" / "7.png")
    renamed = facts_of(copy)[0].fingerprint
    tiny_data.save_image(first / "test" / "dog" / "0.png", tiny_data.random_images(8, 8, 3, seed=50))
    assert len({fingerprint, renamed, facts_of(first)[0].fingerprint}) == 3


def test_a_second_look_reads_no_file_and_a_change_reads_only_what_changed(tmp_path: Path) -> None:
    folder, kept = tiny_data.write_folder(tmp_path / "pets"), tmp_path / "kept"
    first, read = facts_of(folder, kept=kept)
    assert read == 12
    again, read = facts_of(folder, kept=kept)
    assert (again, read) == (first, 0)

    changed = tiny_data.save_image(folder / "train" / "dog" / "1.png", tiny_data.random_images(8, 8, 3, seed=50))
    os.utime(changed, ns=(1, 1))
    (folder / "test" / "cat" / "2.png").unlink()
    after, read = facts_of(folder, kept=kept)
    assert read == 1
    assert after.fingerprint == facts_of(folder)[0].fingerprint != first.fingerprint
    assert after.num_images == {"train": 6, "test": 5}
    assert facts_of(folder, kept=kept) == (after, 0)


def test_what_is_kept_is_one_file_per_folder_with_size_time_and_hash(tmp_path: Path) -> None:
    folder, kept = tiny_data.write_folder(tmp_path / "My Pets"), tmp_path / "kept"
    facts_of(folder, kept=kept)
    [file] = kept.iterdir()
    assert file.name.startswith("my-pets-")
    entries = json.loads(file.read_text())["files"]
    assert len(entries) == 12
    stat = (folder / "train" / "cat" / "0.png").stat()
    size, mtime_ns, sha256, *picture = entries["train/cat/0.png"]
    assert (size, mtime_ns, len(sha256)) == (stat.st_size, stat.st_mtime_ns, 64)
    assert picture == [8, 8, "8-bit", False, 0.0, 0.0]


def test_a_dry_run_reads_what_is_kept_and_writes_nothing(tmp_path: Path) -> None:
    folder, kept = tiny_data.write_folder(tmp_path / "pets"), tmp_path / "kept"
    first, _ = facts_of(folder, kept=kept, keep=False)
    assert not kept.exists()
    facts_of(folder, kept=kept)
    assert facts_of(folder, kept=kept, keep=False) == (first, 0)


def test_a_kept_file_that_is_damaged_or_of_another_version_counts_as_none(tmp_path: Path) -> None:
    folder, kept = tiny_data.write_folder(tmp_path / "pets"), tmp_path / "kept"
    first, _ = facts_of(folder, kept=kept)
    [file] = kept.iterdir()
    for content in ("{", '{"version": 1, "files": {"train/cat/0.png": "1 2 3 8x8"}}'):
        file.write_text(content)
        assert facts_of(folder, kept=kept) == (first, 12)


# ------------------------------------------------------------------------------------------------------------ images
def test_the_size_is_known_where_all_images_of_all_splits_are_squares_of_one_size(tmp_path: Path) -> None:
    folder = tiny_data.write_folder(tmp_path)
    assert facts_of(folder)[0].image_size_px == 8
    for size in ((9, 8), (9, 9)):
        tiny_data.save_image(folder / "test" / "cat" / "1.png", Image.new("RGB", size))
        assert facts_of(folder)[0].image_size_px is None
        assert load(folder, "test").image_size_px is None
        assert load(folder, "train").image_size_px == 8


def test_images_of_mixed_sizes_are_read_one_by_one_and_make_no_array(tmp_path: Path) -> None:
    images = load(tiny_data.write_folder(tmp_path, sizes_px=(8, 5)))
    assert [image.shape for image in images.read([1, 0, 5])] == [(5, 5, 3), (8, 8, 3), (8, 8, 3)]
    with pytest.raises(ValueError, match="images of mixed sizes are no array"):
        images.array()


def test_every_mode_becomes_rgb_as_pillow_converts_it(tmp_path: Path) -> None:
    colour = Image.fromarray(tiny_data.random_images(6, 6, 3))
    for mode, suffix in (("L", "png"), ("1", "png"), ("P", "gif"), ("RGBA", "png"), ("CMYK", "tif"), ("RGB", "webp")):
        path = tiny_data.save_image(tmp_path / f"{mode}.{suffix}", colour.convert(mode))
        with Image.open(path) as reopened:
            expected = np.asarray(reopened.convert("RGB"))
        decoded = decode(path)
        assert decoded.shape == (6, 6, 3)
        assert np.array_equal(decoded, expected)


@pytest.mark.parametrize("suffix", ["png", "jpg", "progressive.jpg", "bmp", "webp", "ppm", "tif", "gif"])
def test_the_size_from_the_header_is_pillows(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    image = Image.fromarray(tiny_data.random_images(37, 300, 3))
    if suffix == "progressive.jpg":
        image.save(path, progressive=True)
    else:
        image.save(path)
    assert size_px(path, path.read_bytes()[:HEAD_BYTES]) == (300, 37)


def test_a_jpeg_whose_size_stands_behind_a_long_thumbnail_is_left_to_pillow(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    content = io.BytesIO()
    Image.new("RGB", (30, 20)).save(content, "jpeg")
    thumbnail = b"\xff\xe1" + (60_000).to_bytes(2, "big") + b"\xff" * 59_998
    path.write_bytes(content.getvalue()[:2] + thumbnail + content.getvalue()[2:])
    assert size_px(path, path.read_bytes()[:HEAD_BYTES]) == (30, 20)


def test_a_damaged_image_is_named_when_it_is_read(tmp_path: Path) -> None:
    folder = tiny_data.write_folder(tmp_path)
    path = folder / "train" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:-40])
    images = load(folder)
    assert images.read([0]).__class__ is np.ndarray
    with pytest.raises(DataError, match=r"train/dog/1.png cannot be read as an image \(.*\); mend or remove it$"):
        images.array()


def test_a_file_that_is_no_image_at_all_is_named_before_anything_runs(tmp_path: Path) -> None:
    folder = tiny_data.write_folder(tmp_path)
    path = folder / "train" / "dog" / "1.png"
    for content in (b"", b"<html>", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"):
        path.write_bytes(content)
        for call in (lambda: facts_of(folder), lambda: load(folder).image_size_px):
            with pytest.raises(DataError, match=r"train/dog/1.png (cannot be read as an|is not an) image"):
                call()


def test_many_images_are_decoded_by_threads_into_their_own_rows(tmp_path: Path) -> None:
    expected_NHWC = tiny_data.random_images(150, 4, 4, 3)
    paths = [tiny_data.save_image(tmp_path / f"{i}.png", image) for i, image in enumerate(expected_NHWC)]
    images: LabeledImages = FolderImages(paths, np.zeros(150, dtype=np.int64), class_names=("only",))
    assert np.array_equal(images.array(), expected_NHWC)
