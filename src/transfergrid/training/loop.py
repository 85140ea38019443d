"""The training loop, to be read downward, and its resume from any step boundary: bit for bit on one kind of device,
but for kernels that are not repeatable there, as attention's backward pass on a GPU.

Data order, augmentation and dropout are functions of (seed, epoch, step or index), so the resume state is only what the
steps have changed (weights, optimizer, averages) and where the run stands: (epoch, step in the epoch).
Shapes: H heads trained side by side (1 but for a probe), B images of a batch.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from transfergrid.data.preprocess import to_device
from transfergrid.errors import Interrupted, TrainingDiverged
from transfergrid.specs import TrainSettings, seed_for
from transfergrid.store.attempts import Attempt
from transfergrid.store.metrics_log import MetricsLog
from transfergrid.training.device import seed_draws
from transfergrid.training.optimization import (
    Anchor,
    ParameterGroup,
    learning_rates,
    lr_factor,
    make_anchors,
    make_ema,
    make_optimizer,
    pull_to_start,
    set_learning_rates,
)
from transfergrid.training.progress import Checkpointer, Clock, Progress, StepLog, TrainState, copied
from transfergrid.training.stopping import StopFlag
from transfergrid.training.usage import UsageMeter


class Trainee(Protocol):
    """What fit() trains: a module, and how a batch of training rows becomes losses."""

    @property
    def module(self) -> nn.Module: ...
    @property
    def num_rows(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def rows_on(self) -> torch.device:
        """Where losses() wants its rows."""

    def train_mode(self) -> None:
        """Put the module into the mode its settings ask for (BatchNorm, dropout)."""

    def losses(self, rows_B: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Mean loss per head (H,), with its graph, and correct predictions per head (H,), of the rows' forward pass."""

    def evaluate(self, module: nn.Module) -> dict[str, Any]:
        """The epoch's figures (`val/accuracy`, ...) of the given weights, in eval mode."""


@dataclass(slots=True)
class FitResult:
    """first_step: the first optimizer step (from 1) that this attempt did; above 1 where it resumed.
    optimizer_steps: of the whole run.

    elapsed_before_s: what earlier attempts took, up to the checkpoint that this one went on from.
    best_epoch, best_accuracy: on test, where the trainee watches it. best_state: the weights of that epoch, only under
    selection `best_on_test`.
    """

    first_step: int
    optimizer_steps: int
    last_epoch: dict[str, Any]
    images_per_s: float
    elapsed_before_s: float
    best_epoch: int
    best_accuracy: float
    best_state: dict[str, Tensor] | None

    def rules(self, epochs: int) -> dict[str, Any]:
        """Where test was watched: what either checkpoint rule gives, each with its epoch; else empty."""
        if "test/accuracy" not in self.last_epoch:
            return {}
        last = {"last_test_accuracy": self.last_epoch["test/accuracy"], "last_epoch": epochs}
        return {"rule": last | {"best_test_accuracy": self.best_accuracy, "best_epoch": self.best_epoch}}


def fit(
    trainee: Trainee,
    settings: TrainSettings,
    groups: list[ParameterGroup],
    *,
    attempt: Attempt,
    seed: int,
    device: torch.device,
    checkpoint_min_interval_s: float,
    stop: StopFlag,
    usage: UsageMeter,
) -> FitResult:
    """Train to the last epoch, from the newest checkpoint if there is one; the trainee's module ends with the weights
    of the last epoch (the averaged ones with EMA or Lookahead).

    Raises TrainingDiverged with the step, Interrupted after a checkpoint when `stop` is set, Superseded if a newer
    attempt exists.
    """
    began = time.monotonic()
    optimizer = make_optimizer(settings, groups)
    anchors = make_anchors(groups)  # before a checkpoint moves the weights away from where they started
    clipped = [] if settings.clip_norm is None else _parameters_by_head(groups, trainee.num_heads)
    ema = make_ema(trainee.module, settings.ema_decay) if settings.ema_decay else None
    state = TrainState(trainee.module, optimizer, ema, Progress())
    state.progress.begin_epoch(1, num_heads=trainee.num_heads)
    lines_kept = state.restore_newest(attempt.paths)
    progress, first_step, elapsed_before_s = state.progress, state.progress.step + 1, state.progress.elapsed_s
    steps_per_epoch = settings.count_steps(trainee.num_rows)
    batch_size = min(settings.batch_size, trainee.num_rows)
    images_per_epoch = _images_per_epoch(settings, trainee.num_rows)
    figures: dict[str, Any] = {}

    gpus = [device] if device.type == "cuda" else []
    attempt.assert_newest()  # opening the metrics truncates them
    with MetricsLog(attempt.paths.metrics, lines_kept=lines_kept) as log, torch.random.fork_rng(gpus):
        steps = StepLog(log, attempt, progress, epochs=settings.epochs)
        clock = Clock(progress, began=began)
        checkpoints = Checkpointer(state, steps, clock, attempt, interval_s=checkpoint_min_interval_s)
        while progress.epoch <= settings.epochs:
            order_N = epoch_order(trainee.num_rows, settings, seed=seed, epoch=progress.epoch)
            order_N = to_device(order_N, trainee.rows_on)
            trainee.train_mode()
            clock.start_steps()
            while progress.step_in_epoch < steps_per_epoch:
                first = progress.step_in_epoch * batch_size
                rows_B = order_N[first : first + batch_size]
                set_learning_rates(optimizer, lr_factor(settings, step=progress.step, steps_per_epoch=steps_per_epoch))
                # By the step's number and not by what came before, so a resumed run draws the same dropout.
                seed_draws(seed_for("dropout", seed, progress.step), device)
                loss_H, correct_H = _optimizer_step(trainee, rows_B, settings, state, anchors, clipped)
                progress.step += 1
                progress.step_in_epoch += 1
                steps.add(learning_rates(optimizer), len(rows_B), loss_H, correct_H)
                if stop.signal is not None:
                    checkpoints.save()
                    reason = f"stopped by signal {stop.signal} after step {progress.step}"
                    raise Interrupted(reason, remedy="launch again to continue")
                checkpoints.save_if_due()
            steps.flush()  # inside the clock: a GPU has done the steps only when their numbers are here
            clock.stop_steps()

            with state.averaged() as averaged:
                figures = trainee.evaluate(averaged)
                accuracy = figures.get("test/accuracy", -1.0)
                state.note_accuracy(averaged, accuracy, keep_weights=settings.selection == "best_on_test")
            _assert_finite(figures, progress.step)
            figures = progress.train_figures(int(figures.get("head", 0))) | figures
            images_per_s = round(progress.epoch * images_per_epoch / max(progress.train_s, 1e-9), 1)
            elapsed_s = round(clock.elapsed_s, 3)
            steps.write_epoch(**figures, images_per_s=images_per_s, elapsed_s=elapsed_s, **usage.gpu_now())
            progress.begin_epoch(progress.epoch + 1, num_heads=trainee.num_heads)
            checkpoints.save_if_due()

        if not figures:  # resumed after the last epoch: the figures stand in the metrics, the weights are the result
            with state.averaged() as averaged:
                figures = trainee.evaluate(averaged)
    with state.averaged() as averaged:
        result_state = copied(averaged)
    trainee.module.load_state_dict(result_state)
    return FitResult(
        first_step=first_step,
        optimizer_steps=progress.step,
        last_epoch=figures,
        images_per_s=settings.epochs * images_per_epoch / max(progress.train_s, 1e-9),
        elapsed_before_s=elapsed_before_s,
        best_epoch=progress.best_epoch,
        best_accuracy=progress.best_accuracy,
        best_state=state.best_state,
    )


def epoch_order(num_rows: int, settings: TrainSettings, *, seed: int, epoch: int) -> Tensor:
    """The order (N,) in which an epoch visits the training rows; drawn on the CPU, so every device sees the same."""
    generator = torch.Generator().manual_seed(seed_for("order", seed, epoch))
    if settings.sampling == "replacement":
        count = settings.count_steps(num_rows) * min(settings.batch_size, num_rows)
        return torch.randint(num_rows, (count,), generator=generator)
    return torch.randperm(num_rows, generator=generator)


def _optimizer_step(
    trainee: Trainee,
    rows_B: Tensor,
    settings: TrainSettings,
    state: TrainState,
    anchors: list[Anchor],
    clipped: list[list[nn.Parameter]],
) -> tuple[Tensor, Tensor]:
    """One step on these rows; mean losses (H,) and correct counts (H,), on the device."""
    loss_H, correct_H = _forward_backward(trainee, rows_B, settings.micro_batch, state.progress.epoch)
    pull_to_start(anchors)  # before clipping, which bounds the step as a whole
    if settings.clip_norm is not None:
        for parameters in clipped:
            nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    if state.ema is not None:
        state.ema.update_parameters(state.module)
    return loss_H, correct_H


def _forward_backward(trainee: Trainee, rows_B: Tensor, micro_batch: int | None, epoch: int) -> tuple[Tensor, Tensor]:
    """Accumulate the gradient of the batch's mean loss; returns mean losses (H,) and correct counts (H,), detached."""
    if micro_batch is None or micro_batch >= len(rows_B):
        loss_H, correct_H = trainee.losses(rows_B, epoch)
        torch.autograd.backward(loss_H, torch.ones_like(loss_H))
        return loss_H.detach(), correct_H
    losses, correct = [], []
    for part in torch.split(rows_B, micro_batch):
        loss_H, correct_H = trainee.losses(part, epoch)
        share = len(part) / len(rows_B)
        torch.autograd.backward(loss_H.sum() * share)
        losses.append(loss_H.detach() * share)
        correct.append(correct_H)
    return torch.stack(losses).sum(0), torch.stack(correct).sum(0)


def _assert_finite(figures: dict[str, Any], step: int) -> None:
    for name, value in figures.items():
        if name.endswith("/loss") and not math.isfinite(value):
            raise TrainingDiverged(step=step, loss=value)


def _parameters_by_head(groups: list[ParameterGroup], num_heads: int) -> list[list[nn.Parameter]]:
    """What is clipped together: everything, or each of several heads by itself, as if it were alone."""
    by_head: dict[str, list[nn.Parameter]] = {}
    for group in groups:
        by_head.setdefault(group.name if num_heads > 1 else "", []).extend(group.parameters)
    return list(by_head.values())


def _images_per_epoch(settings: TrainSettings, num_rows: int) -> int:
    images = settings.count_steps(num_rows) * min(settings.batch_size, num_rows)
    return min(images, num_rows) if settings.sampling == "shuffle" else images  # the last batch may not be full
