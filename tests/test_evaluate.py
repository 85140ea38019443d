"""Evaluation of what is finished: a run, a checkpoint file, a backbone with its own head; scores as scikit-learn's."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbone_files import reference
from small_runs import carry_out, final_run, paths_of, record_of, request

from transfergrid import evaluation
from transfergrid.config import Request
from transfergrid.evaluation import confusion_matrix, cross_entropy, scores, top_k_accuracy
from transfergrid.records import read_predictions

SCRATCH = ["model=tinynet", "phase=scratch"]


def some_logits(num_rows: int, num_classes: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    label_N = rng.integers(0, num_classes, num_rows)
    logits_NC = rng.normal(size=(num_rows, num_classes)).astype(np.float32)
    logits_NC[np.arange(num_rows), label_N] += 1.0
    return logits_NC, label_N


# ------------------------------------------------------------------------------------------------------------- scores
@pytest.mark.parametrize("num_classes", [2, 10])
def test_scores_are_scikit_learns(num_classes: int) -> None:
    from sklearn.metrics import accuracy_score, log_loss
    from sklearn.metrics import confusion_matrix as their_matrix
    from sklearn.metrics import precision_recall_fscore_support as macro

    logits_NC, label_N = some_logits(300, num_classes)
    predicted_N = logits_NC.argmax(1)
    found = scores(logits_NC, label_N, split="test")
    precision, recall, f1, _ = macro(label_N, predicted_N, average="macro", zero_division=0)
    probability_NC = torch.softmax(torch.from_numpy(logits_NC).double(), 1).numpy()
    assert found == pytest.approx(
        {
            "test_accuracy": accuracy_score(label_N, predicted_N),
            "test_loss": log_loss(label_N, probability_NC, labels=range(num_classes)),
            "test_macro_precision": precision,
            "test_macro_recall": recall,
            "test_macro_f1": f1,
        },
        rel=0,
        abs=1e-9,
    )
    ours = confusion_matrix(label_N, predicted_N, num_classes=num_classes)
    assert np.array_equal(ours, their_matrix(label_N, predicted_N, labels=range(num_classes)))


def test_a_class_never_predicted_counts_as_zero_and_one_never_shown_does_not_count() -> None:
    from sklearn.metrics import precision_recall_fscore_support as macro

    label_N = np.array([0, 0, 1, 1, 2])
    logits_NC = np.eye(5)[[0, 0, 0, 0, 2]].astype(np.float32)  # class 1 is never predicted, 3 and 4 never occur
    found = scores(logits_NC, label_N, split="val")
    theirs = macro(label_N, logits_NC.argmax(1), labels=[0, 1, 2], average="macro", zero_division=0)[:3]
    assert [found[f"val_macro_{n}"] for n in ("precision", "recall", "f1")] == pytest.approx(list(theirs))
    assert found["val_macro_recall"] == pytest.approx(2 / 3)


def test_the_loss_of_huge_logits_is_finite_and_right() -> None:
    logits_NC = np.array([[1e4, 0.0], [0.0, -1e4]], dtype=np.float32)
    assert cross_entropy(logits_NC, np.array([0, 0])) == 0.0
    assert cross_entropy(logits_NC, np.array([1, 0])) == pytest.approx(5e3)


def test_top_k_is_scikit_learns() -> None:
    from sklearn.metrics import top_k_accuracy_score

    logits_NC, label_N = some_logits(200, 10)
    for k in (1, 2, 5):
        assert top_k_accuracy(logits_NC, label_N, k=k) == top_k_accuracy_score(label_N, logits_NC, k=k)
    assert top_k_accuracy(logits_NC, label_N, k=10) == 1.0


# --------------------------------------------------------------------------------------------------------- evaluations
@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Request]:
    """A folder with a finished scratch run, and its request."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    asked = request(folder, *SCRATCH, "dataset.max_images=200")
    assert carry_out(asked) == "completed"
    return folder, asked


def evaluate(folder: Path, *arguments: str) -> Request:
    asked = request(folder, "phase=evaluate", *arguments)
    assert carry_out(asked) in ("completed", "reused"), record_of(final_run(asked), asked.runtime).error
    return asked


def rows_of_csv(asked: Request) -> list[dict[str, str]]:
    with open(paths_of(final_run(asked), asked.runtime).predictions_csv, newline="") as file:
        return list(csv.DictReader(file))


def test_a_finished_run_scores_as_its_own_record_says(trained: tuple[Path, Request]) -> None:
    folder, scratch = trained
    run = final_run(scratch)
    asked = evaluate(folder, f"run={run.run_id}", "dataset.max_images=200")
    found, own = record_of(final_run(asked), asked.runtime), record_of(run, scratch.runtime)
    for name in ("test_accuracy", "test_macro_f1", "test_loss", "test_top5_accuracy"):
        assert found.metrics[name] == pytest.approx(own.metrics[name], rel=1e-6)
    assert (found.parameters, found.trainable_parameters, found.n_train) == (own.parameters, 0, None)
    assert found.details == {"source": f"run:{run.run_id}", "n_test": 200}


def test_every_prediction_stands_in_the_csv_with_its_probability(trained: tuple[Path, Request]) -> None:
    folder, scratch = trained
    asked = evaluate(folder, f"run={final_run(scratch).run_id}", "dataset.max_images=200")
    rows = rows_of_csv(asked)
    stored = read_predictions(paths_of(final_run(asked), asked.runtime))["test"]
    assert list(rows[0]) == ["index", "label", "predicted", "probability"]
    assert [int(row["index"]) for row in rows] == stored.index_N.tolist()
    assert [int(row["label"]) for row in rows] == stored.label_N.tolist()
    assert [int(row["predicted"]) for row in rows] == stored.predicted_N.tolist()
    expected_N = torch.softmax(torch.from_numpy(stored.logits_NC).double(), 1).amax(1)
    np.testing.assert_allclose([float(row["probability"]) for row in rows], expected_N, atol=2e-3)
    right = np.mean([row["label"] == row["predicted"] for row in rows])
    assert right == record_of(final_run(asked), asked.runtime).metrics["test_accuracy"]


@pytest.mark.parametrize(("split", "rows"), [("val", 20), ("train", 200)])
def test_other_splits_are_named_in_the_scores(trained: tuple[Path, Request], split: str, rows: int) -> None:
    folder, scratch = trained
    run = final_run(scratch)
    asked = evaluate(folder, f"run={run.run_id}", f"phase.evaluate.split={split}", "dataset.max_images=200")
    metrics = record_of(final_run(asked), asked.runtime).metrics
    assert {name.split("_")[0] for name in metrics} == {split} and len(rows_of_csv(asked)) == rows
    if split == "val":  # the images that training held out, by the same seed
        assert metrics["val_accuracy"] == record_of(run, scratch.runtime).metrics["val_accuracy"]


def test_a_checkpoint_file_scores_as_the_run_it_came_from(trained: tuple[Path, Request], tmp_path: Path) -> None:
    folder, scratch = trained
    weights = paths_of(final_run(scratch), scratch.runtime).weights
    named = ["model=tinynet", f"phase.evaluate.checkpoint={weights}", "dataset.max_images=200"]
    asked = evaluate(tmp_path, *named)
    found = record_of(final_run(asked), asked.runtime)
    own = record_of(final_run(scratch), scratch.runtime)
    assert found.metrics["test_accuracy"] == own.metrics["test_accuracy"]
    assert str(found.details["source"]).startswith("file:")


def test_a_backbone_with_its_own_head_is_the_network_in_the_file(tmp_path: Path) -> None:
    network = reference("resnet18", num_classes=10)
    path = tmp_path / "resnet18_digits.pth"
    torch.save(network.state_dict(), path)
    asked = evaluate(tmp_path, "model=resnet18", f"phase.evaluate.checkpoint={path}")
    found = read_predictions(paths_of(final_run(asked), asked.runtime))["test"]

    from transfergrid.folds import open_splits
    from transfergrid.images import NetworkInputs

    run = final_run(asked)
    inputs = NetworkInputs(
        open_splits(run.dataset, asked.runtime),
        (run.backbones[0].preprocess,),
        device=torch.device("cpu"),
        resident_gb=1.0,
        rows={"test": found.index_N},
    )
    with torch.no_grad():
        expected_NC = network(inputs.batch("test", torch.from_numpy(found.index_N))[0])
    np.testing.assert_allclose(found.logits_NC, expected_NC, rtol=2**-10, atol=1e-3)
    metrics = record_of(run, asked.runtime).metrics
    assert metrics["test_top5_accuracy"] == evaluation.top_k_accuracy(expected_NC.numpy(), found.label_N, k=5)
    assert metrics["test_accuracy"] == (expected_NC.argmax(1).numpy() == found.label_N).mean()


def test_a_fine_tuned_join_is_evaluated_by_its_run(tmp_path: Path) -> None:
    tuned = request(tmp_path, "model=mobilenet_v3_small+shufflenet_v2_x0_5", "weights=random", "phase=finetune")
    assert carry_out(tuned) == "completed"
    for run in tuned.runs.values():  # the probe and the fine-tuning
        asked = evaluate(tmp_path, f"run={run.run_id}")
        found = record_of(final_run(asked), asked.runtime).metrics
        own = record_of(run, tuned.runtime).metrics
        assert found["test_accuracy"] == own["test_accuracy"]
        assert found["test_loss"] == pytest.approx(own["test_loss"], rel=2e-3)


def test_a_head_with_other_classes_than_the_data_set_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "resnet18_seven.pth"
    torch.save(reference("resnet18", num_classes=7).state_dict(), path)
    asked = request(tmp_path, "phase=evaluate", "model=resnet18", f"phase.evaluate.checkpoint={path}")
    assert carry_out(asked) == "failed"
    record = record_of(final_run(asked), asked.runtime)
    assert (record.failure_class, record.error) == ("data", "resnet18 tells 7 classes apart, digits has 10")


def test_a_run_without_its_weights_says_how_to_make_them_again(tmp_path: Path) -> None:
    scratch = request(tmp_path, *SCRATCH, "keep_weights=none")
    assert carry_out(scratch) == "completed"
    paths = paths_of(final_run(scratch), scratch.runtime)
    assert not paths.weights.exists()
    asked = request(tmp_path, "phase=evaluate", f"run={final_run(scratch).run_id}")
    assert carry_out(asked) == "failed"
    record = record_of(final_run(asked), asked.runtime)
    assert record.failure_class == "blocked" and "were not kept; delete" in str(record.error)


def test_a_run_read_with_batch_statistics_is_evaluated_with_them_too(tmp_path: Path) -> None:
    trained = request(tmp_path, "phase=scratch", "model=tinynet", "phase.scratch.test_bn=batch")
    assert carry_out(trained) == "completed"
    run_id = final_run(trained).run_id
    again = request(tmp_path, "phase=evaluate", f"run={run_id}")
    assert carry_out(again) == "completed"
    own, found = (record_of(final_run(asked), asked.runtime).metrics for asked in (trained, again))
    assert found["test_accuracy"] == own["test_accuracy"] and found["test_loss"] == own["test_loss"]


def test_auxiliary_heads_of_a_probe_may_be_dropped_by_its_finetuning_and_count_in_no_size(tmp_path: Path) -> None:
    arguments = [
        "model=googlenet",
        "weights=random",
        "phase.probe.source=images",
        "phase.probe.bn=train",
        "phase.probe.lrs=[0.001]",
        "phase.probe.weight_decays=[0]",
        "phase.probe.aux_loss_weight=0.3",
        "phase.probe.epochs=1",
        "phase.finetune.epochs=1",
        "dataset.max_images=60",
    ]
    asked = request(tmp_path, "phase=finetune", *arguments)
    assert carry_out(asked) == "completed"
    probe, finetune = (record_of(run, asked.runtime) for run in asked.runs.values())
    assert probe.parameters == finetune.parameters == 5_599_904 + 1024 * 10 + 10
