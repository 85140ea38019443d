"""Simulated test sets whose images come in groups: how often 95 % intervals hold what is true.

As a script it prints the table of docs/results/groups.md: `python tests/support/group_simulation.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.special import expit, stdtrit

from transfergrid.report.analysis.statistics import wilson
from transfergrid.training import by_group

# G groups, N images
Array = np.ndarray[Any, Any]
SIZES = ("equal", "uniform", "lognormal")
DRAWS = 200
BOUNDARIES = ((15, 0.2), (15, 0.3), (30, 0.1), (30, 0.2), (100, 0.03), (100, 0.1))  # groups, and a margin of them
SKILL_SD, SHARED = 6.0, 0.7  # of a group's logit; the part of its variance that two models share


def sizes_of(generator: np.random.Generator, kind: str, groups: int) -> Array:
    """About 20 images each: all of them 20, or 1 to 39, or of a lognormal distribution with a long tail."""
    if kind == "equal":
        return np.full(groups, 20)
    if kind == "uniform":
        return generator.integers(1, 40, groups)
    return np.maximum(1, np.exp(generator.normal(2.5, 1.0, groups)).round()).astype(int)


def drawn_set(
    generator: np.random.Generator, *, accuracy: float, groups: int, correlation: float, sizes: str
) -> tuple[Array, Array]:
    """Are the images right (N,), and of which group is each (N,)? A group's own accuracy is beta-distributed, so that
    two images of it correlate by `correlation`."""
    size_G = sizes_of(generator, sizes, groups)
    both = 1 / correlation - 1
    own_G = generator.beta(accuracy * both, (1 - accuracy) * both, groups)
    group_N = np.repeat(np.arange(groups), size_G)
    return generator.random(len(group_N)) < own_G[group_N], group_N


def centre_of(accuracy: float) -> float:
    """The mean logit of groups for this accuracy, by bisection."""
    z = np.random.default_rng(0).standard_normal(100_000)
    low, high = -10.0, 40.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if expit(middle + SKILL_SD * z).mean() < accuracy else (low, middle)
    return low


def two_models(
    generator: np.random.Generator, centres: tuple[float, float], *, groups: int, sizes: str
) -> tuple[Array, Array, Array]:
    """Right (N,) of either model, and groups (N,): models that fail in much the same groups."""
    size_G = sizes_of(generator, sizes, groups)
    shared_G, *own_2G = generator.standard_normal((3, groups))
    group_N = np.repeat(np.arange(groups), size_G)
    right = [
        generator.random(len(group_N))
        < expit(centre + SKILL_SD * (math.sqrt(SHARED) * shared_G + math.sqrt(1 - SHARED) * own_G))[group_N]
        for centre, own_G in zip(centres, own_2G, strict=True)
    ]
    return right[0], right[1], group_N


def cluster_t(right_N: Array, group_N: Array) -> tuple[float, float]:
    """Student's t with G - 1 degrees of freedom, on the groups' sums (CR1)."""
    sums_G = np.bincount(group_N, right_N - right_N.mean())
    groups = len(sums_G)
    error = math.sqrt(groups / (groups - 1) * float((sums_G**2).sum())) / len(right_N)
    half = float(stdtrit(groups - 1, 0.975)) * error
    return float(right_N.mean()) - half, float(right_N.mean()) + half


def cluster_bootstrap(generator: np.random.Generator, right_N: Array, group_N: Array) -> tuple[float, float]:
    """Percentiles of accuracies of groups drawn with replacement, moved to the spread and tails of Student's t."""
    sums_G, size_G = np.bincount(group_N, right_N), np.bincount(group_N)
    groups = len(size_G)
    drawn_KG = generator.integers(0, groups, (DRAWS, groups))
    accuracy_K = sums_G[drawn_KG].sum(axis=1) / size_G[drawn_KG].sum(axis=1)
    stretch = math.sqrt(groups / (groups - 1)) * float(stdtrit(groups - 1, 0.975)) / 1.96
    low, high = np.quantile(accuracy_K, [0.025, 0.975])
    value = float(right_N.mean())
    return value - stretch * (value - float(low)), value + stretch * (float(high) - value)


def coverages(
    *, accuracy: float, groups: int, correlation: float, sizes: str, repeats: int, others: bool = False
) -> dict[str, float]:
    """Shares of test sets whose interval holds the true accuracy. others: of the methods that are not used, too."""
    generator = np.random.default_rng(groups)
    held = dict.fromkeys(["by group", "Wilson", "t with G - 1", "cluster bootstrap"][: 4 if others else 2], 0)
    for _ in range(repeats):
        right_N, group_N = drawn_set(generator, accuracy=accuracy, groups=groups, correlation=correlation, sizes=sizes)
        intervals = [by_group.interval(right_N[None], group_N), wilson(int(right_N.sum()), len(right_N))]
        if others:
            intervals += [cluster_t(right_N, group_N), cluster_bootstrap(generator, right_N, group_N)]
        for name, (low, high) in zip(held, intervals, strict=True):
            held[name] += low <= accuracy <= high
    return {name: count / repeats for name, count in held.items()}


def two_alike(
    generator: np.random.Generator, accuracy: float, *, margin: float, groups: int, sizes: str
) -> tuple[Array, Array, Array]:
    """Right (N,) of either model, and groups (N,): two models alike but for chance in 2 % of the images, of which the
    second fails in whole groups, now and then. It is worse by the margin."""
    first_N, group_N = drawn_set(generator, accuracy=accuracy, groups=groups, correlation=0.8, sizes=sizes)
    fails_G = generator.random(groups) < margin / accuracy / 0.98
    right = [
        np.where(generator.random(len(group_N)) < 0.02, generator.random(len(group_N)) < accuracy, right_N)
        for right_N in (first_N, first_N & ~fails_G[group_N])
    ]
    return right[0], right[1], group_N


def wrong_claims(*, accuracy: float, margin: float, groups: int, sizes: str, alike: bool, repeats: int) -> float:
    """Share of test sets that call the second model not worse by the margin, of models where it is. alike: as in
    `two_alike`, else `two_models`, which are the margin apart."""
    generator, centres = np.random.default_rng(groups), (0.0, 0.0)
    if not alike:
        centres = (centre_of(accuracy), centre_of(accuracy - margin))
    wrong = 0
    for _ in range(repeats):
        if alike:
            sets = two_alike(generator, accuracy, margin=margin, groups=groups, sizes=sizes)
        else:
            sets = two_models(generator, centres, groups=groups, sizes=sizes)
        p_value = by_group.non_inferiority(sets[0][None], sets[1][None], sets[2], margin=margin)
        wrong += p_value is not None and p_value < 0.05
    return wrong / repeats


def of_differences(*, accuracies: tuple[float, float], groups: int, sizes: str, repeats: int) -> tuple[float, float]:
    """Shares of test sets whose interval holds the true difference, and in which p is below 5 %."""
    generator = np.random.default_rng(groups)
    centres = (centre_of(accuracies[0]), centre_of(accuracies[1]))
    true, held, called = accuracies[0] - accuracies[1], 0, 0
    for _ in range(repeats):
        a_N, b_N, group_N = two_models(generator, centres, groups=groups, sizes=sizes)
        found = by_group.compare(a_N[None], b_N[None], group_N)
        held += found.low <= true <= found.high
        called += found.p_value < 0.05
    return held / repeats, called / repeats


def tables(repeats: int = 2_000) -> Iterator[str]:
    yield "| correlation | sizes | groups | accuracy | by group | Wilson | t with G - 1 | cluster bootstrap |"
    yield "|---:|---|---:|---:|---:|---:|---:|---:|"
    for correlation in (0.8, 0.2):
        for sizes in SIZES:
            for groups in (10, 15, 30, 100):
                for accuracy in (0.8, 0.9, 0.95):
                    found = coverages(
                        accuracy=accuracy,
                        groups=groups,
                        correlation=correlation,
                        sizes=sizes,
                        repeats=repeats,
                        others=True,
                    )
                    cells = " | ".join(f"{100 * share:.1f}" for share in found.values())
                    yield f"| {correlation} | {sizes} | {groups} | {accuracy} | {cells} |"
    yield ""
    yield "| accuracies | sizes | groups | interval holds | p < 5 % |"
    yield "|---|---|---:|---:|---:|"
    for accuracies in ((0.8, 0.8), (0.9, 0.9), (0.9, 0.8), (0.95, 0.9)):
        for sizes in SIZES:
            for groups in (10, 15, 30, 100):
                held, called = of_differences(accuracies=accuracies, groups=groups, sizes=sizes, repeats=repeats)
                pair = f"{accuracies[0]}, {accuracies[1]}"
                yield f"| {pair} | {sizes} | {groups} | {100 * held:.1f} | {100 * called:.1f} |"
    yield ""
    yield "| models | sizes | groups | accuracy | margin | called not worse |"
    yield "|---|---|---:|---:|---:|---:|"
    for alike in (False, True):
        for sizes in SIZES:
            for groups, margin in BOUNDARIES:
                for accuracy in (0.7, 0.9, 0.95):
                    wrong = wrong_claims(
                        accuracy=accuracy, margin=margin, groups=groups, sizes=sizes, alike=alike, repeats=repeats
                    )
                    kind = "alike" if alike else "apart"
                    yield f"| {kind} | {sizes} | {groups} | {accuracy} | {margin} | {100 * wrong:.1f} |"


if __name__ == "__main__":
    for line in tables():
        print(line, flush=True)
