"""Pictures that cannot be used are told of at once, before anything is computed, or left out where that is asked."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_data
from picture_files import decode
from PIL import Image, ImageFile
from report_cases import row

from transfergrid import data
from transfergrid.cli.cautions import inventories
from transfergrid.cli.console import FAILED, run_script
from transfergrid.config import load_run
from transfergrid.data import _folder_hash
from transfergrid.data._decode import PictureFacts, picture_facts
from transfergrid.data.damaged import DamagedImage, DamagedImages
from transfergrid.data.folds import open_splits, picture_details
from transfergrid.errors import DataError
from transfergrid.paths import StorePaths
from transfergrid.report.analysis.remarks import with_remarks
from transfergrid.specs import RunSpec, Runtime, to_dict
from transfergrid.store import durable
from transfergrid.store.records import RunRecord

ASKED = ("model=tinynet_cifar", "phase=probe", "dataset=image_folder")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of 12 JPEGs to train on and 6 to test, of 40 px."""
    for split, count in (("train", 12), ("test", 6)):
        for seed, name in enumerate(("cat", "dog")):
            for index, pixels_HW3 in enumerate(tiny_data.random_images(count, 40, 40, 3, seed=seed + count)):
                path = tmp_path / "pets" / split / name / f"{index:02}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels_HW3).save(path, quality=90)
    return tmp_path / "pets"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def damage(folder: Path) -> tuple[str, ...]:
    """One of each kind, none of which its header or its place tells but the last three."""
    cut(folder / "train/cat/03.jpg")
    content = bytearray((folder / "train/dog/04.jpg").read_bytes())
    (folder / "test/cat/02.jpg").write_bytes(content[:300])
    (folder / "train/cat/05.jpg").write_bytes(b"")
    (folder / "train/cat/06.jpg").write_text("<html>not found</html>")
    os.mkfifo(folder / "train/dog/pipe.png")
    (folder / "train/dog/07.jpg").unlink()
    (folder / "train/dog/07.jpg").symlink_to("/nowhere/at/all.jpg")
    return (
        *("test/cat/02.jpg", "train/cat/03.jpg", "train/cat/05.jpg", "train/cat/06.jpg"),
        *("train/dog/07.jpg", "train/dog/pipe.png"),
    )


def planned(tmp_path: Path, folder: Path, *more: str) -> tuple[RunSpec, Runtime]:
    places = (f"store.dir={tmp_path / 'store'}", f"cache.dir={tmp_path / 'cache'}")
    asked = load_run([*ASKED, f"dataset.folder={folder}", *places, *more])
    return asked.configurations[0].run, asked.runtime


def test_every_damaged_file_is_listed_in_one_pass_before_anything_is_computed(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = damage(folder)
    with pytest.raises(DamagedImages) as error:
        data.facts("image_folder", folder=folder)
    assert [str(image.path.relative_to(folder)) for image in error.value.images] == list(damaged)
    assert str(error.value) == (
        f"{folder}: 6 files cannot be used; mend or remove them; dataset.skip_damaged=true leaves them out"
    )
    reasons = [image.reason for image in error.value.images]
    assert reasons == [
        "cannot be read as an image (OSError: Truncated File Read)",
        reasons[1],
        "is not an image in a supported format",
        "is not an image in a supported format",
        "is a broken link",
        "is a pipe, a device or a folder",
    ]
    assert reasons[1].startswith("cannot be read as an image (OSError: image file is truncated")

    def plan(arguments: Sequence[str]) -> int:
        planned(tmp_path, folder)
        return 0

    monkeypatch.setattr("sys.argv", ["x"])
    assert run_script(plan) == FAILED
    lines = capsys.readouterr().err.splitlines()[-7:]
    assert lines[0].startswith(f"error: {folder}: 6 files cannot be used")
    assert lines[1:] == [f"  {folder / path} {reason}" for path, reason in zip(damaged, reasons, strict=True)]


def test_one_damaged_file_is_told_in_one_line(folder: Path) -> None:
    cut(folder / "test/dog/01.jpg")
    with pytest.raises(DamagedImages) as error:
        data.facts("image_folder", folder=folder)
    said = str(error.value)
    assert said.startswith(f"{folder}/test/dog/01.jpg cannot be read as an image (OSError: image file is truncated")
    assert said.endswith("; mend or remove it; dataset.skip_damaged=true leaves it out")
    assert error.value.details == ()


def test_what_is_left_out_is_counted_in_identity_plan_record_and_command(tmp_path: Path, folder: Path) -> None:
    whole, _ = planned(tmp_path, folder)
    unneeded, _ = planned(tmp_path, folder, "dataset.skip_damaged=true")
    assert unneeded == whole  # where nothing is left out, the key changes nothing
    damaged = damage(folder)
    spec, runtime = planned(tmp_path, folder, "dataset.skip_damaged=true")
    assert spec.dataset.left_out == 6 and spec.run_id != whole.run_id

    splits = open_splits(spec.dataset, runtime)
    assert {s: len(images) for s, images in splits.items()} == {"train": 20, "test": 11}
    assert np.bincount(splits["train"].labels_N).tolist() == [9, 11]
    assert len(splits["train"].read(range(20))) == 20
    inventory = picture_details(spec.dataset, runtime)["inventory"]
    assert inventory == {"damaged": 6, "damaged_files": list(damaged)}
    facts = data.facts("image_folder", folder=folder, skip_damaged=True)
    (sentence, odd), *lines = inventories({"pets": facts})
    assert odd and "; left out because they cannot be used: 6" in sentence
    assert [line.split()[0] for line, _ in lines] == list(damaged)
    store = StorePaths(tmp_path / "store")
    durable.write_json(store.run(spec.run_id).spec, to_dict(spec))
    where = (f"store.dir={store.root}", f"cache.dir={tmp_path / 'cache'}", f"dataset.folder={folder}")
    again = load_run([f"again={spec.run_id}", *where])
    assert again.configurations[0].run == spec

    record = RunRecord(run_id=spec.run_id, spec=spec, status="completed")
    (marked,) = with_remarks([row()], [[record]])
    assert marked.cell("remarks") == "without 6 files of the data set that cannot be used (dataset.skip_damaged=true)"

    for path in damaged:  # the same pictures without those files are another data set: nothing is left out
        (folder / path).unlink()
    removed, _ = planned(tmp_path, folder)
    assert removed.dataset.left_out == 0 and removed.dataset.fingerprint == spec.dataset.fingerprint
    assert removed.run_id != spec.run_id


def test_a_run_without_the_damaged_is_not_carried_out_with_one_more(tmp_path: Path, folder: Path) -> None:
    cut(folder / "train/cat/00.jpg")
    spec, runtime = planned(tmp_path, folder, "dataset.skip_damaged=true")
    cut(folder / "train/cat/01.jpg")
    with pytest.raises(DataError, match="data set 'pets' has changed since this run was planned; launch again"):
        open_splits(spec.dataset, replace(runtime, grid="other"))


def test_a_class_with_nothing_left_ends_the_plan(folder: Path) -> None:
    for path in (folder / "test/dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"no picture of .*/pets/test/dog can be used; mend or remove it"):
        data.facts("image_folder", folder=folder, skip_damaged=True)


def test_what_the_machine_could_not_read_is_never_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_bytes = Path.read_bytes

    def of_a_sick_disk(path: Path) -> bytes:
        if path.name == "03.jpg" and "cat" in path.parts:
            raise OSError(5, "Input/output error", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", of_a_sick_disk)
    with pytest.raises(DamagedImages, match=r"2 files cannot be used; mend or remove them$") as error:
        data.facts("image_folder", folder=folder, skip_damaged=True)
    assert {image.reason for image in error.value.images} == {"cannot be read (Input/output error)"}


def test_a_file_is_decoded_once_whatever_its_folder_and_its_time(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, decoded = tmp_path / "kept", list[Path]()
    cut(folder / "train/cat/03.jpg")

    def counted(path: Path, source: Path | bytes, *, max_megapixels: float) -> PictureFacts:
        decoded.append(path)
        return picture_facts(path, source, max_megapixels=max_megapixels)

    monkeypatch.setattr(_folder_hash, "picture_facts", counted)
    first = data.facts("image_folder", folder=folder, kept_hashes=kept, skip_damaged=True)
    assert len(decoded) == 36
    for path in folder.rglob("*.jpg"):
        os.utime(path)
    moved = folder.rename(tmp_path / "moved")
    again = data.facts("image_folder", folder=moved, kept_hashes=kept, skip_damaged=True)
    assert len(decoded) == 36 and again.fingerprint == first.fingerprint and again.left_out == 1

    for file in kept.iterdir():  # what one Pillow found to be damaged, another may read
        file.write_text(json.dumps(json.loads(file.read_text()) | {"reader": "another"}))
    assert data.facts("image_folder", folder=moved, kept_hashes=kept, skip_damaged=True) == again
    assert decoded[36:] == [moved / "train/cat/03.jpg"]


def test_a_large_file_is_read_piece_by_piece_to_the_same_result(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.open(folder / "train/cat/01.jpg").save(folder / "train/cat/turned.jpg", exif=_exif(orientation=6))
    damaged = damage(folder)
    at_once = data.facts("image_folder", folder=folder, skip_damaged=True)
    monkeypatch.setattr(_folder_hash, "_AT_ONCE_BYTES", 100)
    assert data.facts("image_folder", folder=folder, skip_damaged=True) == at_once
    assert at_once.turned == 1 and at_once.inventory is not None and sorted(at_once.inventory.damaged) == list(damaged)


def _exif(*, orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("gone", [False, True])
def test_a_file_that_changes_after_the_plan_is_never_read_as_the_planned_one(
    tmp_path: Path, folder: Path, gone: bool
) -> None:
    spec, runtime = planned(tmp_path, folder)
    train = open_splits(spec.dataset, runtime)["train"]
    path = folder / "train/cat/04.jpg"
    assert len(train.read(range(24))) == 24
    (folder / "train/cat/000.jpg").write_bytes(path.read_bytes())  # one more: rows stay what they were
    (images_NHWC,) = train.read([4])
    with Image.open(path) as planned_image:
        assert (images_NHWC == np.asarray(planned_image)).all()

    if gone:
        path.unlink()
    else:
        Image.fromarray(tiny_data.random_images(40, 40, 3, seed=9)).save(path)
    for read in (lambda: train.read([4]), lambda: train.each([4], lambda image_HW3: image_HW3.mean())):
        with pytest.raises(DataError, match="cat/04.jpg has changed since this run was planned; launch again") as error:
            read()
        assert error.value.remedy == "launch again"


def test_the_check_refuses_exactly_what_decoding_refuses(folder: Path) -> None:
    """A JPEG is decoded at an eighth of its size: cut anywhere, it is refused just where it would be later."""
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    base, verdicts = folder / "x.jpg", set[bool]()
    pixels_HW3 = tiny_data.random_images(61, 83, 3)
    kinds: tuple[dict[str, Any], ...] = ({}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1})
    for options in kinds:
        Image.fromarray(pixels_HW3).save(base, **options)
        content = base.read_bytes()
        for end in (*range(len(content) - 40, len(content) + 1, 4), *range(200, len(content), 211)):
            base.write_bytes(content[:end])
            found = []
            for attempt in (lambda: picture_facts(base, base.read_bytes()), lambda: decode(base)):
                try:
                    attempt()
                    found.append(True)
                except DamagedImage:
                    found.append(False)
            assert found[0] == found[1], (options, end, len(content))
            verdicts.add(found[0])
    assert verdicts == {True, False}
