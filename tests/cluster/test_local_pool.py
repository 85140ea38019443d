"""The bounded pool as a user meets it: failures, interruptions, two launches at once. Real processes, real signals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from transfergrid.cluster import local
from transfergrid.paths import RunPaths
from transfergrid.store.checkpoints import checkpoint_files

CHECKOUT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """launch_grid in a process group of its own, as a terminal gives it one."""
    places = [f"store.dir={folder / 'store'}", f"cache.dir={folder / 'cache'}"]
    machine = ["cluster=local", "device=cpu", "cluster.num_threads=1", "tracking=disabled"]
    return subprocess.Popen(
        [sys.executable, CHECKOUT / "jobs" / "launch_grid.py", *places, *machine, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout_s: float = 180.0) -> tuple[int, str]:
    printed, _ = process.communicate(timeout=timeout_s)
    return process.returncode, printed


def record_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "record.json").read_text())
    return found


SCRATCH = ["grid=compare", "grid.models=[baseline_cnn]", "grid.phases=[scratch]", "grid.seeds=[0]"]


def test_a_failed_run_does_not_stop_the_others_and_is_named_with_class_reason_and_next_step(tmp_path: Path) -> None:
    variants = "grid.variants={diverging: {phase.scratch.lr: 100.0, phase.scratch.label_smoothing: 0.0}}"
    arguments = [
        *SCRATCH,
        variants,
        "phase.scratch.epochs=2",
        "phase.scratch.precision=fp32",
        "phase.scratch.momentum=0.99",
    ]
    code, printed = finish(start(tmp_path, *arguments))
    runs = sorted((tmp_path / "store" / "runs").iterdir(), key=lambda run: record_of(run)["status"])
    assert [record_of(run)["status"] for run in runs] == ["completed", "failed"], printed
    assert record_of(runs[1])["failure_class"] == "code"
    assert code == 1
    last = printed.strip().splitlines()[-1]
    remedy = "a smaller learning rate is the usual remedy"
    assert re.match(rf"code: {re.escape(runs[1].name)}: loss is (nan|inf) at step \d+; {remedy}", last)
    assert "failed" in printed and "completed" in printed

    code, printed = finish(start(tmp_path, *arguments))
    # Nothing has changed, so it is not tried again.
    assert code == 1 and "1 reuse, 1 blocked" in printed and "started" not in printed, (
        "nothing has changed: not tried again"
    )


def test_ctrl_c_leaves_a_store_that_the_next_launch_continues(tmp_path: Path) -> None:
    arguments = [*SCRATCH, "phase.scratch.epochs=12", "phase.scratch.precision=fp32", "checkpoint.min_interval_s=0"]
    process = start(tmp_path, *arguments)
    run = wait_for_checkpoint(tmp_path, min_step=5)
    os.killpg(process.pid, signal.SIGINT)
    code, printed = finish(process)
    assert code == 130 and "launch again to continue" in printed
    assert not (run.root / "record.json").exists()
    reached = checkpoint_files(run)[0].step

    code, printed = finish(start(tmp_path, *arguments))
    assert code == 0, printed
    assert "continues from its checkpoint" in printed
    record = record_of(run.root)
    assert record["status"] == "completed" and record["attempt"] == 2
    assert record["details"]["first_step"] == reached + 1 > 5
    assert list((tmp_path / "store" / "launches").glob("*")) == []


def test_ctrl_c_is_not_lost_where_python_drops_its_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: None)

    class Dying:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    with local._terminated_as_interrupted() as heard:
        dying = Dying()
        del dying
        assert heard == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_killed_child_is_recorded_as_lost_and_the_next_launch_continues(tmp_path: Path) -> None:
    arguments = [*SCRATCH, "phase.scratch.epochs=12", "phase.scratch.precision=fp32", "checkpoint.min_interval_s=0"]
    process = start(tmp_path, *arguments)
    run = wait_for_checkpoint(tmp_path, min_step=3)
    os.kill(json.loads(run.attempt(1).read_text())["pid"], signal.SIGKILL)
    code, printed = finish(process)
    assert code == 1 and "SIGKILL" in printed and json.loads(run.record.read_text())["details"] == {"signal": 9}
    assert record_of(run.root)["failure_class"] == "lost"
    code, printed = finish(start(tmp_path, *arguments))
    assert code == 0 and record_of(run.root)["details"]["first_step"] > 3


def test_two_launches_at_once_run_everything_once(tmp_path: Path) -> None:
    arguments = ["grid.models=[tinynet_mnist]", "grid.phases=[probe]", "grid.seeds=[0,1]", "grid.variants={}"]
    arguments += ["phase.probe.solver=sgd"]
    both = [start(tmp_path, *arguments) for _ in range(2)]
    ended = [finish(process) for process in both]
    runs = list((tmp_path / "store" / "runs").iterdir())
    assert len(runs) == 3
    assert all(record_of(run)["status"] == "completed" for run in runs if "extract" not in run.name)
    files = list((tmp_path / "cache" / "features").rglob("*"))
    assert sorted(f.suffix for f in files if f.is_file()) == [".h5", ".h5"], "no temporary file is left"
    # What one found in the other's hands it waited for, and then found done.
    assert [code for code, _ in ended] == [0, 0], ended
    code, printed = finish(start(tmp_path, *arguments))
    assert code == 0 and "2 reuse" in printed


def wait_for_checkpoint(folder: Path, *, min_step: int, timeout_s: float = 90.0) -> RunPaths:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for run in (folder / "store" / "runs").glob("*"):
            found = checkpoint_files(RunPaths(run))
            if found and found[0].step >= min_step:
                return RunPaths(run)
        time.sleep(0.02)
    raise AssertionError("no checkpoint appeared in time")
