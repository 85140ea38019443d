"""runs/<run_id>/profile.json: what using a network cost, on each machine where that was measured.

It lies beside the weights that were measured: in the folder of the run that made them, or of the evaluation itself
where the network is a file or a published one. It is no part of a result: no record, no identity and no cost of
training knows of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transfergrid.paths import RunPaths
from transfergrid.specs import EvaluateSettings, Precision, RunSpec, from_dict, to_dict
from transfergrid.store import durable

PROFILE_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """Forward passes of one batch size. median_s, q1_s, q3_s: of `passes` in a row; first_s: the first of `warm_up`
    passes before these, which count for nothing. memory_mib: the peak during all of them, see Profile."""

    batch_size: int
    median_s: float
    q1_s: float
    q3_s: float
    passes: int
    first_s: float
    warm_up: int
    memory_mib: float | None

    @property
    def images_per_s(self) -> float:
        return self.batch_size / self.median_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Of one network on one device: prepared images in its memory -> logits in its memory, in eval mode.

    kind, device: `cpu` and the processor's name, or `gpu` and the GPU's. threads: of the CPU that computed, or fed the
    GPU. sizes_px: what each backbone is fed, side by side. passes: one per batch size tried, the first of one image.
    memory_mib in them, in 2^20 bytes: on a GPU the most that torch had allocated, weights included; on a CPU the
    growth of resident memory of a process that does nothing else, from before the network was made to its peak in use.
    sought_gpu: whether a GPU, where there is one, was measured as well. load: processes that wanted one of the
    machine's cores when it began, of the last minute. job: SLURM's id, None outside. measured: ISO 8601, UTC.
    """

    kind: Literal["cpu", "gpu"]
    device: str
    threads: int
    precision: Precision
    sizes_px: tuple[int, ...]
    passes: tuple[Passes, ...]
    sought_gpu: bool
    host: str
    cores: int
    load: float
    torch: str
    job: str | None
    measured: str

    @property
    def single(self) -> Passes:
        return self.passes[0]

    @property
    def fastest(self) -> Passes:
        """Of the batch sizes tried, the one with the most images per second."""
        return max(self.passes, key=lambda passes: passes.images_per_s)

    @property
    def place(self) -> tuple[str, str, int, Precision]:
        """What a newer measurement must share to replace this one."""
        return self.kind, self.device, self.threads, self.precision


def measured_run(spec: RunSpec) -> str:
    """The id of the run whose folder has the profile of this run's network."""
    source = spec.settings.source if isinstance(spec.settings, EvaluateSettings) else ""
    return source.removeprefix("run:") if source.startswith("run:") else spec.run_id


def read_profiles(paths: RunPaths) -> tuple[Profile, ...]:
    """In the order in which they were measured. Empty where there is no such file that can be read: it is made anew."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        content = durable.read_json(paths.profile)
        if content["format"] == PROFILE_FORMAT:
            return tuple(from_dict(Profile, one) for one in content["profiles"])
    return ()


def add_profiles(paths: RunPaths, measured: Sequence[Profile]) -> None:
    """Those of the same place are replaced, those of other places stay."""
    places = {profile.place for profile in measured}
    kept = [profile for profile in read_profiles(paths) if profile.place not in places]
    durable.write_json(paths.profile, {"format": PROFILE_FORMAT, "profiles": to_dict([*kept, *measured])})
