"""The catalog of feature extractors, read without torch, torchvision or timm: planning needs no more than this.

`catalog.json` is made from torchvision by `python -m transfergrid.networks.backbones.generate`, and lists the two tiny
backbones that ship with the package; `timm/<name>` is described once by a subprocess and kept in the cache.
"""

from __future__ import annotations

import difflib
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from transfergrid.errors import ConfigError, MachineError
from transfergrid.networks.backbones.weight_files import identity_of
from transfergrid.specs import RANDOM_RULE_VERSION, WeightsSpec, safe_name
from transfergrid.store import durable

CATALOG = Path(__file__).with_name("catalog.json")
BUILTIN_FOLDER = Path(__file__).with_name("weights")
TIMM_FORMAT_VERSION = 2  # of the kept descriptions of timm networks: another version is described anew
DESCRIBE_TIMEOUT_S = 600
STATE_DICT_SUFFIXES = (".pt", ".pth", ".pth.tar", ".bin", ".ckpt", ".tar", ".safetensors", ".index.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsEntry:
    """One published state dict and the preprocessing it was trained for.

    file: its name, with the publisher's hash. hash_prefix: the first hex digits of its sha256 (empty for timm, which
    publishes none; all of them for those that ship with the package). resize_px, crop_px: shorter edge, then square.
    mean and std: in units of [0, 1].
    """

    file: str = ""
    hash_prefix: str = ""
    resize_px: int
    crop_px: int
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """One feature extractor: everything up to the last linear layer of a classification network.

    architecture: the name of its builder. tap: the node the features are read from. head: dotted name of the last
    linear layer; empty where the trunk has no published head. head_classes: its outputs, 0 without a head; classes_of:
    the published data set whose classes they are, empty for ImageNet's.
    min_size_px: the smallest square input it takes; fixed_size_px: the only one, where there is only one.
    groups: (name, parameter-name prefixes) from the stem to the last stage; they part all the trunk's parameters.
    parameters: of the trunk, without the head. default_weights: a key of `weights`, or `random` where there are none.
    gmacs: 1e9 multiply-accumulates of the trunk's forward pass of one image of the default weights' crop_px.
    """

    name: str
    architecture: str
    tap: str
    head: str
    feature_dim: int
    head_classes: int
    min_size_px: int
    fixed_size_px: int | None
    groups: tuple[tuple[str, tuple[str, ...]], ...]
    parameters: int
    gmacs: float
    default_weights: str
    weights: Mapping[str, WeightsEntry]
    classes_of: str = ""

    def recipe(self, label: str) -> WeightsEntry:
        """The published preprocessing of these weights; `random` and files take that of the default weights."""
        if label in self.weights:
            return self.weights[label]
        if self.default_weights in self.weights:
            return self.weights[self.default_weights]
        size_px = self.fixed_size_px or max(224, self.min_size_px)
        return WeightsEntry(resize_px=size_px, crop_px=size_px)


def names() -> tuple[str, ...]:
    """Every backbone but timm's, which are written `timm/<name>` and not listed."""
    return tuple(sorted((*_catalog(CATALOG)["networks"], *_catalog(CATALOG)["builtin"])))


def entry(name: str, *, catalog_dir: Path | None = None) -> CatalogEntry:
    """What is known of a backbone without building it.

    catalog_dir: where descriptions of timm networks are kept; the first request for one takes seconds.
    Raises ConfigError for a name that is no backbone, with the nearest right names.
    """
    if name.startswith("timm/"):
        return _timm_entry(name, catalog_dir)
    return _entry(name, CATALOG)


def refusal(name: str) -> str | None:
    """Why a network of torchvision that is known cannot be a backbone; None for any other name."""
    reason: str | None = _catalog(CATALOG)["refused"].get(name)
    return reason


def weights_spec(name: str, weights: str, *, weights_seed: int = 0, catalog_dir: Path | None = None) -> WeightsSpec:
    """The identity of what a backbone starts from: `weights` is a tag, `random`, or the path of a state-dict file.

    Raises ConfigError for `DEFAULT`, a tag the backbone does not have, or a file that is not there.
    """
    known = entry(name, catalog_dir=catalog_dir)
    tags = ", ".join(known.weights) or "none"
    if weights == "random":
        return WeightsSpec(label="random", identity=f"random:v{RANDOM_RULE_VERSION}:{weights_seed}")
    if weights in known.weights:
        if name in _catalog(CATALOG)["builtin"]:
            return WeightsSpec(label=weights, identity=f"builtin:{known.weights[weights].hash_prefix}")
        prefix = "timm/" if name.startswith("timm/") else ""
        return WeightsSpec(label=weights, identity=f"tag:{prefix}{known.weights[weights].file}")
    if weights == "DEFAULT":
        raise ConfigError(f"weights 'DEFAULT' of {name!r} means another file each release; name a tag: {tags}")
    path = Path(weights).expanduser()
    if path.is_file():
        stat = path.stat()
        # Not the file's name: under another name it is still the same weights, and two of one name are not.
        sha256 = _sha256(str(path), stat.st_size, stat.st_mtime_ns)
        return WeightsSpec(label=f"file-{sha256[:12]}", identity=f"file:{sha256}")
    if path.is_dir():
        raise ConfigError(f"weights {weights!r} of {name!r} is a folder; give the file of the weights inside it")
    if "/" in weights or weights.endswith(STATE_DICT_SUFFIXES):
        raise ConfigError(f"weights file {weights!r} of {name!r} is not there; give a path, 'random', or a tag: {tags}")
    raise ConfigError(f"unknown weights {weights!r} of {name!r}; known: {tags}; or 'random', or the path of a file")


def check_image_size(name: str, size_px: int, *, catalog_dir: Path | None = None) -> None:
    """Raise ConfigError if the backbone does not take square images of this size, naming the size it takes."""
    known = entry(name, catalog_dir=catalog_dir)
    if known.fixed_size_px is not None and size_px != known.fixed_size_px:
        raise ConfigError(
            f"{name} takes images of exactly {known.fixed_size_px} px, not {size_px}; "
            f"set dataset.image_size_px={known.fixed_size_px} or leave it unset"
        )
    if size_px < known.min_size_px:
        raise ConfigError(
            f"{name} takes images of at least {known.min_size_px} px, not {size_px}; "
            f"set dataset.image_size_px={known.min_size_px} or more, or leave it unset"
        )


# ------------------------------------------------------------------------------------------------- reading the files
def builtin_file(name: str) -> Path:
    """The state dict of a backbone that ships with the package."""
    return BUILTIN_FOLDER / entry(name).weights["builtin"].file


@lru_cache(maxsize=4)
def _catalog(path: Path) -> dict[str, Any]:
    """builtin_training: of those that ship with the package, how they were trained and what they reach."""
    content: dict[str, Any] = json.loads(path.read_bytes())
    return content


@lru_cache(maxsize=256)
def _entry(name: str, path: Path) -> CatalogEntry:
    catalog = _catalog(path)
    for listed in (catalog["networks"], catalog["builtin"]):
        if name in listed:
            return _decode(name, listed[name])
    if name in catalog["refused"]:
        raise ConfigError(f"{name!r} cannot be a backbone: it {catalog['refused'][name]}; known: {_nearest(name)}")
    raise ConfigError(
        f"unknown backbone {name!r}; nearest: {_nearest(name)}; any timm network is written 'timm/<name>'"
    )


def _nearest(name: str) -> str:
    everything = names()
    near = difflib.get_close_matches(name.lower(), everything, n=3, cutoff=0.5)
    return ", ".join(near or [n for n in ("resnet18", "googlenet", "vgg16") if n in everything])


def _decode(name: str, facts: dict[str, Any]) -> CatalogEntry:
    weights = {
        tag: WeightsEntry(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})
        for tag, fields in facts["weights"].items()
    }
    groups = tuple((group, tuple(prefixes)) for group, prefixes in facts["groups"])
    return CatalogEntry(**{**facts, "name": name, "weights": weights, "groups": groups})


@lru_cache(maxsize=256)
def _sha256(path: str, size_bytes: int, mtime_ns: int) -> str:
    """sha256 of a file; size and time are there so that a changed file is read again."""
    return identity_of(Path(path))


# -------------------------------------------------------------------------------------------------------------- timm
@cache
def timm_names() -> frozenset[str]:
    """Every network that timm registers, as `timm.list_models()` names them; a test holds the two equal.

    Read from its source: importing it takes seconds, and a misspelt name is answered at once.
    """
    spec = find_spec("timm")
    assert spec is not None and spec.origin is not None, "timm is a dependency"
    sources = (path.read_text(encoding="utf-8") for path in (Path(spec.origin).parent / "models").rglob("*.py"))
    registered = re.compile(r"^@register_model\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
    return frozenset(name for source in sources for name in registered.findall(source))


@lru_cache(maxsize=256)
def _timm_entry(name: str, catalog_dir: Path | None) -> CatalogEntry:
    if catalog_dir is None:
        raise ConfigError(f"backbone {name!r} needs a folder for its description; give cache.dir=")
    path = catalog_dir / f"timm-{safe_name(name.removeprefix('timm/'))}.json"
    if path.is_file():
        stored = durable.read_json(path)
        if stored["name"] == name and stored["version"] == TIMM_FORMAT_VERSION:
            return _decode(name, stored["entry"])
    facts = _describe_timm(name)
    durable.write_json(path, {"name": name, "version": TIMM_FORMAT_VERSION, "entry": facts})
    return _decode(name, facts)


def _describe_timm(name: str) -> dict[str, Any]:
    """Ask a subprocess, so that the caller never imports timm. Its last line of output is JSON."""
    command = [sys.executable, "-m", "transfergrid.networks.backbones.generate", name.removeprefix("timm/")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DESCRIBE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise MachineError(f"describing {name!r} took longer than {DESCRIBE_TIMEOUT_S} s; try again") from None
    if done.returncode == 2:
        raise ConfigError(done.stderr.strip().splitlines()[-1])
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise MachineError(f"describing {name!r} failed: {reason}; run `{' '.join(command)}` to see it whole")
    facts: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return facts
