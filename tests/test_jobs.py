"""The scripts of jobs/, before the package is there."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from transfergrid import __main__ as door
from transfergrid.paths import VERBS, typed

ROOT = Path(__file__).resolve().parents[1]
JOBS = ROOT / "jobs"
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
    assert callable(importlib.import_module(f"transfergrid.cli.{found[1]}").main)
    assert found[1] in VERBS.values()  # and so does a verb of the command
    assert typed(script) == f"python jobs/{script}"


def test_a_python_without_the_package_is_told_how_to_run_the_script(tmp_path: Path) -> None:
    done = run("launch_grid.py", "grid=quickstart", "grid.seeds=[0, 1]", packages=tmp_path)
    assert done.returncode == 1
    said = done.stderr.strip()
    assert said.startswith(f"error: {sys.executable} has no module 'transfergrid'; run `uv run ")
    assert "launch_grid.py grid=quickstart 'grid.seeds=[0, 1]'`, or activate" in said and "\n" not in said


def test_ctrl_c_while_the_package_is_loaded_ends_without_a_word(tmp_path: Path) -> None:
    commands = tmp_path / "transfergrid" / "cli"
    commands.mkdir(parents=True)
    (commands / "launch.py").write_text("raise KeyboardInterrupt")
    done = run("launch_grid.py", packages=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


# -------------------------------------------------------------------------------------------------------- the command
def answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["transfergrid", *arguments])
    code = door.main()
    out, err = capsys.readouterr()
    return code, out, err


def test_without_a_verb_it_shows_every_verb_on_one_screen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in ((), ("--help",), ("-h",)):
        code, out, err = answer(capsys, monkeypatch, *arguments)
        assert (code, err) == (0, "")
        assert [line.split()[0] for line in out.splitlines() if line.startswith("  ")] == list(VERBS)
        assert len(out.splitlines()) <= 45 and max(map(len, out.splitlines())) <= 100


def test_it_tells_its_version(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    stated = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert stated is not None
    assert answer(capsys, monkeypatch, "--version") == (0, f"transfergrid {stated[1]}\n", "")


@pytest.mark.parametrize(
    ("verb", "told"),
    [
        ("lunch", "unknown verb 'lunch'; did you mean 'transfergrid launch'?"),
        ("--status", "unknown verb '--status'; did you mean 'transfergrid status'?"),
        (
            "grid=quickstart",
            "unknown verb 'grid=quickstart'; the verb comes first: transfergrid launch grid=quickstart",
        ),
        ("xyz", "unknown verb 'xyz'; known: launch, run, status, report, sync, predict, doctor, list, store"),
    ],
)
def test_a_wrong_verb_is_told_with_the_right_one(
    verb: str, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answer(capsys, monkeypatch, verb) == (2, "", f"error: {told}\n")


def test_a_verb_is_its_script(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = answer(capsys, monkeypatch, "status", "grid=nothing")
    assert code == 2 and err.startswith("error: ") and "nothing" in err
    code, out, _ = answer(capsys, monkeypatch, "launch", "--help")
    assert code == 0 and out.startswith("usage: ")
