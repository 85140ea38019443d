"""Two rows of a comparison, tested against each other on what their runs predicted for the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from transfergrid.errors import DataError, one_line
from transfergrid.report.analysis.grouped import compared
from transfergrid.report.analysis.predictions import Array, StoredPredictions, correct_SN, paired
from transfergrid.report.analysis.statistics import CONFIDENCE, NotJudged, PairedComparison
from transfergrid.store.records import Predictions, RunRecord

Verdict = Literal["better", "worse", "no difference shown", "not judged"]


def compare_rows(
    runs_a: Sequence[RunRecord], runs_b: Sequence[RunRecord], stored: StoredPredictions
) -> PairedComparison | str:
    """a minus b over the seeds that both rows have (`.seeds` says how many), or in words why it cannot be made.

    A row of one run without a seed, which draws nothing, stands beside every seed of the other.
    Every completed run must have its predictions, and its record must agree with them: what is left out in silence
    could decide the verdict. NotJudged, in words too, where the test images come from too few groups.
    """
    ids_a, ids_b = (tuple(run.run_id for run in runs) for runs in (runs_a, runs_b))
    # Always drawn the same way round, and once, so that a minus b never says other than b minus a.
    turned = ids_a > ids_b
    key = (ids_b, ids_a) if turned else (ids_a, ids_b)
    if key not in stored.compared:
        try:
            a_SN, b_SN, group_N = correct_of_both(runs_a, runs_b, stored)
        except DataError as error:
            return one_line(error)
        stored.compared[key] = compared(b_SN, a_SN, group_N) if turned else compared(a_SN, b_SN, group_N)
    result = stored.compared[key]
    if isinstance(result, NotJudged) or not turned:
        return result
    return replace(result, difference=0.0 - result.difference, low=0.0 - result.high, high=0.0 - result.low)  # no -0.0


def correct_of_both(
    runs_a: Sequence[RunRecord], runs_b: Sequence[RunRecord], stored: StoredPredictions
) -> tuple[Array, Array, Array | None]:
    """Which images each is right about, (S, N) bool of both rows, paired by seed and image, and the group of each
    image, (N,) int64, where they come in groups. Raises DataError where that cannot be done."""
    for name, runs in (("the first", runs_a), ("the second", runs_b)):
        if not runs:
            raise DataError(f"{name} of the two rows has no completed run")
    if runs_a[0].spec.dataset != runs_b[0].spec.dataset:
        raise DataError(f"{runs_a[0].run_id} and {runs_b[0].run_id} are of different data sets")
    _, sets = paired({"the first": _by_seed(runs_a, stored), "the second": _by_seed(runs_b, stored)})
    groups = [one[0].group_N for one in sets.values() if one[0].group_N is not None]
    if any(not np.array_equal(group_N, groups[0]) for group_N in groups):
        raise DataError(f"{runs_a[0].run_id} and {runs_b[0].run_id} have their test images in different groups")
    return correct_SN(sets["the first"]), correct_SN(sets["the second"]), next(iter(groups), None)


def _by_seed(runs: Sequence[RunRecord], stored: StoredPredictions) -> dict[int | None, Predictions]:
    """Raises DataError where a run's predictions cannot be used."""
    by_seed: dict[int | None, Predictions] = {}
    for run in runs:
        test = stored.trusted(run)
        if run.spec.seed is None and len(runs) > 1:
            raise DataError(f"{run.run_id} has no seed of its own, so it cannot be paired with one run")
        by_seed[run.spec.seed] = test
    return by_seed


def verdict(difference: float, p_adjusted: float) -> Verdict:
    """In words, at 5 % within the family that p was adjusted for."""
    if p_adjusted >= 1 - CONFIDENCE:
        return "no difference shown"
    return "better" if difference > 0 else "worse"
