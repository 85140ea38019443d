"""Write catalog.json from the installed torchvision: `python -m transfergrid.networks.backbones.generate` (a minute).

Networks are constructed and tried on the device `meta`, so neither memory nor weights are needed. A weights tag is left
out where its input differs from the only size the constructor's network takes (ViT at 384 or 518 px). The groups of a
network that the catalog has are kept: learning rates rest on them. Those of a new one follow depth_groups.

`... generate NAME` prints one timm network's entry, as JSON on one line. In its own process, because timm takes seconds
to import and the plan must not load it. Exit code 2 and one line on stderr for a name that is no timm network.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision import models

from transfergrid.errors import ConfigError
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
MAX_GROUPS = 6

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
    former = json.loads(CATALOG.read_bytes())
    return {
        "torchvision": torchvision.__version__.split("+")[0],
        "networks": dict(sorted(networks.items())),
        "refused": refused,
        "builtin": {name: facts | _tinynet(name, facts["weights"]) for name, facts in former["builtin"].items()},
        "builtin_training": former["builtin_training"],
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
    weights = {} if architecture == "tinynet" else torchvisions_weights(name, architecture)
    catalog = json.loads(CATALOG.read_bytes())
    known = (catalog["networks"] | catalog["builtin"]).get(name)
    facts = {
        "architecture": architecture,
        "tap": tap_of(architecture) if has_head else "global_average",
        "head": head if has_head else "",
        "head_classes": num_classes if has_head else 0,
        "groups": known["groups"] if known else depth_groups(trunk),
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


def torchvisions_weights(name: str, architecture: str) -> dict[str, Any]:
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


def merged(units: Sequence[Sequence[str]]) -> Groups:
    """Units in depth order -> `stem` (the first) and at most MAX_GROUPS - 1 stages of about as many units each."""
    rest = units[1:]
    count = min(MAX_GROUPS - 1, len(rest))
    groups: Groups = [("stem", list(units[0]))]
    for i in range(count):
        part = rest[i * len(rest) // count : (i + 1) * len(rest) // count]
        groups.append((f"stage{i + 1}", [prefix for unit in part for prefix in unit]))
    return groups


def describe_timm(name: str) -> dict[str, Any]:
    """The fields of a CatalogEntry but its name. Raises ConfigError if timm has no such network."""
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.5) or ["resnet10t"]
        raise ConfigError(f"unknown timm network {name!r}; nearest: {', '.join(f'timm/{n}' for n in near)}")
    weights = timms_weights(architecture)
    if tag and tag not in weights:
        known = ", ".join(weights) or "none"
        raise ConfigError(f"timm/{architecture} has no weights {tag!r} that centre-crop; known: {known}")
    with without_memory():
        trunk = timm.create_model(architecture, pretrained=False, num_classes=0).to("meta").eval()
        published_classes = timm.get_pretrained_cfg_value(architecture, "num_classes") or 0
    default = tag or next(iter(weights), "random")
    usual_px = weights[default]["crop_px"] if default in weights else 224
    if not takes(trunk, usual_px):
        raise ConfigError(f"timm/{name} does not turn images of {usual_px} px into features (N, D); take another")
    facts = {
        "architecture": f"timm/{architecture}",
        "tap": "pre_logits",
        "head": str(timm.get_pretrained_cfg_value(architecture, "classifier") or ""),
        "head_classes": published_classes,
        "groups": depth_groups(trunk),
        "default_weights": default,
        "weights": weights,
    }
    return facts | measured(trunk, facts, usual_px)


def timms_weights(architecture: str) -> dict[str, Any]:
    """Tag -> file and preprocessing, the default first; weights whose transform does not centre-crop are left out."""
    from timm.models import list_pretrained
    from timm.models._registry import get_pretrained_cfg

    first = get_pretrained_cfg(architecture)
    tags = [n.partition(".")[2] for n in list_pretrained(f"{architecture}.*")]
    tags.sort(key=lambda tag: first is None or tag != first.tag)
    weights: dict[str, Any] = {}
    for tag in tags:
        config = get_pretrained_cfg(f"{architecture}.{tag}")
        if config is None or config.input_size[0] != 3 or config.crop_mode not in (None, "center"):
            continue
        crop_px = config.input_size[-1]
        weights[tag] = {
            "file": f"{architecture}.{tag}",
            "hash_prefix": "",
            "resize_px": int(crop_px / config.crop_pct),
            "crop_px": crop_px,
            "interpolation": "bicubic" if config.interpolation == "bicubic" else "bilinear",
            "mean": list(config.mean),
            "std": list(config.std),
        }
    return weights


def depth_groups(trunk: nn.Module) -> Groups:
    """timm's own depth order (its group matcher), else that of the parameters, merged into a stem and at most five
    stages."""
    named = list(trunk.named_parameters())
    matcher = getattr(trunk, "group_matcher", None)
    if matcher is not None:
        from timm.models._manipulate import group_with_matcher

        depth_of: dict[str, int] = group_with_matcher(iter(named), matcher(coarse=True), reverse=True)
    else:
        depth_of = {name: index for index, (name, _) in enumerate(named)}
    units: dict[int, list[str]] = defaultdict(list)
    for name, _ in named:
        units[depth_of[name]].append(name)
    return merged([units[depth] for depth in sorted(units)])


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


def _tinynet(name: str, weights: dict[str, Any]) -> dict[str, Any]:
    """Of a built-in backbone. Smaller images are refused, though it takes them."""
    facts = describe(name, "tinynet", num_classes=10)
    assert facts is not None
    return facts | {"weights": weights, "min_size_px": tinynet.MIN_SIZE_PX}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if len(sys.argv) == 1:
        durable.write_bytes(CATALOG, as_text(generate()).encode())
        sys.exit()
    try:
        print(json.dumps(describe_timm(sys.argv[1])))
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
