"""From a trained network's logits to what a run leaves behind: weights, predictions, the record."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transfergrid.data.folds import Fold, Folds
from transfergrid.specs import RunSpec
from transfergrid.store import durable
from transfergrid.store.attempts import Attempt
from transfergrid.store.provenance import provenance
from transfergrid.store.records import MANY_CLASSES, Predictions, RunRecord, make_predictions, write_predictions
from transfergrid.training.by_group import count_groups
from transfergrid.training.device import device_name, has_tf32
from transfergrid.training.evaluation import confusion_matrix, scores, top_k_accuracy

Logits = NDArray[np.float32]


def save_weights(attempt: Attempt, state: Mapping[str, Tensor]) -> None:
    """weights.pt: a plain state dict on the CPU, published only by the newest attempt."""
    attempt.assert_newest()
    on_cpu = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    content = io.BytesIO()  # torch's own writer would call a full disk a RuntimeError about positions
    torch.save(on_cpu, content)
    durable.write_bytes(attempt.paths.weights, content.getbuffer())


def save_predictions(attempt: Attempt, by_fold: Mapping[str, tuple[Fold, Logits]]) -> None:
    """predictions.npz of val, test and the gate's sets; the gate compares logits, the others their predictions."""
    attempt.assert_newest()
    sets: dict[str, Predictions] = {
        name: replace(
            make_predictions(fold.index_N, fold.labels_N, logits_NC, keep_predicted=not name.startswith("gate")),
            group_N=None if name.startswith("gate") else fold.groups_N,
        )
        for name, (fold, logits_NC) in by_fold.items()
    }
    write_predictions(attempt.paths, sets)


def score_folds(by_fold: Mapping[str, tuple[Fold, Logits]]) -> dict[str, float]:
    """All scores of all folds; top-5 accuracy of test where there are more than five classes."""
    figures: dict[str, float] = {}
    for name, (fold, logits_NC) in by_fold.items():
        figures |= scores(logits_NC, fold.labels_N, split=name)
        if name == "test" and logits_NC.shape[1] > 5:
            figures["test_top5_accuracy"] = top_k_accuracy(logits_NC, fold.labels_N, k=5)
    return figures


def class_details(by_fold: Mapping[str, tuple[Fold, Logits]], class_names: Sequence[str]) -> dict[str, Any]:
    """What a reader needs to see which classes are taken for which: their names and, since predictions of training
    images are not stored, the training set's counts (C, C), rows true. Nothing above 100 classes but the names."""
    details: dict[str, Any] = {"class_names": list(class_names)}
    if "train" in by_fold and len(class_names) <= MANY_CLASSES:
        fold, logits_NC = by_fold["train"]
        counts_CC = confusion_matrix(fold.labels_N, logits_NC.argmax(1), num_classes=len(class_names))
        details["train_confusion"] = counts_CC.tolist()
    return details


def fold_details(folds: Folds, *, num_classes: int) -> dict[str, Any]:
    """On how little a run rests: images of test and of val (0 where nothing is held out), and of the largest and the
    smallest class that it was trained on."""
    counts_C = np.bincount(folds.train.labels_N, minlength=num_classes)
    return {
        "n_test": len(folds.test),
        "n_val": 0 if folds.val is None else len(folds.val),
        "class_counts": {"largest": int(counts_C.max()), "smallest": int(counts_C.min())},
        **group_details(folds.test),
    }


def group_details(test: Fold) -> dict[str, Any]:
    """From how many groups the test images come; nothing where they come in none."""
    return {} if test.groups_N is None else {"test_groups": count_groups(test.groups_N)}


def make_record(
    spec: RunSpec,
    attempt: Attempt,
    device: torch.device,
    *,
    metrics: Mapping[str, float],
    details: Mapping[str, Any],
    phase_s: float,
    n_train: int | None,
    **cost: Any,
) -> RunRecord:
    """The record of a run that completed. `cost`: parameters, size_mb, gflops_per_image, images_per_s, epochs, ..."""
    facts = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "started": attempt.started.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if getattr(spec.settings, "precision", None) == "tf32":
        facts["computed_in"] = "tf32" if has_tf32(device) else "fp32"  # older GPUs and CPUs have no TensorFloat-32
    return RunRecord(
        run_id=spec.run_id,
        spec=spec,
        status="completed",
        metrics=dict(metrics),
        details=dict(details),
        phase_s=round(phase_s, 3),
        on_gpu=device.type == "cuda",
        gpu_allocated_mib=round(torch.cuda.max_memory_allocated(device) / 2**20, 1) if device.type == "cuda" else None,
        n_train=n_train,
        attempt=attempt.number,
        provenance=provenance() | facts,
        **cost,
    )


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began
