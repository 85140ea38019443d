"""The main job as a user runs it, on real data: launches in processes of their own, results read from the records."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from transfergrid.paths import StorePaths
from transfergrid.report.analysis.statistics import compare, correct_matrix
from transfergrid.store.records import read_predictions

CHECKOUT = Path(__file__).resolve().parents[2]


def run_script(folder: Path, script: str, *arguments: str, timeout_s: float = 1500.0) -> str:
    """A script of jobs/ with its store and cache in `folder`; returns what it printed. Fails unless it exits with 0."""
    places = [f"store.dir={folder / 'store'}"]
    if script != "report.py":
        places += [f"cache.dir={folder / 'cache'}", "cluster=local", "device=cpu"]
    done = subprocess.run(
        [sys.executable, CHECKOUT / "jobs" / script, *places, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=folder,
        env=os.environ | {"COLUMNS": "100"},
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def table(folder: Path, grid: str) -> list[dict[str, str]]:
    with open(folder / "store" / "reports" / grid / "comparison.csv", newline="") as file:
        return list(csv.DictReader(file))


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(p.read_text()) for p in sorted((folder / "store" / "runs").glob("*/record.json"))]


# ---------------------------------------------------------------------------------------------------------- quickstart
@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("quickstart")
    return folder, run_script(folder, "launch_grid.py")


@pytest.mark.slow
def test_quickstart_ends_with_a_table_of_ten_completed_rows(quickstart: tuple[Path, str]) -> None:
    folder, printed = quickstart
    rows = table(folder, "quickstart")
    assert len(rows) == 10 and all(row["status"] == "completed" for row in rows)
    assert all(row["n_seeds"] == ("1" if row["phase"] == "probe" else "3") for row in rows)
    assert "test accuracy" in printed and "tinynet_cifar" in printed and "report:" in printed
    assert all(row["ci95_low"] and row["ci95_high"] for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tinynet_mnist", "tinynet_cifar", "tinynet_mnist+tinynet_cifar"])
def test_a_transferred_probe_beats_the_same_network_with_random_weights(
    quickstart: tuple[Path, str], model: str
) -> None:
    """The 95 % interval of the difference, over test images, lies above zero."""
    folder = quickstart[0]
    grid = json.loads((folder / "store" / "grids" / "quickstart.json").read_text())["configurations"]
    store = StorePaths(folder / "store")
    correct = {}
    for variant in ("", "random_weights"):
        runs = [c["run_id"] for c in grid if (c["model"], c["phase"], c["variant"]) == (model, "probe", variant)]
        assert len(runs) == 1  # a solved probe draws nothing
        correct[variant] = correct_matrix([read_predictions(store.run(run_id))["test"] for run_id in runs])
    found = compare(correct[""], correct["random_weights"])
    assert 0 < found.low < found.difference < found.high < 1 and found.p_value < 0.05


@pytest.mark.slow
def test_every_finetune_of_quickstart_passed_its_gate_and_no_finished_run_holds_more_than_twelve_files(
    quickstart: tuple[Path, str],
) -> None:
    folder = quickstart[0]
    finetunes = [r for r in records(folder) if r["spec"]["phase"] == "finetune"]
    assert len(finetunes) == 9
    assert all(r["details"]["gate"]["largest_ratio"] <= 1 for r in finetunes)
    for run in (folder / "store" / "runs").iterdir():
        assert sum(p.is_file() for p in run.rglob("*")) <= 12


@pytest.mark.slow
def test_launched_again_quickstart_reuses_everything_and_the_report_rebuilds_from_records_alone(
    quickstart: tuple[Path, str],
) -> None:
    folder = quickstart[0]
    before = {p: p.stat().st_mtime_ns for p in (folder / "store" / "runs").rglob("*")}
    printed = run_script(folder, "launch_grid.py", timeout_s=60)
    assert "18 reuse" in printed and "started" not in printed
    assert {p: p.stat().st_mtime_ns for p in (folder / "store" / "runs").rglob("*")} == before
    csv_file = folder / "store" / "reports" / "quickstart" / "comparison.csv"
    first = csv_file.read_bytes()
    csv_file.unlink()
    again = run_script(folder, "report.py", "grid=quickstart")
    assert csv_file.read_bytes() == first
    tables = [said.partition("\nOn digits, ")[0] for said in (again, printed)]  # below it stands who is best
    figures, before_it = (re.findall(r"\d+\.\d+ \[\d+\.\d+, \d+\.\d+\]", table) for table in tables)
    assert len(figures) == 10 and figures == before_it


@pytest.mark.slow
def test_the_offline_wandb_runs_of_quickstart_hold_the_metrics_lines(quickstart: tuple[Path, str]) -> None:
    from transfergrid.store.metrics_log import read_metrics
    from transfergrid.tracking.offline import rows_of_run

    store = StorePaths(quickstart[0] / "store")
    trained = [r["run_id"] for r in records(quickstart[0]) if r["spec"]["phase"] != "extract"]
    assert len(trained) == 18
    for run_id in trained:
        lines = read_metrics(store.run(run_id).metrics)
        rows = rows_of_run(store, run_id)
        assert [row["line"] for row in rows] == [line["line"] for line in lines]
        for row, line in zip(rows, lines, strict=True):
            assert {k: row[k] for k in line} == line


# ---------------------------------------------------------------------------------------------------------- real MNIST
@pytest.mark.realdata
def test_the_two_small_networks_and_their_pair_go_through_both_phases_on_the_real_mnist(
    real_data_dir: Path, tmp_path: Path
) -> None:
    """The whole grid, VGG16 and all, runs in test_grids_at_toy_size.py."""
    run_script(
        tmp_path,
        "launch_grid.py",
        "grid=individual_vs_parallel",
        "grid.models=[resnet18,googlenet,resnet18+googlenet]",
        "grid.datasets=[mnist]",
        "grid.seeds=[0]",
        "weights=random",
        "dataset.image_size_px=64",
        "dataset.max_images=600",
        "phase.finetune.epochs=1",
        f"data.dir={real_data_dir}",
    )
    rows = table(tmp_path, "individual_vs_parallel")
    assert len(rows) == 6 and all(row["status"] == "completed" for row in rows)
    probes = [row for row in rows if row["phase"] == "probe"]
    assert len(probes) == 3 and all(float(row["ci95_low"]) > 0.15 for row in probes)
    files = sorted((p.parent.name, p.name.split("-")[0]) for p in (tmp_path / "cache" / "features").rglob("*.h5"))
    assert files == [(s, b) for s in ("test", "train") for b in ("googlenet", "resnet18")]
    found = records(tmp_path)
    extractions = [r for r in found if r["spec"]["phase"] == "extract"]
    assert len(extractions) == 2 and all(r["details"]["images"] == 1200 and r["attempt"] == 1 for r in extractions)
    finetunes = [r for r in found if r["spec"]["phase"] == "finetune"]
    assert len(finetunes) == 3 and all(r["details"]["gate"]["largest_ratio"] <= 1 for r in finetunes)
    assert all(r["details"]["gate"]["rows"] == 256 and r["details"]["gate"]["judged"] for r in finetunes)


@pytest.mark.realdata
def test_the_probe_of_resnet18_on_all_of_mnist_agrees_with_scikit_learn(real_data_dir: Path, tmp_path: Path) -> None:
    """The L-BFGS reference on 10,000 rows against LogisticRegression on the same features, read with plain h5py."""
    import torch
    from sklearn.linear_model import LogisticRegression

    from transfergrid.networks.heads import fit_standardiser
    from transfergrid.networks.solved_head import fit_lbfgs

    run_script(
        tmp_path,
        "run_phase.py",
        "model=resnet18",
        "dataset=mnist",
        "phase=probe",
        "weights=random",
        "dataset.image_size_px=32",
        f"data.dir={real_data_dir}",
    )
    probe = next(r for r in records(tmp_path) if r["spec"]["phase"] == "probe")
    assert probe["n_train"] == 54_000 and probe["details"]["n_test"] == 10_000
    assert probe["metrics"]["test_accuracy"] > 0.8

    loaded = {}
    for path in (tmp_path / "cache" / "features" / "mnist").rglob("*.h5"):
        with h5py.File(path) as file:
            loaded[path.parent.name] = file["features"][:].astype(np.float64), file["labels"][:]
    (train_ND, train_N), (test_ND, test_N) = loaded["train"], loaded["test"]
    assert train_ND.shape == (60_000, 512) and test_ND.shape == (10_000, 512)
    train_ND, train_N = train_ND[:10_000], train_N[:10_000]
    mean_D, scale_D = train_ND.mean(0), train_ND.std(0)
    scale_D[scale_D == 0] = 1.0
    theirs = LogisticRegression(C=1.0, tol=1e-6, max_iter=2000).fit((train_ND - mean_D) / scale_D, train_N)
    their_accuracy = theirs.score((test_ND - mean_D) / scale_D, test_N)

    features_ND = torch.from_numpy(train_ND)
    standardiser = fit_standardiser(features_ND)
    ours = fit_lbfgs(standardiser.apply(features_ND), torch.from_numpy(train_N), num_classes=10)
    assert ours.converged
    logits_NC = standardiser.apply(torch.from_numpy(test_ND)).double() @ ours.weight_CD.T + ours.bias_C
    our_accuracy = float((logits_NC.argmax(1).numpy() == test_N).mean())
    assert abs(our_accuracy - their_accuracy) <= 0.001


# ------------------------------------------------------------------------------------------------------ real CIFAR-10
@pytest.mark.realdata
def test_baseline_cnn_learns_the_real_cifar10_jpegs_from_scratch_in_five_epochs(
    real_data_dir: Path, tmp_path: Path
) -> None:
    run_script(
        tmp_path,
        "run_phase.py",
        "phase=scratch",
        "model=baseline_cnn",
        "dataset=image_folder",
        f"dataset.folder={real_data_dir / 'cifar10-jpeg'}",
        "phase.scratch.epochs=5",
    )
    record = records(tmp_path)[0]
    assert record["spec"]["dataset"]["name"] == "cifar10-jpeg" and record["n_train"] == 45_000
    assert record["details"]["n_test"] == 10_000 and record["metrics"]["test_accuracy"] >= 0.70
