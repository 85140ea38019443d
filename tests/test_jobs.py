"""The scripts of jobs/, before the package is there."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

JOBS = Path(__file__).resolve().parents[1] / "jobs"
SCRIPTS = sorted(path.name for path in JOBS.glob("[a-z]*.py"))


def run(script: str, *arguments: str, packages: Path) -> subprocess.CompletedProcess[str]:
    """With a python that has the packages in this folder alone."""
    command = [sys.executable, "-S", str(JOBS / script), *arguments]
    environment = os.environ | {"PYTHONPATH": str(packages)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_script_carries_out_a_command_of_the_package(script: str) -> None:
    found = re.search(r'start\("(\w+)"\)', (JOBS / script).read_text())
    assert found is not None
    assert callable(importlib.import_module(f"transfergrid.commands.{found[1]}").main)


def test_a_python_without_the_package_is_told_how_to_run_the_script(tmp_path: Path) -> None:
    done = run("launch_grid.py", "grid=quickstart", "grid.seeds=[0, 1]", packages=tmp_path)
    assert done.returncode == 1
    said = done.stderr.strip()
    assert said.startswith(f"error: {sys.executable} has no module 'transfergrid'; run `uv run ")
    assert "launch_grid.py grid=quickstart 'grid.seeds=[0, 1]'`, or activate" in said and "\n" not in said


def test_ctrl_c_while_the_package_is_loaded_ends_without_a_word(tmp_path: Path) -> None:
    commands = tmp_path / "transfergrid" / "commands"
    commands.mkdir(parents=True)
    (commands / "launch.py").write_text("raise KeyboardInterrupt")
    done = run("launch_grid.py", packages=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
