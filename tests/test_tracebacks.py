"""The standing check of the fault suite sees what a user would see, and allows a fault of the code its place."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tracebacks

RAISED = 'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    f()\n    ^^^\nValueError: of a head\n'


def run(root: Path, name: str, failure_class: str, log: str) -> None:
    folder = root / "results" / "runs" / name
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps({"failure_class": failure_class}))
    (folder / "log.txt").write_text(log)


def test_a_log_with_a_traceback_is_named_with_its_line(tmp_path: Path) -> None:
    run(tmp_path, "a", "data", f"attempt 1 begins\n{RAISED}")
    [told] = tracebacks.in_logs(tmp_path, 0.0)
    assert told == f"{tmp_path}/results/runs/a/log.txt:2: ValueError: of a head"
    assert tracebacks.in_logs(tmp_path, 1e12) == []


def test_one_of_class_code_may_stand_in_its_log_and_its_jobs_and_no_other(tmp_path: Path) -> None:
    run(tmp_path, "a", "code", RAISED)
    jobs = tmp_path / "results" / "launches" / "l" / "slurm" / "sub"
    jobs.mkdir(parents=True)
    (jobs / "1_0_log.err").write_text(f"INFO attempt 1 begins\n{RAISED}")
    assert tracebacks.in_logs(tmp_path, 0.0) == []
    (jobs / "2_0_log.err").write_text(RAISED.replace("head", "tail"))
    assert tracebacks.in_logs(tmp_path, 0.0) == [f"{jobs}/2_0_log.err:1: ValueError: of a tail"]


def test_what_a_command_prints_is_heard(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    heard = tracebacks.listen(monkeypatch)
    subprocess.run([sys.executable, "-c", "raise ValueError(1)"], capture_output=True)
    print(RAISED)
    capsys.readouterr()
    assert len(heard) == 2 and "ValueError: 1" in heard[0] and "of a head" in heard[1]
