"""The stored test predictions of a grid's runs: read and checked once, paired by seed and image, and averaged."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from transfergrid.errors import DataError, one_line
from transfergrid.paths import StorePaths
from transfergrid.report.analysis.statistics import NotJudged, PairedComparison
from transfergrid.report.blocks import Finding
from transfergrid.store import records
from transfergrid.store.records import Predictions, RunRecord

# S seeds, N images in order of their index, C classes, K classes kept above 100
Array = np.ndarray[Any, Any]
BySeed = Mapping[int | None, Predictions]  # None: of a run that draws nothing, so that it stands for every seed
LIMIT_BYTES = 512_000_000  # about 1,800 runs on 10,000 images of ten classes
EDITED = "record does not agree with its predictions"
_BLOCK = 8192  # images whose probabilities are in memory at once


def probabilities_NC(predictions: Predictions, *, num_classes: int) -> Array:
    """Softmax (N, C) in float64. Above 100 classes only the 20 kept ones have a probability, the others count as 0."""
    from scipy.special import softmax

    logits_NC = predictions.logits_NC.astype(np.float64)
    if predictions.classes_NC is None or predictions.logsumexp_N is None:
        full_NC: Array = softmax(logits_NC, axis=1)
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
    correct_N: Array = np.zeros(len(label_N), dtype=bool)
    for start in range(0, len(label_N), _BLOCK):
        block = slice(start, start + _BLOCK)
        summed_NC = sum(probabilities_NC(_rows(part, block), num_classes=num_classes) for part in parts)
        correct_N[block] = np.asarray(summed_NC).argmax(axis=1) == label_N[block]
    return correct_N


def correct_SN(predictions: Sequence[Predictions]) -> Array:
    """(S, N) bool, one row per seed, of predictions that `paired` returned."""
    return np.stack([p.predicted_N == p.label_N for p in predictions])


def paired(models: Mapping[str, BySeed]) -> tuple[tuple[int | None, ...], dict[str, list[Predictions]]]:
    """The seeds that all models share, and per model its predictions in that order.

    A run without a seed stands beside each seed of the others; where no model has seeds, the one seed is None. Raises
    DataError where no seed is shared, or where the models did not see the same images with the same labels.
    """
    seeded = [{s for s in by_seed if s is not None} for by_seed in models.values() if None not in by_seed]
    seeds: tuple[int | None, ...] = tuple(sorted(set.intersection(*seeded))) if seeded else (None,)
    if not seeds:
        without = ", ".join(name for name, by_seed in models.items() if not by_seed) or "none, but the seeds differ"
        raise DataError(f"no seed with stored predictions of all of {', '.join(models)} (without any: {without})")
    sets_by_model = {
        name: [by_seed[None] if None in by_seed else by_seed[seed] for seed in seeds]
        for name, by_seed in models.items()
    }
    first = sets_by_model[next(iter(models))][0]
    for name, sets in sets_by_model.items():
        same = [np.array_equal([s.index_N, s.label_N], [first.index_N, first.label_N]) for s in sets]
        if not all(same):
            raise DataError(f"{name} was not tested on the same images as {next(iter(models))}: nothing can be paired")
    return seeds, sets_by_model


class StoredPredictions:
    """Test predictions of one store's runs for all sections of a report: each file is read and checked once.

    Those used last stay in memory, up to `limit_bytes`; a larger grid reads some files again. compared: by the runs of
    two rows, what paired_rows.compare_rows has found.
    """

    def __init__(self, store: StorePaths, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self.store = store
        self.compared: dict[tuple[tuple[str, ...], tuple[str, ...]], PairedComparison | NotJudged] = {}
        self._limit_bytes = limit_bytes
        self._cached: OrderedDict[str, Predictions] = OrderedDict()
        self._cached_bytes = 0
        self._refusals: dict[str, str] = {}
        self._disagreements: dict[str, Finding | None] = {}
        self._sizes: dict[str, dict[str, int]] = {}

    def of(self, run_id: str) -> Predictions:
        """In order of the image index. Raises DataError where the file is missing, damaged, or has no test images."""
        if run_id in self._refusals:
            raise DataError(self._refusals[run_id])
        if run_id not in self._cached:
            try:
                self._cached[run_id] = self._read(run_id)
            except DataError as error:
                self._refusals[run_id] = one_line(error)
                raise
            self._cached_bytes += _bytes(self._cached[run_id])
            while self._cached_bytes > self._limit_bytes and len(self._cached) > 1:
                self._cached_bytes -= _bytes(self._cached.popitem(last=False)[1])
        self._cached.move_to_end(run_id)
        return self._cached[run_id]

    def sizes(self, run_id: str) -> Mapping[str, int]:
        """How many images of test and val the run has predictions of; empty where they cannot be read."""
        try:
            self.of(run_id)
        except DataError:
            return {}
        return self._sizes[run_id]

    def disagreement(self, run: RunRecord) -> Finding | None:
        """What the record states that these predictions contradict. Raises as `of`."""
        if run.run_id not in self._disagreements:
            self._disagreements[run.run_id] = disagreement(run, self.of(run.run_id))
        return self._disagreements[run.run_id]

    def trusted(self, run: RunRecord) -> Predictions:
        """As `of`; raises DataError, too, where the record contradicts them. What rests on predictions starts here."""
        doubt = self.doubt(run)
        if doubt is not None:
            raise DataError(doubt.sentence if doubt.kind == EDITED else doubt.text)
        return self.of(run.run_id)

    def doubt(self, run: RunRecord) -> Finding | None:
        """Why nothing can rest on the predictions of this run; None where they are as its record says."""
        try:
            return self.disagreement(run)
        except DataError:
            text = (
                f"the test predictions of {run.run_id} are missing or damaged; delete its record.json, and launch again"
            )
            return Finding(run.run_id, "no predictions to rest on", text)

    def _read(self, run_id: str) -> Predictions:
        paths = self.store.run(run_id)
        sets = records.read_predictions(paths)
        test = sets.get("test")
        if test is None or not len(test.index_N):
            raise DataError(f"{paths.predictions} holds no test images; launch the run again")
        self._sizes[run_id] = {name: len(predictions.index_N) for name, predictions in sets.items()}
        try:
            if test.logits_NC.ndim != 2 or not len(test.index_N) == len(test.label_N) == len(test.logits_NC):
                counts = (
                    f"{len(test.index_N)} indices, {len(test.label_N)} labels, {len(test.logits_NC)} rows of logits"
                )
                raise ValueError(counts)
            return _rows(test, np.argsort(test.index_N, kind="stable"))
        except (ValueError, IndexError) as error:
            raise DataError(f"{paths.predictions} is damaged ({one_line(error)}); launch the run again") from error


def _arrays(p: Predictions) -> dict[str, Array]:
    return {f.name: array for f in fields(p) if (array := getattr(p, f.name)) is not None}


def _bytes(p: Predictions) -> int:
    return sum(array.nbytes for array in _arrays(p).values())


def _rows(p: Predictions, rows: slice | Array) -> Predictions:
    return Predictions(**{name: array[rows] for name, array in _arrays(p).items()})


def disagreement(record: RunRecord, test: Predictions) -> Finding | None:
    """What the record states and what its test predictions say, where both cannot be true.

    Logits are stored as float16: where the right class and another are equal there, either may have been predicted.
    """
    accuracy = record.metrics.get("test_accuracy")
    if accuracy is None:
        return None
    correct, n_test = int((test.predicted_N == test.label_N).sum()), len(test.index_N)
    largest_NC = test.logits_NC == test.logits_NC.max(axis=1, keepdims=True)
    classes_NC = np.arange(test.logits_NC.shape[1]) if test.classes_NC is None else test.classes_NC
    open_N = (largest_NC & (classes_NC == test.label_N[:, None])).any(axis=1) & (largest_NC.sum(axis=1) > 1)
    surely = int(((test.predicted_N == test.label_N) & ~open_N).sum())
    if surely - 0.5 < accuracy * n_test < surely + int(open_N.sum()) + 0.5:
        return None
    text = (
        f"{EDITED}: it states a test accuracy of {100 * accuracy:.2f} %, "
        f"{correct:,} of {n_test:,} stored predictions are right ({100 * correct / n_test:.2f} %)"
    )
    return Finding(record.run_id, EDITED, text)
