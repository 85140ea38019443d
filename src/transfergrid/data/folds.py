"""Which rows of a data set are trained on, chosen on, compared at the gate, and reported on. No torch.

Rows are named by their index in the published split, everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from transfergrid import data
from transfergrid.data import DatasetFacts, LabeledImages, PictureRules
from transfergrid.data.draws import val_groups
from transfergrid.data.splits import (
    rows_per_class,
    stratified_subset,
    subset_counts,
    val_counts,
    val_indices,
    val_was_larger,
)
from transfergrid.errors import DataError
from transfergrid.paths import cache_paths
from transfergrid.specs import DatasetSpec, Protocol, RunSpec, Runtime, Split, TrainSettings, seed_for

FEW_VAL_IMAGES = 30  # one more right is over 3 points: fewer images tell good choices from bad ones badly
FEW_STEPS = 50  # of the optimizer, in a whole run
IMBALANCE = 3.0  # the largest class has more than so many times the images of the smallest

GATE_ROWS = 256
NO_GROUPS: Mapping[str, NDArray[np.int64]] = MappingProxyType({})
GATE_SETS = ("gate", "gate_train")  # of stored predictions: the gate's held-out rows, then its training rows


@dataclass(frozen=True, slots=True)
class Fold:
    """Sorted indices into a published split, their labels, and their groups as numbers where the data set has any."""

    split: Split
    index_N: NDArray[np.int64]
    labels_N: NDArray[np.int64]
    groups_N: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.index_N)


@dataclass(frozen=True, slots=True)
class Folds:
    """train: what is trained on. val: what is chosen on; None under `published`, and where no class can spare an image.


    gate: what is compared at hand-over, at most GATE_ROWS in all: held-out rows, then, where those are fewer, training
    rows, the same for every share of them. A name of GATE_SETS for each.
    unlabelled: every image of the training split that the run may look at, whether or not it learns from its label.
    """

    train: Fold
    val: Fold | None
    gate: tuple[Fold, ...]
    test: Fold
    unlabelled: Fold


@dataclass(frozen=True, slots=True)
class RowCounts:
    """How many images of a data set a run's folds hold, known without reading a label.

    train_C: of each class, those trained on. held: what val is or, under `published`, would be. gate: compared at the
    hand-over.
    val_was_larger: whether the first release held out other images, and so trained on others.
    """

    train_C: NDArray[np.int64]
    val: int
    held: int
    gate: int
    test: int
    val_was_larger: bool

    @property
    def train(self) -> int:
        return int(self.train_C.sum())

    @property
    def is_imbalanced(self) -> bool:
        return bool(self.train_C.size) and int(self.train_C.max()) > IMBALANCE * int(self.train_C.min())


def count_rows(
    facts: DatasetFacts,
    *,
    max_images: int | None,
    protocol: Protocol | None,
    train_fraction: float | None,
    shots: int | None,
    val_seed: int | None = 0,
) -> RowCounts:
    """The sizes of the folds that make_folds makes; all are 0 where the data set has no train."""
    seen = {split: min(count, max_images or count) for split, count in facts.num_images.items()}
    counts_C = np.array(facts.train_counts, dtype=np.int64)
    if counts_C.size and seen["train"] < counts_C.sum():
        counts_C = subset_counts(counts_C, max_images=seen["train"])
    held_C = val_counts(counts_C) if "val" not in seen and counts_C.size else np.zeros_like(counts_C)
    if "train" in facts.groups and "val" not in seen:
        held_C = _held_by_group(facts, max_images=max_images, val_seed=val_seed or 0)
    held = seen.get("val", int(held_C.sum()))
    gate = min(GATE_ROWS, seen.get("train", 0) + seen.get("val", 0))
    larger = "val" not in seen and bool(counts_C.size) and val_was_larger(counts_C)
    if protocol == "fair":
        counts_C = counts_C - held_C
    if shots is not None:
        counts_C = np.minimum(counts_C, shots)
    elif train_fraction is not None and counts_C.size:
        counts_C = subset_counts(counts_C, max_images=_share_of(train_fraction, int(counts_C.sum())))
    return RowCounts(counts_C, held if protocol == "fair" else 0, held, gate, seen.get("test", 0), larger)


def _held_by_group(facts: DatasetFacts, *, max_images: int | None, val_seed: int) -> NDArray[np.int64]:
    """How many rows of each class are held out where whole groups are."""
    labels_N = np.repeat(np.arange(facts.num_classes), facts.train_counts)
    if max_images is not None and max_images < len(labels_N):
        index_N = stratified_subset(labels_N, max_images=max_images)
    else:
        index_N = np.arange(len(labels_N))
    held_N = val_groups(labels_N[index_N], facts.groups["train"][index_N], val_seed=val_seed)
    return np.bincount(labels_N[index_N][held_N], minlength=facts.num_classes)


def class_weights(settings: TrainSettings, train: Fold) -> NDArray[np.float32] | None:
    """By class, what the loss of each of its images is multiplied by; None where all count alike.

    `balanced` as in scikit-learn: n / (classes that occur x images of the class), so its mean over the n rows is 1.
    """
    if settings.class_weights == "none":
        return None
    counts_C = np.bincount(train.labels_N)
    weights_C: NDArray[np.float64] = len(train) / ((counts_C > 0).sum() * np.maximum(counts_C, 1))
    return weights_C.astype(np.float32)


def dataset_facts(spec: DatasetSpec, runtime: Runtime) -> DatasetFacts:
    """The facts of a run's data set as it lies on disk now. Raises DataError where it has changed since the plan."""
    facts = _facts(
        spec.kind,
        runtime.data_folders.get(spec.name),
        runtime.data_tables.get(spec.name),
        str(cache_paths(runtime).folder_hashes),
        runtime.max_megapixels,
        spec.left_out > 0,
    )
    if facts.fingerprint != spec.fingerprint or facts.left_out != spec.left_out:
        raise DataError(f"data set {spec.name!r} has changed since this run was planned", remedy="launch again")
    return facts


@lru_cache(maxsize=64)
def _facts(
    kind: str, folder: str | None, table: str | None, kept_hashes: str, max_megapixels: float, skip_damaged: bool
) -> DatasetFacts:
    return data.facts(
        kind,
        folder=None if folder is None else Path(folder),
        table=None if table is None else Path(table),
        kept_hashes=Path(kept_hashes),
        keep=False,
        max_megapixels=max_megapixels,
        skip_damaged=skip_damaged,
    )


def open_splits(spec: DatasetSpec, runtime: Runtime) -> dict[Split, LabeledImages]:
    """Every split of a data set, its files verified."""
    return {split: open_split(spec, split, runtime) for split in splits_of(dataset_facts(spec, runtime))}


def open_split(spec: DatasetSpec, split: Split, runtime: Runtime, *, download: bool = True) -> LabeledImages:
    """Raises DataError where the data set has changed since the plan, as dataset_facts does."""
    folder = runtime.data_folders.get(spec.name)
    return data.load(
        spec.kind,
        split=split,
        data_dir=Path(runtime.data_dir),
        folder=None if folder is None else Path(folder),
        download=download,
        rules=rules_of(spec, runtime),
        files=dataset_facts(spec, runtime).files,
    )


def rules_of(spec: DatasetSpec, runtime: Runtime) -> PictureRules:
    """How the data set's files become 8-bit RGB."""
    return PictureRules(spec.value_range, spec.orientation, runtime.max_megapixels)


def picture_details(spec: DatasetSpec, runtime: Runtime) -> dict[str, object]:
    """For the record. orientation: `stored` only where pictures were left unturned against their EXIF data.

    beyond_value_range: split -> pictures whose values lie partly outside the range, where there are any.
    """
    facts = dataset_facts(spec, runtime)
    unturned = spec.orientation == "stored" and facts.turned > 0
    beyond = {} if spec.value_range is None else facts.beyond(spec.value_range)
    details: dict[str, object] = {"orientation": "stored" if unturned else "exif"}
    details |= {"inventory": listed} if facts.inventory and (listed := facts.inventory.as_details()) else {}
    return details | ({"beyond_value_range": beyond} if beyond else {})


def splits_of(facts: DatasetFacts) -> tuple[Split, ...]:
    names: tuple[Split, ...] = ("train", "val", "test")
    return tuple(s for s in names if s in facts.num_images)


def subset(spec: DatasetSpec, labels_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """The indices of a split that this run sees: all, or max_images with class shares kept."""
    if spec.max_images is None or spec.max_images >= len(labels_N):
        return np.arange(len(labels_N))
    return stratified_subset(labels_N, max_images=spec.max_images)


def make_folds(
    spec: RunSpec, labels: Mapping[Split, NDArray[np.int64]], groups: Mapping[str, NDArray[np.int64]] = NO_GROUPS
) -> Folds:
    """From the labels (N,) of every whole split, and its groups where there are any. Under `published` the held-out
    rows stay in the training set and serve the gate only."""
    unlabelled, held = rows_seen(spec, labels, "train", groups), held_out(spec, labels, groups)
    rest = unlabelled
    if held.split == "train":
        rest = _at(unlabelled, np.flatnonzero(~np.isin(unlabelled.index_N, held.index_N)))
    first = _spread(held, GATE_ROWS)
    filled = _spread(rest, GATE_ROWS - len(first))
    return Folds(
        train=_share(spec, rest if spec.protocol == "fair" else unlabelled),
        val=held if spec.protocol == "fair" and len(held) else None,
        gate=tuple(fold for fold in (first, filled) if len(fold)),
        test=rows_seen(spec, labels, "test", groups),
        unlabelled=unlabelled,
    )


def held_out(
    spec: RunSpec, labels: Mapping[Split, NDArray[np.int64]], groups: Mapping[str, NDArray[np.int64]] = NO_GROUPS
) -> Fold:
    """The data set's own val; without one, 10 % of train by `val_seed`: none where no class can spare an image, and
    whole groups where there are any."""
    if "val" in labels:
        return rows_seen(spec, labels, "val", groups)
    assert spec.val_seed is not None
    train = rows_seen(spec, labels, "train", groups)
    if train.groups_N is not None:
        return _at(train, val_groups(train.labels_N, train.groups_N, val_seed=spec.val_seed))
    return _at(train, val_indices(train.labels_N, val_seed=spec.val_seed))


def rows_seen(
    spec: RunSpec, labels: Mapping[Split, NDArray[np.int64]], split: Split, groups: Mapping[str, NDArray[np.int64]]
) -> Fold:
    """The rows of a split that the run sees."""
    index_N = subset(spec.dataset, labels[split])
    return Fold(split, index_N, labels[split][index_N], groups[split][index_N] if split in groups else None)


def _at(fold: Fold, positions_N: NDArray[np.int64]) -> Fold:
    groups_N = None if fold.groups_N is None else fold.groups_N[positions_N]
    return Fold(fold.split, fold.index_N[positions_N], fold.labels_N[positions_N], groups_N)


def _spread(fold: Fold, most: int) -> Fold:
    """At most so many rows, evenly over the whole fold: the rows of a folder stand class by class."""
    if len(fold) <= most:
        return fold
    return _at(fold, np.linspace(0, len(fold) - 1, most).round().astype(np.int64))


def _share(spec: RunSpec, train: Fold) -> Fold:
    """The images that are trained on, where the run takes a share of them: chosen by the run's seed, each class its
    part; of one seed, a larger share holds the smaller one."""
    if spec.train_fraction is None and spec.shots is None:
        return train
    assert spec.seed is not None
    seed = seed_for("share", spec.seed)
    if spec.shots is not None:
        kept_N = rows_per_class(train.labels_N, count=spec.shots, seed=seed)
    else:
        assert spec.train_fraction is not None
        kept_N = stratified_subset(train.labels_N, max_images=_share_of(spec.train_fraction, len(train)), seed=seed)
    return _at(train, kept_N)


def _share_of(train_fraction: float, num_train: int) -> int:
    return max(1, round(train_fraction * num_train))
