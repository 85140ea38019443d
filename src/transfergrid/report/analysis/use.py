"""What using a row's network costs, where `profile=true` measured it (store/profiles.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transfergrid.paths import StorePaths
from transfergrid.store.profiles import Profile, measured_run, read_profiles
from transfergrid.store.records import RunRecord

KINDS: tuple[Literal["cpu", "gpu"], ...] = ("cpu", "gpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class UseCost:
    """On one device, in the arithmetic of the row's accuracy. latency_ms: of one image, the median of all passes with
    its quartiles; images_per_s: in batches of batch_size, the fastest that was tried. memory_mib, batch_memory_mib: the
    peak with one image and with such a batch, as Profile says. size_mb: 1e6 bytes of float32 weights. measured: UTC."""

    kind: Literal["cpu", "gpu"]
    device: str
    threads: int
    precision: str
    latency_ms: float
    latency_q1_ms: float
    latency_q3_ms: float
    passes: int
    images_per_s: float
    batch_size: int
    memory_mib: float | None
    batch_memory_mib: float | None
    size_mb: float | None
    host: str
    cores: int
    load: float
    measured: str

    @property
    def place(self) -> str:
        """`AMD EPYC 7763, 2 threads, bf16`: numbers of different places are no comparison."""
        threads = f", {self.threads} thread{'' if self.threads == 1 else 's'}" if self.kind == "cpu" else ""
        return f"{self.device}{threads}, {self.precision}"

    @property
    def is_beside_others(self) -> bool:
        """Whether more processes wanted a core than there are, one left out: this machine's last work may be in it."""
        return self.load > self.cores + 1


def use_of_runs(runs: Sequence[RunRecord], store: StorePaths) -> tuple[UseCost, ...]:
    """Of a row, whose runs share one network but for its weights: the newest measurement of each kind of device."""
    newest: dict[str, tuple[Profile, float | None]] = {}
    for run in runs:
        for profile in read_profiles(store.run(measured_run(run.spec))):
            known = newest.get(profile.kind)
            if profile.precision == run.spec.precision and (known is None or known[0].measured <= profile.measured):
                newest[profile.kind] = profile, run.size_mb
    return tuple(_of(*newest[kind]) for kind in KINDS if kind in newest)


def _of(profile: Profile, size_mb: float | None) -> UseCost:
    single, fastest = profile.single, profile.fastest
    return UseCost(
        kind=profile.kind,
        device=profile.device,
        threads=profile.threads,
        precision=profile.precision,
        latency_ms=1e3 * single.median_s,
        latency_q1_ms=1e3 * single.q1_s,
        latency_q3_ms=1e3 * single.q3_s,
        passes=single.passes,
        images_per_s=fastest.images_per_s,
        batch_size=fastest.batch_size,
        memory_mib=single.memory_mib,
        batch_memory_mib=fastest.memory_mib,
        size_mb=size_mb,
        host=profile.host,
        cores=profile.cores,
        load=profile.load,
        measured=profile.measured,
    )


def as_columns(costs: Sequence[UseCost]) -> dict[str, Any]:
    """The fields of ComparisonRow that are told: `cpu_latency_ms`, ..."""
    columns: dict[str, Any] = {"use": tuple(costs)}
    for cost in costs:
        columns |= {
            f"{cost.kind}_latency_ms": cost.latency_ms,
            f"{cost.kind}_images_per_s": cost.images_per_s,
            f"{cost.kind}_memory_mib": cost.memory_mib,
            f"{cost.kind}_measured_on": cost.place,
        }
    return columns
