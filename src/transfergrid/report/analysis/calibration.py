"""Does a network that says 90 % have it right in 90 % of such images? Reliability bins and the expected error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from transfergrid.store.records import Predictions

# N images, B bins
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class ReliabilityBins:
    """Per bin (low, high] of confidence: images, and of those the mean confidence and accuracy (NaN where empty)."""

    low_B: Array
    high_B: Array
    images_B: Array
    confidence_B: Array
    accuracy_B: Array


def confidence(predictions: Predictions) -> Array:
    """(N,) float64: the probability each image's predicted class was given."""
    from scipy.special import softmax

    logits_NC = predictions.logits_NC.astype(np.float64)
    probability_N: Array = softmax(logits_NC, axis=1).max(axis=1)
    if predictions.logsumexp_N is not None:  # of all classes; only some logits are kept
        probability_N = np.minimum(np.exp(logits_NC.max(axis=1) - predictions.logsumexp_N), 1.0)
    return probability_N


def reliability_bins(confidence_N: Array, correct_N: Array, *, bins: int = 15) -> ReliabilityBins:
    """Bins of equal width over (0, 1], each open below and closed above (Guo et al. 2017)."""
    assert confidence_N.shape == correct_N.shape and confidence_N.ndim == 1, (confidence_N.shape, correct_N.shape)
    edges = np.linspace(0, 1, bins + 1)
    bin_N = np.clip(np.searchsorted(edges, confidence_N, side="left") - 1, 0, bins - 1)
    images_B = np.bincount(bin_N, minlength=bins)
    divisor_B = np.where(images_B > 0, images_B, np.nan)
    return ReliabilityBins(
        edges[:-1],
        edges[1:],
        images_B,
        np.bincount(bin_N, weights=confidence_N, minlength=bins) / divisor_B,
        np.bincount(bin_N, weights=correct_N.astype(np.float64), minlength=bins) / divisor_B,
    )


def expected_calibration_error(confidence_N: Array, correct_N: Array, *, bins: int = 15) -> float:
    """Mean over images of |accuracy - confidence| of their bin, in [0, 1] (Guo et al. 2017, eq. 3)."""
    reliability = reliability_bins(confidence_N, correct_N, bins=bins)
    gap_B = np.nan_to_num(np.abs(reliability.accuracy_B - reliability.confidence_B))
    return float((reliability.images_B * gap_B).sum() / len(confidence_N))
