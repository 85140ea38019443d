"""How likely a difference would have been shown, and how many test images or seeds it would take to tell it.

Everything is for one comparison at 5 % two-sided; a family of comparisons needs somewhat more.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from functools import cache
from statistics import NormalDist

import numpy as np

from transfergrid.report.analysis.statistics import (
    CONFIDENCE,
    Array,
    MeanSquares,
    PairedComparison,
    Variances,
    spread_of_mean,
)
from transfergrid.training.by_group import MIN_GROUPS

LEVEL = 1 - CONFIDENCE
POWER = 0.80  # Cohen 1988, Statistical power analysis for the behavioral sciences, 2.4
SMALLEST_DIFFERENCE = 0.005  # asked for where the observed difference is zero
MOST_SEEDS = 1_000
MOST_IMAGES = 1_000_000_000
STEPS = 200  # of the distribution of the seeds' mean square


def power(difference: float, variances: Variances, *, seeds: int, images: int) -> float:
    """Probability that `statistics.compare` finds p < 5 % where the true difference is this, for several seeds.

    The mean is taken as normal; the standard error and Student's quantile follow from the mean square of the seeds,
    which has only S - 1 degrees of freedom, so the result is the mean over its chi-squared distribution (the others,
    with thousands, are taken at their expectation).
    """
    from scipy.special import ndtr, stdtrit

    assert seeds >= 2, seeds
    true = math.sqrt(variances.seed / seeds + variances.image / images + variances.rest / (seeds * images))
    if true == 0:
        return float(difference != 0)
    squares = MeanSquares(
        seed=(variances.rest + images * variances.seed) * _mean_chi_squares(seeds - 1),
        image=variances.rest + seeds * variances.image,
        rest=variances.rest,
    )
    error_K, freedom_K = spread_of_mean(squares, seeds=seeds, images=images, differing=images)
    bound_K = stdtrit(freedom_K, 1 - LEVEL / 2) * error_K
    return float(np.mean(ndtr((difference - bound_K) / true) + ndtr((-difference - bound_K) / true)))


@cache
def _mean_chi_squares(freedom: int) -> Array:
    """(STEPS,) quantiles of the seeds' mean square over its expectation."""
    from scipy.special import chdtri

    quantiles_K: Array = chdtri(freedom, (np.arange(STEPS) + 0.5) / STEPS) / freedom
    return quantiles_K


def images_needed(comparison: PairedComparison) -> int | None:
    """Test images, or groups of them, that would show the observed difference with 80 % power; None = no number would.

    One seed: Connor 1987, "Sample size for testing differences in proportions for the paired-sample design". Several:
    with as many seeds as there are; where the seeds differ too much, more images cannot help.
    """
    difference = _difference_to_show(comparison)
    if comparison.seeds == 1 and comparison.test == "by_group":
        quantiles = NormalDist().inv_cdf(1 - LEVEL / 2) + NormalDist().inv_cdf(POWER)
        return max(MIN_GROUPS, math.ceil((quantiles / difference) ** 2 * comparison.variances.image))
    if comparison.seeds == 1:
        disagreement = max(comparison.variances.image + comparison.difference**2, difference)
        z, z_power = NormalDist().inv_cdf(1 - LEVEL / 2), NormalDist().inv_cdf(POWER)
        total = z * math.sqrt(disagreement) + z_power * math.sqrt(disagreement - difference**2)
        return math.ceil((total / difference) ** 2)
    seeds, variances = comparison.seeds, comparison.variances
    return _fewest(MOST_IMAGES, lambda images: power(difference, variances, seeds=seeds, images=images))


def seeds_needed(comparison: PairedComparison) -> int | None:
    """Seeds, on the same test images, that would show the observed difference with 80 % power; None = no number would.

    None also for a comparison of one seed, which cannot say how much seeds differ.
    """
    if comparison.seeds == 1:
        return None
    difference, images, variances = _difference_to_show(comparison), comparison.images, comparison.variances
    return _fewest(MOST_SEEDS, lambda seeds: power(difference, variances, seeds=seeds, images=images))


def _fewest(most: int, power_of: Callable[[int], float]) -> int | None:
    candidates = range(2, most + 1)
    at = bisect_left(candidates, POWER, key=power_of)
    return candidates[at] if at < len(candidates) else None


def needed(comparison: PairedComparison) -> str:
    """What it would take to tell the observed difference: `about 38,000 test images would be needed to tell`."""
    aim = "to tell" if comparison.difference else f"to tell {100 * SMALLEST_DIFFERENCE:g} points"
    images = images_needed(comparison)
    unit = "groups of test images" if comparison.test == "by_group" else "test images"
    if comparison.seeds == 1:
        assert images is not None
        return f"about {_rounded(images)} {unit} would be needed {aim}"
    seeds = seeds_needed(comparison)
    if seeds is not None:
        return f"about {_rounded(seeds)} seeds would be needed {aim}"
    if images is not None:
        return f"no number of seeds would do: about {_rounded(images)} {unit} would be needed {aim}"
    return f"neither {MOST_SEEDS:,} seeds nor more {unit} alone would be enough {aim}"


def _difference_to_show(comparison: PairedComparison) -> float:
    return abs(comparison.difference) or SMALLEST_DIFFERENCE


def _rounded(count: int) -> str:
    """Two digits, since no plan is more exact than that."""
    scale = 10 ** max(0, len(str(count)) - 2)
    return f"{-(-count // scale) * scale:,}"
