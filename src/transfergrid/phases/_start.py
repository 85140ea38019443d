"""Fine-tuning starts where the probe ended: its steps normalise by batches what the probe's head knows by statistics.

D features of all backbones, B rows of a batch, N rows.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from transfergrid.networks.heads import fit_standardiser
from transfergrid.networks.joined import JoinedNetwork, batch_norm_layers
from transfergrid.networks.solved_head import fit_lbfgs
from transfergrid.phases._setting import Setting
from transfergrid.specs import FinetuneSettings
from transfergrid.training.evaluation import mcnemar_exact
from transfergrid.training.on_images import evaluating

Array = np.ndarray[Any, Any]
Reading = AbstractContextManager[None]
LEVEL = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Held-out rows, unaugmented, without dropout: the probe's head with BatchNorm by its running statistics, against
    the head that training starts from with BatchNorm by batches of batch_size.

    measured: whether both were; reason: why not. refitted: whether the two heads are two. only_running, only_batch:
    rows that are right in one way alone. p_value: exact McNemar. falls: by batches fewer are right, and chance does not
    explain it at 5 %.
    """

    measured: bool
    reason: Literal["no_batch_norm", "statistics_kept", "one_image_per_batch", "nothing_held_out"] | None = None
    refitted: bool = False
    rows: int = 0
    batch_size: int = 0
    running_accuracy: float | None = None
    batch_accuracy: float | None = None
    only_running: int = 0
    only_batch: int = 0
    p_value: float | None = None
    falls: bool = False


def hand_over(
    network: JoinedNetwork,
    setting: Setting,
    settings: FinetuneSettings,
    *,
    strength: float,
    held_out: bool,
    kept_in_eval: frozenset[str],
    precision: str,
) -> dict[str, Any]:
    """The fields of Start, for a network that holds the probe's head; with head=refitted it holds another one
    afterwards, solved at C = strength. held_out: whether the gate's first rows are, or else those of a study, which
    trains on them. kept_in_eval: modules that training leaves in eval mode. Nothing else of the network changes."""
    if not batch_norm_layers(network, frozenset()):
        return asdict(Start(measured=False, reason="no_batch_norm"))
    if not batch_norm_layers(network, kept_in_eval):
        return asdict(Start(measured=False, reason="statistics_kept"))
    size = min(settings.micro_batch or settings.batch_size, len(setting.folds.train))
    if size == 1:
        return asdict(Start(measured=False, reason="one_image_per_batch"))
    # One choice of rows for both looks: McNemar's test compares pairs.
    batches = _batches(setting, size)
    held_N = torch.cat(batches).numpy() < len(setting.folds.gate[0])
    reading = partial(evaluating, network, setting.device, precision=precision, kept_in_eval=kept_in_eval)
    # First, while the network still holds the probe's own head.
    with reading(test_bn="running"):
        running_N = np.concatenate([_right(network, setting, rows_B) for rows_B in batches])[held_N]
    refitted = settings.head == "refitted"
    if refitted:
        balanced = settings.class_weights == "balanced"
        _refit(network, setting, reading(test_bn="batch"), size=size, strength=strength, balanced=balanced)
    if not held_out:  # but refitted all the same: a study's runs start as any other
        return asdict(Start(measured=False, reason="nothing_held_out", refitted=refitted))
    with reading(test_bn="batch"):
        batch_N = np.concatenate([_right(network, setting, rows_B) for rows_B in batches])[held_N]
    only_running, only_batch = int((running_N & ~batch_N).sum()), int((batch_N & ~running_N).sum())
    p_value = mcnemar_exact(only_running, only_batch)
    return asdict(
        Start(
            measured=True,
            refitted=refitted,
            rows=len(running_N),
            batch_size=len(batches[0]),
            running_accuracy=float(running_N.mean()),
            batch_accuracy=float(batch_N.mean()),
            only_running=only_running,
            only_batch=only_batch,
            p_value=p_value,
            falls=only_running > only_batch and p_value < LEVEL,
        )
    )


def _refit(
    network: JoinedNetwork, setting: Setting, by_batches: Reading, *, size: int, strength: float, balanced: bool
) -> None:
    """Replace the head by the optimum, at C = strength, on the training rows' features as batches of `size` make them.

    by_batches: how the network is read meanwhile. balanced: as SoftmaxProblem's.
    """
    fold = setting.folds.train
    order_N = torch.randperm(len(fold), generator=torch.Generator().manual_seed(0))
    # The last batch is filled up with the first rows: the statistics of a shorter one are not those of training.
    filled_N = torch.cat([order_N, order_N[: -len(order_N) % size]])
    features: list[Tensor] = []
    with by_batches:
        for inputs in setting.inputs.batches(fold.split, torch.split(torch.from_numpy(fold.index_N)[filled_N], size)):
            blocks = [trunk(images) for trunk, images in zip(network.backbones, inputs, strict=True)]
            features.append(torch.cat(blocks, dim=1).float())
    # Outside: the solver needs gradients, and no lower precision.
    features_ND = torch.cat(features)[: len(fold)].clone()
    labels_N = torch.from_numpy(fold.labels_N)[order_N].to(setting.device)
    standardiser = fit_standardiser(features_ND)
    rows_ND, num_classes = standardiser.apply(features_ND), network.head.out_features
    solved = fit_lbfgs(rows_ND, labels_N, num_classes=num_classes, c=strength, balanced=balanced)
    weight_CD, bias_C = standardiser.fold(solved.weight_CD, solved.bias_C)
    network.head.weight.data.copy_(weight_CD)
    network.head.bias.data.copy_(bias_C)


def _batches(setting: Setting, size: int) -> list[Tensor]:
    """Full batches of the gate's rows, mixed as training mixes them: enough for the held-out rows, which come first,
    with training rows to fill the last; one smaller batch where there are not so many rows. Sorted row numbers."""
    generator = torch.Generator().manual_seed(0)
    order_N, seen = torch.empty(0, dtype=torch.long), 0
    for fold in setting.folds.gate:
        order_N = torch.cat([order_N, torch.randperm(len(fold), generator=generator) + seen])
        seen += len(fold)
    full = max(1, min(math.ceil(len(setting.folds.gate[0]) / size), seen // size))
    return [rows_B.sort().values for rows_B in torch.split(order_N[: full * size], size)]


def _right(network: JoinedNetwork, setting: Setting, rows_B: Tensor) -> Array:
    """Whether each row (B,) of the gate, all in one batch, is classified as its label says."""
    inputs, labels, before = [], [], 0
    for fold in setting.folds.gate:
        own = rows_B[(rows_B >= before) & (rows_B < before + len(fold))] - before
        before += len(fold)
        if len(own):
            inputs.append(setting.inputs.batch(fold.split, torch.from_numpy(fold.index_N)[own]))
            labels.append(fold.labels_N[own.numpy()])
    logits_BC, _ = network(*(torch.cat(parts) for parts in zip(*inputs, strict=True)))
    right_B: Array = logits_BC.float().argmax(1).cpu().numpy() == np.concatenate(labels)
    return right_B
