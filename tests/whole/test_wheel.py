"""The wheel, installed into an empty environment and used in another folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
PROBES = ("grid.phases=[probe]", "grid.seeds=[0]", "grid.variants={}", "cluster=local", "tracking=disabled")
Typed = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(["uv", "build", "--wheel", "--quiet", "--out-dir", str(folder), str(ROOT)], check=True, timeout=120)
    (found,) = folder.glob("transfergrid-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of an environment that holds the wheel and what it asks for, at the versions that the tests run with."""
    folder = tmp_path_factory.mktemp("environment")
    freeze = ["uv", "pip", "freeze", "--quiet", "--exclude-editable", "--python", sys.executable]
    versions = subprocess.run(freeze, check=True, capture_output=True, text=True, timeout=60).stdout
    (folder / "versions.txt").write_text(versions)
    subprocess.run(["uv", "venv", "--quiet", "--python", sys.executable, str(folder / "venv")], check=True, timeout=60)
    install = ["uv", "pip", "install", "--quiet", "--python", str(folder / "venv"), str(wheel)]
    environment = {key: value for key, value in os.environ.items() if key != "UV_COMPILE_BYTECODE"}  # of all of torch
    subprocess.run([*install, "-c", str(folder / "versions.txt")], check=True, timeout=300, env=environment)
    return folder / "venv" / "bin"


@pytest.fixture
def typed(installed: Path, tmp_path: Path) -> Typed:
    """What a person types in an empty folder, with nothing of this environment."""
    hidden = ("PYTHON", "VIRTUAL_ENV", "TRANSFERGRID", "UV_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        program = [str(installed / command[0]), *command[1:]]
        return subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    return run


def test_it_holds_the_configuration_and_the_job_scripts(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for source in (*(ROOT / "conf").rglob("*.yaml"), *(ROOT / "slurm").glob("*.sbatch")):
        name = f"transfergrid/{source.relative_to(ROOT)}"
        assert name in names and zipfile.ZipFile(wheel).read(name) == source.read_bytes()
    assert not any(name.startswith(("tests/", "benchmarks/", "jobs/")) for name in names)


def test_the_command_runs_a_grid_in_another_folder_and_every_view_of_it(typed: Typed, tmp_path: Path) -> None:
    assert typed("transfergrid", "--version").stdout.startswith("transfergrid 0.")
    (tmp_path / "conf" / "grid").mkdir(parents=True)
    (tmp_path / "conf" / "grid" / "mine.yaml").write_text(
        "# @package _global_\ngrid:\n  name: mine\n  models: [tinynet_mnist, tinynet_cifar]\n  datasets: [digits]\n"
        "  phases: [probe]\n  seeds: [0]\nweights: builtin\n"
    )
    launched = typed("transfergrid", "launch", "grid=mine", *PROBES)
    assert launched.returncode == 0, launched.stderr
    assert "tinynet_cifar" in launched.stdout and launched.stdout.count("completed") >= 2
    again = typed("python", "-m", "transfergrid", "launch", "grid=mine", *PROBES, "dry_run=true")
    assert again.returncode == 0 and "with what they need: 2 reuse\n" in again.stdout
    status = typed("transfergrid", "status", "grid=mine")
    assert status.returncode == 0 and "tinynet_mnist" in status.stdout
    report = typed("transfergrid", "report", "grid=mine", "figures=false")
    assert report.returncode == 0 and (tmp_path / "results/reports/mine/index.html").is_file()
    page = (tmp_path / "results/reports/mine/index.html").read_text()
    for text in (launched.stdout, launched.stderr, status.stdout, report.stdout, page):
        assert "python jobs/" not in text  # there is no such folder here
