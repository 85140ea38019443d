"""The stored test predictions of a grid's runs: read once, paired by seed and image, and averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transfergrid import records
from transfergrid.errors import DataError, one_line
from transfergrid.paths import StorePaths
from transfergrid.records import Predictions, RunRecord

# S seeds, N images in order of their index, C classes, K classes kept above 100
Array = np.ndarray[Any, Any]
BySeed = Mapping[int, Predictions]
_BLOCK = 8192  # images whose probabilities are in memory at once


def probabilities_NC(predictions: Predictions, *, num_classes: int) -> Array:
    """Softmax (N, C) in float64. Above 100 classes only the 20 kept ones have a probability, the others count as 0."""
    logits_NC = predictions.logits_NC.astype(np.float64)
    if predictions.classes_NC is None or predictions.logsumexp_N is None:
        exponentials_NC = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
        full_NC: Array = exponentials_NC / exponentials_NC.sum(axis=1, keepdims=True)
        return full_NC
    kept_NK = np.exp(logits_NC - predictions.logsumexp_N.astype(np.float64)[:, None])
    spread_NC = np.zeros((len(logits_NC), num_classes))
    np.put_along_axis(spread_NC, predictions.classes_NC, kept_NK, axis=1)
    return spread_NC


def averaged_correct_N(parts: Sequence[Predictions], *, num_classes: int) -> Array:
    """(N,) bool: is the class with the largest mean probability over the models the right one?

    The predictions must hold the same images in the same order, as `paired` returns them.
    """
    label_N = parts[0].label_N
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(label_N), _BLOCK)]
    correct = []
    for block in blocks:
        summed_NC = sum(probabilities_NC(_rows(part, block), num_classes=num_classes) for part in parts)
        correct.append(np.asarray(summed_NC).argmax(axis=1) == label_N[block])
    joined_N: Array = np.concatenate(correct)
    return joined_N


def correct_SN(predictions: Sequence[Predictions]) -> Array:
    """(S, N) bool, one row per seed, of predictions that `paired` returned."""
    return np.stack([p.predicted_N == p.label_N for p in predictions])


def paired(models: Mapping[str, BySeed]) -> tuple[tuple[int, ...], dict[str, list[Predictions]]]:
    """The seeds that all models share, and per model its predictions in that order.

    Raises DataError where no seed is shared, or where the models did not see the same images with the same labels.
    """
    seeds = tuple(sorted(set.intersection(*(set(by_seed) for by_seed in models.values()))))
    if not seeds:
        without = ", ".join(name for name, by_seed in models.items() if not by_seed) or "none, but the seeds differ"
        raise DataError(f"no seed with stored predictions of all of {', '.join(models)} (without any: {without})")
    chosen = {name: [by_seed[seed] for seed in seeds] for name, by_seed in models.items()}
    first = chosen[next(iter(models))][0]
    for name, sets in chosen.items():
        same = [np.array_equal([s.index_N, s.label_N], [first.index_N, first.label_N]) for s in sets]
        if not all(same):
            raise DataError(f"{name} was not tested on the same images as {next(iter(models))}: nothing can be paired")
    return seeds, chosen


class StoredPredictions:
    """Predictions of one store's runs; each file is read once. notes: what could not be used, one sentence each."""

    def __init__(self, store: StorePaths) -> None:
        self._store = store
        self._known: dict[str, dict[str, Predictions]] = {}
        self.notes: list[str] = []

    def of(self, run_id: str, *, split: str = "test") -> Predictions | None:
        """One split's predictions in order of the image index; None, and a note, where the file cannot be used."""
        if run_id not in self._known:
            self._known[run_id] = self._read(run_id)
        return self._known[run_id].get(split)

    def by_seed(self, runs: Sequence[RunRecord]) -> dict[int, Predictions]:
        """Test predictions of one row's runs by their seed, without the runs whose file cannot be used."""
        found: dict[int, Predictions] = {}
        for run in runs:
            test = self.of(run.run_id)
            if test is not None and run.spec.seed is not None:
                found[run.spec.seed] = test
        return found

    def _read(self, run_id: str) -> dict[str, Predictions]:
        try:
            sets = records.read_predictions(self._store.run(run_id))
            return {name: _in_order(predictions) for name, predictions in sets.items()}
        except (DataError, ValueError, IndexError) as error:
            self.notes.append(f"`{run_id}`: its predictions cannot be used ({one_line(error)})")
            return {}


def _in_order(p: Predictions) -> Predictions:
    if p.logits_NC.ndim != 2 or not len(p.index_N) == len(p.label_N) == len(p.logits_NC) > 0:
        raise ValueError(f"{len(p.index_N)} indices, {len(p.label_N)} labels, {len(p.logits_NC)} rows of logits")
    return _rows(p, np.argsort(p.index_N, kind="stable"))


def _rows(p: Predictions, rows: slice | Array) -> Predictions:
    return Predictions(
        p.index_N[rows],
        p.label_N[rows],
        p.logits_NC[rows],
        None if p.classes_NC is None else p.classes_NC[rows],
        None if p.logsumexp_N is None else p.logsumexp_N[rows],
    )
