"""Classification heads on cached features: independent of one another, standardised per block, judged by an optimum."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import carry_out, final_run, paths_of, record_of, request
from torch import Tensor

from transfergrid.config import Request
from transfergrid.data.folds import Fold, Folds, open_splits
from transfergrid.errors import LostFeatures
from transfergrid.networks.heads import Heads, Standardiser, fit_standardiser, losses_and_correct
from transfergrid.networks.solved_head import GRADIENT_NORM, fit_lbfgs
from transfergrid.paths import RunPaths, cache_paths
from transfergrid.phases._heads_on_features import FeatureTrainee
from transfergrid.phases.probe import load_features
from transfergrid.planning import job
from transfergrid.specs import ProbeSettings, RunSpec
from transfergrid.store import feature_store
from transfergrid.store.attempts import begin_attempt
from transfergrid.store.records import read_predictions
from transfergrid.training.loop import fit
from transfergrid.training.optimization import split_decay
from transfergrid.training.stopping import StopFlag
from transfergrid.training.usage import UsageMeter

CPU = torch.device("cpu")
RANDOM_PROBE = ["model=shufflenet_v2_x0_5", "weights=random", "phase=probe"]


def blobs(num_rows: int, feature_dim: int, num_classes: int, *, seed: int = 0, spread: float = 1.5) -> tuple[Any, Any]:
    """Features (N, D) float32 around one centre per class, and labels (N,)."""
    rng = np.random.default_rng(seed)
    labels_N = rng.integers(0, num_classes, num_rows)
    centres_CD = np.random.default_rng(99).normal(size=(num_classes, feature_dim))
    features_ND = centres_CD[labels_N] + spread * rng.normal(size=(num_rows, feature_dim))
    return torch.from_numpy(features_ND.astype(np.float32)), torch.from_numpy(labels_N)


@pytest.fixture(scope="module")
def probe_spec(tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    return final_run(request(tmp_path_factory.mktemp("spec"), *RANDOM_PROBE))


# --------------------------------------------------------------------------------------------------- side by side
CHOICES = list(itertools.product((3e-4, 1e-3, 3e-3, 1e-2), (0.0, 1e-4)))


def train_heads(
    spec: RunSpec, choices: list[tuple[float, float]], folder: Path, *, feature_dim: int, num_rows: int, **changes: Any
) -> Heads:
    features_ND, labels_N = blobs(num_rows, feature_dim, 10)
    fold = Fold("train", np.arange(num_rows), labels_N.numpy())
    settings = replace(spec.settings, **changes)
    assert isinstance(settings, ProbeSettings)
    trainee = FeatureTrainee(
        {"train": features_ND, "test": features_ND},
        Folds(train=fold, val=None, gate=(fold,), test=fold, unlabelled=fold),
        settings,
        num_classes=10,
        num_heads=len(choices),
        seed=0,
        device=CPU,
        watch_test=False,
    )
    groups = [
        group
        for head, (lr, decay) in enumerate(choices)
        for group in split_decay(
            f"head_{head}",
            [trainee.module.weights[head], trainee.module.biases[head]],
            lr=lr,
            weight_decay=decay,
            decay_norm_and_bias=False,
        )
    ]
    with begin_attempt(RunPaths(folder), spec) as attempt:
        fit(
            trainee,
            settings,
            groups,
            attempt=attempt,
            seed=0,
            device=CPU,
            checkpoint_min_interval_s=60,
            stop=StopFlag(),
            usage=UsageMeter(),
        )
    assert isinstance(trainee.module, Heads)
    return trainee.module


@pytest.mark.parametrize(
    ("optimizer", "feature_dim", "batch_size", "num_threads"),
    [("adamw", 512, 256, 1), ("adamw", 512, 256, 2), ("sgd", 64, 32, 1), ("adam", 33, 7, 1)],
)
def test_a_head_is_bit_equal_whatever_stands_beside_it(
    probe_spec: RunSpec, tmp_path: Path, optimizer: str, feature_dim: int, batch_size: int, num_threads: int
) -> None:
    changes: dict[str, Any] = {"optimizer": optimizer, "batch_size": batch_size, "epochs": 2}
    shape = {"feature_dim": feature_dim, "num_rows": 12 * batch_size - batch_size // 3}
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        together = train_heads(probe_spec, CHOICES, tmp_path / "all", **shape, **changes)
        for head in (0, 3, 7):
            alone = train_heads(probe_spec, [CHOICES[head]], tmp_path / f"alone_{head}", **shape, **changes)
            for a, b in zip(together.linear(head), alone.linear(0), strict=True):
                assert torch.equal(a, b), f"they differ by {float((a - b).abs().max())}"
    finally:
        torch.set_num_threads(before)
    assert not torch.equal(together.linear(0)[0], together.linear(7)[0])


def test_all_heads_start_from_the_same_weights_by_the_rule_of_a_linear_layer() -> None:
    heads = Heads(16, 3, num_heads=4, generator=torch.Generator().manual_seed(0))
    for head in range(1, 4):
        assert all(torch.equal(a, b) for a, b in zip(heads.linear(0), heads.linear(head), strict=True))
    weight_CD, bias_C = heads.linear(0)
    assert weight_CD.shape == (3, 16) and bias_C.shape == (3,)
    assert 0.2 < float(weight_CD.abs().max()) <= 0.25 and float(bias_C.abs().max()) <= 0.25
    features_BD = torch.randn(5, 16)
    torch.testing.assert_close(heads(features_BD)[2], features_BD @ weight_CD.T + bias_C)


def test_losses_are_means_per_head_and_predictions_are_counted() -> None:
    logits_HBC = torch.randn(3, 20, 4, generator=torch.Generator().manual_seed(0))
    labels_B = torch.arange(20) % 4
    loss_H, correct_H = losses_and_correct(logits_HBC, labels_B)
    for head in range(3):
        expected = -torch.log_softmax(logits_HBC[head], 1)[torch.arange(20), labels_B].mean()
        torch.testing.assert_close(loss_H[head], expected)
        assert int(correct_H[head]) == int((logits_HBC[head].argmax(1) == labels_B).sum())


# -------------------------------------------------------------------------------------------------- standardising
def test_the_standardiser_gives_mean_zero_and_scale_one_and_a_constant_dimension_scale_one() -> None:
    features_ND, _ = blobs(40000, 6, 3)
    features_ND = features_ND * torch.tensor([1.0, 100.0, 1e-3, 1.0, 1.0, 1.0]) + torch.tensor([0, 1e3, 0, 0, 5.0, 0])
    features_ND[:, 3], features_ND[:, 4] = 0.0, 0.1
    found = fit_standardiser(features_ND)
    assert found.scale_D[3] == 1.0 and found.scale_D[4] == 1.0
    made_ND = found.apply(features_ND)
    moving = [0, 1, 2, 5]
    torch.testing.assert_close(made_ND[:, moving].mean(0), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(made_ND[:, moving].std(0, correction=0), torch.ones(4), rtol=1e-4, atol=0)
    assert float(made_ND[:, [3, 4]].abs().max()) < 1e-6
    np.testing.assert_allclose(found.mean_D, features_ND.double().mean(0), rtol=1e-6, atol=1e-9)


def test_a_head_folded_back_equals_the_standardised_one() -> None:
    features_ND, labels_N = blobs(500, 64, 10)
    features_ND = (features_ND + torch.linspace(-3, 3, 64)) * torch.logspace(-2, 2, 64)
    standardiser = fit_standardiser(features_ND)
    generator = torch.Generator().manual_seed(0)
    weight_CD, bias_C = torch.randn(10, 64, generator=generator), torch.randn(10, generator=generator)
    expected_NC = standardiser.apply(features_ND) @ weight_CD.T + bias_C
    folded_CD, folded_C = standardiser.fold(weight_CD, bias_C)
    assert folded_CD.dtype == folded_C.dtype == torch.float32
    torch.testing.assert_close(features_ND @ folded_CD.T + folded_C, expected_NC, rtol=0, atol=1e-4)


def test_T16_a_block_of_large_features_does_not_drown_a_small_one() -> None:
    small_ND, labels_N = blobs(600, 32, 10, spread=1.0)
    loud_ND = torch.randn(600, 32, generator=torch.Generator().manual_seed(1)) * 300  # noise, fc7's scale and more
    both_ND = torch.cat([small_ND * 0.01, loud_ND], dim=1)

    def accuracy(features_ND: Tensor, *, steps: int = 60) -> float:
        weight_CD = torch.zeros(10, features_ND.shape[1], requires_grad=True)
        optimizer = torch.optim.SGD([weight_CD], lr=0.1, momentum=0.9, weight_decay=1e-4)
        for _ in range(steps):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(features_ND[:400] @ weight_CD.T, labels_N[:400]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return float(((features_ND[400:] @ weight_CD.detach().T).argmax(1) == labels_N[400:]).float().mean())

    alone = accuracy(fit_standardiser(small_ND[:400]).apply(small_ND))
    assert alone > 0.9
    assert accuracy(both_ND) < 0.3  # the trap: as stored, the noise is all that is learnt
    assert accuracy(fit_standardiser(both_ND[:400]).apply(both_ND)) > alone - 0.1


# -------------------------------------------------------------------------------------------------------- optimum
def test_the_optimum_is_scikit_learns_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    features_ND, labels_N = blobs(400, 12, 5)
    features_ND = fit_standardiser(features_ND).apply(features_ND)
    found = fit_lbfgs(features_ND, labels_N, num_classes=5)
    theirs = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit(features_ND.numpy().astype(np.float64), labels_N)
    assert found.gradient_norm < GRADIENT_NORM <= 1e-5 and found.weight_CD.dtype == torch.float64
    np.testing.assert_allclose(found.weight_CD, theirs.coef_, atol=2e-3)
    np.testing.assert_allclose(
        found.bias_C - found.bias_C.mean(), theirs.intercept_ - theirs.intercept_.mean(), atol=2e-3
    )
    ours_N = (features_ND.double() @ found.weight_CD.T + found.bias_C).argmax(1)
    assert np.array_equal(ours_N, theirs.predict(features_ND.numpy().astype(np.float64)))
    again = fit_lbfgs(features_ND, labels_N, num_classes=5)
    assert torch.equal(again.weight_CD, found.weight_CD)


def test_the_optimum_of_separable_and_of_collinear_features_is_found_too() -> None:
    features_ND, labels_N = blobs(200, 40, 10, spread=0.1)
    assert fit_lbfgs(features_ND, labels_N, num_classes=10).gradient_norm < GRADIENT_NORM
    assert fit_lbfgs(torch.cat([features_ND, features_ND], 1), labels_N, num_classes=10).gradient_norm < GRADIENT_NORM


# ---------------------------------------------------------------------------------------------------- whole probes
@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Request:
    """A probe of a join that has completed."""
    asked = request(tmp_path_factory.mktemp("probe"), "model=shufflenet_v2_x0_5+resnet18", *RANDOM_PROBE[1:])
    assert carry_out(asked) == "completed"
    return asked


def test_a_probe_publishes_the_head_that_led_on_val_and_scores_what_it_publishes(probe: Request) -> None:
    run = final_run(probe)
    features, folds = load_features(run, probe.runtime)
    assert folds.val is not None and len(folds.val) == 10 and len(folds.train) == 90
    state = torch.load(paths_of(run, probe.runtime).weights, weights_only=True)
    assert state["head.weight"].shape == (10, 1024 + 512)
    record = record_of(run, probe.runtime)
    test = features["test"].features_ND.astype(np.float32)
    logits_NC = test @ state["head.weight"].numpy().T + state["head.bias"].numpy()
    assert record.metrics["test_accuracy"] == (logits_NC.argmax(1) == features["test"].labels_N).mean()
    stored = read_predictions(paths_of(run, probe.runtime))
    np.testing.assert_allclose(stored["test"].logits_NC, logits_NC, rtol=2**-10, atol=1e-3)
    assert sorted(stored) == ["gate", "gate_part_1", "gate_part_2", "gate_train", "test", "val"]
    assert np.array_equal(stored["gate"].index_N, folds.val.index_N)
    assert np.array_equal(stored["gate_train"].index_N, folds.train.index_N)
    choices = record.details["choices"]
    assert len(choices) == 8 and choices[record.details["chosen"]["head"]]["lr"] == record.details["chosen"]["lr"]


def test_T13_rows_are_in_data_set_order_and_joined_rows_agree(probe: Request) -> None:
    run = final_run(probe)
    features, _ = load_features(run, probe.runtime)
    for split, images in open_splits(run.dataset, probe.runtime).items():
        found = features[split]
        assert (np.diff(found.index_N) > 0).all()
        assert np.array_equal(found.labels_N, images.labels_N[found.index_N])
    cache = cache_paths(probe.runtime)
    key = run.feature_key(run.backbones[1], "train")
    path = cache.features(key)
    whole, content = feature_store.read(path, key), path.read_bytes()

    def rewrite(index_N: Any, labels_N: Any) -> None:
        made = {"feature_dim": 512, "labels_N": labels_N, "index_N": index_N, "provenance": {}}
        with feature_store.writing(cache, key, **made) as writer:
            writer.write(0, whole.features_ND.astype(np.float32))

    try:
        rewrite(whole.index_N, np.roll(whole.labels_N, 1))
        with pytest.raises(LostFeatures, match="labels are not those of the data set; extract again"):
            load_features(run, probe.runtime)
        assert not path.exists()
        order_N = np.random.default_rng(0).permutation(len(whole.index_N))
        rewrite(whole.index_N[order_N], whole.labels_N[order_N])
        with pytest.raises(LostFeatures, match="rows are not those of the data set; extract again"):
            load_features(run, probe.runtime)
    finally:
        path.write_bytes(content)


def test_T15_val_follows_a_fixed_seed_and_statistics_come_from_the_train_fold_alone(
    probe: Request, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = final_run(probe)
    features, folds = load_features(run, probe.runtime)
    _, of_other_seed = load_features(replace(run, seed=9), probe.runtime)
    assert folds.val is not None and of_other_seed.val is not None
    assert np.array_equal(folds.val.index_N, of_other_seed.val.index_N)
    assert not set(folds.val.index_N) & set(folds.train.index_N)
    assert np.bincount(folds.val.labels_N, minlength=10).tolist() == [1] * 10

    seen: list[Standardiser] = []
    real = fit_standardiser

    def watched(features_ND: Tensor) -> Standardiser:
        seen.append(real(features_ND))
        return seen[-1]

    def altered(spec: RunSpec, runtime: Any) -> Any:
        found, same = load_features(spec, runtime)
        for split, index_N in (("train", folds.val.index_N), ("test", folds.test.index_N)):  # type: ignore[union-attr]
            rows = np.searchsorted(found[split].index_N, index_N)  # type: ignore[index]
            found[split].features_ND[rows] = 77.0  # type: ignore[index]
        return found, same

    from transfergrid.networks import heads
    from transfergrid.phases import probe as phase

    monkeypatch.setattr(heads, "fit_standardiser", watched)
    for load in (load_features, altered):
        monkeypatch.setattr(phase, "load_features", load)
        runtime = replace(probe.runtime, store_dir=str(tmp_path / load.__name__))
        assert job.carry_out(run, runtime) == "completed"
    assert torch.equal(seen[0].mean_D, seen[1].mean_D) and torch.equal(seen[0].scale_D, seen[1].scale_D)
    chosen = [record_of(run, replace(probe.runtime, store_dir=str(tmp_path / n))) for n in ("load_features", "altered")]
    assert chosen[0].metrics["train_loss"] == pytest.approx(chosen[1].metrics["train_loss"]) or (
        chosen[0].details["chosen"] != chosen[1].details["chosen"]
    )


def test_T18_classes_are_counted_by_the_data_set_not_by_the_labels_at_hand(probe_spec: RunSpec) -> None:
    features_ND, labels_N = blobs(60, 8, 10)
    labels_N = labels_N.clone()
    labels_N[labels_N >= 4] = 2  # of ten classes, 0 to 3 occur here
    found = fit_lbfgs(features_ND, labels_N, num_classes=10)
    assert found.weight_CD.shape == (10, 8) and found.bias_C.shape == (10,)
    assert set((features_ND.double() @ found.weight_CD.T + found.bias_C).argmax(1).tolist()) <= {0, 1, 2, 3}
    fold = Fold("train", np.arange(60), labels_N.numpy())
    settings = probe_spec.settings
    assert isinstance(settings, ProbeSettings)
    trainee = FeatureTrainee(
        {"train": features_ND, "val": features_ND},
        Folds(train=fold, val=fold, gate=(fold,), test=fold, unlabelled=fold),
        settings,
        num_classes=probe_spec.dataset.num_classes,
        num_heads=2,
        seed=0,
        device=CPU,
        watch_test=False,
    )
    assert probe_spec.dataset.num_classes == 10 and trainee.module(features_ND).shape == (2, 60, 10)
    assert trainee.evaluate(trainee.module)["val/accuracy"] >= 0.0
