"""Optimizers, learning-rate schedules and averaged weights, built from a phase's settings."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from transfergrid.specs import TrainSettings

ONE_CYCLE_START = 1 / 25  # of the peak learning rate, as in Smith & Topin 2018 (arXiv 1708.07120) and torch's default


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters that share a peak learning rate and a weight decay; `name` labels the learning rate in the metrics.

    l2_sp: strength of the pull back to where they started.
    """

    name: str
    lr: float
    weight_decay: float
    parameters: list[nn.Parameter]
    l2_sp: float = 0.0


@dataclass(frozen=True, slots=True)
class Anchor:
    """A parameter that is pulled back to where it started."""

    parameter: nn.Parameter
    start: torch.Tensor
    strength: float


def make_anchors(groups: Iterable[ParameterGroup]) -> list[Anchor]:
    """L2-SP (Li et al. 2018, arXiv 1802.01483): the starting point is what the parameters hold now."""
    return [Anchor(p, p.detach().clone(), g.l2_sp) for g in groups if g.l2_sp for p in g.parameters]


def pull_to_start(anchors: Iterable[Anchor]) -> None:
    """Add the gradient of strength / 2 * |w - start|^2 to what backward() has left."""
    by_strength: dict[float, list[tuple[Anchor, torch.Tensor]]] = {}
    for anchor in anchors:
        if anchor.parameter.grad is not None:
            by_strength.setdefault(anchor.strength, []).append((anchor, anchor.parameter.grad))
    for strength, pulled in by_strength.items():
        away = torch._foreach_sub([a.parameter.detach() for a, _ in pulled], [a.start for a, _ in pulled])
        torch._foreach_add_([grad for _, grad in pulled], away, alpha=strength)


def split_decay(
    name: str, parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float, decay_norm_and_bias: bool
) -> list[ParameterGroup]:
    """One or two groups: weight decay spares vectors (BatchNorm scales and all biases) unless asked not to."""
    parameters = [p for p in parameters if p.requires_grad]
    spared = [] if decay_norm_and_bias else [p for p in parameters if p.ndim <= 1]
    decayed = parameters if decay_norm_and_bias else [p for p in parameters if p.ndim > 1]
    groups = [ParameterGroup(name, lr, weight_decay, decayed), ParameterGroup(name, lr, 0.0, spared)]
    return [g for g in groups if g.parameters]


def make_optimizer(settings: TrainSettings, groups: list[ParameterGroup]) -> torch.optim.Optimizer:
    """SGD, Adam (weight decay as L2 penalty) or AdamW (decoupled), inside Lookahead (arXiv 1907.08610) on request.

    Each of torch's groups keeps `peak_lr` and `name`. On a GPU all parameters of a group are updated at once, on a CPU
    one by one.
    """
    torch_groups: list[dict[str, Any]] = [
        {"params": g.parameters, "lr": g.lr, "peak_lr": g.lr, "weight_decay": g.weight_decay, "name": g.name}
        for g in groups
    ]
    foreach = all(p.is_cuda for g in groups for p in g.parameters)
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "sgd":
        nesterov = settings.nesterov and settings.momentum > 0
        optimizer = torch.optim.SGD(torch_groups, momentum=settings.momentum, nesterov=nesterov, foreach=foreach)
    elif settings.optimizer == "adam":
        optimizer = torch.optim.Adam(torch_groups, foreach=foreach)
    else:
        optimizer = torch.optim.AdamW(torch_groups, foreach=foreach)
    if settings.lookahead:
        from timm.optim.lookahead import Lookahead  # 4 s of imports, only for those who ask for it

        optimizer = Lookahead(optimizer, alpha=settings.lookahead_alpha, k=settings.lookahead_k)  # type: ignore[no-untyped-call]
    return optimizer


def lr_factor(settings: TrainSettings, *, step: int, steps_per_epoch: int) -> float:
    """The share of the peak learning rate in force during optimizer step `step` (0-based over the whole run)."""
    total = max(settings.epochs * steps_per_epoch, 1)
    warmup = settings.warmup_fraction * total
    if settings.lr_update == "epoch":
        step -= step % steps_per_epoch
    if step < warmup:
        start = ONE_CYCLE_START if settings.schedule == "onecycle" else 0.0
        return start + (1 - start) * (step + 1) / (math.floor(warmup) + 1)
    if settings.schedule == "constant":
        return 1.0
    if settings.schedule == "step":
        epoch = step // steps_per_epoch
        return float(settings.step_gamma ** sum(epoch >= boundary for boundary in settings.step_epochs))
    final = settings.final_lr_fraction
    if settings.cosine_epochs is not None:
        total = settings.cosine_epochs * steps_per_epoch
    progress = (step - warmup) / max(total - warmup, 1)
    if settings.schedule == "linear":
        return final + (1 - final) * (1 - progress)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """`lr/<group name>` -> learning rate now."""
    return {f"lr/{group['name']}": float(group["lr"]) for group in optimizer.param_groups}


def make_ema(module: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of weights and buffers, updated by `update_parameters(module)` after each step."""
    average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]  # torch gives it no types
    return _Ema(module, multi_avg_fn=average, use_buffers=True)


class _Ema(AveragedModel):
    """torch's own sends the number of updates, which this average does not depend on, to a GPU after every step, and
    waits for it. It stays on the CPU."""

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        by_type: dict[torch.dtype, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        own, others = ([*m.parameters(), *m.buffers()] for m in (self.module, model))
        for averaged, now in zip(own, others, strict=True):
            averages, news = by_type.setdefault(averaged.dtype, ([], []))
            averages.append(averaged.detach())
            news.append(now.detach())
        is_first = int(self.n_averaged) == 0
        for averages, news in by_type.values():
            if is_first:
                torch._foreach_copy_(averages, news)
            else:
                assert self.multi_avg_fn is not None
                self.multi_avg_fn(averages, news, 0)
        self.n_averaged += 1


@contextlib.contextmanager
def lookahead_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside the block the parameters hold Lookahead's slow weights; afterwards the fast ones again, bit for bit."""
    state = getattr(optimizer, "_base_optimizer", optimizer).state  # timm keeps the slow weights in the inner state
    slow = "lookahead_slow_buff"
    parameters = [p for group in optimizer.param_groups for p in group["params"] if slow in state.get(p, {})]
    fast = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p in parameters:
            p.copy_(state[p][slow])
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(parameters, fast, strict=True):
                p.copy_(value)


@contextlib.contextmanager
def averaged_weights(
    module: nn.Module, ema: AveragedModel | None, optimizer: torch.optim.Optimizer
) -> Iterator[nn.Module]:
    """The module to evaluate: EMA's copy, or the module itself holding Lookahead's slow weights inside the block."""
    if ema is not None:
        yield ema.module
        return
    with lookahead_weights(optimizer):
        yield module
