"""The classification layer: many of them trained side by side on cached features.

N rows, B rows of a batch, D feature dimensions of all blocks together, C classes, H heads side by side.
A block is one backbone's stretch of D; a model's features are its blocks in the order written.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Standardiser:
    """mean_D and scale_D of the rows trained on; a constant dimension has scale 1."""

    mean_D: Tensor
    scale_D: Tensor

    def apply(self, features_ND: Tensor) -> Tensor:
        return (features_ND.float() - self.mean_D) / self.scale_D

    def fold(self, weight_CD: Tensor, bias_C: Tensor) -> tuple[Tensor, Tensor]:
        """The head on raw features that equals this head on standardised ones: W/s, b - W m/s, in float64 inside."""
        weight_CD64 = weight_CD.double() / self.scale_D.double()
        bias_C64 = bias_C.double() - weight_CD64 @ self.mean_D.double()
        return weight_CD64.float(), bias_C64.float()


def fit_standardiser(features_ND: Tensor) -> Standardiser:
    """Per dimension over the rows trained on, accumulated in float64; memory for one slab of rows at a time."""
    num_rows = len(features_ND)
    mean_D = torch.stack([slab.double().sum(0) for slab in torch.split(features_ND, 16384)]).sum(0) / num_rows
    squares = [((slab.double() - mean_D) ** 2).sum(0) for slab in torch.split(features_ND, 16384)]
    scale_D = (torch.stack(squares).sum(0) / num_rows).sqrt()
    # What float16 storage leaves of a constant is not information: treat it as constant too.
    constant_D = scale_D <= 1e-6 * mean_D.abs().clamp(min=1e-30)
    return Standardiser(mean_D.float(), torch.where(constant_D, 1.0, scale_D).float())


class Heads(nn.Module):
    """H linear layers (D -> C) with equal starting weights, multiplied one by one: none depends on the others.

    Every head is a pair of parameters of its own, so an optimizer treats it exactly as if it were alone. One batched
    product (bmm) of all would not do: which kernel computes it, and so the last bit, depends on how many there are.
    """

    def __init__(self, feature_dim: int, num_classes: int, *, num_heads: int, generator: torch.Generator) -> None:
        super().__init__()
        bound = feature_dim**-0.5  # nn.Linear's own rule
        weight_DC = (torch.rand(feature_dim, num_classes, generator=generator) * 2 - 1) * bound
        bias_C = (torch.rand(num_classes, generator=generator) * 2 - 1) * bound
        self.weights = nn.ParameterList([nn.Parameter(weight_DC.clone()) for _ in range(num_heads)])
        self.biases = nn.ParameterList([nn.Parameter(bias_C.clone()) for _ in range(num_heads)])

    def forward(self, features_BD: Tensor) -> Tensor:
        """(B, D) float32 -> logits (H, B, C)."""
        each = zip(self.weights, self.biases, strict=True)
        return torch.stack([torch.addmm(bias_C, features_BD, weight_DC) for weight_DC, bias_C in each])

    def linear(self, head: int) -> tuple[Tensor, Tensor]:
        """weight (C, D) and bias (C,) of one head."""
        return self.weights[head].detach().T.contiguous(), self.biases[head].detach().clone()


def mean_loss(
    logits_BC: Tensor, labels_B: Tensor, *, label_smoothing: float = 0.0, weight_C: Tensor | None = None
) -> Tensor:
    """Mean cross entropy over the batch in nats; `weight_C` weighs each image, label smoothing's part included, by its
    class.

    Divided by the number of images, where torch divides by the sum of their weights: so micro-batches add up to the
    same gradient, and the steps' mean is the loss of the whole training set, over which the weights' mean is 1.
    """
    if weight_C is None:
        return functional.cross_entropy(logits_BC, labels_B, label_smoothing=label_smoothing)
    loss_B = functional.cross_entropy(logits_BC, labels_B, label_smoothing=label_smoothing, reduction="none")
    return (weight_C[labels_B] * loss_B).mean()


def losses_and_correct(
    logits_HBC: Tensor, labels_B: Tensor, *, label_smoothing: float = 0.0, weight_C: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """mean_loss per head (H,) in nats, and correct predictions per head (H,)."""
    loss_H = torch.stack(
        [mean_loss(logits_BC, labels_B, label_smoothing=label_smoothing, weight_C=weight_C) for logits_BC in logits_HBC]
    )
    correct_H = (logits_HBC.detach().argmax(-1) == labels_B).sum(-1)
    return loss_H, correct_H
