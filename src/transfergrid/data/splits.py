"""Stratified choices of rows: the same rows on every platform for the same labels and seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from transfergrid.specs import VAL_FRACTION


def stratified_subset(labels_N: NDArray[np.int64], *, max_images: int, seed: int = 0) -> NDArray[np.int64]:
    """Sorted indices of min(max_images, N) rows with the class shares kept, at least one per class where that fits."""
    return _take(labels_N, subset_counts(np.bincount(labels_N), max_images=max_images), seed=seed)


def subset_counts(counts_C: NDArray[np.int64], *, max_images: int) -> NDArray[np.int64]:
    """How many rows of each class stratified_subset takes."""
    assert max_images > 0, max_images
    total = min(max_images, int(counts_C.sum()))
    minimum_C = np.minimum(counts_C, 1)
    if minimum_C.sum() > total:
        minimum_C = np.zeros_like(counts_C)
    return _quotas(counts_C, total, minimum_C=minimum_C, maximum_C=counts_C)


def rows_per_class(labels_N: NDArray[np.int64], *, count: int, seed: int) -> NDArray[np.int64]:
    """Sorted indices of `count` rows of every class, or of all where a class has fewer."""
    return _take(labels_N, np.minimum(np.bincount(labels_N), count), seed=seed)


def val_indices(labels_N: NDArray[np.int64], *, val_seed: int, fraction: float = VAL_FRACTION) -> NDArray[np.int64]:
    """Sorted indices of round(fraction * N) rows, at least one, with the class shares kept.

    A class keeps at least one row outside, so that nothing is validated that was never seen in training: where most
    classes have a single row there are fewer, and none where all have.
    """
    return _take(labels_N, val_counts(np.bincount(labels_N), fraction=fraction), seed=val_seed)


def val_counts(counts_C: NDArray[np.int64], *, fraction: float = VAL_FRACTION) -> NDArray[np.int64]:
    """How many rows of each class val_indices takes."""
    maximum_C = np.maximum(counts_C - 1, 0)
    total = min(_val_total(counts_C, fraction), int(maximum_C.sum()))
    return _quotas(counts_C, total, minimum_C=np.zeros_like(counts_C), maximum_C=maximum_C)


def val_was_larger(counts_C: NDArray[np.int64], *, fraction: float = VAL_FRACTION) -> bool:
    """Whether the first release, which then took the only row of some classes, held out other rows."""
    return int(np.maximum(counts_C - 1, 0).sum()) < _val_total(counts_C, fraction)


def _val_total(counts_C: NDArray[np.int64], fraction: float) -> int:
    return max(1, round(fraction * int(counts_C.sum())))


def _quotas(
    counts_C: NDArray[np.int64], total: int, *, minimum_C: NDArray[np.int64], maximum_C: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Rows per class: within one of its exact share where the bounds allow, `total` in all; in integers throughout."""
    num_images = int(counts_C.sum())
    exact_C = counts_C * total  # in units of 1 / num_images
    quotas_C = np.clip(exact_C // max(num_images, 1), minimum_C, maximum_C)
    while (missing := total - int(quotas_C.sum())) != 0:
        owed_C = exact_C - quotas_C * num_images
        if missing > 0:
            open_C = quotas_C < maximum_C
            quotas_C[np.argmax(np.where(open_C, owed_C, np.iinfo(np.int64).min))] += 1
        else:
            open_C = quotas_C > minimum_C
            quotas_C[np.argmin(np.where(open_C, owed_C, np.iinfo(np.int64).max))] -= 1
    return quotas_C


def _take(labels_N: NDArray[np.int64], quotas_C: NDArray[np.int64], *, seed: int) -> NDArray[np.int64]:
    # Random keys and a stable sort rather than permutation(): numpy keeps the stream of random() for good.
    keys_N = np.random.Generator(np.random.PCG64(seed)).random(len(labels_N))
    order_N = np.lexsort((keys_N, labels_N))
    sorted_labels_N = labels_N[order_N]
    first_C = np.searchsorted(sorted_labels_N, np.arange(len(quotas_C)))
    rank_N = np.arange(len(labels_N)) - first_C[sorted_labels_N]
    return np.sort(order_N[rank_N < quotas_C[sorted_labels_N]]).astype(np.int64)
