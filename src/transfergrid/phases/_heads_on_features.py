"""The ways to make a probe's head on standardised features that lie on the device."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from transfergrid.data.folds import Fold, Folds, class_weights
from transfergrid.errors import Interrupted
from transfergrid.networks.head_path import NOTHING_HELD_OUT, HeadPath, OnVal, Trial, best_of, search_of
from transfergrid.networks.heads import Heads, losses_and_correct
from transfergrid.networks.solved_head import LogisticRegression, SoftmaxProblem
from transfergrid.phases import RunContext
from transfergrid.phases._setting import train
from transfergrid.specs import UNCHOSEN_C, ProbeSettings, seed_for
from transfergrid.store.checkpoints import read_newest_checkpoint, write_checkpoint
from transfergrid.store.metrics_log import MetricsLog
from transfergrid.training.evaluation import cross_entropy, selection_score
from transfergrid.training.optimization import split_decay
from transfergrid.training.progress import logged_figures

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MadeHead:
    """On standardised features, weight (C, D) and bias (C,), with what the record says of how it was made."""

    weight_CD: Tensor
    bias_C: Tensor
    details: dict[str, Any]
    epochs: int | None
    images_per_s: float | None
    elapsed_before_s: float


@dataclass(frozen=True, slots=True)
class Bench:
    """features: fold name -> standardised rows (N, D) float32 on the device."""

    context: RunContext
    settings: ProbeSettings
    features: Mapping[str, Tensor]
    folds: Folds
    device: torch.device

    @property
    def num_classes(self) -> int:
        return self.context.spec.dataset.num_classes

    @property
    def chooses_on(self) -> Fold | None:
        """val, where it holds an image."""
        val = self.folds.val
        return val if val is not None and len(val) else None

    @property
    def balanced(self) -> bool:
        return self.settings.class_weights == "balanced"

    def labels(self, fold: Fold) -> Tensor:
        return torch.from_numpy(fold.labels_N).to(self.device)

    def stop(self) -> None:
        if self.context.stop.signal is not None:
            raise Interrupted(f"stopped by signal {self.context.stop.signal}", remedy="launch again to continue")

    def score(self, predicted_N: np.ndarray[Any, Any]) -> float:
        """Of the val rows, by what choices go by."""
        assert self.chooses_on is not None
        labels_N, by = self.chooses_on.labels_N, self.settings.select_by
        return selection_score(predicted_N, labels_N, num_classes=self.num_classes, by=by)


# ----------------------------------------------------------------------------------------------------------- by solving
def solve(bench: Bench) -> MadeHead:
    """The path of strengths, one line of metrics.jsonl and, where due, one checkpoint for each."""
    context, began = bench.context, time.monotonic()
    path, problem = _path(bench), _problem(bench)
    restored = read_newest_checkpoint(context.paths)
    lines_kept, before_s = 0, 0.0
    if restored is not None:
        file, content = restored
        before_s, lines_kept = path.thaw(content, bench.device), file.lines
        logger.info("continues after %d strengths of the penalty", len(path.trials))
    context.attempt.assert_newest()  # opening the metrics truncates them
    saved = time.monotonic()
    with MetricsLog(context.paths.metrics, lines_kept=lines_kept) as log:

        def save() -> None:
            nonlocal saved
            log.fsync()
            content = path.freeze(before_s + time.monotonic() - began)
            write_checkpoint(context.attempt, content, step=len(path.trials), lines=log.lines)
            saved = time.monotonic()

        try:
            # An optimum starts from the nearest one before it, so the order of the strengths is part of the numbers.
            while (tried := path.advance(problem, lambda head: _on_val(bench, head), check=bench.stop)) is not None:
                context.attempt.assert_newest()
                _log(bench, log, path, tried, elapsed_s=before_s + time.monotonic() - began)
                if time.monotonic() - saved >= context.runtime.checkpoint_min_interval_s:
                    save()
            head = path.finish(problem, check=bench.stop)
        except Interrupted:
            save()
            raise
    details = _solved_details(path, head, solve_s=before_s + time.monotonic() - began)
    search = path.search(head)
    offered = [{"C": c} for c in search["values"]]
    details = {"chosen": {"C": search["chosen"]}, "choices": offered, "search": [search], **details}
    return MadeHead(head.weight_CD, head.bias_C, details, None, None, before_s)


def solve_beside(bench: Bench) -> tuple[LogisticRegression, dict[str, Any]]:
    """The same head beside one that SGD trained, and what the record says of it."""
    began, path, problem = time.monotonic(), _path(bench), _problem(bench)
    while path.advance(problem, lambda head: _on_val(bench, head), check=bench.stop) is not None:
        pass
    head = path.finish(problem, check=bench.stop)
    search = path.search(head)
    return head, _solved_details(path, head, solve_s=time.monotonic() - began) | {"search": [search]}


def _path(bench: Bench) -> HeadPath:
    cs = bench.settings.cs
    return HeadPath(cs if bench.chooses_on is not None or len(cs) == 1 else (UNCHOSEN_C,))


def _problem(bench: Bench) -> SoftmaxProblem:
    labels_N = bench.labels(bench.folds.train)
    return SoftmaxProblem(bench.features["train"], labels_N, num_classes=bench.num_classes, balanced=bench.balanced)


def _on_val(bench: Bench, head: LogisticRegression) -> OnVal:
    if bench.chooses_on is None:
        return NOTHING_HELD_OUT
    logits_NC, labels_N = head.logits(bench.features["val"]).cpu().numpy(), bench.chooses_on.labels_N
    right_N = logits_NC.argmax(1) == labels_N
    shares_N = right_N / len(labels_N)
    if bench.settings.select_by != "accuracy":  # every class counts alike
        counts_C = np.bincount(labels_N, minlength=bench.num_classes)
        shares_N = right_N / (counts_C[labels_N] * np.count_nonzero(counts_C))
    score, loss = bench.score(logits_NC.argmax(1)), cross_entropy(logits_NC, labels_N)
    return OnVal(score, loss, float(right_N.mean()), torch.from_numpy(shares_N))


def _log(bench: Bench, log: MetricsLog, path: HeadPath, tried: Trial, *, elapsed_s: float) -> None:
    """A strength stands where a training has an epoch, and the iterations so far where it has steps."""
    figures = {"train/loss": tried.train_loss}
    if bench.chooses_on is not None:
        figures |= {"val/accuracy": tried.on_val.accuracy, "val/loss": tried.on_val.loss}
    log.write(
        "epoch",
        epoch=len(path.trials),
        step=sum(t.iterations for t in path.trials),
        C=tried.c,
        gradient_norm=tried.gradient_norm,
        **figures,
        elapsed_s=round(elapsed_s, 3),
    )
    log.flush()
    logger.info("C %g: %s, %d iterations, %.1f s", tried.c, logged_figures(figures), tried.iterations, elapsed_s)


def _solved_details(path: HeadPath, head: LogisticRegression, *, solve_s: float) -> dict[str, Any]:
    iterations = sum(t.iterations for t in path.trials) + head.iterations - best_of(path.trials).iterations
    return {"solve_s": round(solve_s, 3), "iterations": iterations, "gradient_norm": head.gradient_norm}


# -------------------------------------------------------------------------------------------------------------- by SGD
def train_by_sgd(bench: Bench) -> MadeHead:
    """Every choice side by side, each as if it were alone; of those val chooses one."""
    context, settings, folds = bench.context, bench.settings, bench.folds
    spec = context.spec
    assert spec.seed is not None
    choices = list(product(settings.lrs, settings.weight_decays))
    trainee = FeatureTrainee(
        bench.features,
        folds,
        settings,
        num_classes=bench.num_classes,
        num_heads=len(choices),
        seed=spec.seed,
        device=bench.device,
        watch_test=spec.protocol == "published",
    )
    # Each head has groups of its own: clipping and weight decay see it as if it were trained alone.
    groups = [
        group
        for head, (lr, decay) in enumerate(choices)
        for group in split_decay(
            f"head_{head}" if len(choices) > 1 else "head",
            [trainee.module.weights[head], trainee.module.biases[head]],
            lr=lr,
            weight_decay=decay,
            decay_norm_and_bias=settings.decay_norm_and_bias,
        )
    ]
    result, details = train(context, trainee, groups, device=bench.device)
    head = trainee.choose_head(trainee.module)
    lr, decay = choices[head]
    details |= {
        "chosen": {"head": head, "lr": lr, "weight_decay": decay},
        "choices": [{"lr": lr, "weight_decay": decay} for lr, decay in choices],
        "search": [search_of("lr", settings.lrs, lr), search_of("weight_decay", settings.weight_decays, decay)],
    }
    weight_CD, bias_C = trainee.module.linear(head)
    return MadeHead(weight_CD, bias_C, details, settings.epochs, result.images_per_s, result.elapsed_before_s)


def head_without_val(settings: ProbeSettings) -> int:
    """Where no image is held out to choose on: the middle learning rate (of two the lower), the largest decay."""
    lr, decay = sorted(settings.lrs)[(len(settings.lrs) - 1) // 2], max(settings.weight_decays)
    return list(product(settings.lrs, settings.weight_decays)).index((lr, decay))


class FeatureTrainee:
    """What fit() trains: H heads side by side. features: as of a Bench."""

    def __init__(
        self,
        features: Mapping[str, Tensor],
        folds: Folds,
        settings: ProbeSettings,
        *,
        num_classes: int,
        num_heads: int,
        seed: int,
        device: torch.device,
        watch_test: bool,
    ) -> None:
        generator = torch.Generator().manual_seed(seed_for("head", seed))
        feature_dim = features["train"].shape[1]
        self.module = Heads(feature_dim, num_classes, num_heads=num_heads, generator=generator).to(device)
        self.num_rows = len(features["train"])
        self.num_heads = num_heads
        self.rows_on = device
        self._num_classes = num_classes
        self._features = features
        self._settings = settings
        watched = {"val": folds.val, "test": folds.test if watch_test else None, "train": folds.train}
        weights_C = class_weights(settings, folds.train)
        self._weight_C = None if weights_C is None else torch.from_numpy(weights_C).to(device)
        self._labels = {name: torch.from_numpy(f.labels_N).to(device) for name, f in watched.items() if f is not None}

    def train_mode(self) -> None:
        self.module.train()

    def losses(self, rows_B: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        logits_HBC = self.module(self._features["train"][rows_B])
        labels_B, smoothing = self._labels["train"][rows_B], self._settings.label_smoothing
        return losses_and_correct(logits_HBC, labels_B, label_smoothing=smoothing, weight_C=self._weight_C)

    def evaluate(self, module: nn.Module) -> dict[str, Any]:
        """Figures of the head that leads on val, and val accuracy of every head."""
        figures: dict[str, Any] = {}
        head = self.choose_head(module)
        if self.num_heads > 1:
            figures["head"] = head
        for name in ("val", "test"):
            if name in self._labels:
                accuracy_H, loss_H = self._score(module, name)
                figures |= {f"{name}/accuracy": float(accuracy_H[head]), f"{name}/loss": float(loss_H[head])}
                if self.num_heads > 1:
                    figures |= {f"head_{h}/{name}/accuracy": float(a) for h, a in enumerate(accuracy_H)}
        return figures

    def choose_head(self, module: nn.Module) -> int:
        """Highest score on val, by what the run chooses by, then lowest val loss, then first."""
        if "val" not in self._labels:
            return head_without_val(self._settings)
        score_H, loss_H = self._score(module, "val")
        if self._settings.select_by != "accuracy":
            score_H = self._selection_scores(module)
        return min(range(self.num_heads), key=lambda h: (-float(score_H[h]), float(loss_H[h]), h))

    def _selection_scores(self, module: nn.Module) -> Tensor:
        labels_N = self._labels["val"]
        with torch.inference_mode():
            predicted_HN = module(self._features["val"]).argmax(-1).cpu().numpy()
        true_N, by = labels_N.cpu().numpy(), self._settings.select_by
        scores_H = [selection_score(each_N, true_N, num_classes=self._num_classes, by=by) for each_N in predicted_HN]
        return torch.tensor(scores_H)

    def _score(self, module: nn.Module, name: str) -> tuple[Tensor, Tensor]:
        """Accuracy (H,) and loss (H,) on the CPU, in one pass over a fold that lies on the device."""
        labels_N, nothing_H = self._labels[name], torch.zeros(self.num_heads, dtype=torch.float64)
        with torch.inference_mode():
            parts = [
                losses_and_correct(module(self._features[name][rows]), labels_N[rows])
                for rows in torch.split(torch.arange(len(labels_N), device=labels_N.device), 8192)
            ]
            counts = torch.tensor([min(8192, len(labels_N) - 8192 * i) for i in range(len(parts))])
            loss_H = sum((part[0].cpu().double() * n for part, n in zip(parts, counts, strict=True)), start=nothing_H)
            correct_H = sum((part[1].cpu().double() for part in parts), start=nothing_H)
        return correct_H / len(labels_N), loss_H / len(labels_N)
