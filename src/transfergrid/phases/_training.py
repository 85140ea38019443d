"""fit() as a run asks for it, and what its record says of that."""

from __future__ import annotations

from typing import Any

import torch

from transfergrid.phases import RunContext
from transfergrid.specs import TrainSettings
from transfergrid.training.loop import FitResult, Trainee, fit
from transfergrid.training.optimization import ParameterGroup


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
