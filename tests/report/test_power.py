from math import comb

import pytest
from mcnemar_power import mcnemar_power
from paired_cases import observed

from transfergrid.report.analysis.power import images_needed, needed, power, seeds_needed
from transfergrid.report.analysis.statistics import PairedComparison, Variances
from transfergrid.training.evaluation import mcnemar_exact


def comparison(
    difference: float, *, seed: float = 0.0, image: float = 0.0, rest: float = 0.0, seeds: int = 5, images: int = 10_000
) -> PairedComparison:
    return observed(difference, Variances(seed=seed, image=image, rest=rest), seeds=seeds, images=images)


def test_the_exact_mcnemar_power_is_that_of_every_possible_table_of_a_few_images() -> None:
    images, only_a, only_b = 12, 0.5, 0.1
    found = 0.0
    for a in range(images + 1):
        for b in range(images + 1 - a):
            ways = comb(images, a) * comb(images - a, b)
            if mcnemar_exact(a, b) < 0.05:
                found += ways * only_a**a * only_b**b * (1 - only_a - only_b) ** (images - a - b)
    assert mcnemar_power(0.4, 0.6, images=images) == pytest.approx(found, abs=1e-12)


def test_connors_number_of_images_has_eighty_percent_power_in_the_exact_test() -> None:
    # discordant share 4 %, difference 0.5 points: [1.959964 sqrt(0.04) + 0.841621 sqrt(0.04 - 0.005^2)]^2 / 0.005^2
    one = comparison(0.005, image=0.04 - 0.005**2, seeds=1)
    assert images_needed(one) == 12_556
    assert mcnemar_power(0.005, 0.04, images=12_556) == pytest.approx(0.80, abs=0.02)


def test_the_power_of_many_seeds_is_that_of_the_normal_test() -> None:
    variances = Variances(seed=0.003**2, image=0.01, rest=0.04)
    error = (0.003**2 / 400 + 0.01 / 5_000 + 0.04 / 400 / 5_000) ** 0.5
    assert power(1.96 * error, variances, seeds=400, images=5_000) == pytest.approx(0.5, abs=0.01)
    assert power(2.8016 * error, variances, seeds=400, images=5_000) == pytest.approx(0.8, abs=0.01)
    assert power(0.0, variances, seeds=400, images=5_000) == pytest.approx(0.05, abs=0.005)


def test_the_power_over_seeds_alone_is_that_of_the_noncentral_t_test() -> None:
    from statsmodels.stats.power import TTestPower

    theirs = TTestPower().power(effect_size=1.5, nobs=5, alpha=0.05)
    found = power(1.5 * 0.004, Variances(seed=0.004**2, image=0.0, rest=0.0), seeds=5, images=10_000)
    assert found == pytest.approx(theirs, abs=0.002)


def test_the_number_of_seeds_is_the_smallest_that_has_the_power() -> None:
    found = comparison(0.003, seed=0.004**2, image=0.002, rest=0.02)
    seeds = seeds_needed(found)
    assert seeds is not None and 10 < seeds < 40
    assert power(0.003, found.variances, seeds=seeds, images=10_000) >= 0.8
    assert power(0.003, found.variances, seeds=seeds - 1, images=10_000) < 0.8


def test_seeds_cannot_help_where_the_test_images_limit_the_comparison_and_the_text_says_so() -> None:
    found = comparison(0.001, seed=1e-8, image=0.02, rest=0.01)
    assert seeds_needed(found) is None
    images = images_needed(found)
    assert images is not None
    assert power(0.001, found.variances, seeds=5, images=images) == pytest.approx(0.8, abs=0.001)
    assert needed(found) == "no number of seeds would do: about 180,000 test images would be needed to tell"


def test_images_cannot_help_where_the_seeds_differ_too_much() -> None:
    found = comparison(0.003, seed=0.004**2, image=0.002, rest=0.02)
    assert images_needed(found) is None
    assert needed(found).startswith("about ") and needed(found).endswith(" seeds would be needed to tell")


def test_where_neither_helps_alone_the_text_says_so() -> None:
    found = comparison(0.0001, seed=0.004**2, image=0.02, rest=0.02)
    assert needed(found) == "neither 1,000 seeds nor more test images alone would be enough to tell"


def test_without_an_observed_difference_half_a_point_is_asked_for() -> None:
    assert needed(comparison(0.0, image=0.04, seeds=1)) == "about 13,000 test images would be needed to tell 0.5 points"
    # They must disagree on at least as many: [1.959964 sqrt(0.005) + 0.841621 sqrt(0.005 - 0.005^2)]^2 / 0.005^2
    assert images_needed(comparison(0.0, image=0.0, seeds=1)) == 1_568


def test_one_seed_cannot_say_how_many_would_be_needed() -> None:
    assert seeds_needed(comparison(0.001, image=0.04, seeds=1)) is None
