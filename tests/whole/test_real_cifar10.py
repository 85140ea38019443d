"""Training from scratch as a user runs it, on the real CIFAR-10."""

from __future__ import annotations

from pathlib import Path

import pytest
from launched import records, run_script


@pytest.mark.realdata
@pytest.mark.parametrize(("epochs", "accuracy"), [(1, 0.45), pytest.param(5, 0.70, marks=pytest.mark.full)])
def test_baseline_cnn_learns_the_real_cifar10_jpegs_from_scratch(
    epochs: int, accuracy: float, real_data_dir: Path, tmp_path: Path
) -> None:
    run_script(
        tmp_path,
        "run_phase.py",
        "phase=scratch",
        "model=baseline_cnn",
        "dataset=image_folder",
        f"dataset.folder={real_data_dir / 'cifar10-jpeg'}",
        f"phase.scratch.epochs={epochs}",
    )
    record = records(tmp_path)[0]
    assert record["spec"]["dataset"]["name"] == "cifar10-jpeg" and record["n_train"] == 45_000
    assert record["details"]["n_test"] == 10_000 and record["metrics"]["test_accuracy"] >= accuracy
