"""Intervals and tests by group: right values by hand, and coverage in simulations."""

from __future__ import annotations

import math
from typing import Any

import group_simulation
import numpy as np
import pytest
from scipy.special import stdtr, stdtrit

from transfergrid.report.analysis.statistics import wilson
from transfergrid.training import by_group
from transfergrid.training.by_group import compare, interval, non_inferiority, share_of

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


def test_p_of_not_worse_is_the_level_at_which_the_upper_end_of_losses_minus_wins_reaches_the_margin() -> None:
    """Of 100 groups that count as one image each the other loses 4 and wins 1: Newcombe's method 10, by hand."""
    group_N, best_SN, other_SN = groups(100, 7), right([99], 100, 7), right([1, 2, 3, 4], 100, 7)
    p_value = non_inferiority(best_SN, other_SN, group_N, margin=0.1)
    assert p_value is not None and 0.01 < p_value < 0.05
    q = -float(stdtrit(99, p_value))
    (_, above), (below, _) = (by_group.Share(share, 100).interval(q) for share in (0.04, 0.01))
    # In groups, losses have the mean 0.04 and wins 0.01, and never meet: their correlation is negative.
    together = -0.04 * 0.01 / math.sqrt(0.04 * 0.96 * 0.01 * 0.99)
    more = math.sqrt((above - 0.04) ** 2 - 2 * together * (above - 0.04) * (0.01 - below) + (0.01 - below) ** 2)
    assert 0.03 + more == pytest.approx(0.1, abs=1e-9)
    assert non_inferiority(best_SN, other_SN, group_N, margin=0.03) == pytest.approx(0.5, abs=1e-6)
    larger = non_inferiority(best_SN, other_SN, group_N, margin=0.02)
    assert larger is not None and 0.5 < larger < 1


def test_models_that_are_alike_are_not_worse_by_one_point_from_299_groups_on() -> None:
    """0.99 ** 298 is above 5 %: a model that fails in one group of 100 may fail in none of 298."""
    for count, p_value in ((298, 0.99**298), (299, 0.99**299)):
        alike_SN = right(list(range(149)), count, 2)
        assert non_inferiority(alike_SN, alike_SN, groups(count, 2), margin=0.01) == pytest.approx(p_value, rel=1e-9)
    assert 0.99**299 < 0.05 < 0.99**298


def test_groups_of_unequal_size_count_as_fewer() -> None:
    """10 groups of 11 and 100 of 1 image: 210 squared over 1310 is 33.7 groups."""
    group_N = np.concatenate([np.repeat(np.arange(10), 11), np.arange(10, 110)])
    alike_SN = np.ones((1, 210), bool)
    assert non_inferiority(alike_SN, alike_SN, group_N, margin=0.02) == pytest.approx(0.98 ** (210**2 / 1310))


def test_below_ten_groups_not_worse_is_not_judged() -> None:
    for count, judged in ((9, False), (10, True)):
        alike_SN = right([], count, 30)
        assert (non_inferiority(alike_SN, alike_SN, groups(count, 30), margin=0.5) is not None) is judged


def test_seeds_that_differ_must_pass_alone() -> None:
    """Three seeds 0, 0 and 6 points behind: the mean of 2 points is 1 point from the margin, one error 2 points."""
    group_N = groups(400, 5)
    best_SN = right([], 400, 5, seeds=3)
    other_SN = np.concatenate([right([], 400, 5, seeds=2), right(list(range(24)), 400, 5)])
    p_value = non_inferiority(best_SN, other_SN, group_N, margin=0.03)
    assert p_value is not None and p_value >= float(stdtr(2, -0.5)) - 1e-12
    assert non_inferiority(best_SN[:2], other_SN[:2], group_N, margin=0.03) == pytest.approx(0.97**400, abs=0.001)


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


@pytest.mark.slow
@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("sizes", group_simulation.SIZES)
@pytest.mark.parametrize(("groups", "margin"), group_simulation.BOUNDARIES)
@pytest.mark.parametrize("accuracy", [0.7, 0.9])
def test_a_model_worse_by_the_margin_is_called_not_worse_in_at_most_5_percent(
    alike: bool, sizes: str, groups: int, margin: float, accuracy: float
) -> None:
    """At a correlation of 0.8; three standard errors of the simulation more."""
    wrong = group_simulation.wrong_claims(
        accuracy=accuracy, margin=margin, groups=groups, sizes=sizes, alike=alike, repeats=1_500
    )
    assert wrong <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1_500)


def test_a_model_that_is_as_good_is_called_not_worse() -> None:
    """Equal models, failing in much the same groups: of 300 groups, within five points."""
    generator, centres = np.random.default_rng(3), (group_simulation.centre_of(0.9),) * 2
    called = 0
    for _ in range(40):
        a_N, b_N, group_N = group_simulation.two_models(generator, centres, groups=300, sizes="equal")
        p_value = non_inferiority(a_N[None], b_N[None], group_N, margin=0.05)
        called += p_value is not None and p_value < 0.05
    assert called >= 24


def test_ten_groups_are_the_least_that_is_judged() -> None:
    assert by_group.MIN_GROUPS == 10
