"""No traceback where a user looks: what commands printed in a test, and what its stores' logs hold afterwards.

A fault of the code (class `code`) is the one exception: its traceback stands in the run's log.txt, and in the job's
log, which repeats that; never on the terminal.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# The fault suite: every test of these files is looked at.
FAULTS = (
    *("test_billing_slurm", "test_finish_slurm", "test_full_disk", "test_local_pool", "test_lost_features"),
    *("test_owner_locks", "test_permanent_slurm", "test_site_kinds_slurm", "test_site_requests_slurm"),
    *("test_slurm_faults", "test_slurm_grid", "test_status_slurm", "test_sweep_slurm", "test_two_clusters"),
    "test_wandb_faults",
)
_TRACEBACK = re.compile(r"Traceback \(most recent call last\):\n(?:[ \t|+].*\n|\n)*(.*)")
# Not what the W&B client keeps for its own developers, debug.log and debug-internal.log.
_IS_LOG = re.compile(r"log\.txt|.*_log\.(out|err)|(?!debug).*\.log|output").fullmatch
_NO_LOGS = ("code", "cache", "checkpoints", "node_modules", "__pycache__")


def last_lines(text: str) -> list[str]:
    """Of each traceback: the line that names what was raised."""
    return [match[1].strip() for match in _TRACEBACK.finditer(text)]


def listen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What commands of this test print from now on, and what it reads of its own process's output."""
    heard: list[str] = []
    communicate, readouterr = subprocess.Popen.communicate, pytest.CaptureFixture.readouterr

    def hearing(self: subprocess.Popen[Any], *args: Any, **kwargs: Any) -> Any:
        said = communicate(self, *args, **kwargs)
        for stream in said:
            text = stream.decode(errors="replace") if isinstance(stream, bytes) else stream or ""
            if "Traceback" in text:
                heard.append(f"{self.args!r:.200} printed:\n{text}")
        return said

    def reading(self: pytest.CaptureFixture[Any]) -> Any:
        said = readouterr(self)
        heard.extend(f"printed here:\n{text}" for text in said if isinstance(text, str) and "Traceback" in text)
        return said

    monkeypatch.setattr(subprocess.Popen, "communicate", hearing)
    monkeypatch.setattr(pytest.CaptureFixture, "readouterr", reading)
    return heard


def in_logs(root: Path, since: float) -> list[str]:
    """`file:line: what was raised`, of all logs under root that were written since then."""
    of_code: set[str] = set()
    found: list[tuple[str, str]] = []
    for path in _logs(root, since):
        text = path.read_text(errors="replace")
        if path.name == "log.txt" and _failure_class(path.parent) == "code":
            of_code |= set(last_lines(text))
            continue
        for match in _TRACEBACK.finditer(text):
            found.append((f"{path}:{text.count(chr(10), 0, match.start()) + 1}", match[1].strip()))
    return [f"{where}: {raised}" for where, raised in found if raised not in of_code]


def _logs(root: Path, since: float) -> Iterator[Path]:
    for folder, below, names in os.walk(root):
        if "sandbox.json" in names:  # SLURM's own logs
            below.clear()
        below[:] = [name for name in below if name not in _NO_LOGS and not Path(folder, name).is_symlink()]
        for path in (Path(folder, name) for name in names if _IS_LOG(name)):
            if path.is_file() and path.stat().st_mtime >= since:
                yield path


def _failure_class(run: Path) -> str | None:
    try:
        found: str | None = json.loads((run / "record.json").read_text())["failure_class"]
    except (OSError, ValueError, KeyError):
        return None
    return found
