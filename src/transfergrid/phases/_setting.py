"""What a run on images sees, opened once; and fit() as every run that trains asks for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from transfergrid.data.batches import NetworkInputs
from transfergrid.data.folds import Folds, dataset_facts, make_folds, open_splits
from transfergrid.networks.backbones.weight_files import Taken
from transfergrid.phases import RunContext
from transfergrid.specs import PreprocessSpec, Split, TrainSettings
from transfergrid.training.device import device_of
from transfergrid.training.loop import FitResult, Trainee, fit
from transfergrid.training.optimization import ParameterGroup
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


def train(
    context: RunContext, trainee: Trainee, groups: list[ParameterGroup], *, device: torch.device
) -> tuple[FitResult, dict[str, Any]]:
    """The trainee's module ends with the weights of the epoch that the study's rule chose. Second: the record's
    details."""
    spec, settings = context.spec, context.spec.settings
    assert isinstance(settings, TrainSettings) and spec.seed is not None
    result = fit(
        trainee,
        settings,
        groups,
        attempt=context.attempt,
        seed=spec.seed,
        device=device,
        checkpoint_min_interval_s=context.runtime.checkpoint_min_interval_s,
        stop=context.stop,
        usage=context.usage,
    )
    if result.best_state is not None:
        trainee.module.load_state_dict(result.best_state)
    steps = {"first_step": result.first_step, "optimizer_steps": result.optimizer_steps}
    return result, steps | result.rules(settings.epochs)
