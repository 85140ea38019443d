"""Training on a share of the training images: which ones, beside which val, and at what cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import report_cases as cases
from numpy.typing import NDArray
from small_runs import carry_out, final_run, record_of, request

from transfergrid.config import load_grid
from transfergrid.data.folds import Folds, make_folds
from transfergrid.errors import ConfigError
from transfergrid.specs import RunSpec, Split

LABELS: dict[Split, NDArray[np.int64]] = {"train": np.repeat(np.arange(10), 100), "test": np.repeat(np.arange(10), 20)}


def folds(*, seed: int = 0, fraction: float | None = None, shots: int | None = None, protocol: str = "fair") -> Folds:
    spec = cases.spec("probe", "resnet18", seed=seed, protocol=protocol)
    return make_folds(replace(spec, train_fraction=fraction, shots=shots), LABELS)


# -------------------------------------------------------------------------------------------------------------- which
def test_shots_are_so_many_of_each_class_and_a_fraction_keeps_the_class_shares() -> None:
    assert np.bincount(folds(shots=7).train.labels_N).tolist() == [7] * 10
    assert np.bincount(folds(fraction=0.5).train.labels_N).tolist() == [45] * 10  # of the 90 that val leaves
    assert len(folds(fraction=1e-9).train) == 1
    assert np.bincount(folds(shots=1000).train.labels_N).tolist() == [90] * 10


def test_val_gate_test_and_what_may_be_looked_at_stay_as_they_are() -> None:
    whole, few = folds(), folds(shots=3)
    for name in ("val", "test", "unlabelled"):
        assert np.array_equal(getattr(whole, name).index_N, getattr(few, name).index_N)
    assert [fold.index_N.tolist() for fold in few.gate] == [fold.index_N.tolist() for fold in whole.gate]
    assert whole.val is not None
    assert not set(few.train.index_N) & set(whole.val.index_N)
    assert len(few.unlabelled) == 1000


def test_each_seed_draws_its_own_images_and_of_one_seed_more_shots_hold_the_fewer() -> None:
    five, ten, other = folds(shots=5).train, folds(shots=10).train, folds(shots=5, seed=1).train
    assert set(five.index_N) < set(ten.index_N)
    assert len(set(five.index_N) & set(other.index_N)) < 15


def test_under_published_the_share_is_of_the_whole_training_set() -> None:
    assert len(folds(fraction=0.5, protocol="published").train) == 500


# ------------------------------------------------------------------------------------------------------------ settings
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (["dataset.shots=0"], "dataset.shots=0 is out of range"),
        (["dataset.train_fraction=1.5"], "dataset.train_fraction=1.5 is out of range"),
        (["dataset.shots=1", "dataset.train_fraction=0.5"], "give one"),
    ],
)
def test_a_share_that_makes_no_sense_is_refused(argument: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_grid(["grid=compare", "dry_run=true", *argument])


def test_every_share_reads_the_same_features(tmp_path: Path) -> None:
    variants = "grid.variants={shots_2:{dataset.shots:2},half:{dataset.train_fraction:0.5}}"
    asked = load_grid(["grid=compare", "grid.phases=[probe]", "grid.seeds=[0]", variants, "dry_run=true"])
    runs = [c.run for c in asked.configurations]
    assert len(runs) == 9 and len({r.run_id for r in runs}) == 9
    assert len({e.run_id for r in runs for e in r.extractions}) == 2


# --------------------------------------------------------------------------------------------------------------- runs
def test_a_probe_and_its_finetuning_on_two_shots_train_on_twenty_images_and_pass_the_gate(tmp_path: Path) -> None:
    asked = request(tmp_path, "model=tinynet_mnist", "phase=finetune", "dataset.shots=2", "phase.finetune.epochs=1")
    assert carry_out(asked) == "completed"
    run: RunSpec = final_run(asked)
    records = {r.phase: record_of(r, asked.runtime) for r in asked.runs.values() if r.phase in ("probe", "finetune")}
    assert {phase: record.n_train for phase, record in records.items()} == {"probe": 20, "finetune": 20}
    gate = records["finetune"].details["gate"]
    assert gate["judged"] and gate["rows"] == 100 and gate["largest_ratio"] < 0.5  # all there are: 10 held out, 90 not
    assert np.array(records["finetune"].details["train_confusion"]).sum(axis=1).tolist() == [2] * 10
    assert run.shots == 2


def test_with_statistics_of_the_target_the_gate_still_holds_on_a_share_of_the_images(tmp_path: Path) -> None:
    asked = request(
        tmp_path,
        "model=tinynet_cifar",
        "phase=finetune",
        "dataset.train_fraction=0.3",
        "phase.extract.bn_statistics=target",
        "phase.finetune.epochs=1",
    )
    # Extraction saw all images without labels; with statistics of its share alone fine-tuning would fail at the gate.
    assert carry_out(asked) == "completed"
