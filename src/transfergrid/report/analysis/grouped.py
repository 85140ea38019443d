"""Rows whose test images come in groups: their intervals and tests, by group, and when nothing can be judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transfergrid.errors import DataError
from transfergrid.report.analysis import statistics
from transfergrid.report.analysis.predictions import Array, StoredPredictions, correct_SN
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.analysis.statistics import NotJudged, PairedComparison, Variances, published_interval
from transfergrid.store.records import Predictions, RunRecord
from transfergrid.training import by_group
from transfergrid.training.by_group import MIN_GROUPS

HOW_TO_READ = (
    "Where the test images come in groups, as patients or videos, every interval and p is by group, because images of "
    "one group are right or wrong together. The interval covers other groups and, for several seeds, other seeds. It "
    "is Wilson's for the number of independent images that would tell as much. Wilson's for all images stands beside "
    f"it, and is too narrow. Below {MIN_GROUPS} groups nothing is judged."
)


def compared(a_SN: Array, b_SN: Array, group_N: Array | None) -> PairedComparison | NotJudged:
    """statistics.compare, by group where there are any."""
    if group_N is None:
        return statistics.compare(a_SN, b_SN)
    groups = by_group.count_groups(group_N)
    if groups < MIN_GROUPS:
        return NotJudged(f"the test images come from {groups} groups, fewer than {MIN_GROUPS}")
    comparison = by_group.compare(a_SN, b_SN, group_N)
    return PairedComparison(
        difference=comparison.value,
        low=comparison.low,
        high=comparison.high,
        p_value=comparison.p_value,
        test="by_group",
        seeds=len(a_SN),
        images=groups,
        variances=Variances(seed=comparison.seed_variance, image=comparison.group_variance, rest=0.0),
    )


def non_inferiority(best_SN: Array, other_SN: Array, group_N: Array | None, *, margin: float) -> float | None:
    """statistics.non_inferiority, by group where there are any; None where those are too few."""
    if group_N is None:
        return statistics.non_inferiority(best_SN, other_SN, margin=margin)
    return by_group.non_inferiority(best_SN, other_SN, group_N, margin=margin)


def interval(right_SN: Array, group_N: Array) -> tuple[float, float] | None:
    """None below MIN_GROUPS groups."""
    return by_group.interval(right_SN, group_N) if by_group.count_groups(group_N) >= MIN_GROUPS else None


def interval_of_runs(sets: Sequence[Predictions]) -> tuple[float, float] | None:
    """Of one row's runs. None where they were not tested on the same images, or as `interval`."""
    first = sets[0]
    alike = all(len(one.index_N) == len(first.index_N) and (one.index_N == first.index_N).all() for one in sets)
    return interval(correct_SN(sets), first.group_N) if alike and first.group_N is not None else None


def with_groups(row: ComparisonRow, done: Sequence[RunRecord], stored: StoredPredictions) -> ComparisonRow:
    """The row with its interval by group, and Wilson's beside it, where its records name groups of test images."""
    groups = done[0].details.get("test_groups") if done else None
    if not isinstance(groups, int) or row.test_accuracy is None:
        return row
    try:
        sets = [stored.trusted(run) for run in done]
    except DataError:
        return replace(
            row, test_groups=groups, ci95_low=None, ci95_high=None
        )  # none rather than one that is too narrow
    low, high = interval_of_runs(sets) or (None, None)
    wilson_low, wilson_high = published_interval(row.test_accuracy, len(sets[0].index_N))
    return replace(
        row,
        test_groups=groups,
        ci95_low=low,
        ci95_high=high,
        wilson95_low=wilson_low,
        wilson95_high=wilson_high,
    )
