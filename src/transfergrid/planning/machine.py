"""What is known of this machine: its name, how fast it was measured, and how long its launches took against what was
expected of them. Kept in the cache, one file per machine, because several may share it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from transfergrid.paths import cache_paths
from transfergrid.specs import Runtime, digest, from_dict, to_dict
from transfergrid.store import durable
from transfergrid.store.provenance import machine_name
from transfergrid.training.speed import Speed
from transfergrid.training.usage import cpu_threads, gpu_names

LAUNCHES_KEPT = 20


@dataclass(frozen=True, slots=True)
class PastLaunch:
    """A launch whose runs all completed. report_s: of took_s, the part after the last run; rows: of its table; by: what
    most of its expected time rested on: `records`, or less."""

    expected_s: float
    took_s: float
    report_s: float
    rows: int
    figures: bool
    by: str


@dataclass(frozen=True, slots=True)
class Machine:
    """name: processor and cores, as records have it. gpus: names as torch has them, as many as
    CUDA_VISIBLE_DEVICES lets be seen; empty where no driver tells any.
    speeds: measured, by speed_key(). launches: oldest first."""

    name: str
    gpus: tuple[str, ...] = ()
    speeds: Mapping[str, Speed] = field(default_factory=dict)
    launches: tuple[PastLaunch, ...] = ()

    def speed_key(self, runtime: Runtime, *, on_gpu: bool) -> str:
        """What a measurement holds for: the device, its threads, and the release of torch."""
        device = "+".join(sorted(set(self.gpus))) or "gpu" if on_gpu else f"{cpu_threads(runtime)} threads"
        return f"{device}, torch {version('torch')}"


def this_machine(runtime: Runtime) -> Machine:
    """With what the cache keeps of it; a file that is damaged, or of another release, is passed over."""
    bare = Machine(machine_name(), () if runtime.device == "cpu" else _gpus())
    try:
        content = durable.read_json(_file(runtime, bare))
        speeds = {key: Speed(**speed) for key, speed in content["speeds"].items()}
        return replace(bare, speeds=speeds, launches=tuple(from_dict(PastLaunch, past) for past in content["launches"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return bare


def keep(machine: Machine, runtime: Runtime) -> None:
    """Raises MachineError or OSError where the cache cannot be written."""
    kept = replace(machine, launches=machine.launches[-LAUNCHES_KEPT:])
    durable.write_json(_file(runtime, machine), to_dict(kept))


def _file(runtime: Runtime, machine: Machine) -> Path:
    return cache_paths(runtime).machines / f"{digest(machine.name, 16)}.json"


def _gpus() -> tuple[str, ...]:
    names, visible = gpu_names(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return names if visible is None else names[: sum(bool(entry.strip()) for entry in visible.split(","))]
