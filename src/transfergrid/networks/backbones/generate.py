"""Write catalog.json from the installed torchvision: `python -m transfergrid.networks.backbones.generate` (a minute).

Networks are constructed and tried on the device `meta`, so neither memory nor weights are needed. A weights tag is left
out where its input differs from the only size the constructor's network takes (ViT at 384 or 518 px).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision import models

from transfergrid.networks.architectures import tinynet
from transfergrid.networks.backbones import CATALOG
from transfergrid.networks.backbones.construct import (
    Groups,
    behead,
    construct,
    group_parameters,
    last_linear,
    without_memory,
)
from transfergrid.networks.size import describe as network_size
from transfergrid.store import durable

DEFAULT_TAG = "IMAGENET1K_V1"
NO_LINEAR_LAYER = "ends in no linear layer"
MAX_GROUPS = 6  # of the even split; the explicit families have as many as they have stages

# First match of a builder's name. The node is named as torchvision's module is, or as the literature does (fc7).
TAPS = (
    ("alexnet", "fc7"),  # classifier[:-1]: 4,096 values after ReLU; dropout is the identity
    ("vgg", "fc7"),
    ("convnext", "classifier.0"),  # global average, then LayerNorm
    ("maxvit", "classifier.4"),  # global average, LayerNorm, linear, tanh
    ("mobilenet_v3", "classifier.1"),  # global average, linear, hardswish
    ("vit", "class_token"),  # after the encoder's LayerNorm
    ("", "avgpool"),
)


def generate() -> dict[str, Any]:
    """The whole content of catalog.json."""
    networks: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for name in models.list_models(module=models):
        facts = describe(name, name)
        if facts is None:
            refused[name] = NO_LINEAR_LAYER
        else:
            networks[name] = facts
    networks["vgg16_gap"] = describe("vgg16_gap", "vgg16")
    return {
        "torchvision": torchvision.__version__.split("+")[0],
        "networks": dict(sorted(networks.items())),
        "refused": refused,
        "templates": {"tinynet": _tinynet()},
    }


def describe(name: str, architecture: str, *, num_classes: int = 1000) -> dict[str, Any] | None:
    """One entry, or None for a network that ends in no linear layer."""
    with without_memory():
        network = construct(architecture, num_classes=num_classes).to("meta").eval()
    head = last_linear(network)
    if head is None:
        return None
    has_head = name != "vgg16_gap"
    trunk = behead(network, name, head)
    weights = {} if architecture == "tinynet" else published_weights(name, architecture)
    facts = {
        "architecture": architecture,
        "tap": tap_of(architecture) if has_head else "global_average",
        "head": head if has_head else "",
        "head_classes": num_classes if has_head else 0,
        "groups": [g for g in groups_of(architecture, trunk) if has_head or g[0] not in ("fc6", "fc7")],
        "default_weights": DEFAULT_TAG if DEFAULT_TAG in weights else next(iter(weights), "builtin"),
        "weights": weights,
    }
    return facts | measured(trunk, facts, min((w["crop_px"] for w in weights.values()), default=32))


def measured(trunk: nn.Module, facts: dict[str, Any], usual_px: int) -> dict[str, Any]:
    """The other fields of a CatalogEntry, and `weights` without those of another input where there is only one, by
    trial of a trunk on `meta`. Asserts that the groups part the trunk's parameters."""
    group_parameters(trunk, facts["groups"])
    smallest_px, fixed_px = sizes_px(trunk, usual_px)
    weights = {tag: w for tag, w in facts["weights"].items() if fixed_px in (None, w["crop_px"])}
    default = facts["default_weights"]
    default = default if default in weights else next(iter(weights), default)
    size_px = weights[default]["crop_px"] if default in weights else usual_px
    return {
        "default_weights": default,
        "weights": weights,
        "feature_dim": trunk(torch.empty(1, 3, usual_px, usual_px, device="meta")).shape[1],
        "min_size_px": smallest_px,
        "fixed_size_px": fixed_px,
        "parameters": sum(p.numel() for p in trunk.parameters()),
        "gmacs": round(network_size(trunk, [(3, size_px, size_px)]).gflops_per_image / 2, 6),
    }


def published_weights(name: str, architecture: str) -> dict[str, Any]:
    """Tag -> file and preprocessing, as the transforms of torchvision's weights say."""
    weights: dict[str, Any] = {}
    for member in models.get_model_weights(architecture):
        if name == "vgg16" and member.name == "IMAGENET1K_FEATURES":
            continue  # its classifier, and so fc7, is filled with NaN; vgg16_gap has it
        transforms = member.transforms()
        file = member.url.rsplit("/", 1)[1]
        match = re.search(r"-([0-9a-f]{8,})\.", file)
        assert match is not None, file
        weights[member.name] = {
            "file": file,
            "hash_prefix": match.group(1),
            "resize_px": transforms.resize_size[0],
            "crop_px": transforms.crop_size[0],
            "interpolation": transforms.interpolation.value,
            "mean": list(transforms.mean),
            "std": list(transforms.std),
        }
    return weights


def sizes_px(trunk: nn.Module, usual_px: int) -> tuple[int, int | None]:
    """(smallest square input, the only one or None), by trial; `usual_px` is taken.

    A network that refuses one pixel more is held to its usual size, though some take multiples of a patch, and MaxViT
    takes the three sizes that its first layer rounds up.
    """
    assert takes(trunk, usual_px)
    if not takes(trunk, usual_px + 1):
        return usual_px, usual_px
    if takes(trunk, 1):  # most do: they pad, and average over what is left
        return 1, None
    low, high = 1, usual_px  # low is too small, high is taken
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if takes(trunk, middle) else (middle, high)
    return high, None


@torch.no_grad()
def takes(trunk: nn.Module, size_px: int) -> bool:
    """Whether a forward pass of two images of this size yields features."""
    device = next(trunk.parameters()).device
    try:
        features_ND = trunk(torch.empty(2, 3, size_px, size_px, device=device))
    except (RuntimeError, ValueError, AssertionError, ZeroDivisionError):
        return False
    return bool(features_ND.ndim == 2 and features_ND.shape[0] == 2)


def tap_of(architecture: str) -> str:
    return next(tap for start, tap in TAPS if architecture.startswith(start))


def groups_of(architecture: str, trunk: nn.Module) -> Groups:
    """[group name, parameter-name prefixes] that part all of the trunk's parameters, in depth order."""
    children = [name for name, _ in trunk.named_children()]
    if architecture.startswith(("resnet", "resnext", "wide_resnet")):
        return [("stem", ["conv1", "bn1"]), *((f"layer{i}", [f"layer{i}"]) for i in range(1, 5))]
    if architecture == "tinynet":
        return [("stem", ["block1"]), *((f"stage{i - 1}", [f"block{i}"]) for i in range(2, 5))]
    if architecture.startswith("regnet"):
        return [("stem", ["stem"]), *((f"block{i}", [f"trunk_output.block{i}"]) for i in range(1, 5))]
    if architecture.startswith("shufflenet"):
        return [(name, [name]) for name in ("conv1", "stage2", "stage3", "stage4", "conv5")]
    if architecture.startswith("densenet"):
        blocks = [(f"denseblock{i}", [f"features.denseblock{i}", f"features.transition{i}"]) for i in range(1, 4)]
        last = ("denseblock4", ["features.denseblock4", "features.norm5"])
        return [("stem", ["features.conv0", "features.norm0"]), *blocks, last]
    if architecture == "googlenet":
        stages = [(f"inception{i}", [c for c in children if c.startswith(f"inception{i}")]) for i in (3, 4, 5)]
        return [("stem", ["conv1", "conv2", "conv3"]), *stages]
    if architecture == "inception_v3":
        stages = [(f"Mixed_{i}", [c for c in children if c.startswith(f"Mixed_{i}")]) for i in (5, 6, 7)]
        return [("stem", [c for c in children if c.startswith("Conv2d")]), *stages]
    if architecture.startswith(("vgg", "alexnet")):
        return _conv_blocks(trunk, one_each=architecture == "alexnet")
    if architecture.startswith(("convnext", "swin")):
        # A stage is entered by the layer that halves the resolution.
        stages = [(f"stage{i}", [f"features.{j}" for j in (2 * i - 2, 2 * i - 1) if j > 0]) for i in range(1, 5)]
        stages[-1][1].append("classifier.0" if architecture.startswith("convnext") else "norm")  # the closing norm
        return [("stem", ["features.0"]), *stages]
    containers = ("features", "encoder.layers", "blocks", "layers")
    layers = dict(trunk.named_modules())
    return even_split(trunk, next(c for c in containers if c in layers))


def _conv_blocks(trunk: nn.Module, *, one_each: bool) -> Groups:
    """VGG: the convolutions between two pooling layers are a block; AlexNet: each convolution is one."""
    groups: Groups = []
    open_block = False
    for index, layer in trunk.get_submodule("features").named_children():
        if isinstance(layer, nn.MaxPool2d):
            open_block = False
        elif list(layer.parameters()):
            if not open_block or one_each:
                groups.append((f"{'conv' if one_each else 'block'}{len(groups) + 1}", []))
                open_block = True
            groups[-1][1].append(f"features.{index}")
    classifier = trunk.get_submodule("classifier")
    dense = [index for index, layer in classifier.named_children() if isinstance(layer, nn.Linear)]
    return [*groups, *((f"fc{6 + i}", [f"classifier.{index}"]) for i, index in enumerate(dense))]


def even_split(trunk: nn.Module, container: str) -> Groups:
    """The first child of `container` and what comes before it is the stem; the others are split evenly in order.

    What comes after the container (a closing norm, a hidden layer of the classifier) joins the last group.
    """
    units: list[list[str]] = []
    before: list[str] = []
    for parameter, _ in trunk.named_parameters():
        if parameter.startswith(container + "."):
            prefix = ".".join(parameter.split(".")[: container.count(".") + 2])
            if not units or units[-1][0] != prefix:
                units.append([prefix])
        elif units:
            units[-1].append(parameter)
        else:
            before.append(parameter)
    if before:
        units.insert(0, before)
    return merged(units)


def merged(units: Sequence[Sequence[str]]) -> Groups:
    """Units in depth order -> `stem` (the first) and at most MAX_GROUPS - 1 stages of about as many units each."""
    rest = units[1:]
    count = min(MAX_GROUPS - 1, len(rest))
    groups: Groups = [("stem", list(units[0]))]
    for i in range(count):
        part = rest[i * len(rest) // count : (i + 1) * len(rest) // count]
        groups.append((f"stage{i + 1}", [prefix for unit in part for prefix in unit]))
    return groups


def as_text(content: dict[str, Any]) -> str:
    """JSON with one network a line, so that a diff shows which network changed."""
    lines = []
    for key, value in content.items():
        if isinstance(value, dict) and value:
            inner = ",\n".join(f"    {json.dumps(name)}: {json.dumps(facts)}" for name, facts in value.items())
            lines.append(f"  {json.dumps(key)}: {{\n{inner}\n  }}")
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _tinynet() -> dict[str, Any]:
    """What the built-in backbones share; each adds its weights. Smaller images are refused, though it takes them."""
    facts = describe("tinynet", "tinynet", num_classes=10)
    assert facts is not None
    return {**facts, "min_size_px": tinynet.MIN_SIZE_PX}


if __name__ == "__main__":
    durable.write_bytes(CATALOG, as_text(generate()).encode())
