"""Scores of predictions: accuracy, loss, macro precision, recall and F1, confusion matrix. NumPy only.

N images, C classes. Accuracies and macro scores are in [0, 1], losses in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from transfergrid.specs import SelectBy

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class ClassScores:
    """Per class (C,): precision, recall and F1 in [0, 1]; 0 where nothing was predicted or there is nothing true."""

    precision_C: Array
    recall_C: Array
    f1_C: Array


def class_scores(counts_CC: Array) -> ClassScores:
    """counts_CC: as of confusion_matrix."""
    correct_C = counts_CC.diagonal().astype(np.float64)
    precision_C = correct_C / np.maximum(counts_CC.sum(axis=0), 1)
    recall_C = correct_C / np.maximum(counts_CC.sum(axis=1), 1)
    f1_C = 2 * precision_C * recall_C / np.maximum(precision_C + recall_C, 1e-300)
    return ClassScores(precision_C, recall_C, f1_C)


def confusion_matrix(label_N: Array, predicted_N: Array, *, num_classes: int) -> Array:
    """Counts (C, C): rows are true classes, columns predicted ones."""
    flat = np.bincount(label_N * num_classes + predicted_N, minlength=num_classes * num_classes)
    counts: Array = flat.reshape(num_classes, num_classes)
    return counts


def cross_entropy(logits_NC: Array, label_N: Array) -> float:
    """Mean negative log-likelihood in nats, in float64."""
    shifted_NC = logits_NC.astype(np.float64) - logits_NC.max(axis=1, keepdims=True)
    log_sum_N = np.log(np.exp(shifted_NC).sum(axis=1))
    return float((log_sum_N - shifted_NC[np.arange(len(label_N)), label_N]).mean())


def top_k_accuracy(logits_NC: Array, label_N: Array, *, k: int) -> float:
    """Share of images whose label is among the k largest logits; of equal ones the first classes come first.

    So for k = 1 it is the accuracy, and a network that says the same of every class is no good one.
    """
    own_N1 = logits_NC[np.arange(len(label_N)), label_N][:, None]
    stands_before_NC = np.arange(logits_NC.shape[1]) < label_N[:, None]
    ahead_NC = (logits_NC > own_N1) | ((logits_NC == own_N1) & stands_before_NC)
    return float((ahead_NC.sum(axis=1) < k).mean())


def scores(logits_NC: Array, label_N: Array, *, split: str) -> dict[str, float]:
    """`<split>_accuracy`, `_loss`, `_macro_precision`, `_macro_recall`, `_macro_f1`.

    Macro means run over the classes that occur in the labels; a class never predicted has precision 0, as in
    scikit-learn with zero_division=0.
    """
    num_classes = logits_NC.shape[1]
    predicted_N = logits_NC.argmax(axis=1)
    counts_CC = confusion_matrix(label_N, predicted_N, num_classes=num_classes)
    found, present_C = class_scores(counts_CC), counts_CC.sum(axis=1) > 0
    return {
        f"{split}_accuracy": float(counts_CC.trace() / len(label_N)),
        f"{split}_loss": cross_entropy(logits_NC, label_N),
        f"{split}_macro_precision": float(found.precision_C[present_C].mean()),
        f"{split}_macro_recall": float(found.recall_C[present_C].mean()),
        f"{split}_macro_f1": float(found.f1_C[present_C].mean()),
    }


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided p that a and b are right equally often, from the images that only one of them has right.

    McNemar 1947, exact: twice the binomial tail. It is about these two trained networks; what other seeds of the same
    models would do, one seed of each cannot say.
    """
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def selection_score(predicted_N: Array, label_N: Array, *, num_classes: int, by: SelectBy) -> float:
    """What a choice on val goes by, in [0, 1]: accuracy, mean recall or macro F1 over the classes that occur."""
    one_hot_NC = np.eye(num_classes, dtype=np.float32)[predicted_N]
    name = {"accuracy": "accuracy", "balanced_accuracy": "macro_recall", "macro_f1": "macro_f1"}[by]
    return scores(one_hot_NC, label_N, split="val")[f"val_{name}"]
