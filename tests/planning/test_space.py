"""What a plan says that it will write, against what is free. What is really written: tests/whole/test_quickstart.py."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_runs import MACHINE

from transfergrid.cli.launch import launch
from transfergrid.config import load_grid
from transfergrid.errors import StoreFull
from transfergrid.planning import space

GRID = ["grid=quickstart", "cluster=local", *MACHINE]


def on_disks(monkeypatch: pytest.MonkeyPatch, **free: int) -> None:
    """Each folder of the test is a file system of its own, with so many bytes free."""
    real = os.stat

    def stat(path: Path, **more: object) -> object:
        return SimpleNamespace(st_dev=name) if (name := Path(path).name) in free else real(path)

    def usage(path: Path) -> object:
        return SimpleNamespace(total=1, free=free[Path(path).name])

    monkeypatch.setattr(space, "os", SimpleNamespace(stat=stat))
    monkeypatch.setattr(space, "shutil", SimpleNamespace(disk_usage=usage))


def places(tmp_path: Path, store: str, cache: str) -> list[str]:
    for name in (store, cache):
        (tmp_path / name).mkdir(exist_ok=True)
    return [f"store.dir={tmp_path / store}/results", f"cache.dir={tmp_path / cache}/cache"]


@pytest.mark.parametrize("dry", [[], ["dry_run=true"]])
def test_what_cannot_fit_is_refused_in_one_line_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dry: list[str]
) -> None:
    where = places(tmp_path, "small", "large")
    on_disks(monkeypatch, small=5_000_000, large=10**12)
    with pytest.raises(
        StoreFull, match=r"small: 5.0 MB are free, 8.1 MB are to be written there \(store.dir\)"
    ) as told:
        launch([*GRID, *where, *dry])
    assert told.value.remedy == "keep_weights=none writes 5.9 MB less; free some space, or give another store.dir="
    assert not list(tmp_path.glob("*/*"))


def test_little_space_is_a_caution_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = places(tmp_path, "one", "one")
    on_disks(monkeypatch, one=10_000_000)
    assert launch([*GRID, *where, "dry_run=true"]) == 0
    [line] = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("writes about 9.2 MB (weights 5.9 MB")
    ]
    assert line.endswith("less; free some space, or give another store.dir= or cache.dir=")
    on_disks(monkeypatch, one=10**12)
    assert launch([*GRID, *where, "dry_run=true"]) == 0
    assert "predictions 0.4 MB); 1,000.00 GB are free\n" in capsys.readouterr().out


def test_weights_that_are_not_kept_or_not_there_yet_are_counted_so(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    asked = [
        "grid=individual_vs_parallel",
        "grid.models=[resnet18]",
        "grid.datasets=[mnist]",
        f"weights_dir={tmp_path / 'w'}",
    ]
    kept = load_grid([*asked, *places(tmp_path, "s", "c")])
    runs = list(kept.runs.values())
    assert space.expected(runs, kept.runtime)[0]["published weights"] == pytest.approx(46.8e6, rel=0.01)
    (tmp_path / "w" / "resnet18-f37072fd.pth").touch()
    assert "published weights" not in space.expected(runs, kept.runtime)[0]
    dropped = load_grid([*asked, *places(tmp_path, "s", "c"), "keep_weights=none"])
    assert space.expected(runs, kept.runtime)[0]["weights"] > 100 * space.expected(runs, dropped.runtime)[0]["weights"]


def test_a_file_system_that_tells_nothing_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(shutil, "disk_usage", refuse)
    asked = load_grid([*GRID, *places(tmp_path, "s", "c")])
    assert space.volumes(asked.runs.values(), asked.runtime) == []
