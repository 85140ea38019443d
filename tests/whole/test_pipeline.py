"""The main job as a user runs it, on all of the real MNIST: launches in processes of their own."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from launched import records, run_script, table


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
@pytest.mark.parametrize(("share", "n_train"), [("0.2", 10_800), pytest.param("1.0", 54_000, marks=pytest.mark.full)])
def test_the_probe_of_resnet18_on_all_of_mnist_agrees_with_scikit_learn(
    share: str, n_train: int, real_data_dir: Path, tmp_path: Path
) -> None:
    """The L-BFGS reference on 10,000 rows against LogisticRegression on the same features, read with plain h5py. The
    features are those of all images; the probe of the command takes `share` of them."""
    import torch
    from sklearn.linear_model import LogisticRegression

    from transfergrid.networks.heads import fit_standardiser
    from transfergrid.networks.solved_head import GRADIENT_NORM, fit_lbfgs

    run_script(
        tmp_path,
        "run_phase.py",
        "model=resnet18",
        "dataset=mnist",
        "phase=probe",
        "weights=random",
        "dataset.image_size_px=32",
        f"dataset.train_fraction={share}",
        f"data.dir={real_data_dir}",
    )
    probe = next(r for r in records(tmp_path) if r["spec"]["phase"] == "probe")
    assert probe["n_train"] == n_train and probe["details"]["n_test"] == 10_000
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
    assert ours.gradient_norm < GRADIENT_NORM
    logits_NC = standardiser.apply(torch.from_numpy(test_ND)).double() @ ours.weight_CD.T + ours.bias_C
    our_accuracy = float((logits_NC.argmax(1).numpy() == test_N).mean())
    assert abs(our_accuracy - their_accuracy) <= 0.001
