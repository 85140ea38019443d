"""Where in a file a network's weights lie: found by the network's own names, whatever stands before them.

Containers (`state_dict`, `model`, ...) and prefixes (`module.`, `backbone.`, ...) are one thing here: the names of a
file are its keys from the outermost to the tensor's, joined by dots, and what stands before the network's is a prefix.
"""

from __future__ import annotations

import os
import re
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transfergrid.errors import DataError
from transfergrid.networks.backbones.weight_files import Taken, some


class State(OrderedDict[str, Tensor]):
    """A state dict, with what torch notes beside one: the version of each layer, by which it is loaded."""

    _metadata: Any = None


Shapes = Mapping[str, Tensor]  # of which only names and shapes are looked at

DEEPEST = 8  # of dictionaries inside dictionaries
_FIRST = ("state_dict", "model", "model_state_dict")  # containers in the order in which the first releases looked
# Averages of weights over the training, and the networks that follow another, come after plain ones. DINO's figures
# are its teacher's, so that comes before its student.
_LATER = ({"teacher"}, {"ema", "swa", "averaged", "average", "momentum", "target", "k", "key"}, {"student"})
# Counters of thop and of torch's averages; they hold no weights.
_COUNTERS = ("total_ops", "total_params", "num_batches_tracked", "n_averaged")
# What trainers put on or beside a trunk; another top-level name may be a layer of another network.
_HEADS = re.compile(
    r"(fcs?|logits|last_linear|last_layer|linear|lin|mlp|queue|loss|criterion|center|prototypes?|pred|output)\d*"
    r"|.*(head|classif|projec|predict|queue|prototype|proj_|loss|criterion|aux|probe|encoder|teacher|student|ema_).*"
    r"|(projs?|heads?)\d*",
    re.IGNORECASE,
)
_TRAINERS = re.compile(r"(optim|sched|lr_sched|scaler|amp|rng|loops|callbacks)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Match:
    """state: the network's own names -> float32 tensors, with those of its head as far as they are there.

    prefix: what stands before these names in the file. beside: the other tensors, by their names in the file.
    """

    state: State
    prefix: str
    beside: Mapping[str, Tensor]
    taken: Taken


def find_state(content: Any, network: Shapes, *, path: Path, ignored: tuple[str, ...]) -> Match:
    """network: every name that must be there, the head's aside. ignored: beginnings of the head's names.

    Raises DataError with names that the file has and names that were wanted.
    """
    versions: dict[str, Any] = {}
    tensors = dict(_flat(content, "", versions))
    if not tensors:
        raise DataError(f"{path} holds no state dict; save model.state_dict() with torch.save")
    needed = {name: v for name, v in network.items() if not name.endswith("num_batches_tracked")}
    counts = _prefixes(tensors, needed)
    whole = [p for p, n in counts.items() if n == len(needed) and not _unlike(tensors, needed, p)]
    if not whole:
        raise DataError(f"{path} {_why_not(tensors, needed, counts)}")
    prefix = min(whole, key=_rank)
    own = {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}
    names = [name for name in own if name in network or name.startswith(ignored)]
    extra = [name for name in own if name not in set(names) and name.rsplit(".", 1)[-1] not in _COUNTERS]
    _refuse_other_layers(extra, network, path)
    state = State((name, _plain(own[name], path, prefix + name)) for name in names)
    state._metadata = versions.get(prefix)
    beside = {name: v for name, v in tensors.items() if not name.startswith(prefix)}
    left_out = [prefix + name for name in extra] + [n for n in beside if not _TRAINERS.match(n)]
    others = sorted((p for p in whole if p != prefix), key=_rank)
    left_out = [name for name in left_out if not name.startswith(tuple(others))]
    return Match(state, prefix, beside, Taken(path.name, prefix, len(state), tuple(others), tuple(left_out)))


def _flat(content: Any, prefix: str, versions: dict[str, Any], depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """(dotted name, tensor) of everything inside; versions: prefix -> what state_dict() noted of its layers."""
    if depth > DEEPEST:
        return
    if isinstance(content, Mapping):
        layer_versions = getattr(content, "_metadata", None)
        if isinstance(layer_versions, Mapping) and all(isinstance(v, Mapping) for v in layer_versions.values()):
            versions[prefix] = layer_versions
        pairs: Iterator[tuple[Any, Any]] = iter(content.items())
    elif isinstance(content, (tuple, list)):
        pairs = iter(enumerate(content))
    else:
        return
    for key, value in pairs:
        name = f"{prefix}{key}"
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            value = torch.from_numpy(np.array(value))
        if isinstance(value, Tensor):
            yield _modern(name), value.detach()
        else:
            yield from _flat(value, f"{name}.", versions, depth + 1)


def _modern(name: str) -> str:
    """torchvision's DenseNet files were written when a layer's name could hold a dot (`norm.1`)."""
    return re.sub(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", name)


def _prefixes(tensors: Mapping[str, Tensor], needed: Shapes) -> Counter[str]:
    """What stands before the network's names -> how many of them stand behind it."""
    counts: Counter[str] = Counter()
    for name in tensors:
        cut = 0
        while True:
            if name[cut:] in needed:
                counts[name[:cut]] += 1
            dot = name.find(".", cut)
            if dot < 0:
                break
            cut = dot + 1
    return counts


def _rank(prefix: str) -> tuple[int, int, int]:
    words = set(re.split(r"[._]", prefix.lower()))
    later = next((i for i, names in reversed(list(enumerate(_LATER, 1))) if names & words), 0)
    outermost = prefix.partition(".")[0]
    return later, _FIRST.index(outermost) if outermost in _FIRST else len(_FIRST), prefix.count(".")


def _unlike(tensors: Mapping[str, Tensor], needed: Shapes, prefix: str) -> list[str]:
    """Names whose shape is another than the network's."""
    return [n for n, v in needed.items() if prefix + n in tensors and tensors[prefix + n].shape != v.shape]


def _refuse_other_layers(extra: Sequence[str], network: Shapes, path: Path) -> None:
    """What lies within the network's own layers, or is no head, belongs to another network with more of them."""
    layers = {name.partition(".")[0] for name in network}
    for name in extra:
        top = name.partition(".")[0]
        if top in layers or not _HEADS.fullmatch(top):
            raise DataError(
                f"{path} is of another network: it has {name!r}, which is unknown ({len(extra)} such names); "
                f"wanted: {some(list(network))}"
            )


def _plain(value: Tensor, path: Path, name: str) -> Tensor:
    """A tensor that is no parameter: what was saved as one would otherwise be trained as one."""
    if value.is_quantized or value.layout is not torch.strided or value.is_meta or value.is_complex():
        raise DataError(f"{path}: {name!r} is quantised, sparse, complex or empty; save the weights as float numbers")
    return value.float() if value.is_floating_point() else value


def _why_not(tensors: Mapping[str, Tensor], needed: Shapes, counts: Counter[str]) -> str:
    prefix, count = max(counts.items(), key=lambda item: (item[1], -len(item[0])), default=("", 0))
    place = f" under {prefix!r}" if prefix and count > 0 else ""
    names = [name for name in tensors if not _TRAINERS.match(name)] or list(tensors)
    if count == len(needed):
        name = _unlike(tensors, needed, prefix)[0]
        shapes = f"{tuple(tensors[prefix + name].shape)}, wanted {tuple(needed[name].shape)}"
        return f"is of another network{place}: {name!r} has shape {shapes}"
    missing = [name for name in needed if prefix + name not in tensors]
    common = os.path.commonprefix(names).rpartition(".")[0]
    numbered = all(name[len(common) :].lstrip(".")[:1].isdigit() for name in names)
    if numbered and count <= len(needed) // 2:
        text = "numbers its layers instead of naming them"
    else:
        more = sum(n.startswith(prefix) and n[len(prefix) :] not in needed for n in names)
        text = f"is of another network{place}: it lacks {missing[0]!r} ({len(missing)} missing, {more} unknown)"
    return f"{text}; it has: {some(names)}; wanted: {some(list(needed))}"
