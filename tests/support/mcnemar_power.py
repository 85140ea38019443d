"""The power of the exact McNemar test, by every possible outcome: what the formula of the report must agree with."""

from __future__ import annotations

import math

import numpy as np

from transfergrid.report.analysis.power import LEVEL


def mcnemar_power(difference: float, disagreement: float, *, images: int) -> float:
    """Probability that the exact McNemar test finds p < 5 %; disagreement: share of images that one of both has right.

    Exact: binomial in how many images they disagree on, then in how many of those a has right.
    """
    from scipy.special import bdtr, gammaln, xlog1py, xlogy

    assert 0 < disagreement <= 1 and abs(difference) <= disagreement, (difference, disagreement)
    spread = 8 * math.sqrt(images * disagreement) + 8
    low, high = max(0, int(images * disagreement - spread)), min(images, int(images * disagreement + spread))
    n_D = np.arange(low, high + 1)
    log_D = gammaln(images + 1) - gammaln(n_D + 1) - gammaln(images - n_D + 1)
    chance_D = np.exp(log_D + xlogy(n_D, disagreement) + xlog1py(images - n_D, -disagreement))
    share = (1 + difference / disagreement) / 2  # of the disagreements, those that a has right
    found = 0.0
    for n, chance in zip(n_D.tolist(), chance_D.tolist(), strict=True):
        tail_K = bdtr(np.arange(n // 2 + 1), n, 0.5)
        rejected = int(np.searchsorted(2 * tail_K, LEVEL))  # at most so many minus one on the rarer side
        if rejected:
            found += chance * float(bdtr(rejected - 1, n, share) + bdtr(rejected - 1, n, 1 - share))
    return found
