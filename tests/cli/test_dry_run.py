"""A dry run refuses what a launch would: in the same line, before anything is written."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import pytest
import torch
from small_runs import MACHINE, carry_out, final_run, record_of, request

from transfergrid.cli import before as launching
from transfergrid.cli.launch import launch
from transfergrid.cli.run_phase import run_phase
from transfergrid.cluster.child import Answer
from transfergrid.config import load_grid
from transfergrid.errors import (
    ConfigError,
    DataError,
    GridError,
    MachineError,
    MissingWeights,
    UnusableWeights,
    one_line,
)
from transfergrid.networks import architectures
from transfergrid.report.analysis.comparison import read_comparison
from transfergrid.report.write import write
from transfergrid.store import durable
from transfergrid.store.records import write_grid

GRID = ["grid.models=[tinynet_cifar]", "grid.seeds=[0]", "grid.variants={}", "cluster=local", *MACHINE]


@pytest.fixture(autouse=True)
def without_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a child process is asked is asked here, where torch is loaded already."""

    def here(function: Callable[..., Any], arguments: tuple[object, ...], *, runs_follow: bool) -> Answer:
        try:
            return Answer(function(*arguments))
        except GridError as error:
            return Answer(error=one_line(error))

    monkeypatch.setattr(launching, "ask", here)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    torch.save({"x.weight": torch.zeros(3)}, tmp_path / "other.pth")
    (tmp_path / "damaged.pth").write_bytes(b"PK\x03\x04" + bytes(100))
    (tmp_path / "page.pth").write_text("<!doctype html><title>404</title>")
    return tmp_path


@pytest.mark.parametrize("phase", ["probe", "finetune"])
@pytest.mark.parametrize("key", ["weights", "weights_files.tinynet_cifar"])
@pytest.mark.parametrize(
    ("file", "says"),
    [("other.pth", "is of another network"), ("damaged.pth", "cut short or damaged"), ("page.pth", "a web page")],
)
def test_a_wrong_weights_file_is_told_in_the_launchs_own_line(
    files: Path, phase: str, key: str, file: str, says: str
) -> None:
    asked = [*GRID, f"grid.phases=[{phase}]", f"{key}={file}"]
    with pytest.raises(DataError, match=says) as dry:
        launch([*asked, "dry_run=true"])
    assert not Path("results").exists() and not Path("cache").exists()
    with pytest.raises(DataError) as real:
        launch(asked)
    assert str(dry.value) == str(real.value)


@pytest.mark.parametrize("model", ["tinynet_cifar", "tinynet"])
@pytest.mark.parametrize("file", ["other.pth", "page.pth"])
def test_a_wrong_checkpoint_is_told_by_dry_run_and_launch_of_backbone_and_architecture(
    files: Path, model: str, file: str
) -> None:
    asked = ["phase=evaluate", f"model={model}", "dataset=digits", f"phase.evaluate.checkpoint={file}", *MACHINE]
    asked += ["dataset.image_size_px=32", "cluster=local"]
    said = []
    for more in (["dry_run=true"], []):
        with pytest.raises(DataError) as caught:
            run_phase([*asked, *more])
        said.append(str(caught.value))
    assert said[0] == said[1] and file in said[0]


def test_what_is_taken_of_a_file_stands_in_plan_record_and_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = architectures.build("tinynet", 10, 0).state_dict()
    held = {"state_dict": {f"module.{k}": v for k, v in state.items()}, "extra": {"queue": torch.zeros(4)}}
    torch.save(held, tmp_path / "kept.pth")
    asked = ["phase=evaluate", "model=tinynet", f"phase.evaluate.checkpoint={tmp_path / 'kept.pth'}", "cluster=local"]
    places = [f"store.dir={tmp_path / 'store'}", f"cache.dir={tmp_path / 'cache'}"]
    digits = ["dataset=digits", "dataset.image_size_px=32", "dataset.max_images=100", *MACHINE]
    assert run_phase([*asked, *places, *digits, "dry_run=true"]) == 0
    count = len(state)
    line = f"weights file kept.pth: {count} names taken from those under 'state_dict.module.'; not used: extra.queue"
    assert f"{line} (1)" in capsys.readouterr().out.splitlines()
    evaluated = request(tmp_path, *asked[:-1], *digits)
    assert carry_out(evaluated) == "completed"
    assert record_of(final_run(evaluated), evaluated.runtime).details["weights_taken"] == {
        "tinynet": {
            **{"file": "kept.pth", "prefix": "state_dict.module.", "names": count, "others": [], "not_used": 1},
            "first_not_used": ["extra.queue"],
        }
    }


@pytest.mark.parametrize("phase", ["probe", "finetune"])
def test_a_training_records_what_it_took_of_its_weights_file(tmp_path: Path, phase: str) -> None:
    state = architectures.build("tinynet", 10, 0).state_dict()
    torch.save({f"model.{k}": v for k, v in state.items()}, tmp_path / "own.pth")
    asked = ["model=tinynet_cifar", f"phase={phase}", f"weights={tmp_path / 'own.pth'}", "dataset.max_images=60"]
    started = request(tmp_path, *asked, *([] if phase == "probe" else ["phase.finetune.head=random"]))
    assert carry_out(started) == "completed"
    run = final_run(started)
    (source,) = (run,) if phase == "finetune" else run.extractions
    taken = record_of(source, started.runtime).details["weights_taken"]["tinynet_cifar"]
    assert (taken["file"], taken["prefix"]) == ("own.pth", "model.") and taken["names"] >= 20
    write_grid(started.store.grid("g"), grid="g", entries=started.entries(), runtime=started.runtime)
    page = (write([read_comparison("g", started.store)], figures=False).with_name("index.html")).read_text()
    assert "weights file of tinynet_cifar" in page and "file own.pth, names 26, prefix model." in page


@pytest.mark.parametrize("key", ["store.dir", "cache.dir"])
def test_a_folder_that_cannot_be_written_is_told(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "locked" not in str(path) and real(path, mode))  # as for root
    with pytest.raises(ConfigError, match=rf"locked/x cannot be used \(Permission denied\); give another {key}=$"):
        launch([*GRID, "grid.phases=[probe]", f"{key}={tmp_path}/locked/x", "dry_run=true"])


@pytest.mark.parametrize("more", [[], ["dry_run=true"]])
@pytest.mark.parametrize("key", ["store.dir", "cache.dir"])
def test_a_read_only_file_system_is_told_in_one_line(
    key: str, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mounted").mkdir()
    real = os.statvfs

    def statvfs(path: Path) -> object:
        return SimpleNamespace(f_flag=os.ST_RDONLY) if "mounted" in str(path) else real(path)

    monkeypatch.setattr(os, "statvfs", statvfs)
    told = rf"^{key}=.*/mounted/x cannot be used \(Read-only file system\); give another {key}=$"
    with pytest.raises(ConfigError, match=told):
        launch([*GRID, "grid.phases=[probe]", f"{key}={tmp_path}/mounted/x", *more])
    assert not Path("results").exists() and not Path("cache").exists()


def test_what_the_system_refuses_when_it_is_written_to_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, content: bytes) -> int:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    asked = request(tmp_path, "model=tinynet_cifar", "phase=probe")
    with pytest.raises(ConfigError) as told:
        launching.prepare_folders(asked.runtime)
    assert (
        str(told.value) == f"store.dir={tmp_path}/store cannot be used (Read-only file system); give another store.dir="
    )


def test_missing_weights_of_every_part_and_model_are_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def unreachable(url: str, *_: object, **__: object) -> None:
        asked.append(url)
        raise URLError("Name or service not known")

    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    models = "grid.models=[resnet18+googlenet,vgg16,alexnet]"
    grid = ["grid=individual_vs_parallel", models, "cluster=local", *MACHINE]
    grid += [
        f"store.dir={tmp_path / 'store'}",
        f"cache.dir={tmp_path / 'cache'}",
        "grid.datasets=[digits]",
        "weights_dir=w",
    ]
    runs = {run: None for run in load_grid(grid).runs.values()}
    runtime = load_grid(grid).runtime
    with pytest.raises(UnusableWeights) as told:
        launching.check_weights([e for run in runs for e in run.extractions], runtime)
    line = one_line(told.value)
    for file in ("resnet18-f37072fd.pth", "googlenet-1378be20.pth", "vgg16-397923af.pth", "alexnet-owt-7be5be79.pth"):
        assert line.count(file) == 1
    assert line.startswith("weights IMAGENET1K_V1 of resnet18 could not be downloaded (URLError: ")
    where = "or give their folder as weights_dir= (published at https://download.pytorch.org/models)"
    assert line.endswith(f"put them into w, {where}")
    assert len(asked) == 1 and told.value.details == ()  # the network is asked once


def test_more_missing_files_than_a_message_has_room_for_stand_below_it_beside_other_faults() -> None:
    folder = Path("w")
    faults = [MissingWeights(f"weights of m{i} are not there", file=f"m{i}.pth", folder=folder) for i in range(9)]
    error = UnusableWeights([DataError("own.pth is of another network"), *faults])
    said = "weights of m0 are not there; not there: m0.pth, m1.pth, m2.pth, m3.pth and 5 more;"
    assert str(error).startswith(f"{said} own.pth is of another network; put them into w,")
    assert error.details == tuple(f"  m{i}.pth" for i in range(9))


def test_tracking_online_without_a_key_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    asked = [a for a in GRID if not a.startswith("tracking")]
    with pytest.raises(ConfigError, match="tracking=online: no W&B key"):
        launch([*asked, "grid.phases=[probe]", "tracking=online", "dry_run=true"])


def test_a_folder_that_its_file_system_does_not_make_is_no_traceback() -> None:
    with pytest.raises(MachineError, match="/proc/x cannot be made there; give another store.dir= or cache.dir="):
        durable.make_folder(Path("/proc/x/y"))
