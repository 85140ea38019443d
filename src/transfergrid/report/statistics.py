"""Intervals for one run, for several seeds, and for the difference between two models on the same test images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev
from typing import Any

import numpy as np

from transfergrid.records import Predictions

# S seeds, N test images, P patterns, K bootstrap draws
CONFIDENCE = 0.95


def wilson(correct: int, n: int) -> tuple[float, float]:
    """95 % score interval for a proportion (Wilson 1927): what other test images of the same kind would change.

    It holds for one trained network; it says nothing about other seeds.
    """
    assert 0 <= correct <= n and n > 0, (correct, n)
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    share = correct / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval for the mean over seeds (Student's t), from at least two values; not clipped.

    It holds for this test set; it says nothing about other images.
    """
    from scipy.special import stdtrit  # the quantile alone: scipy.stats takes a second to import

    assert len(values) >= 2, values
    half = float(stdtrit(len(values) - 1, 0.5 + CONFIDENCE / 2)) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def correct_matrix(predictions: Sequence[Predictions]) -> np.ndarray[Any, Any]:
    """(S, N) bool, one row per seed, columns by image index. Raises ValueError if the seeds saw different images."""
    order_SN = [np.argsort(p.index_N, kind="stable") for p in predictions]
    indices = [p.index_N[order_N] for p, order_N in zip(predictions, order_SN, strict=True)]
    if any(not np.array_equal(indices[0], i) for i in indices[1:]):
        raise ValueError("predictions of different test images cannot be paired; compare runs of one dataset and split")
    return np.stack([(p.predicted_N == p.label_N)[o] for p, o in zip(predictions, order_SN, strict=True)])


def bootstrap_difference(
    correct_a_SN: np.ndarray[Any, Any], correct_b_SN: np.ndarray[Any, Any], *, draws: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Accuracy of a minus accuracy of b: (observed mean, low, high), a 95 % percentile interval.

    Seeds and test images are both drawn with replacement, each draw using the same ones for a and b. Images on which
    the seeds agree in the same way are interchangeable, so a draw is a count per pattern: exact, and fast.
    """
    if correct_a_SN.shape != correct_b_SN.shape or correct_a_SN.ndim != 2 or correct_a_SN.size == 0:
        raise ValueError(
            f"paired matrices (seeds, images) of one shape are needed, got {correct_a_SN.shape} and "
            f"{correct_b_SN.shape}; compare runs with the same seeds on the same test set"
        )
    seeds, images = correct_a_SN.shape
    difference_SN = correct_a_SN.astype(np.int8) - correct_b_SN.astype(np.int8)
    pattern_SP, images_P = np.unique(difference_SN, axis=1, return_counts=True)
    generator = np.random.default_rng(seed)
    drawn_images_KP = generator.multinomial(images, images_P / images, size=draws)
    drawn_seeds_KS = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws)
    difference_K = ((drawn_seeds_KS @ pattern_SP) * drawn_images_KP).sum(axis=1) / (seeds * images)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(difference_K, [tail, 1 - tail])
    return float(difference_SN.mean()), float(low), float(high)
