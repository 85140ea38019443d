"""Networks trained from scratch, one file each, found by its name.

Such a file has MIN_SIZE_PX (the smallest square image it takes), GFLOPS_AT_32_PX (1e9 x 2 x multiply-accumulate of its
forward pass of one image of 32 px) and PARAMETERS, both for 10 classes; these are plain numbers on lines of their own.
It also has build(num_classes), which draws its weights from torch's global generator. Nothing here imports torch before
build().
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from transfergrid.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchitectureEntry:
    """What is known of an architecture without building it; gflops and parameters are for 10 classes."""

    name: str
    min_size_px: int
    gflops_at_32_px: float
    parameters: int


def names() -> tuple[str, ...]:
    return _names(tuple(__path__))


@lru_cache(maxsize=8)
def _names(places: tuple[str, ...]) -> tuple[str, ...]:
    """Asked several times for each run of a plan."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(places) if not m.name.startswith("_")))


@lru_cache(maxsize=64)
def entry(name: str) -> ArchitectureEntry:
    """Raises ConfigError, with the nearest right name, for a name that is no architecture."""
    if name not in names():
        near = difflib.get_close_matches(name.lower(), names(), n=3, cutoff=0.5) or names()
        raise ConfigError(f"unknown architecture {name!r}; nearest: {', '.join(near)}")
    # From the text, not from the module: importing it would load torch.
    text = text_of(name)
    return ArchitectureEntry(
        name=name,
        min_size_px=int(_stated("MIN_SIZE_PX", text, name=name)),
        gflops_at_32_px=_stated("GFLOPS_AT_32_PX", text, name=name),
        parameters=int(_stated("PARAMETERS", text, name=name)),
    )


def check_image_size(name: str, size_px: int) -> None:
    """Raise ConfigError if the architecture does not take square images of this size."""
    smallest_px = entry(name).min_size_px
    if size_px < smallest_px:
        raise ConfigError(
            f"{name} takes images of at least {smallest_px} px, not {size_px}; set dataset.image_size_px={smallest_px}"
        )


def build(name: str, num_classes: int, seed: int) -> nn.Module:
    """The network with its constructor's weights: the same seed gives the same weights, and no one else's are moved."""
    import torch

    known = entry(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: nn.Module = importlib.import_module(f"{__name__}.{known.name}").build(num_classes)
    return module


def text_of(name: str) -> str:
    spec = importlib.util.find_spec(f"{__name__}.{name}")
    assert spec is not None and spec.origin is not None, name
    return Path(spec.origin).read_text(encoding="utf-8")


def _stated(constant: str, text: str, *, name: str) -> float:
    match = re.search(rf"^{constant} = ([\d._]+)$", text, re.MULTILINE)
    assert match is not None, f"{name}.py has no line {constant} = <number>"
    return float(match.group(1))
