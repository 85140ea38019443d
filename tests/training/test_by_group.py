"""Intervals and tests by group: right values by hand, and coverage in simulations."""

from __future__ import annotations

from typing import Any

import group_simulation
import numpy as np
import pytest

from transfergrid.report.analysis.statistics import wilson
from transfergrid.training import by_group
from transfergrid.training.by_group import compare, interval, share_of

Array = np.ndarray[Any, Any]


def groups(count: int, size: int) -> Array:
    return np.repeat(np.arange(count), size)


def right(wrong: list[int], count: int, size: int, *, seeds: int = 1) -> Array:
    """(S, N): all images of these groups are wrong."""
    return np.tile(~np.isin(groups(count, size), wrong), (seeds, 1))


# -------------------------------------------------------------------------------------------------------- right values
def test_images_that_agree_within_groups_count_as_one_each() -> None:
    group_N = groups(20, 7)
    assert share_of(right([1, 2, 3], 20, 7)[0], group_N).effective == pytest.approx(20)
    assert interval(right([1, 2, 3], 20, 7), group_N) == pytest.approx(wilson(17, 20), abs=1e-12)
    assert interval(right([], 20, 7), group_N) == pytest.approx(wilson(20, 20), abs=1e-12)


def test_groups_of_one_image_are_images() -> None:
    right_SN = right([4, 9], 50, 1)
    assert interval(right_SN, groups(50, 1)) == pytest.approx(wilson(48, 50), abs=1e-12)


def test_the_effective_number_follows_the_analysis_of_variance() -> None:
    """Groups of 4 and 2 images, two right of four, none of two, two of two: by hand."""
    right_N, group_N = np.array([1, 1, 0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 0, 1, 1, 2, 2])
    within = 1.0 / 5
    between = (4 * 0 + 2 * 0.25 + 2 * 0.25) / 2
    typical = (8 - 24 / 8) / 2
    correlation = (between - within) / (between + (typical - 1) * within)
    padded = (2 * correlation + 2) / 4  # two groups have a hit, two an error
    assert share_of(right_N, group_N).effective == pytest.approx(8 / (1 + (24 / 8 - 1) * padded))


def test_independent_images_lose_little_where_there_are_many_groups() -> None:
    generator = np.random.default_rng(0)
    right_N = generator.random(4_000) < 0.9
    share = share_of(right_N, groups(200, 20))
    assert 2_800 < share.effective <= 4_000


def test_a_minus_b_is_minus_what_b_minus_a_is_and_p_goes_with_the_interval() -> None:
    generator, group_N = np.random.default_rng(1), groups(30, 10)
    for gain in (0.0, 0.1, 0.3):
        ease_N = generator.normal(size=30)[group_N]
        a_SN, b_SN = (generator.normal(size=(1, 300)) + 2 * ease_N + 1 + shift > 0 for shift in (3 * gain, 0.0))
        there, back = compare(a_SN, b_SN, group_N), compare(b_SN, a_SN, group_N)
        assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low), abs=1e-12)
        assert there.p_value == pytest.approx(back.p_value, abs=1e-9)
        assert (there.p_value < 0.05) == (not there.low <= 0 <= there.high)
    assert there.p_value < 0.05


def test_a_model_beside_itself_has_a_p_of_one() -> None:
    found = compare(right([1], 20, 5), right([1], 20, 5), groups(20, 5))
    assert found.value == 0 and found.p_value == 1 and found.low == pytest.approx(-found.high)


def test_groups_make_p_larger_than_images_would() -> None:
    """One group of 40 images decides a difference that McNemar's test would be sure of."""
    from transfergrid.training.evaluation import mcnemar_exact

    a_SN, b_SN = right([3], 20, 40), right([3, 7], 20, 40)
    assert mcnemar_exact(40, 0) < 1e-9
    assert compare(a_SN, b_SN, groups(20, 40)).p_value > 0.2


def test_seeds_that_differ_widen_the_interval() -> None:
    generator, group_N = np.random.default_rng(2), groups(40, 10)
    alike_SN = np.tile(generator.random(400) < 0.9, (3, 1))
    apart_SN = np.stack([generator.random(400) < accuracy for accuracy in (0.8, 0.9, 0.99)])
    for own_SN in (alike_SN, apart_SN):
        low, high = interval(own_SN, group_N)
        assert 0 <= low < own_SN.mean() < high <= 1
    narrow, wide = interval(alike_SN, group_N), interval(apart_SN, group_N)
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])
    assert compare(apart_SN, alike_SN, group_N).seed_variance > 0.003


# ----------------------------------------------------------------------------------------------------------- simulated
def test_the_interval_covers_and_wilsons_does_not() -> None:
    held = group_simulation.coverages(accuracy=0.9, groups=30, correlation=0.8, sizes="uniform", repeats=400)
    assert held["by group"] > 0.92 and held["Wilson"] < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("sizes", group_simulation.SIZES)
@pytest.mark.parametrize("groups", [15, 30, 100])
@pytest.mark.parametrize("accuracy", [0.8, 0.9, 0.95])
def test_coverage_is_93_to_97_percent_at_a_correlation_of_0_8(sizes: str, groups: int, accuracy: float) -> None:
    held = group_simulation.coverages(accuracy=accuracy, groups=groups, correlation=0.8, sizes=sizes, repeats=3_000)
    assert 0.93 <= held["by group"] <= 0.97
    assert held["Wilson"] < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("sizes", group_simulation.SIZES)
@pytest.mark.parametrize("groups", [15, 30, 100])
def test_differences_of_models_that_fail_in_the_same_groups(sizes: str, groups: int) -> None:
    """Chance is called a difference in at most 5 % (three standard errors of the simulation more)."""
    held, called = group_simulation.of_differences(accuracies=(0.8, 0.8), groups=groups, sizes=sizes, repeats=1_500)
    assert held >= 0.93 and called <= 0.067
    held, _ = group_simulation.of_differences(accuracies=(0.9, 0.8), groups=groups, sizes=sizes, repeats=1_500)
    assert held >= 0.93


def test_ten_groups_are_the_least_that_is_judged() -> None:
    assert by_group.MIN_GROUPS == 10
