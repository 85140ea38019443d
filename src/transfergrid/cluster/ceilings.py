"""What a QOS or an association lets a job, a user or an account hold at once: a job that asks for more never starts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from transfergrid.errors import ConfigError
from transfergrid.resources import Resources

TRES = r"[^|\s]*"  # `cpu=4,gres/gpu:a100=1,mem=8G`, as sacctmgr prints it
KINDS = ("group", "job", "user", "account")  # whose sum a limit bounds
_MIB = {"": 1.0, "K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1024.0**2}


@dataclass(frozen=True, slots=True)
class Ceiling:
    """owner: whose limit it is, as `QOS short`. most: (kind, TRES) -> number; memory in MiB."""

    owner: str
    most: Mapping[tuple[str, str], float]


def ceiling_of(owner: str, columns: Mapping[str, str]) -> Ceiling:
    """columns: kind -> what sacctmgr prints of it."""
    return Ceiling(owner, {(kind, tres): most for kind, text in columns.items() for tres, most in _read(text)})


def above(asked: Resources, layers: Sequence[Ceiling]) -> ConfigError | None:
    """Why such a job would wait for good; None where nothing forbids it.

    layers: the most important first. SLURM takes each limit from the first of them that has it.
    """
    for key, tres, value in _wanted(asked):
        most, owner = _least(layers, tres)
        if value > most:
            shown = f"{most / 1024:g}" if tres == "mem" else f"{most:g}"
            given = value / 1024 if tres == "mem" else value
            said = f"cluster.{key}={given:g} is more than {owner} ever gives"
            return ConfigError(said, remedy=f"give cluster.{key}={shown} or less")
    return None


def room(layers: Sequence[Ceiling]) -> tuple[float, float]:
    """The most CPUs, and MiB of memory, that one job may ever have."""
    return _least(layers, "cpu")[0], _least(layers, "mem")[0]


def _least(layers: Sequence[Ceiling], tres: str) -> tuple[float, str]:
    of_kinds = [
        next(((layer.most[kind, tres], layer.owner) for layer in layers if (kind, tres) in layer.most), None)
        for kind in KINDS
    ]
    return min((limit for limit in of_kinds if limit is not None), default=(math.inf, ""))


def _wanted(asked: Resources) -> Iterable[tuple[str, str, float]]:
    yield "gpus", "gres/gpu", asked.gpus
    if asked.gpu_type is not None:
        yield "gpus", f"gres/gpu:{asked.gpu_type}", asked.gpus
    yield "cpus", "cpu", asked.cpus
    if asked.mem_gb is not None:
        yield "mem_gb", "mem", asked.mem_gb * 1024


def _read(text: str) -> Iterable[tuple[str, float]]:
    for name, number, unit in re.findall(r"([^=,]+)=(\d+(?:\.\d+)?)([KMGT]?)", text):
        yield name, float(number) * (_MIB[unit] if name == "mem" else 1)
