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
    of_seed = _seed_variance(a_SN.astype(np.float64) - b_SN)
    pair = _pair(a_SN.mean(axis=0), b_SN.mean(axis=0), group_N, of_seed=of_seed, seeds=len(a_SN))
    low, high = pair.bounds(_quantile(pair.freedom))
    p_value = 1.0
    if pair.value != 0:
        p_value = min(1.0, 2 * _p_beyond(pair, 0.0, side=0 if pair.value > 0 else 1))
    return Difference(
        value=pair.value,
        low=low,
        high=high,
        p_value=p_value,
        seed_variance=of_seed,
        group_variance=pair.from_groups * count_groups(group_N),
    )


def non_inferiority(best_SN: Array, other_SN: Array, group_N: Array, *, margin: float) -> float | None:
    """One-sided p of "the other is worse than the best by `margin` (in [0, 1]) or more"; None below MIN_GROUPS groups.

    The interval is that of `compare`, but of the images that the other loses minus those that it wins: two accuracies
    that rarely differ say too little of how. p is the level at which its upper end reaches the margin. What fails in
    whole groups may have failed in none of G (Clopper and Pearson 1934), so p is at least that chance: a margin of one
    point takes 299 groups of one size. Groups of unequal size count as Kish's effective number (1965). The seeds alone
    must pass, too, as in statistics.non_inferiority.
    """
    if count_groups(group_N) < MIN_GROUPS:
        return None
    of_seed = _seed_variance(best_SN.astype(np.float64) - other_SN)
    lost_N = best_SN.mean(axis=0) - other_SN.mean(axis=0)
    pair = _pair(np.maximum(lost_N, 0.0), np.maximum(-lost_N, 0.0), group_N, of_seed=of_seed, seeds=len(best_SN))
    p_value = _p_beyond(pair, margin, side=1) if pair.value < margin else 1 - _p_beyond(pair, margin, side=0)
    of_seeds = p_of_seeds(best_SN.mean(axis=1) - other_SN.mean(axis=1), pair.value - margin)
    size_G = np.unique(group_N, return_counts=True)[1]
    effective_groups = float(size_G.sum() ** 2 / (size_G**2).sum())
    return float(max(p_value, (1 - margin) ** effective_groups, of_seeds))


def p_of_seeds(difference_S: Array, beyond: float) -> float:
    """One-sided p of "the true mean difference is the margin or more", by Student's t over seeds alone. beyond: their
    mean minus the margin. 0 for one seed, and where all agree: then seeds say nothing against it."""
    from scipy.special import stdtr

    seeds = len(difference_S)
    error = float(difference_S.std(ddof=1)) / math.sqrt(seeds) if seeds > 1 else 0.0
    return float(stdtr(seeds - 1, beyond / error)) if error > 0 else 0.0


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two shares of the same images. from_seeds, from_groups: parts of the variance of a minus b."""

    a: Share
    b: Share
    together: float
    from_seeds: float
    from_groups: float
    freedom: float

    @property
    def value(self) -> float:
        return self.a.value - self.b.value

    def bounds(self, quantile: float) -> tuple[float, float]:
        (low_a, high_a), (low_b, high_b) = self.a.interval(quantile), self.b.interval(quantile)
        below = _joint(self.a.value - low_a, high_b - self.b.value, self.together)
        above = _joint(high_a - self.a.value, self.b.value - low_b, self.together)
        return _widened(self.value, below, above, quantile * math.sqrt(self.from_seeds), -1.0)


def _pair(a_N: Array, b_N: Array, group_N: Array, *, of_seed: float, seeds: int) -> _Pair:
    a, b, together = share_of(a_N, group_N), share_of(b_N, group_N), _correlation(a_N, b_N, group_N)
    of_a, of_b = a.value * (1 - a.value) / a.effective, b.value * (1 - b.value) / b.effective
    from_groups = max(0.0, of_a + of_b - 2 * together * math.sqrt(of_a * of_b))
    freedom = _freedom(of_seed / seeds, from_groups, seeds, count_groups(group_N) - 1)
    return _Pair(a, b, together, of_seed / seeds, from_groups, freedom)


def _p_beyond(pair: _Pair, value: float, *, side: int) -> float:
    """One-sided, from the smallest quantile at which the interval's lower (0) or upper (1) end holds the value, which
    lies on that side of the difference."""
    from scipy.special import stdtr

    inside, outside = _LARGEST, 0.0
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        bound = pair.bounds(middle)[side]
        holds = bound <= value if side == 0 else bound >= value
        inside, outside = (middle, outside) if holds else (inside, middle)
    return float(stdtr(pair.freedom, -inside))


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
