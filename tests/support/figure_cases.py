"""Runs with everything that figures are made from: record, metrics, predictions, by hand and by a seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from report_cases import completed, spec

from transfergrid.data import ArrayImages, LabeledImages
from transfergrid.paths import StorePaths
from transfergrid.specs import DatasetSpec, RunSpec, Split
from transfergrid.store import records
from transfergrid.store.records import RunRecord
from transfergrid.training.evaluation import confusion_matrix

NUM_TEST = 60


def run_of(
    phase: str, model: str, *, seed: int = 0, num_classes: int = 10, needs: tuple[str, ...] = (), **changes: Any
) -> RunSpec:
    made = spec(phase, model, seed=seed, **changes)
    return replace(made, dataset=replace(made.dataset, num_classes=num_classes), needs=needs)


def trained(
    store: StorePaths,
    run: RunSpec,
    *,
    accuracy: float = 0.8,
    epochs: int = 3,
    steps: int = 4,
    heads: int = 1,
    class_names: Sequence[str] | None = None,
    **changes: Any,
) -> RunRecord:
    """A completed run: record, metrics of `epochs` x `steps`, predictions of which about `accuracy` are right.

    heads: of a probe that chose its last one; the others' losses are 9.
    """
    num_classes = run.dataset.num_classes
    generator = np.random.default_rng([run.seed or 0, len(run.run_id), *run.run_id.encode()])
    label_N = np.arange(NUM_TEST) % num_classes
    wrong_N = generator.random(NUM_TEST) >= accuracy
    said_N = np.where(wrong_N, (label_N + generator.integers(1, num_classes, NUM_TEST)) % num_classes, label_N)
    logits_NC = generator.normal(size=(NUM_TEST, num_classes))
    logits_NC[np.arange(NUM_TEST), said_N] = 5 + generator.random(NUM_TEST)
    predictions = records.make_predictions(np.arange(NUM_TEST), label_N, logits_NC)
    paths = store.run(run.run_id)
    records.write_predictions(paths, {"test": predictions})
    _write_metrics(store, run, epochs=epochs, steps=steps, heads=heads, generator=generator)
    names = list(class_names or [f"class {i}" for i in range(num_classes)])
    details = {
        "class_names": names,
        "train_confusion": confusion_matrix(label_N, said_N, num_classes=num_classes).tolist(),
        "n_test": NUM_TEST,
        "chosen": {"head": heads - 1},
    } | changes.pop("details", {})
    share = float((said_N == label_N).mean())
    metrics = {"val_accuracy": share, "train_accuracy": min(1.0, share + 0.1)} | changes.pop("metrics", {})
    given: dict[str, Any] = {"epochs": epochs, "n_train": 200} | changes
    return completed(store, run, test_accuracy=share, details=details, metrics=metrics, **given)


def _write_metrics(
    store: StorePaths, run: RunSpec, *, epochs: int, steps: int, heads: int, generator: np.random.Generator
) -> None:
    lines: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        for step in range((epoch - 1) * steps + 1, epoch * steps + 1):
            line: dict[str, Any] = {"kind": "step", "epoch": epoch, "step": step}
            for head in range(heads):
                prefix = "" if heads == 1 else f"head_{head}/"
                line[f"{prefix}train/loss"] = 1 / step if head == heads - 1 else 9.0
                line[f"{prefix}train/accuracy"] = float(generator.random())
            lines.append(line)
        figures = {"train/loss": 1 / epoch, "train/accuracy": 1 - 0.5 / epoch}
        figures |= {"val/loss": 1.1 / epoch, "val/accuracy": 1 - 0.6 / epoch - 0.1 * float(generator.random())}
        lines.append({"kind": "epoch", "epoch": epoch, "step": epoch * steps, **figures})
    path = store.run(run.run_id).metrics
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"line": i + 1, **line}) + "\n" for i, line in enumerate(lines)))


def images_of(num_images: int, *, num_classes: int = 10) -> Callable[[DatasetSpec, Split], LabeledImages]:
    """Every split: grey images of 8 px whose pixel value is their index."""
    pixels_N = np.arange(num_images, dtype=np.uint8)
    images_NHWC = np.broadcast_to(pixels_N[:, None, None, None], (num_images, 8, 8, 1)).copy()
    labels_N = (np.arange(num_images) % num_classes).astype(np.int64)
    held = ArrayImages(images_NHWC, labels_N, class_names=tuple(f"class {i}" for i in range(num_classes)))
    return lambda dataset, split: held
