"""Image folders on a node's own disk: copied, read instead of the shared ones, and cleared away."""

from __future__ import annotations

import logging
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from cluster_cases import as_job, names_in, runtime_in
from PIL import Image

from transfergrid import data
from transfergrid.cluster.staging import staged
from transfergrid.data.folds import dataset_facts
from transfergrid.errors import DataError
from transfergrid.specs import DatasetSpec

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def in_job(monkeypatch: pytest.MonkeyPatch) -> None:
    as_job(monkeypatch, "7", task=3)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes, three images each per split: 12 files."""
    root = tmp_path / "shared" / "Flowers"
    pixels = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("oak", "elm"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(3):
                image = Image.fromarray(pixels.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                image.save(folder / f"{i}.png")
    return root


def own_folder(scratch: Path) -> Path:
    return scratch / f"transfergrid-{os.getuid()}-7_3"


def test_inside_the_data_set_lies_in_a_folder_of_the_jobs_own_and_afterwards_nowhere(
    tmp_path: Path, images: Path
) -> None:
    runtime, scratch = runtime_in(tmp_path, Flowers=str(images)), tmp_path / "node"
    with staged(runtime, ["Flowers"], str(scratch)) as inside:
        copy = Path(inside.data_folders["Flowers"])
        assert copy == own_folder(scratch) / "flowers"
        files = {str(p.relative_to(copy)): p.read_bytes() for p in copy.rglob("*.png")}
        assert files == {str(p.relative_to(images)): p.read_bytes() for p in images.rglob("*.png")}
        assert len(files) == 12
        assert own_folder(scratch).stat().st_mode & 0o077 == 0
    assert names_in(scratch) == []
    assert runtime.data_folders == {"Flowers": str(images)}


def test_only_what_the_runs_read_is_copied_and_the_rest_stays_where_it_is(tmp_path: Path, images: Path) -> None:
    runtime = runtime_in(tmp_path, Flowers=str(images), other="/shared/other")
    with staged(runtime, ["mnist", "Flowers"], str(tmp_path / "node")) as inside:
        assert inside.data_folders["other"] == "/shared/other"
        assert names_in(own_folder(tmp_path / "node")) == ["flowers"]


@pytest.mark.parametrize("scratch", [None, "node"])
def test_nothing_is_staged_without_a_scratch_folder_or_without_an_image_folder(
    tmp_path: Path, images: Path, scratch: str | None
) -> None:
    runtime = runtime_in(tmp_path, Flowers=str(images))
    datasets = ["Flowers"] if scratch is None else ["mnist"]
    with staged(runtime, datasets, None if scratch is None else str(tmp_path / scratch)) as inside:
        assert inside is runtime
    assert not (tmp_path / "node").exists()


def test_a_failing_run_leaves_nothing_on_the_node(tmp_path: Path, images: Path) -> None:
    scratch = tmp_path / "node"
    with pytest.raises(ZeroDivisionError), staged(runtime_in(tmp_path, Flowers=str(images)), ["Flowers"], str(scratch)):
        assert names_in(scratch) == [own_folder(scratch).name]
        _ = 1 // 0
    assert names_in(scratch) == []


def test_what_a_killed_attempt_left_is_replaced(tmp_path: Path, images: Path) -> None:
    scratch = tmp_path / "node"
    left = own_folder(scratch) / "flowers" / "train" / "oak" / "left.png"
    left.parent.mkdir(parents=True)
    left.touch()
    with staged(runtime_in(tmp_path, Flowers=str(images)), ["Flowers"], str(scratch)) as inside:
        assert inside.data_folders["Flowers"] == str(own_folder(scratch) / "flowers")
        assert len(list((own_folder(scratch) / "flowers").rglob("*.png"))) == 12 and not left.exists()


@pytest.mark.parametrize(("free", "fits"), [(1.0, False), (1.05, False), (1.2, True)])
def test_without_room_to_spare_the_run_reads_the_shared_folder(
    tmp_path: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    free: float,
    fits: bool,
) -> None:
    size = sum(p.stat().st_size for p in images.rglob("*.png"))
    assert size > 1000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10 * size, 0, round(free * size)))
    runtime, scratch = runtime_in(tmp_path, Flowers=str(images)), tmp_path / "node"
    with caplog.at_level(logging.INFO), staged(runtime, ["Flowers"], str(scratch)) as inside:
        assert (inside.data_folders["Flowers"] != str(images)) is fits
        assert names_in(scratch) == ([own_folder(scratch).name] if fits else [])
    assert ("not staged (0.0 GB are needed, 0.0 GB are free), reading the shared folder" in caplog.text) is not fits


def test_where_one_of_two_folders_does_not_fit_neither_is_staged(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = tmp_path / "shared" / "large"
    shutil.copytree(images, second)
    size, rooms = sum(p.stat().st_size for p in images.rglob("*.png")), [10, 0]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, rooms.pop(0) * size))
    runtime, scratch = runtime_in(tmp_path, Flowers=str(images), large=str(second)), tmp_path / "node"
    with staged(runtime, ["Flowers", "large"], str(scratch)) as inside:
        assert inside.data_folders == {"Flowers": str(images), "large": str(second)}
        assert rooms == [] and names_in(scratch) == []


def test_a_scratch_folder_that_cannot_be_made_is_told_and_does_no_harm(
    tmp_path: Path, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    runtime = runtime_in(tmp_path, Flowers=str(images))
    with staged(runtime, ["Flowers"], str(tmp_path / "file" / "node")) as inside:
        assert inside.data_folders == {"Flowers": str(images)}
    assert "not staged" in caplog.text and "reading the shared folder" in caplog.text


def test_the_scratch_folder_may_be_named_by_a_variable_of_the_node(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOB_SCRATCH", str(tmp_path / "nvme"))
    with staged(runtime_in(tmp_path, Flowers=str(images)), ["Flowers"], "${JOB_SCRATCH}/tg") as inside:
        assert inside.data_folders["Flowers"].startswith(str(tmp_path / "nvme" / "tg"))


def test_a_variable_that_the_node_does_not_have_stages_nothing_in_the_folder_the_job_runs_in(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "submitted_from").mkdir()
    monkeypatch.chdir(tmp_path / "submitted_from")
    monkeypatch.delenv("JOB_SCRATCH", raising=False)
    with staged(runtime_in(tmp_path, Flowers=str(images)), ["Flowers"], "$JOB_SCRATCH") as inside:
        assert inside.data_folders == {"Flowers": str(images)}
        assert names_in(tmp_path / "submitted_from") == []
    assert names_in(tmp_path / "submitted_from") == []
    assert "$JOB_SCRATCH: that variable is not set on this node; nothing is staged" in caplog.text


def test_outside_slurm_each_process_has_a_folder_of_its_own(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_job(monkeypatch, None)
    with staged(runtime_in(tmp_path, Flowers=str(images)), ["Flowers"], str(tmp_path / "node")):
        assert names_in(tmp_path / "node") == [f"transfergrid-{os.getuid()}-{os.getpid()}"]


def test_the_copy_has_the_identity_of_the_folder_so_that_the_run_is_the_same_run(tmp_path: Path, images: Path) -> None:
    fingerprint = data.facts("image_folder", folder=images, keep=False).fingerprint
    spec = DatasetSpec(name="Flowers", kind="image_folder", fingerprint=fingerprint, num_classes=2)
    with staged(runtime_in(tmp_path, Flowers=str(images)), [spec.name], str(tmp_path / "node")) as inside:
        assert inside.data_folders["Flowers"] != str(images)
        found = dataset_facts(spec, inside)
        assert (found.fingerprint, found.num_images) == (fingerprint, {"train": 6, "test": 6})
    with staged(runtime_in(tmp_path, Flowers=str(images)), [spec.name], str(tmp_path / "other_node")) as inside:
        copy = Path(inside.data_folders["Flowers"])
        shutil.copy(copy / "train" / "oak" / "0.png", copy / "train" / "oak" / "1.png")
        with pytest.raises(DataError, match="data set 'Flowers' has changed since this run was planned"):
            dataset_facts(spec, inside)
