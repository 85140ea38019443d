"""The oldest versions that [project] allows: an environment of them, and the quick suite in it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.full
ROOT = Path(__file__).resolve().parents[2]
PROJECT = ROOT / "pyproject.toml"
TIMEOUT_S = 3600  # the suite takes 4 minutes on two idle cores


@pytest.fixture(scope="module")
def oldest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of an environment with the oldest versions of what [project] asks for; test tools as in development."""
    folder = tmp_path_factory.mktemp("oldest")
    newest_day = tomllib.loads(PROJECT.read_text())["tool"]["uv"]["exclude-newer"]
    uv = ("uv", "pip")
    # --no-config: the constraints of [tool.uv] are the versions of development.
    common = ("--no-config", "--quiet", "--exclude-newer", newest_day)
    extras = ("--extra", "onnx", "--extra", "heic", "--python-version", f"3.{sys.version_info.minor}")
    chosen = ("--resolution", "lowest-direct", "--output-file", str(folder / "oldest.txt"))
    commands = [
        [*uv, "compile", *common, *extras, *chosen, str(PROJECT)],
        ["uv", "venv", "--quiet", "--python", sys.executable, str(folder / "venv")],
        [*uv, "install", *common, "--python", str(folder / "venv"), "-c", str(folder / "oldest.txt")]
        + ["-e", f"{ROOT}[onnx,heic]", "--group", f"{PROJECT}:dev"],
    ]
    for command in commands:
        subprocess.run(command, cwd=folder, check=True, timeout=1200)
    return folder / "venv" / "bin"


def test_the_environment_holds_the_lower_bounds(oldest: Path) -> None:
    project = tomllib.loads(PROJECT.read_text())["project"]
    asked = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    listed = subprocess.run(["uv", "pip", "freeze", "--python", str(oldest / "python")], capture_output=True, text=True)
    versions = dict(line.split("==") for line in listed.stdout.splitlines() if "==" in line)
    for line in asked:
        parts = re.match(r"([\w-]+)>=([\d.]+)", line)
        assert parts is not None, line
        name, bound = parts.groups()
        assert (versions[name] + ".0.0").startswith(bound + "."), f"{line}: {versions[name]}"


def test_the_quick_suite_passes(oldest: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:  # a short name: sockets of the sandbox lie below it
        done = quick_suite(oldest, f"{folder}/q")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    counted = re.search(r"(\d+) passed", done.stdout)
    assert counted is not None and int(counted[1]) > 3000


def quick_suite(oldest: Path, folder: str) -> subprocess.CompletedProcess[str]:
    hidden = ("PYTEST", "VIRTUAL_ENV", "UV_", "OMP_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    environment["PATH"] = f"{oldest}:{environment['PATH']}"
    command = [str(oldest / "python"), "-m", "pytest", "-p", "no:cacheprovider", f"--basetemp={folder}"]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
