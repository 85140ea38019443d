"""What a run on images sees: its device, its folds and its inputs, opened once."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from transfergrid.data.batches import NetworkInputs
from transfergrid.data.folds import Folds, dataset_facts, make_folds, open_splits
from transfergrid.networks.backbones.weight_files import Taken
from transfergrid.phases import RunContext
from transfergrid.specs import PreprocessSpec, Split
from transfergrid.training.device import device_of
from transfergrid.training.results import Stopwatch


@dataclass(frozen=True, slots=True)
class Setting:
    """A run's device, folds and inputs, opened once. taken: of the user's weights files, by backbone."""

    device: torch.device
    folds: Folds
    inputs: NetworkInputs
    watch: Stopwatch
    taken: dict[str, Taken] = field(default_factory=dict)


def open_setting(context: RunContext, preprocess: tuple[PreprocessSpec, ...]) -> Setting:
    """Images on the device where they fit; every row of every split that the run sees."""
    spec, runtime = context.spec, context.runtime
    watch = Stopwatch()
    device = device_of(runtime)
    splits = open_splits(spec.dataset, runtime)
    groups = dataset_facts(spec.dataset, runtime).groups
    folds = make_folds(spec, {split: images.labels_N for split, images in splits.items()}, groups)
    rows: dict[Split, NDArray[np.int64]] = {}
    estimates_bn = spec.extract is not None and spec.extract.bn_statistics == "target"
    seen = (folds.unlabelled if estimates_bn else folds.train, folds.val, folds.test, *folds.gate)
    for fold in (fold for fold in seen if fold is not None):
        rows[fold.split] = np.union1d(rows.get(fold.split, fold.index_N), fold.index_N)
    inputs = NetworkInputs(splits, preprocess, device=device, resident_gb=runtime.resident_gb, rows=rows)
    return Setting(device, folds, inputs, watch)
