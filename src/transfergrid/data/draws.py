"""Which pictures or groups of pictures are held out, drawn by a fixed seed: the same on every machine.

A plain folder's pictures are ordered by a hash of their names, class by class, and the first ones are the test split.
So a folder that grows keeps most of its old pictures on their side: only those near the border may change it.
C classes, G groups, N pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from transfergrid.data.tables import Row
from transfergrid.errors import ConfigError
from transfergrid.specs import VAL_FRACTION

TEST_FRACTION = 0.2
_SEED = "split 1"


def with_splits(rows: Sequence[Row], *, test_fraction: float, where: object) -> tuple[Row, ...]:
    """The rows in train and test: class by class, or group by group where they have groups.

    Raises ConfigError for a class that cannot be on both sides. where: the folder or table, for messages.
    """
    by_label: dict[str, list[Row]] = {}
    for row in rows:
        by_label.setdefault(row.label, []).append(row)
    if len(by_label) < 2:
        raise ConfigError(f"{where} has one class, {next(iter(by_label))!r}; wanted two or more")
    for label, own in sorted(by_label.items()):
        if len({row.group or row.path for row in own}) < 2:
            unit = "group" if own[0].group else "picture"
            raise ConfigError(f"{where}: class {label!r} has one {unit}; a split needs two, one of them for test")
    if any(row.group for row in rows):
        in_test = _groups_in_test(rows, test_fraction, where)
        return tuple(replace(row, split="test" if row.group in in_test else "train") for row in rows)
    tested: set[str] = set()
    for own in by_label.values():
        count = min(max(1, round(test_fraction * len(own))), len(own) - 1)
        tested.update(sorted((row.path for row in own), key=_key)[:count])
    return tuple(replace(row, split="test" if row.path in tested else "train") for row in rows)


def _key(name: str) -> bytes:
    return hashlib.sha256(f"{_SEED}\0{name}".encode("utf-8", "surrogateescape")).digest()


def _groups_in_test(rows: Sequence[Row], fraction: float, where: object) -> set[str]:
    names, group_N = np.unique(np.array([row.group for row in rows], object), return_inverse=True)
    labels, label_N = np.unique(np.array([row.label for row in rows], object), return_inverse=True)
    order_G = sorted(range(len(names)), key=lambda g: _key(str(names[g])))
    counts_GC = _counts(label_N, group_N)
    chosen = _nearest(counts_GC, order_G, fraction=fraction)
    taken_C = counts_GC[chosen].sum(axis=0)
    while (lacking := np.flatnonzero(taken_C == 0)).size:
        own = [g for g in order_G if counts_GC[g, lacking[0]]]
        addition = _best(counts_GC, own, taken_C, fraction * counts_GC.sum(axis=0))
        if addition is None:
            raise ConfigError(
                f"{where}: no split by group has class {str(labels[lacking[0]])!r} in train and in test;"
                " add a column split"
            )
        chosen.append(addition)
        taken_C = taken_C + counts_GC[addition]
    return {str(names[g]) for g in chosen}


def val_groups(
    labels_N: NDArray[np.int64], groups_N: NDArray[np.int64], *, val_seed: int, fraction: float = VAL_FRACTION
) -> NDArray[np.int64]:
    """Sorted indices of the rows held out: whole groups, about `fraction` of each class, no class as a whole.

    None where every group holds all there is of a class.
    """
    _, group_N = np.unique(groups_N, return_inverse=True)
    counts_GC = _counts(labels_N, group_N)
    # Random keys rather than permutation(): numpy keeps the stream of random() for good.
    order_G = np.argsort(np.random.Generator(np.random.PCG64(val_seed)).random(len(counts_GC)), kind="stable")
    chosen = _nearest(counts_GC, order_G.tolist(), fraction=fraction)
    return np.flatnonzero(np.isin(group_N, chosen)).astype(np.int64)


def _counts(label_N: NDArray[np.int64], group_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """(G, C)"""
    counts_GC = np.zeros((int(group_N.max()) + 1, int(label_N.max()) + 1), np.int64)
    np.add.at(counts_GC, (group_N, label_N), 1)
    return counts_GC


def _nearest(counts_GC: NDArray[np.int64], order_G: Sequence[int], *, fraction: float) -> list[int]:
    """Groups, taken in this order where they bring each class nearer to its share; at least one that can be spared."""
    total_C = counts_GC.sum(axis=0)
    target_C = fraction * total_C
    taken_C = np.zeros_like(total_C)
    chosen: list[int] = []
    for g in order_G:
        if _spares(counts_GC[g], taken_C, total_C) and _distance(taken_C + counts_GC[g], target_C) < _distance(
            taken_C, target_C
        ):
            chosen.append(g)
            taken_C = taken_C + counts_GC[g]
    if not chosen and (smallest := _best(counts_GC, order_G, taken_C, target_C)) is not None:
        chosen.append(smallest)
    return chosen


def _best(
    counts_GC: NDArray[np.int64], order_G: Sequence[int], taken_C: NDArray[np.int64], target_C: NDArray[np.float64]
) -> int | None:
    """The group that can be spared and brings the classes nearest to their share."""
    total_C = counts_GC.sum(axis=0)
    spared = [g for g in order_G if _spares(counts_GC[g], taken_C, total_C)]
    return min(spared, key=lambda g: _distance(taken_C + counts_GC[g], target_C), default=None)


def _spares(own_C: NDArray[np.int64], taken_C: NDArray[np.int64], total_C: NDArray[np.int64]) -> bool:
    """Whether every class of the group has rows left outside."""
    return bool(((taken_C + own_C < total_C) | (own_C == 0)).all())


def _distance(taken_C: NDArray[np.int64], target_C: NDArray[np.float64]) -> float:
    return float(((taken_C - target_C) ** 2 / np.maximum(target_C, 1e-9)).sum())
