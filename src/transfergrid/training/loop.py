"""The training loop, to be read downward, and its resume: bit for bit from any step boundary.

Data order, augmentation and dropout are functions of (seed, epoch, step or index), so the resume state is only what the
steps have changed (weights, optimizer, averages) and where the run stands: (epoch, step in the epoch).
Shapes: H heads trained side by side (1 but for a probe), B images of a batch.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from transfergrid.errors import Interrupted, TrainingDiverged
from transfergrid.specs import TrainSettings, seed_for
from transfergrid.store.attempts import Attempt
from transfergrid.store.metrics_log import MetricsLog
from transfergrid.store.records import read_newest_checkpoint, write_checkpoint
from transfergrid.training.optimization import (
    ParameterGroup,
    learning_rates,
    lookahead_weights,
    lr_factor,
    make_anchors,
    make_ema,
    make_optimizer,
    pull_to_start,
    set_learning_rates,
)
from transfergrid.training.stopping import StopFlag
from transfergrid.training.usage import gpu_now

LOG_EVERY_STEPS = 50  # the device is asked for its numbers once per so many steps
SAVE_COST_SHARE = 50  # a checkpoint is due when this many times the last one's cost has passed


class Trainee(Protocol):
    """What fit() trains: a module, and how a batch of training rows becomes losses."""

    @property
    def module(self) -> nn.Module: ...
    @property
    def num_rows(self) -> int: ...
    @property
    def num_heads(self) -> int: ...

    def train_mode(self) -> None:
        """Put the module into the mode its settings ask for (BatchNorm, dropout)."""

    def losses(self, rows_B: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Mean loss per head (H,), with its graph, and correct predictions per head (H,), of the rows' forward pass."""

    def evaluate(self, module: nn.Module) -> dict[str, Any]:
        """The epoch's figures (`val/accuracy`, ...) of the given weights, in eval mode."""


@dataclass(slots=True)
class Progress:
    """Where a run stands and what it has gathered. Everything in here is in its checkpoints."""

    epoch: int = 1
    step_in_epoch: int = 0
    step: int = 0
    loss_sum_H: list[float] = field(default_factory=list)
    correct_sum_H: list[float] = field(default_factory=list)
    images: int = 0
    train_s: float = 0.0
    elapsed_s: float = 0.0
    best_accuracy: float = -1.0
    best_epoch: int = 0


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
) -> FitResult:
    """Train to the last epoch, from the newest checkpoint if there is one; the trainee's module ends with the weights
    of the last epoch (the averaged ones with EMA or Lookahead).

    Raises TrainingDiverged with the step, Interrupted after a checkpoint when `stop` is set, Superseded if a newer
    attempt exists.
    """
    began = time.monotonic()
    module = trainee.module
    optimizer = make_optimizer(settings, groups)
    clipped = _parameters_by_head(groups, trainee.num_heads)
    anchors = make_anchors(groups)  # before a checkpoint moves the weights away from where they started
    ema = make_ema(module, settings.ema_decay) if settings.ema_decay else None
    progress = Progress(loss_sum_H=[0.0] * trainee.num_heads, correct_sum_H=[0.0] * trainee.num_heads)
    best_state: dict[str, Tensor] | None = None
    lines_kept = 0
    restored = read_newest_checkpoint(attempt.paths)
    if restored is not None:
        file, content = restored
        progress, best_state = _restore(content, module, optimizer, ema, device)
        lines_kept = file.lines
    first_step = progress.step + 1
    elapsed_before = progress.elapsed_s
    steps_per_epoch = settings.count_steps(trainee.num_rows)
    batch_size = min(settings.batch_size, trainee.num_rows)
    images_per_epoch = steps_per_epoch * batch_size
    if settings.sampling == "shuffle":
        images_per_epoch = min(images_per_epoch, trainee.num_rows)
    last_saved, save_cost_s = time.monotonic(), 0.0
    training_since: float | None = None
    figures: dict[str, Any] = {}

    attempt.assert_newest()  # opening the metrics truncates them
    with MetricsLog(attempt.paths.metrics, lines_kept=lines_kept) as log, torch.random.fork_rng(_cuda_devices(device)):
        pending: list[tuple[dict[str, Any], int, Tensor, Tensor]] = []

        def write_pending() -> None:
            """The one synchronisation: bring the pending steps' numbers over, check them, log them."""
            if pending:
                attempt.assert_newest()  # lines of a superseded attempt would mix with the newer one's
                losses_SH = torch.stack([p[2] for p in pending]).double().tolist()
                correct_SH = torch.stack([p[3] for p in pending]).double().tolist()
                for (line, count, _, _), loss_H, correct_H in zip(pending, losses_SH, correct_SH, strict=True):
                    _log_step(log, line, count, loss_H, correct_H, progress)
                pending.clear()
            log.flush()

        def save() -> None:
            nonlocal last_saved, save_cost_s, training_since
            write_pending()
            log.fsync()
            saving = time.monotonic()
            if training_since is not None:
                progress.train_s += saving - training_since
            progress.elapsed_s = elapsed_before + saving - began
            content = _freeze(progress, module, optimizer, ema, best_state)
            write_checkpoint(attempt, content, step=progress.step, lines=log.lines)
            last_saved = time.monotonic()
            save_cost_s = last_saved - saving
            if training_since is not None:
                training_since = last_saved

        while progress.epoch <= settings.epochs:
            order_N = epoch_order(trainee.num_rows, settings, seed=seed, epoch=progress.epoch)
            trainee.train_mode()
            training_since = time.monotonic()
            while progress.step_in_epoch < steps_per_epoch:
                first = progress.step_in_epoch * batch_size
                rows_B = order_N[first : first + batch_size]
                set_learning_rates(optimizer, lr_factor(settings, step=progress.step, steps_per_epoch=steps_per_epoch))
                torch.manual_seed(seed_for("dropout", seed, progress.step))

                loss_H, correct_H = _forward_backward(trainee, rows_B, settings.micro_batch, progress.epoch)
                pull_to_start(anchors)
                if settings.clip_norm is not None:
                    for parameters in clipped:
                        nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                if ema is not None:
                    ema.update_parameters(module)

                progress.step += 1
                progress.step_in_epoch += 1
                line = {"epoch": progress.epoch, "step": progress.step} | learning_rates(optimizer)
                pending.append((line, len(rows_B), loss_H, correct_H))
                if len(pending) >= LOG_EVERY_STEPS:
                    write_pending()
                if stop.signal is not None:
                    save()
                    raise Interrupted(
                        f"stopped by signal {stop.signal} after step {progress.step}; launch again to continue"
                    )
                if _is_due(last_saved, save_cost_s, checkpoint_min_interval_s):
                    save()
            write_pending()
            progress.train_s += time.monotonic() - training_since
            training_since = None

            with averaged_weights(module, ema, optimizer) as averaged:
                figures = trainee.evaluate(averaged)
                accuracy = figures.get("test/accuracy", -1.0)
                if accuracy > progress.best_accuracy:
                    progress.best_accuracy, progress.best_epoch = accuracy, progress.epoch
                    if settings.selection == "best_on_test":
                        best_state = {k: v.detach().clone() for k, v in averaged.state_dict().items()}
            _assert_finite(figures, progress.step)
            figures = _train_figures(progress, figures) | figures
            attempt.assert_newest()
            log.write(
                "epoch",
                epoch=progress.epoch,
                step=progress.step,
                **figures,
                images_per_s=round(progress.epoch * images_per_epoch / max(progress.train_s, 1e-9), 1),
                elapsed_s=round(elapsed_before + time.monotonic() - began, 3),
                **gpu_now(),
            )
            log.flush()  # at once: left in the buffer it could reach the file after a newer attempt's lines
            progress.epoch += 1
            progress.step_in_epoch = 0
            progress.images = 0
            progress.loss_sum_H = [0.0] * trainee.num_heads
            progress.correct_sum_H = [0.0] * trainee.num_heads
            if _is_due(last_saved, save_cost_s, checkpoint_min_interval_s):
                save()

        if not figures:  # resumed after the last epoch: the figures stand in the metrics, the weights are the result
            with averaged_weights(module, ema, optimizer) as averaged:
                figures = trainee.evaluate(averaged)
    with averaged_weights(module, ema, optimizer) as averaged:
        result_state = {k: v.detach().clone() for k, v in averaged.state_dict().items()}
    module.load_state_dict(result_state)
    return FitResult(
        first_step=first_step,
        optimizer_steps=progress.step,
        last_epoch=figures,
        images_per_s=settings.epochs * images_per_epoch / max(progress.train_s, 1e-9),
        elapsed_before_s=elapsed_before,
        best_epoch=progress.best_epoch,
        best_accuracy=progress.best_accuracy,
        best_state=best_state,
    )


def epoch_order(num_rows: int, settings: TrainSettings, *, seed: int, epoch: int) -> Tensor:
    """The order (N,) in which an epoch visits the training rows; drawn on the CPU, so every device sees the same."""
    generator = torch.Generator().manual_seed(seed_for("order", seed, epoch))
    if settings.sampling == "replacement":
        drawn = settings.count_steps(num_rows) * min(settings.batch_size, num_rows)
        return torch.randint(num_rows, (drawn,), generator=generator)
    return torch.randperm(num_rows, generator=generator)


@contextmanager
def averaged_weights(
    module: nn.Module, ema: AveragedModel | None, optimizer: torch.optim.Optimizer
) -> Iterator[nn.Module]:
    """The module to evaluate: EMA's copy, or the module itself holding Lookahead's slow weights inside the block."""
    if ema is not None:
        yield ema.module
        return
    with lookahead_weights(optimizer):
        yield module


def _forward_backward(trainee: Trainee, rows_B: Tensor, micro_batch: int | None, epoch: int) -> tuple[Tensor, Tensor]:
    """Accumulate the gradient of the batch's mean loss; returns mean losses (H,) and correct counts (H,), detached."""
    parts = torch.split(rows_B, micro_batch) if micro_batch else (rows_B,)
    losses, correct = [], []
    for part in parts:
        loss_H, correct_H = trainee.losses(part, epoch)
        share = len(part) / len(rows_B)
        (loss_H.sum() * share).backward()  # type: ignore[no-untyped-call]
        losses.append(loss_H.detach() * share)
        correct.append(correct_H)
    return torch.stack(losses).sum(0), torch.stack(correct).sum(0)


def _log_step(
    log: MetricsLog, line: dict[str, Any], count: int, loss_H: list[float], correct_H: list[float], progress: Progress
) -> None:
    for head, (loss, correct) in enumerate(zip(loss_H, correct_H, strict=True)):
        if not math.isfinite(loss):
            raise TrainingDiverged(step=line["step"], loss=loss)
        prefix = "" if len(loss_H) == 1 else f"head_{head}/"
        line[f"{prefix}train/loss"] = loss
        line[f"{prefix}train/accuracy"] = correct / count
        progress.loss_sum_H[head] += loss * count
        progress.correct_sum_H[head] += correct
    progress.images += count
    log.write("step", **line)


def _train_figures(progress: Progress, figures: dict[str, Any]) -> dict[str, float]:
    """Running mean of the epoch's training loss and accuracy, of the head that the evaluation names."""
    head = int(figures.get("head", 0))
    return {
        "train/loss": progress.loss_sum_H[head] / max(progress.images, 1),
        "train/accuracy": progress.correct_sum_H[head] / max(progress.images, 1),
    }


def _assert_finite(figures: dict[str, Any], step: int) -> None:
    for name, value in figures.items():
        if name.endswith("/loss") and not math.isfinite(value):
            raise TrainingDiverged(step=step, loss=value)


def _parameters_by_head(groups: list[ParameterGroup], num_heads: int) -> list[list[nn.Parameter]]:
    """What is clipped together: everything, or each of several heads by itself, as if it were alone."""
    found: dict[str, list[nn.Parameter]] = {}
    for group in groups:
        found.setdefault(group.name if num_heads > 1 else "", []).extend(group.parameters)
    return list(found.values())


def _is_due(last_saved: float, save_cost_s: float, min_interval_s: float) -> bool:
    """An interval of 0 asks for a checkpoint at every step, whatever it costs."""
    if min_interval_s == 0:
        return True
    return time.monotonic() - last_saved >= max(min_interval_s, SAVE_COST_SHARE * save_cost_s)


def _freeze(
    progress: Progress,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: AveragedModel | None,
    best_state: dict[str, Tensor] | None,
) -> bytes:
    state = {
        "progress": {name: getattr(progress, name) for name in Progress.__slots__},
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ema": None if ema is None else ema.state_dict(),
        "best_state": best_state,
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _restore(
    content: bytes,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: AveragedModel | None,
    device: torch.device,
) -> tuple[Progress, dict[str, Tensor] | None]:
    state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    if ema is not None:
        ema.load_state_dict(state["ema"])
    return Progress(**state["progress"]), state["best_state"]


def _cuda_devices(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []
