"""What a claim about a joined model needs beside it: is it the pair, or only a second opinion, or more arithmetic?

Beside each join stand, all from stored predictions: its parts alone; its parts' softmax probabilities averaged, which
costs no training; how much the parts' errors overlap, and the accuracy if one always knew which part to trust; and the
single model of about equal FLOPs among the grid's rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from operator import attrgetter
from statistics import fmean
from typing import Any

import numpy as np

from transfergrid.errors import DataError, one_line
from transfergrid.report.analysis import statistics
from transfergrid.report.analysis.cells import percent
from transfergrid.report.analysis.columns import difference, pick
from transfergrid.report.analysis.comparison import Comparison
from transfergrid.report.analysis.families import is_alike
from transfergrid.report.analysis.grouped import compared, interval
from transfergrid.report.analysis.predictions import StoredPredictions, averaged_correct_N, correct_SN, paired
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.analysis.selection import best_on_val
from transfergrid.report.analysis.statistics import NotJudged, PairedComparison
from transfergrid.report.blocks import Column, Section, Table, figure, words
from transfergrid.store.records import Predictions, RunRecord

# S seeds, N test images
Array = np.ndarray[Any, Any]
EQUAL_FLOPS_FACTOR = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Mean over seeds, in [0, 1], with the table's 95 % interval: Wilson for one seed, Student's t for several; by
    group where there are any, and None where they are too few."""

    model: str
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorOverlap:
    """How much the parts fail on the same images; shares of the test images, means over seeds.

    all_wrong_if_independent: the product of the parts' error rates. kappa: Cohen's, of right against wrong, mean over
    the pairs of parts; 1 = the same images, 0 = as if independent; None where a part makes no error or only errors.
    """

    all_wrong: float
    all_wrong_if_independent: float
    kappa: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EqualFlops:
    """The single model whose GFLOPs per image are closest to the join's, within a factor of 1.5.

    flops_ratio: its FLOPs / the join's. difference: the join minus it, None where its predictions cannot be paired.
    """

    row: ComparisonRow
    flops_ratio: float
    difference: PairedComparison | NotJudged | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinBaselines:
    """One join beside its baselines. seeds: those that the join and all its parts share, (None,) where none has one.

    oracle: right wherever one part is right. joined_minus_averaged: paired on seeds and images, p not adjusted.
    equal_flops: None where no single model of the grid comes that close.
    """

    row: ComparisonRow
    seeds: tuple[int | None, ...]
    joined: Accuracy
    parts: tuple[Accuracy, ...]
    averaged: Accuracy
    oracle: Accuracy
    overlap: ErrorOverlap
    joined_minus_averaged: PairedComparison | NotJudged
    equal_flops: EqualFlops | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Joins:
    """All joins of a grid that could be set beside their baselines, and why others, or single runs, could not."""

    baselines: tuple[JoinBaselines, ...]
    notes: tuple[str, ...]


def join_baselines(comparison: Comparison) -> Joins:
    """Baselines of every finished or partly finished join that was trained; the seeds are those all its parts have.

    A run whose predictions cannot be used, or contradict its record, is left out and named in a note.
    """
    predictions = _TestPredictions(dict(zip(comparison.rows, comparison.runs, strict=True)), comparison.stored)
    baselines, notes = [], []
    for row in comparison.rows:
        if len(row.parts) > 1 and row.phase != "evaluate" and row.n_seeds:
            try:
                baselines.append(_baselines(row, comparison.rows, predictions))
            except DataError as error:
                notes.append(f"{row.title}: {one_line(error)}.")
    return Joins(baselines=tuple(baselines), notes=(*notes, *predictions.reasons.values()))


def _part_rows(row: ComparisonRow, rows: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """The rows of a join's parts, in its order, under the same conditions. Raises DataError where one is missing."""
    parts = list(dict.fromkeys(row.parts))
    singles = {single.model: single for single in rows if single.n_seeds and is_alike(single, row)}
    if missing := [part for part in parts if part not in singles]:
        raise DataError(f"no baselines, because {', '.join(missing)} has no result under the same conditions")
    return [singles[part] for part in parts]


def _equal_flops_row(row: ComparisonRow, rows: Sequence[ComparisonRow]) -> ComparisonRow | None:
    """The finished single model under the same conditions with FLOPs closest to the join's, or None.

    Of several that are equally close, the best on val.
    """
    if not row.gflops_per_image:
        return None
    distances = {
        i: abs(math.log(single.gflops_per_image / row.gflops_per_image))
        for i, single in enumerate(rows)
        if len(single.parts) == 1 and is_alike(single, row) and single.gflops_per_image and single.n_seeds
    }
    closest = min(distances, key=distances.__getitem__, default=None)
    if closest is None or distances[closest] > math.log(EQUAL_FLOPS_FACTOR):
        return None
    best = best_on_val(rows, [i for i, distance in distances.items() if distance - distances[closest] < 1e-9])
    return rows[closest if best is None else best]


# ------------------------------------------------------------------------------------------------------------ numbers
@dataclass(frozen=True, slots=True)
class _TestPredictions:
    """Test predictions of rows. reasons: by run why it is left out: its predictions say nothing to rely on."""

    runs: Mapping[ComparisonRow, tuple[RunRecord, ...]]
    stored: StoredPredictions
    reasons: dict[str, str] = field(default_factory=dict)

    def paired(self, rows: Sequence[ComparisonRow]) -> tuple[tuple[int | None, ...], dict[str, list[Predictions]]]:
        """By model, see predictions.paired."""
        return paired({row.model: self._by_seed(self.runs[row]) for row in rows})

    def _by_seed(self, runs: Sequence[RunRecord]) -> dict[int | None, Predictions]:
        predictions: dict[int | None, Predictions] = {}
        for run in runs:
            if doubt := self.stored.doubt(run):
                self.reasons[run.run_id] = f"`{run.run_id}` is left out: {doubt.text}."
            elif run.spec.seed is not None or len(runs) == 1:
                predictions[run.spec.seed] = self.stored.of(run.run_id)
        return predictions


def _baselines(row: ComparisonRow, rows: Sequence[ComparisonRow], predictions: _TestPredictions) -> JoinBaselines:
    parts, equal = _part_rows(row, rows), _equal_flops_row(row, rows)
    seeds, sets = predictions.paired([row, *parts])
    joined_SN, group_N = correct_SN(sets[row.model]), sets[row.model][0].group_N
    parts_SN = {part.model: correct_SN(sets[part.model]) for part in parts}
    num_classes = predictions.runs[row][0].spec.dataset.num_classes
    parts_by_seed = zip(*(sets[part.model] for part in parts), strict=True)
    averaged_SN = np.stack([averaged_correct_N(of_seed, num_classes=num_classes) for of_seed in parts_by_seed])
    return JoinBaselines(
        row=row,
        seeds=seeds,
        joined=_accuracy(row.model, joined_SN, group_N),
        parts=tuple(_accuracy(name, part_SN, group_N) for name, part_SN in parts_SN.items()),
        averaged=_accuracy("averaged probabilities", averaged_SN, group_N),
        oracle=_accuracy("oracle", np.any(list(parts_SN.values()), axis=0), group_N),
        overlap=error_overlap(list(parts_SN.values())),
        joined_minus_averaged=compared(joined_SN, averaged_SN, group_N),
        equal_flops=None if equal is None else _equal_flops(row, equal, predictions),
    )


def _equal_flops(row: ComparisonRow, equal: ComparisonRow, predictions: _TestPredictions) -> EqualFlops:
    assert equal.gflops_per_image is not None and row.gflops_per_image is not None
    try:
        _, sets = predictions.paired([row, equal])
        group_N = sets[row.model][0].group_N
        difference = compared(correct_SN(sets[row.model]), correct_SN(sets[equal.model]), group_N)
    except DataError:
        difference = None
    return EqualFlops(row=equal, flops_ratio=equal.gflops_per_image / row.gflops_per_image, difference=difference)


def _accuracy(model: str, correct_SN: Array, group_N: Array | None) -> Accuracy:
    accuracies = [float(accuracy) for accuracy in correct_SN.mean(axis=1)]
    if group_N is None:
        low, high = statistics.accuracy_interval(accuracies, images=correct_SN.shape[1])
        return Accuracy(model=model, mean=fmean(accuracies), low=low, high=high)
    ends = interval(correct_SN, group_N) or (None, None)
    return Accuracy(model=model, mean=fmean(accuracies), low=ends[0], high=ends[1])


def error_overlap(correct: Sequence[Array]) -> ErrorOverlap:
    """Of two or more models' (S, N) bool matrices over the same seeds and images."""
    wrong_MSN = ~np.stack(list(correct))
    kappas = [_kappa(a_N, b_N) for pair in combinations(wrong_MSN, 2) for a_N, b_N in zip(*pair, strict=True)]
    numbers = [kappa for kappa in kappas if kappa is not None]
    return ErrorOverlap(
        all_wrong=float(wrong_MSN.all(axis=0).mean()),
        all_wrong_if_independent=float(wrong_MSN.mean(axis=2).prod(axis=0).mean()),
        kappa=fmean(numbers) if numbers and len(numbers) == len(kappas) else None,
    )


def _kappa(a_N: Array, b_N: Array) -> float | None:
    observed = float((a_N == b_N).mean())
    by_chance = float(a_N.mean() * b_N.mean() + (1 - a_N.mean()) * (1 - b_N.mean()))
    constant = a_N.all() or b_N.all() or not a_N.any() or not b_N.any()
    return None if constant else (observed - by_chance) / (1 - by_chance)


# ------------------------------------------------------------------------------------------------------------ in words
_ABOUT = """\
Averaged: the mean of the softmax probabilities of the parts, each trained alone. It needs no training, but as many
forward passes as the join. Oracle: right if any part is right, so no choice between the parts can do better.
Overlap: the share of test images that all parts get wrong, beside the share for independent errors, and Cohen's
kappa of right against wrong (1: the same images; 0: as if independent). Equal FLOPs: the single model of the same
rows with the closest FLOPs per image, within a factor of 1.5. Every interval is for its comparison alone."""


def _equal_text(b: JoinBaselines) -> str:
    equal = b.equal_flops
    return f"{equal.row.model} {percent(equal.row.test_accuracy)} (x {equal.flops_ratio:.2f})" if equal else "none"


def _accuracy_column(name: str) -> Column[JoinBaselines]:
    """Of one field; with its interval."""

    def text(b: JoinBaselines) -> str:
        accuracy: Accuracy = getattr(b, name)
        if accuracy.low is None:
            return f"{percent(accuracy.mean)} [not judged]"
        return f"{percent(accuracy.mean)} [{percent(accuracy.low)}, {percent(accuracy.high)}]"

    more = {f"{name}_{end}": attrgetter(f"{name}.{end}") for end in ("low", "high")}
    return figure(name, value=f"{name}.mean", text=text, beside="[95 %]", more=more)


_AVERAGES: list[Column[JoinBaselines]] = [
    words("parts_alone", lambda b: ", ".join(f"{p.model} {percent(p.mean)}" for p in b.parts), label="parts alone"),
    figure("seeds", str, lambda b: len(b.seeds)),
    _accuracy_column("joined"),
    _accuracy_column("averaged"),
    difference("joined_minus_averaged", "joined - averaged", attrgetter("joined_minus_averaged")),
]
_ERRORS: list[Column[JoinBaselines]] = [
    words("equal_flops", _equal_text, label="equal FLOPs"),
    difference(
        "joined_minus_equal_flops",
        "joined - equal FLOPs",
        lambda b: b.equal_flops.difference if b.equal_flops else None,
    ),
    figure("oracle", percent, "oracle.mean"),
    figure("all_wrong", percent, "overlap.all_wrong", label="all wrong"),
    figure("if_independent", percent, "overlap.all_wrong_if_independent", label="if independent"),
    figure("kappa", lambda kappa: "" if kappa is None else f"{kappa:z.2f}", "overlap.kappa"),
]


def section(joins: Joins) -> Section | None:
    """Two tables; None where the grid has no join."""
    if not joins.baselines and not joins.notes:
        return None
    names: list[Column[JoinBaselines]] = [c.of(attrgetter("row")) for c in pick("dataset model phase variant")]
    name, title = "joined_models_beside_their_baselines", "The join, and the average of its parts"
    averages = Table(name, names + _AVERAGES, joins.baselines, title)
    title = "The single model of equal FLOPs, and the errors of the parts"
    errors = Table(f"{name}_2", names + _ERRORS, joins.baselines, title)
    return Section(
        "baselines",
        "Joined models beside their baselines",
        about=[_ABOUT],
        tables=[averages, errors] if joins.baselines else [],
        items=joins.notes,
    )
