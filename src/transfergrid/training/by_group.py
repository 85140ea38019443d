"""Accuracies and their differences where images come in groups: patients, videos, tiles of one scene.

Images of one group are right or wrong together, so N images tell less than N. How much less is measured: by the
intra-group correlation, from an analysis of variance. With few groups that have errors it is measured badly, and mostly
too low. So two imagined groups count with them in which all images agree. The effective number of images then stands in
Wilson's interval. Simulations in docs/results/groups.md: this covers where Student's t with G - 1 degrees of freedom
and the cluster bootstrap do not.

S seeds, N images, G groups. Accuracies and differences in [-1, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
MIN_GROUPS = 10  # fewer say too little of how groups differ
IMAGINED = 2
CONFIDENCE = 0.95
_LARGEST = 40.0  # of a quantile: what is beyond has a p of zero
_HALVINGS = 60


@dataclass(frozen=True, slots=True)
class Share:
    """Of images that are right. effective: as many independent images would tell as much about it."""

    value: float
    effective: float

    def interval(self, quantile: float) -> tuple[float, float]:
        """Wilson's score interval at this quantile of a normal or Student's distribution."""
        p, n, q = self.value, self.effective, quantile
        centre = (p + q * q / (2 * n)) / (1 + q * q / n)
        half = q * math.sqrt(p * (1 - p) / n + q * q / (4 * n * n)) / (1 + q * q / n)
        return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """a minus b. low, high: 95 %. seed_variance: of one seed's difference, group_variance: of one group's, so that the
    mean has seed_variance / S + group_variance / G."""

    value: float
    low: float
    high: float
    p_value: float
    seed_variance: float
    group_variance: float


def count_groups(group_N: Array) -> int:
    return len(np.unique(group_N))


def share_of(right_N: Array, group_N: Array) -> Share:
    """right_N: of each image the share of seeds that have it right."""
    _, place_N = np.unique(group_N, return_inverse=True)
    size_G = np.bincount(place_N)
    mean_G = np.bincount(place_N, right_N) / size_G
    value = float(right_N.mean())
    images, groups = len(right_N), len(size_G)
    within = float(((right_N - mean_G[place_N]) ** 2).sum()) / max(images - groups, 1)
    between = float((size_G * (mean_G - value) ** 2).sum()) / max(groups - 1, 1)
    typical = (images - float((size_G**2).sum()) / images) / max(groups - 1, 1)
    total = between + (typical - 1) * within
    correlation = min(1.0, max(0.0, (between - within) / total)) if total > 0 else 1.0
    telling = min(int((mean_G < 1).sum()), int((mean_G > 0).sum()))  # groups with errors, or with hits, if fewer
    correlation = (telling * correlation + IMAGINED) / (telling + IMAGINED)
    return Share(value, images / (1 + (float((size_G**2).sum()) / images - 1) * correlation))


def interval(right_SN: Array, group_N: Array) -> tuple[float, float]:
    """95 % interval of the mean accuracy: what other groups of the same kind would change, and for several seeds what
    other seeds would."""
    share = share_of(right_SN.mean(axis=0), group_N)
    seeds, from_seeds = len(right_SN), _seed_variance(right_SN) / len(right_SN)
    from_groups = share.value * (1 - share.value) / share.effective
    quantile = _quantile(_freedom(from_seeds, from_groups, seeds, math.inf))
    low, high = share.interval(quantile)
    return _widened(share.value, share.value - low, high - share.value, quantile * math.sqrt(from_seeds), 0.0)


def compare(a_SN: Array, b_SN: Array, group_N: Array) -> Difference:
    """Newcombe's hybrid score interval for paired proportions (1998, method 10), on the groups' intervals and their
    correlation, at Student's quantile with G - 1 degrees of freedom. p is the level at which it reaches zero.

    Several seeds add their own variance, with degrees of freedom by Satterthwaite (1946).
    """
    a_N, b_N = a_SN.mean(axis=0), b_SN.mean(axis=0)
    a, b, together = share_of(a_N, group_N), share_of(b_N, group_N), _correlation(a_N, b_N, group_N)
    seeds, groups = len(a_SN), count_groups(group_N)
    of_seed = _seed_variance(a_SN.astype(np.float64) - b_SN)
    of_a, of_b = a.value * (1 - a.value) / a.effective, b.value * (1 - b.value) / b.effective
    from_groups = max(0.0, of_a + of_b - 2 * together * math.sqrt(of_a * of_b))
    freedom = _freedom(of_seed / seeds, from_groups, seeds, groups - 1)

    def bounds(quantile: float) -> tuple[float, float]:
        (low_a, high_a), (low_b, high_b) = a.interval(quantile), b.interval(quantile)
        below = _joint(a.value - low_a, high_b - b.value, together)
        above = _joint(high_a - a.value, b.value - low_b, together)
        return _widened(a.value - b.value, below, above, quantile * math.sqrt(of_seed / seeds), -1.0)

    low, high = bounds(_quantile(freedom))
    return Difference(
        value=a.value - b.value,
        low=low,
        high=high,
        p_value=_p_value(bounds, a.value - b.value, freedom),
        seed_variance=of_seed,
        group_variance=from_groups * groups,
    )


def _p_value(bounds: Any, difference: float, freedom: float) -> float:
    """Two-sided, from the smallest quantile at which the interval holds zero."""
    from scipy.special import stdtr

    if difference == 0:
        return 1.0
    side = 0 if difference > 0 else 1
    inside, outside = _LARGEST, 0.0
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        holds_zero = bounds(middle)[side] <= 0 if side == 0 else bounds(middle)[side] >= 0
        inside, outside = (middle, outside) if holds_zero else (inside, middle)
    return min(1.0, 2 * float(stdtr(freedom, -inside)))


def _quantile(freedom: float) -> float:
    from scipy.special import stdtrit

    if math.isinf(freedom):
        return NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    return float(stdtrit(freedom, 0.5 + CONFIDENCE / 2))


def _freedom(from_seeds: float, from_groups: float, seeds: int, of_groups: float) -> float:
    if from_seeds == 0:
        return of_groups
    part = from_seeds / (from_seeds + from_groups)
    return 1 / ((1 - part) ** 2 / of_groups + part**2 / (seeds - 1))


def _widened(value: float, below: float, above: float, by_seeds: float, least: float) -> tuple[float, float]:
    return max(least, value - math.hypot(below, by_seeds)), min(1.0, value + math.hypot(above, by_seeds))


def _joint(one: float, other: float, together: float) -> float:
    return math.sqrt(max(0.0, one**2 - 2 * together * one * other + other**2))


def _correlation(a_N: Array, b_N: Array, group_N: Array) -> float:
    """Of what the groups add to either accuracy; 0 where one model has all or no image right."""
    _, place_N = np.unique(group_N, return_inverse=True)
    a_G, b_G = (np.bincount(place_N, right_N - right_N.mean()) for right_N in (a_N, b_N))
    size = math.sqrt(float((a_G**2).sum() * (b_G**2).sum()))
    return float((a_G * b_G).sum()) / size if size > 1e-12 else 0.0


def _seed_variance(values_SN: Array) -> float:
    """Of one seed's mean, beyond what single images would make of it (two-way layout; below zero counts as zero)."""
    seeds, images = values_SN.shape
    if seeds == 1 or images == 1:
        return 0.0
    of_seed_S, of_image_N = values_SN.mean(axis=1), values_SN.mean(axis=0)
    rest_SN = values_SN - of_seed_S[:, None] - of_image_N[None, :] + values_SN.mean()
    rest = float((rest_SN**2).sum()) / ((seeds - 1) * (images - 1))
    variance: float = of_seed_S.var(ddof=1) - rest / images
    return max(0.0, float(variance))
