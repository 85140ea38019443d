"""Backbones joined under one head.

B images of a batch, D feature dimensions of all backbones together, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

EVALUATION_BATCH = 256


class JoinedNetwork(nn.Module):
    """f(x) = [f1(x), f2(x), ...] under one linear head. State-dict names: `backbones.<i>.`, `head.`"""

    def __init__(
        self, backbones: list[nn.Module], *, feature_dim: int, num_classes: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.backbones = nn.ModuleList(backbones)
        self.head = nn.Linear(feature_dim, num_classes)
        # nn.Linear's own rule, uniform in +-1/sqrt(D), from a generator that is handed in.
        with torch.no_grad():
            for values in (self.head.weight, self.head.bias):
                values.copy_((torch.rand(values.shape, generator=generator) * 2 - 1) * feature_dim**-0.5)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """One input (B, 3, H, W) per backbone -> logits (B, C) and, in training, those of auxiliary heads."""
        blocks, auxiliary = [], []
        for backbone, images in zip(self.backbones, inputs, strict=True):
            features = backbone(images)
            if isinstance(features, tuple):
                features, *heads = features
                auxiliary += heads
            blocks.append(features)
        return self.head(torch.cat(blocks, dim=1)), auxiliary


class Plain(nn.Module):
    """An architecture, called as a JoinedNetwork is; `network` alone is what is saved."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.network(images), []


def is_auxiliary(name: str) -> bool:
    """Whether a parameter, buffer or module belongs to an auxiliary head, which f(x) does without."""
    return ".aux1." in f"{name}." or ".aux2." in f"{name}."


def is_classifier(name: str) -> bool:
    """Whether a parameter belongs to a classification layer: the head, or the last layer of an auxiliary head."""
    return name.startswith("head.") or (is_auxiliary(name) and ".fc2." in name)


def batch_norm_layers(network: nn.Module, kept_in_eval: frozenset[str]) -> list[nn.Module]:
    """Those that go by the batch at hand in training."""
    named = network.named_modules()
    return [module for name, module in named if isinstance(module, _BatchNorm) and name not in kept_in_eval]
