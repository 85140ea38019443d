"""Which rows the gate compares: held-out ones first, then training rows, at most 256."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import report_cases as cases
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from small_runs import carry_out, final_run, paths_of, record_of, request

from transfergrid.data.folds import GATE_ROWS, Folds, held_out, make_folds
from transfergrid.specs import Split
from transfergrid.store.records import read_predictions


def labels(**sizes: int) -> dict[Split, NDArray[np.int64]]:
    """Ten classes, one after the other, as an image folder has them."""
    return {split: np.sort(np.arange(size) % 10) for split, size in sizes.items()}  # type: ignore[misc]


def folds(protocol: str = "fair", **sizes: int) -> Folds:
    return make_folds(cases.spec("probe", "resnet18", seed=0, protocol=protocol), labels(**sizes))


@pytest.mark.parametrize("protocol", ["fair", "published"])
def test_a_small_data_set_is_compared_whole_but_for_its_test_images(protocol: str) -> None:
    first, second = folds(protocol, train=90, test=20).gate
    assert (len(first), len(second)) == (9, 81) and {first.split, second.split} == {"train"}
    assert sorted([*first.index_N, *second.index_N]) == list(range(90))


def test_held_out_rows_come_first_and_training_rows_fill_up_to_256() -> None:
    found = folds(train=1000, test=20)
    first, second = found.gate
    assert found.val is not None and first.index_N.tolist() == found.val.index_N.tolist()
    assert len(first) + len(second) == GATE_ROWS == 256
    assert set(second.index_N) <= set(found.train.index_N)
    assert np.bincount(second.labels_N).min() >= 15  # evenly over the classes, which stand one after the other


def test_of_many_held_out_rows_256_are_taken_from_every_class() -> None:
    (only,) = folds(train=20_000, test=20).gate
    assert len(only) == 256 and np.bincount(only.labels_N).tolist() == pytest.approx([25.6] * 10, abs=1)


def test_a_val_of_its_own_is_filled_up_with_rows_of_train() -> None:
    found = folds(train=500, val=30, test=20)
    first, second = found.gate
    assert (first.split, len(first), second.split, len(second)) == ("val", 30, "train", 226)
    spec = cases.spec("probe", "resnet18", seed=0)
    assert held_out(spec, labels(train=500, val=30)).split == "val"
    assert len(held_out(replace(spec, protocol="published"), labels(train=500))) == 50


def test_a_folder_with_a_val_of_its_own_goes_through_both_phases(tmp_path: Path) -> None:
    digits = load_digits()
    place = {"train": range(100, 160), "val": range(20), "test": range(200, 240)}
    for split, rows in place.items():
        for row in rows:
            path = tmp_path / "mine" / split / str(digits.target[row]) / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digits.images[row] * 15).astype(np.uint8)).save(path)
    folder = ["dataset=image_folder", f"dataset.folder={tmp_path / 'mine'}", "dataset.max_images=null"]
    asked = request(tmp_path, *folder, "model=tinynet_mnist", "phase=finetune", "phase.finetune.epochs=1")
    assert carry_out(asked) == "completed"
    run = final_run(asked)
    details = record_of(run, asked.runtime).details
    assert details["gate"]["judged"] and details["gate"]["rows"] == 80 and details["gate"]["largest_ratio"] < 0.5
    assert details["start"]["rows"] == 20 and details["start"]["batch_size"] == 32
    probe = next(r for r in asked.runs.values() if r.phase == "probe")
    stored = read_predictions(paths_of(probe, asked.runtime))
    assert sorted(stored) == ["gate", "gate_train", "test", "val"]
    assert len(stored["gate"].index_N) == 20 and len(stored["gate_train"].index_N) == 60
