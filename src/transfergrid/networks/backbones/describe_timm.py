"""`python -m transfergrid.networks.backbones.describe_timm NAME`: one timm network's catalog entry, as JSON on one
line.

Its own process, because timm takes seconds to import and the plan must not load it. Exit code 2 and one line on
stderr for a name that is no timm network.
"""

from __future__ import annotations

import difflib
import json
import sys
import warnings
from collections import defaultdict
from typing import Any

from torch import nn

from transfergrid.errors import ConfigError
from transfergrid.networks.backbones.construct import Groups, without_memory
from transfergrid.networks.backbones.generate import measured, merged, takes


def describe(name: str) -> dict[str, Any]:
    """The fields of a CatalogEntry but its name. Raises ConfigError if timm has no such network."""
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.5) or ["resnet10t"]
        raise ConfigError(f"unknown timm network {name!r}; nearest: {', '.join(f'timm/{n}' for n in near)}")
    weights = published_weights(architecture)
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


def published_weights(architecture: str) -> dict[str, Any]:
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
    """timm's own depth order (its group matcher), merged into a stem and at most five stages."""
    from timm.models._manipulate import group_with_matcher

    named = list(trunk.named_parameters())
    matcher = getattr(trunk, "group_matcher", None)
    if matcher is not None:
        depth_of: dict[str, int] = group_with_matcher(iter(named), matcher(coarse=True), reverse=True)
    else:
        depth_of = {name: index for index, (name, _) in enumerate(named)}
    units: dict[int, list[str]] = defaultdict(list)
    for name, _ in named:
        units[depth_of[name]].append(name)
    return merged([units[depth] for depth in sorted(units)])


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    try:
        print(json.dumps(describe(sys.argv[1])))
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
