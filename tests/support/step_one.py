"""A run of a grid file at full size, stopped inside its first optimizer steps, with the live objects it trains with.

Images are made up, as many as the published data set has; only those of the first steps are ever read.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from transfergrid.config import load_grid
from transfergrid.data import LabeledImages, facts
from transfergrid.networks.backbones.build import build as build_backbone
from transfergrid.paths import store_paths
from transfergrid.phases import RunContext, _on_images, _parity, _setting, phase_module
from transfergrid.specs import Configuration, DatasetSpec, RunSpec, Runtime, Split, TrainSettings
from transfergrid.store.attempts import begin_attempt
from transfergrid.training import loop
from transfergrid.training.on_images import ImageTrainee
from transfergrid.training.optimization import ParameterGroup, make_optimizer
from transfergrid.training.stopping import StopFlag
from transfergrid.training.usage import UsageMeter

Row = tuple[str, str, str, str]  # data set, model, phase, variant


class MadeUp:
    """A split of a published data set's size and shape. Image i is the (i mod 64)th of a bank of blocky noise."""

    def __init__(self, kind: str, split: Split) -> None:
        known = facts(kind)
        assert known.image_size_px is not None
        self.image_size_px = known.image_size_px
        self.class_names = known.class_names
        self.labels_N = np.arange(known.num_images[split], dtype=np.int64) % known.num_classes
        channels = 1 if kind == "mnist" else 3
        quarter_px = known.image_size_px // 4
        rng = np.random.default_rng(7 if split == "train" else 8)
        blocks = rng.integers(40, 200, (64, quarter_px, quarter_px, channels), dtype=np.uint8)
        self._bank = blocks.repeat(4, 1).repeat(4, 2)
        self._bank += rng.integers(0, 40, self._bank.shape, dtype=np.uint8)

    @property
    def shorter_edges_px(self) -> NDArray[np.int64]:
        raise AssertionError("all images have one size")

    def __len__(self) -> int:
        return len(self.labels_N)

    def read(self, indices: Sequence[int] | NDArray[np.integer]) -> NDArray[np.uint8]:
        read: NDArray[np.uint8] = self._bank[np.asarray(indices) % len(self._bank)]
        return read

    def each(self, indices: Any, made: Any) -> Any:
        return [made(image) for image in self.read(indices)]

    def array(self) -> NDArray[np.uint8]:
        raise AssertionError("nothing of a first step reads every image")


class Enough(Exception):
    """Raised in place of one more forward pass."""


@dataclass
class StepOne:
    """What a run had built when it stopped. batches: network inputs of the forward passes that were begun.

    bn_images: over how many images each BatchNorm layer normalised; modes: `training` of every module, in a pass.
    """

    run: RunSpec
    network: nn.Module
    trainee: ImageTrainee
    settings: TrainSettings
    optimizer: torch.optim.Optimizer
    batches: list[tuple[Tensor, ...]] = field(default_factory=list)
    bn_images: list[int] = field(default_factory=list)
    modes: dict[str, bool] = field(default_factory=dict)
    rates: list[list[float]] = field(default_factory=list)
    mixed_precision: bool = False
    start: dict[str, Tensor] = field(default_factory=dict)

    @property
    def base_optimizer(self) -> torch.optim.Optimizer:
        found: torch.optim.Optimizer = getattr(self.optimizer, "_base_optimizer", self.optimizer)
        return found

    def rates_by_parameter(self) -> dict[str, float]:
        """Parameter name -> its learning rate in force; parameters in no group are left out."""
        names = {id(p): name for name, p in self.network.named_parameters()}
        return {names[id(p)]: float(g["lr"]) for g in self.optimizer.param_groups for p in g["params"]}


@lru_cache(maxsize=8)
def grid(name: str, *arguments: str) -> tuple[dict[Row, Configuration], Runtime]:
    """A grid as the command line composes it; its store is in the working directory, whichever that is by then."""
    asked = load_grid([f"grid={name}", "device=cpu", "tracking=disabled", "data.resident_gb=0", *arguments])
    rows: dict[Row, Configuration] = {
        (c.run.dataset.name, c.run.model, c.run.phase, c.variant): c for c in asked.configurations
    }
    assert len(rows) == len(asked.configurations)
    return rows, asked.runtime


def first_step(run: RunSpec, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, *, passes: int = 0) -> StepOne:
    """Begin a run as a job does; `passes` forward passes are made, and the one after them is not."""
    found: list[StepOne] = []

    def capture(trainee: ImageTrainee, settings: TrainSettings, groups: list[ParameterGroup], **rest: Any) -> Any:
        def keep(settings: TrainSettings, groups: list[ParameterGroup]) -> torch.optim.Optimizer:
            optimizer = make_optimizer(settings, groups)
            found.append(StepOne(run, trainee.module, trainee, settings, optimizer))
            found[0].start = {name: p.detach().clone() for name, p in trainee.module.named_parameters()}
            return optimizer

        with monkeypatch.context() as patch:
            patch.setattr(loop, "make_optimizer", keep)
            hooks = [trainee.module.register_forward_pre_hook(lambda module, inputs: _watch(found[0], inputs, passes))]
            for module in trainee.module.modules():
                if isinstance(module, _BatchNorm):
                    hooks.append(
                        module.register_forward_hook(lambda _, inputs, __: found[0].bn_images.append(len(inputs[0])))
                    )
            try:
                return loop.fit(trainee, settings, groups, **rest)
            finally:
                for hook in hooks:
                    hook.remove()

    with monkeypatch.context() as patch:
        patch.setattr(_setting, "open_splits", _made_up_splits)
        patch.setattr(_on_images, "build", _built)
        patch.setattr(_setting, "fit", capture)
        # What a fine-tuning starts from is proved in test_parity; here no probe has run.
        patch.setattr(_parity, "load_probe", lambda *_: None)
        patch.setattr(_parity, "assert_parity", lambda *_, **__: None)
        with begin_attempt(store_paths(runtime).run(run.run_id), run) as attempt, pytest.raises(Enough):
            phase_module(run.phase).run(RunContext(run, runtime, attempt, StopFlag(), UsageMeter()))
    return found[0]


def _watch(step: StepOne, inputs: tuple[Tensor, ...], passes: int) -> None:
    step.batches.append(tuple(x.detach().clone() for x in inputs))
    step.modes = {name: module.training for name, module in step.network.named_modules()}
    step.rates.append([float(g["lr"]) for g in step.optimizer.param_groups])
    step.mixed_precision |= torch.is_autocast_enabled("cpu")
    if len(step.batches) > passes:
        raise Enough


def _made_up_splits(spec: DatasetSpec, runtime: Runtime) -> dict[Split, LabeledImages]:
    return {"train": made_up(spec.kind, "train"), "test": made_up(spec.kind, "test")}


@lru_cache(maxsize=8)
def made_up(kind: str, split: Split) -> LabeledImages:
    return MadeUp(kind, split)


_kept: dict[str, nn.Module] = {}


def _built(spec: Any, **rest: Any) -> nn.Module:
    """The real builder, once for each network: VGG16 draws its 138 million weights for seconds."""
    if spec.name not in _kept:
        _kept[spec.name] = build_backbone(spec, **rest)
    return copy.deepcopy(_kept[spec.name])
