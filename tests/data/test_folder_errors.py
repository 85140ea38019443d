"""What a file system refuses in a folder of images ends in one named error, and a pipe is not opened."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from picture_files import decode
from PIL import Image

from transfergrid import data
from transfergrid.data._folder_scan import image_files, scan
from transfergrid.data.damaged import DamagedImage
from transfergrid.data.folds import Fold
from transfergrid.errors import DataError
from transfergrid.phases.evaluate import _write_csv


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: os.mkfifo(path), "x.png is a pipe, a device or a folder; mend or remove it; dataset.skip"),
        (lambda path: path.symlink_to("/nowhere/at/all.png"), "x.png is a broken link; mend or remove it; dataset"),
        (lambda path: path.symlink_to("x.png"), "x.png cannot be read .Too many levels of symbolic links.; mend or"),
        (lambda path: path.symlink_to(path.parent), "x.png is a link to a folder that holds it; remove the link"),
    ],
    ids=["pipe", "dangling", "link to itself", "link to its parent"],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    for name in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    make(tmp_path / "train/cat/x.png")

    with pytest.raises(DataError, match=message):
        data.facts("image_folder", folder=tmp_path)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("CAF\u00c9", r"class 'CAF\\xc9' is in test/ only, and train/ has 'caf\\xe9'"),
        ("CAF\u00c9 ", r"class 'CAF\\xc9 ' is in test/ only, and train/ has 'caf\\xe9'"),
    ],
    ids=["capitals", "capitals and a blank"],
)
def test_class_names_that_look_alike_are_told_apart(tmp_path: Path, name: str, told: str) -> None:
    for path in ("train/caf\u00e9", "train/zebra", f"test/{name}", "test/zebra"):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "0.png").touch()
    with pytest.raises(DataError, match=f"{told}.*: the same name in another spelling; rename one of them"):
        scan(tmp_path)


@pytest.mark.parametrize("what", ["train/cat", "train/cat/0.png"])
def test_what_one_may_not_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    for name in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    scandir, read_bytes = os.scandir, Path.read_bytes

    def refuse(path: Path) -> Path:
        if Path(path) == tmp_path / what:
            raise PermissionError(13, "Permission denied", str(path))
        return path

    monkeypatch.setattr(os, "scandir", lambda path: scandir(refuse(path)))
    monkeypatch.setattr(Path, "read_bytes", lambda path: read_bytes(refuse(path)))
    with pytest.raises(DataError, match=f"{what} cannot be read .Permission denied.; mend or remove it"):
        data.facts("image_folder", folder=tmp_path)


def test_predictions_name_classes_that_are_not_utf8(tmp_path: Path) -> None:
    names = (os.fsdecode(b"caf\xe9"), "dog")
    fold = Fold("test", np.array([0]), np.array([1]))

    files = [os.fsdecode(b"test/dog/caf\xe9.png")]
    _write_csv(tmp_path / "predictions.csv", fold, np.array([[0.0, 0.0]], dtype=np.float32), names, files)

    wanted = b"test/dog/caf\xe9.png,0,dog,caf\xe9,0.5000"
    assert (tmp_path / "predictions.csv").read_bytes().splitlines()[1] == wanted


def test_predict_lists_a_folder_that_cannot_be_read_and_what_holds_a_picture_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", "locked/in.png", "photo", "scan.dat"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name, "PNG")
    (tmp_path / "notes.dat").write_text("no picture")
    (tmp_path / "empty").touch()
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path) == tmp_path / "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    skipped: dict[str, tuple[int, str]] = {}
    assert image_files(tmp_path, skipped) == ["a.png", "locked", "photo", "scan.dat"]
    assert skipped == {".dat": (1, "./notes.dat"), "without a suffix": (1, "./empty")}
    with pytest.raises(DamagedImage, match="locked cannot be read .Permission denied."):
        decode(tmp_path / "locked")


def test_predict_keeps_what_cannot_be_read_to_name_it_and_opens_no_pipe(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "b.png").symlink_to("/nowhere/at/all.png")
    (tmp_path / "c.png").symlink_to("c.png")
    os.mkfifo(tmp_path / "d.png")
    (tmp_path / "self").symlink_to(".")
    assert image_files(tmp_path) == ["a.png", "b.png", "c.png", "d.png"]
    for name in ("b.png", "c.png", "d.png"):
        with pytest.raises(DamagedImage) as refused:
            decode(tmp_path / name)
        assert refused.value.path == tmp_path / name
