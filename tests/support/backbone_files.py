"""Specs and state-dict files for the tests of backbones: torchvision's networks, with weights made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from transfergrid.networks import backbones
from transfergrid.networks.backbones.build import bn_statistics, build
from transfergrid.specs import BackboneSpec, PreprocessSpec

OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False, "transform_input": True, "aux_logits": True},
    "inception_v3": {"init_weights": False, "transform_input": True, "aux_logits": True},
}


def spec_of(name: str, weights: str, *, size_px: int) -> BackboneSpec:
    known = backbones.entry(name)
    chosen = backbones.weights_spec(name, weights)
    recipe = known.recipe(chosen.label)
    preprocess = PreprocessSpec(
        mode="direct",
        resize_px=size_px,
        crop_px=size_px,
        interpolation=recipe.interpolation,
        mean=recipe.mean,
        std=recipe.std,
    )
    return BackboneSpec(name=name, tap=known.tap, weights=chosen, preprocess=preprocess)


def reference(name: str, *, num_classes: int = 1000, seed: int = 0) -> nn.Module:
    """torchvision's whole network with random weights and with BatchNorm statistics that matter, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **OPTIONS.get(name, {}))
    bn_statistics(network.eval(), [images(16, 64)])  # else the input hardly reaches the last layers
    return network


def from_file(name: str, path: Path, *, size_px: int = 32, auxiliary: bool = False) -> nn.Module:
    spec = spec_of(name, str(path), size_px=size_px)
    return build(spec, weights_dir=path.parent, weights_files={spec.weights.identity: str(path)}, auxiliary=auxiliary)


def random_trunk(name: str, *, size_px: int) -> nn.Module:
    return build(spec_of(name, "random", size_px=size_px), weights_dir=Path("unused"), weights_files={})


def images(count: int, size_px: int, *, seed: int = 0) -> Tensor:
    """Normalised noise (count, 3, size_px, size_px)."""
    return torch.randn(count, 3, size_px, size_px, generator=torch.Generator().manual_seed(seed))
