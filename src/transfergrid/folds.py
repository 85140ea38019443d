"""Which rows of a data set are trained on, chosen on, compared at the gate, and reported on. No torch.

Rows are named by their index in the published split, everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from transfergrid import data
from transfergrid.data import DatasetFacts, LabeledImages, PictureRules
from transfergrid.data.splits import rows_per_class, stratified_subset, val_indices
from transfergrid.errors import DataError
from transfergrid.paths import cache_paths
from transfergrid.specs import DatasetSpec, RunSpec, Runtime, Split, seed_for


@dataclass(frozen=True, slots=True)
class Fold:
    """Sorted indices into a published split, and their labels."""

    split: Split
    index_N: NDArray[np.int64]
    labels_N: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.index_N)


@dataclass(frozen=True, slots=True)
class Folds:
    """train: what is trained on. val: what is chosen on, None under `published`. gate: compared at hand-over.

    unlabelled: every image of the training split that the run may look at, whether or not it learns from its label.
    """

    train: Fold
    val: Fold | None
    gate: Fold
    test: Fold
    unlabelled: Fold


def dataset_facts(spec: DatasetSpec, runtime: Runtime) -> DatasetFacts:
    """The facts of a run's data set as it lies on disk now. Raises DataError where it has changed since the plan."""
    found = _facts(spec.kind, runtime.data_folders.get(spec.name), str(cache_paths(runtime).folder_hashes))
    if found.fingerprint != spec.fingerprint:
        raise DataError(f"data set {spec.name!r} has changed since this run was planned; launch again")
    return found


@lru_cache(maxsize=64)
def _facts(kind: str, folder: str | None, kept_hashes: str) -> DatasetFacts:
    return data.facts(kind, folder=None if folder is None else Path(folder), kept_hashes=Path(kept_hashes), keep=False)


def open_splits(spec: DatasetSpec, runtime: Runtime) -> dict[Split, LabeledImages]:
    """Every split of a data set, its files verified."""
    folder = runtime.data_folders.get(spec.name)
    where = {"data_dir": Path(runtime.data_dir), "folder": None if folder is None else Path(folder)}
    facts, rules = dataset_facts(spec, runtime), rules_of(spec)
    return {s: data.load(spec.kind, split=s, rules=rules, **where) for s in splits_of(facts)}  # type: ignore[arg-type]


def rules_of(spec: DatasetSpec) -> PictureRules:
    """How the data set's files become 8-bit RGB."""
    return PictureRules(spec.value_range, spec.orientation)


def picture_details(spec: DatasetSpec, runtime: Runtime) -> dict[str, object]:
    """For the record. orientation: `stored` only where pictures were left unturned against their EXIF data.

    beyond_value_range: split -> pictures whose values lie partly outside the range, where there are any.
    """
    facts = dataset_facts(spec, runtime)
    unturned = spec.orientation == "stored" and facts.turned > 0
    beyond = {} if spec.value_range is None else facts.beyond(spec.value_range)
    details: dict[str, object] = {"orientation": "stored" if unturned else "exif"}
    return details | ({"beyond_value_range": beyond} if beyond else {})


def splits_of(facts: DatasetFacts) -> tuple[Split, ...]:
    names: tuple[Split, ...] = ("train", "val", "test")
    return tuple(s for s in names if s in facts.num_images)


def subset(spec: DatasetSpec, labels_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """The indices of a split that this run sees: all, or max_images with class shares kept."""
    if spec.max_images is None or spec.max_images >= len(labels_N):
        return np.arange(len(labels_N))
    return stratified_subset(labels_N, max_images=spec.max_images)


def make_folds(spec: RunSpec, labels: Mapping[Split, NDArray[np.int64]]) -> Folds:
    """From the labels (N,) of every whole split. val is 10 % of train unless the data set has its own.

    Under `published` the same rows stay in the training set and serve the gate only.
    """
    seen = {split: subset(spec.dataset, labels_N) for split, labels_N in labels.items()}
    everything = {split: Fold(split, index_N, labels[split][index_N]) for split, index_N in seen.items()}
    unlabelled, test = everything["train"], everything["test"]
    train = unlabelled
    if "val" in everything:
        gate = everything["val"]
    else:
        assert spec.val_seed is not None
        held_N = val_indices(train.labels_N, val_seed=spec.val_seed)
        gate = Fold("train", train.index_N[held_N], train.labels_N[held_N])
        if spec.protocol == "fair":
            kept_N = np.setdiff1d(np.arange(len(train)), held_N)
            train = Fold("train", train.index_N[kept_N], train.labels_N[kept_N])
    return Folds(_share(spec, train), gate if spec.protocol == "fair" else None, gate, test, unlabelled)


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
        wanted = max(1, round(spec.train_fraction * len(train)))
        kept_N = stratified_subset(train.labels_N, max_images=wanted, seed=seed)
    return Fold(train.split, train.index_N[kept_N], train.labels_N[kept_N])
