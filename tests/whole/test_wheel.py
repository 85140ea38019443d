"""The wheel, installed into an empty environment and used in another folder."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_data

from transfergrid.data.sets import digits

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
PROBES = ("grid.phases=[probe]", "grid.seeds=[0]", "grid.variants={}", "cluster=local", "tracking=disabled")
EXAMPLE = (ROOT / "docs/python.md").read_text().partition("```python\n")[2].partition("```")[0]
Typed = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(["uv", "build", "--wheel", "--quiet", "--out-dir", str(folder), str(ROOT)], check=True, timeout=120)
    (path,) = folder.glob("transfergrid-*.whl")
    return path


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def typed(installed: Path, folder: Path) -> Typed:
    """What a person types in an empty folder, with nothing of this environment."""
    hidden = ("PYTHON", "VIRTUAL_ENV", "TRANSFERGRID", "UV_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        program = [str(installed / command[0]), *command[1:]]
        return subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture(scope="module")
def launched(typed: Typed, folder: Path) -> str:
    """A grid of the user's own, and what launching it printed: a probe of each tiny backbone on the digits."""
    (folder / "conf" / "grid").mkdir(parents=True)
    (folder / "conf" / "grid" / "mine.yaml").write_text(
        "# @package _global_\ngrid:\n  name: mine\n  models: [tinynet_mnist, tinynet_cifar]\n  datasets: [digits]\n"
        "  phases: [probe]\n  seeds: [0]\nweights: builtin\n"
    )
    done = typed("transfergrid", "launch", "grid=mine", *PROBES)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_it_holds_the_configuration_the_job_scripts_and_the_types(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for source in (*(ROOT / "conf").rglob("*.yaml"), *(ROOT / "slurm").glob("*.sbatch")):
        name = f"transfergrid/{source.relative_to(ROOT)}"
        assert name in names and zipfile.ZipFile(wheel).read(name) == source.read_bytes()
    assert {"transfergrid/py.typed", "transfergrid/__init__.pyi"} <= names
    assert not any(name.startswith(("tests/", "benchmarks/", "jobs/", "examples/")) for name in names)


def test_the_command_runs_a_grid_in_another_folder_and_every_view_of_it(
    typed: Typed, launched: str, folder: Path
) -> None:
    assert typed("transfergrid", "--version").stdout.startswith("transfergrid 0.")
    assert "tinynet_cifar" in launched and launched.count("completed") >= 2
    again = typed("python", "-m", "transfergrid", "launch", "grid=mine", *PROBES, "dry_run=true")
    assert again.returncode == 0 and "with what they need: 2 reuse\n" in again.stdout
    status = typed("transfergrid", "status", "grid=mine")
    assert status.returncode == 0 and "tinynet_mnist" in status.stdout
    report = typed("transfergrid", "report", "grid=mine", "figures=false")
    assert report.returncode == 0 and (folder / "results/reports/mine/index.html").is_file()
    page = (folder / "results/reports/mine/index.html").read_text()
    for text in (launched, status.stdout, report.stdout, page):
        assert "python jobs/" not in text  # there is no such folder here


def test_the_example_of_the_python_page_prints_what_the_files_hold(typed: Typed, launched: str, folder: Path) -> None:
    """Word for word, but for the grid's name."""
    for name in ("a.png", "b.jpg"):
        tiny_data.save_image(folder / name, tiny_data.random_images(8, 8, 3))
    done = typed("python", "-c", EXAMPLE.replace('"quickstart"', '"mine"'))
    assert done.returncode == 0, done.stderr
    best, record, features, *named = done.stdout.splitlines()
    with open(folder / "results/reports/mine/comparison.csv", newline="") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    model, phase, *accuracy = best.split()
    assert phase == "probe" and accuracy == [rows[model][k] for k in ("test_accuracy", "ci95_low", "ci95_high")]
    assert float(rows[model]["val_accuracy"]) == max(float(row["val_accuracy"]) for row in rows.values())
    (path,) = folder.glob("results/runs/digits-tinynet_mnist-probe-*/record.json")
    content = json.loads(path.read_text())
    assert record == f"{content['metrics']['test_accuracy']} {content['phase_s']} tinynet_mnist"
    assert features == f"(1437, 64) {digits.load(split='train', data_dir=folder, download=False).labels_N[:5]}"
    assert [line.split()[0] for line in named] == ["a.png", "b.jpg"] and all(line[-1].isdigit() for line in named)


def test_the_example_is_typed_for_whoever_checks_their_code(installed: Path, tmp_path: Path) -> None:
    """mypy --strict, against the wheel. torch's own types are left out: they alone take four times as long."""
    (tmp_path / "mypy.ini").write_text("[mypy]\nstrict = true\n[mypy-torch.*]\nfollow_imports = skip\n")
    wrong = ("best.accuracy", "record.metrics['test_accuracy'].upper()", "features.labels", "model.predict('a.png', 1)")
    (tmp_path / "example.py").write_text(EXAMPLE + "".join(f"\n{line}" for line in wrong))
    check = [sys.executable, "-m", "mypy", "--python-executable", str(installed / "python"), "--no-error-summary"]
    done = subprocess.run([*check, "example.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    first = EXAMPLE.count("\n") + 2
    lines = [(int(line.split(":")[1]), line.rpartition(" ")[2]) for line in done.stdout.splitlines()]
    codes = ("[attr-defined]", "[attr-defined]", "[attr-defined]", "[call-arg]")
    assert lines == [(first + i, code) for i, code in enumerate(codes)], done.stdout


def test_the_walk_through_with_own_pictures_needs_no_checkout(typed: Typed, folder: Path, tmp_path: Path) -> None:
    script = shutil.copy(ROOT / "examples/own_pictures.py", tmp_path)
    done = typed("python", script)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.partition("\nbest on val: ")[2].splitlines()) == 11
    assert "python jobs/" not in done.stdout
