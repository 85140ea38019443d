"""The scores of predictions are scikit-learn's, where it has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from transfergrid.training.evaluation import confusion_matrix, cross_entropy, scores, top_k_accuracy


def some_logits(num_rows: int, num_classes: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    label_N = rng.integers(0, num_classes, num_rows)
    logits_NC = rng.normal(size=(num_rows, num_classes)).astype(np.float32)
    logits_NC[np.arange(num_rows), label_N] += 1.0
    return logits_NC, label_N


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


def test_equal_logits_are_no_right_answers_but_for_the_first_classes() -> None:
    said_alike_NC, label_N = np.zeros((4, 10), dtype=np.float32), np.array([0, 1, 4, 5])
    assert scores(said_alike_NC, label_N, split="test")["test_accuracy"] == 0.25
    assert [top_k_accuracy(said_alike_NC, label_N, k=k) for k in (1, 2, 5)] == [0.25, 0.5, 0.75]
