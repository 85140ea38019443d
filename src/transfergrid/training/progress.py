"""Where a training stands, and how that reaches the disk: lines of metrics.jsonl and of the log, and checkpoints.

Shapes: H heads trained side by side (1 but for a probe), S steps of a logging interval.
"""

from __future__ import annotations

import io
import logging
import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from transfergrid.errors import TrainingDiverged
from transfergrid.paths import RunPaths
from transfergrid.store.attempts import Attempt
from transfergrid.store.checkpoints import read_newest_checkpoint, write_checkpoint
from transfergrid.store.metrics_log import MetricsLog
from transfergrid.training.optimization import averaged_weights

logger = logging.getLogger(__name__)
LOG_EVERY_STEPS = 50  # the device is asked for its numbers once per so many steps
EPOCHS_LOGGED = 100  # lines of a training in its log.txt, and the first and the last epoch's
SAVE_COST_SHARE = 50  # a checkpoint is due when this many times the last one's cost has passed


@dataclass(slots=True)
class Progress:
    """How far a run is and what it has gathered. Everything in here is in its checkpoints.

    The sums and `images` are of the epoch under way; train_s is the time of all steps, elapsed_s that of all attempts.
    """

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

    def begin_epoch(self, epoch: int, *, num_heads: int) -> None:
        self.epoch, self.step_in_epoch, self.images = epoch, 0, 0
        self.loss_sum_H, self.correct_sum_H = [0.0] * num_heads, [0.0] * num_heads

    def train_figures(self, head: int) -> dict[str, float]:
        """Running mean of the epoch's training loss and accuracy, of one head."""
        return {
            "train/loss": self.loss_sum_H[head] / max(self.images, 1),
            "train/accuracy": self.correct_sum_H[head] / max(self.images, 1),
        }


@dataclass(slots=True)
class TrainState:
    """All that the steps change, which is all that a checkpoint holds. best_state: the weights of the best epoch on
    test, where the run's rule asks for them."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    ema: AveragedModel | None
    progress: Progress
    best_state: dict[str, Tensor] | None = None

    def averaged(self) -> AbstractContextManager[nn.Module]:
        """The module to evaluate and to publish, inside the block."""
        return averaged_weights(self.module, self.ema, self.optimizer)

    def note_accuracy(self, averaged: nn.Module, accuracy: float, *, keep_weights: bool) -> None:
        """Of the epoch under way, on test; the earliest of equals is the best one."""
        if accuracy > self.progress.best_accuracy:
            self.progress.best_accuracy, self.progress.best_epoch = accuracy, self.progress.epoch
            if keep_weights:
                self.best_state = copied(averaged)

    def restore_newest(self, paths: RunPaths) -> int:
        """Go back to the newest checkpoint, if there is one; returns how many lines of the metrics it covers.

        Each part takes what is its own to its device; Adam's numbers of steps stay on the CPU, where it reads them."""
        restored = read_newest_checkpoint(paths)
        if restored is None:
            return 0
        file, content = restored
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        self.module.load_state_dict(state["module"])
        foreach = [group["foreach"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(self.optimizer.param_groups, foreach, strict=True):
            group["foreach"] = own  # of this device; the attempt before may have had another
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.progress, self.best_state = Progress(**state["progress"]), state["best_state"]
        logger.info("continues after step %d; whole epochs done: %d", self.progress.step, self.progress.epoch - 1)
        return file.lines

    def freeze(self) -> bytes:
        state = {
            "progress": asdict(self.progress),
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "best_state": self.best_state,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return buffer.getvalue()


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def logged_figures(figures: Mapping[str, Any]) -> str:
    """`train loss 0.4127, val accuracy 91.25%`: what a log says of an epoch, or of a strength of the penalty."""
    accuracies = [
        f"{fold} accuracy {figures[f'{fold}/accuracy']:.2%}"
        for fold in ("val", "test")
        if f"{fold}/accuracy" in figures
    ]
    return ", ".join([f"train loss {figures['train/loss']:.4f}", *accuracies])


def is_logged(epoch: int, epochs: int) -> bool:
    """Whether an epoch has a line in the log: each of up to EPOCHS_LOGGED; of more the first, the last, every k-th."""
    return epoch in (1, epochs) or epoch % math.ceil(epochs / EPOCHS_LOGGED) == 0


class StepLog:
    """The lines of metrics.jsonl. A step's numbers stay on the device until flush(), the one synchronisation."""

    def __init__(self, log: MetricsLog, attempt: Attempt, progress: Progress, *, epochs: int) -> None:
        """epochs: of the whole run."""
        self._log, self._attempt, self._progress, self._epochs = log, attempt, progress, epochs
        self._pending: list[tuple[dict[str, Any], int, Tensor, Tensor]] = []

    def add(self, rates: dict[str, float], num_images: int, loss_H: Tensor, correct_H: Tensor) -> None:
        """The step that was just done. Raises as flush() does."""
        line = {"epoch": self._progress.epoch, "step": self._progress.step} | rates
        self._pending.append((line, num_images, loss_H, correct_H))
        if len(self._pending) >= LOG_EVERY_STEPS:
            self.flush()

    def flush(self) -> None:
        """Bring the pending numbers over, check them, write them. Raises TrainingDiverged, Superseded."""
        if self._pending:
            # Lines of a superseded attempt would mix with the newer one's.
            self._attempt.assert_newest()
            losses_SH = torch.stack([loss_H for _, _, loss_H, _ in self._pending]).double()
            correct_SH = torch.stack([correct_H for _, _, _, correct_H in self._pending]).double()
            both_2SH = torch.stack([losses_SH, correct_SH]).tolist()
            for (line, num_images, _, _), loss_H, correct_H in zip(self._pending, *both_2SH, strict=True):
                self._write_step(line, num_images, loss_H, correct_H)
            self._pending.clear()
        self._log.flush()

    def write_epoch(self, **figures: Any) -> None:
        """The epoch that ends, for the log as well. figures: images_per_s and elapsed_s of all attempts among them."""
        self._attempt.assert_newest()
        epoch = self._progress.epoch
        self._log.write("epoch", epoch=epoch, step=self._progress.step, **figures)
        self._log.flush()  # at once: left in the buffer it could reach the file after a newer attempt's lines
        if is_logged(epoch, self._epochs):
            elapsed_s = figures["elapsed_s"]
            to_go = timedelta(seconds=round(elapsed_s / epoch * (self._epochs - epoch)))
            times = f"{figures['images_per_s']:.0f} images/s, {elapsed_s:.1f} s, {to_go} remaining"
            logger.info("epoch %d/%d: %s, %s", epoch, self._epochs, logged_figures(figures), times)

    def fsync(self) -> int:
        """Everything up to here is on the disk; returns how many lines that is."""
        self.flush()
        self._log.fsync()
        return self._log.lines

    def _write_step(self, line: dict[str, Any], num_images: int, loss_H: list[float], correct_H: list[float]) -> None:
        for head, (loss, correct) in enumerate(zip(loss_H, correct_H, strict=True)):
            if not math.isfinite(loss):
                raise TrainingDiverged(step=line["step"], loss=loss)
            prefix = "" if len(loss_H) == 1 else f"head_{head}/"
            line[f"{prefix}train/loss"] = loss
            line[f"{prefix}train/accuracy"] = correct / num_images
            self._progress.loss_sum_H[head] += loss * num_images
            self._progress.correct_sum_H[head] += correct
        self._progress.images += num_images
        self._log.write("step", **line)


class Clock:
    """The seconds of a run over all its attempts: elapsed, and those of the steps, without evaluations and saves."""

    def __init__(self, progress: Progress, *, began: float) -> None:
        """began: when this attempt did, by time.monotonic()."""
        self._progress, self._began, self._before_s = progress, began, progress.elapsed_s
        self._stepping_since: float | None = None

    @property
    def elapsed_s(self) -> float:
        return self._before_s + time.monotonic() - self._began

    def start_steps(self) -> None:
        self._stepping_since = time.monotonic()

    def stop_steps(self) -> bool:
        """Returns whether they were being counted."""
        if self._stepping_since is None:
            return False
        self._progress.train_s += time.monotonic() - self._stepping_since
        self._stepping_since = None
        return True


class Checkpointer:
    """Saves a state when that is due: after an interval, but never so often that saving costs more than 2 %."""

    def __init__(self, state: TrainState, steps: StepLog, clock: Clock, attempt: Attempt, *, interval_s: float) -> None:
        self._state, self._steps, self._clock, self._attempt = state, steps, clock, attempt
        self._interval_s = interval_s
        self._last_save, self._cost_s = time.monotonic(), 0.0

    def save_if_due(self) -> None:
        # An interval of 0 asks for a checkpoint at every step, whatever it costs.
        due_s = max(self._interval_s, SAVE_COST_SHARE * self._cost_s) if self._interval_s > 0 else 0.0
        if time.monotonic() - self._last_save >= due_s:
            self.save()

    def save(self) -> None:
        # The metrics first: a checkpoint counts the lines that a resumed run keeps, so these must be on the disk.
        lines = self._steps.fsync()
        was_stepping = self._clock.stop_steps()
        began = time.monotonic()
        self._state.progress.elapsed_s = self._clock.elapsed_s
        write_checkpoint(self._attempt, self._state.freeze(), step=self._state.progress.step, lines=lines)
        self._last_save = time.monotonic()
        self._cost_s = self._last_save - began
        if was_stepping:
            self._clock.start_steps()
