"""What a forward pass costs a user: latency, throughput and memory of a network, measured by a fixed rule.

Measured is the network alone, from prepared images in the device's memory to logits there, in eval mode.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from transfergrid.specs import Precision
from transfergrid.store.profiles import Passes, Profile
from transfergrid.store.provenance import cpu_name
from transfergrid.training.on_images import evaluating
from transfergrid.training.usage import host_name

BATCH_SIZES = (1, 4, 16, 64, 256)  # the last is that of evaluations
LONGEST_PASS_S = 2.0  # a batch that is expected to take longer is not tried


@dataclass(frozen=True, slots=True)
class Rule:
    """How long is measured: at least so many passes and at least so many seconds, both before and while it counts."""

    passes: int
    seconds: float
    warm_up_passes: int
    warm_up_s: float


SINGLE = Rule(passes=20, seconds=2.0, warm_up_passes=3, warm_up_s=0.5)
BATCHES = Rule(passes=5, seconds=1.0, warm_up_passes=1, warm_up_s=0.2)


class Memory(Protocol):
    """reset: forget former peaks. peak_mib: the highest since then, in 2^20 bytes; None where nobody tells."""

    def reset(self) -> None: ...
    def peak_mib(self) -> float | None: ...


class GrownBy:
    """Resident memory of this process above what it had when this was made. Linux tells the peak and forgets it."""

    def __init__(self) -> None:
        _give_back()
        self._before_kib = _status_kib("VmRSS")
        self._is_reset = False

    def reset(self) -> None:
        _give_back()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
            self._is_reset = True

    def peak_mib(self) -> float | None:
        peak_kib = _status_kib("VmHWM")
        if not self._is_reset or peak_kib is None or self._before_kib is None:
            return None
        return round(max(0, peak_kib - self._before_kib) / 1024, 3)


class AllocatedOn:
    """What torch has allocated on a GPU, weights included."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def reset(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak_mib(self) -> float | None:
        return round(torch.cuda.max_memory_allocated(self._device) / 2**20, 3)


def profile(
    network: nn.Module,
    sizes_px: Sequence[int],
    device: torch.device,
    *,
    precision: Precision,
    memory: Memory,
    sought_gpu: bool,
) -> Profile:
    """sizes_px: of the square image that each input of the network takes; the network lies on the device.

    Larger batches are tried until one would take longer than LONGEST_PASS_S, or finds no room on a GPU. Raises
    torch.OutOfMemoryError where a single image finds none.
    """
    began, load = datetime.now(UTC), os.getloadavg()[0]
    measured: list[Passes] = []
    with evaluating(network, device, precision=precision, test_bn="running"):
        for batch_size in BATCH_SIZES:
            if measured and batch_size / measured[-1].images_per_s > LONGEST_PASS_S:
                break
            try:
                measured.append(_batch(network, sizes_px, device, batch_size, memory))
            except torch.OutOfMemoryError:
                if not measured:
                    raise
                break
    return Profile(
        kind="gpu" if device.type == "cuda" else "cpu",
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        threads=torch.get_num_threads(),
        precision=precision,
        sizes_px=tuple(sizes_px),
        passes=tuple(measured),
        sought_gpu=sought_gpu,
        host=host_name(),
        cores=os.cpu_count() or 1,
        load=round(load, 2),
        torch=torch.__version__,
        job=os.environ.get("SLURM_JOB_ID"),
        measured=began.isoformat(timespec="seconds"),
    )


def _batch(
    network: nn.Module, sizes_px: Sequence[int], device: torch.device, batch_size: int, memory: Memory
) -> Passes:
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(batch_size, 3, size, size, generator=generator).to(device, memory_format=torch.channels_last)
        for size in sizes_px
    ]

    def once() -> None:
        network(*inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    memory.reset()
    return timed(once, batch_size, SINGLE if batch_size == 1 else BATCHES, memory)


def timed(
    once: Callable[[], None],
    batch_size: int,
    rule: Rule,
    memory: Memory,
    *,
    now: Callable[[], float] = time.perf_counter,
) -> Passes:
    """Warm-up, then passes that count, each timed by itself. now: a clock in seconds."""
    began = now()
    once()
    first_s, warm_up = now() - began, 1
    while warm_up < rule.warm_up_passes or now() - began < rule.warm_up_s:
        once()
        warm_up += 1
    seconds: list[float] = []
    started = ended = now()
    while len(seconds) < rule.passes or ended - started < rule.seconds:
        began = now()
        once()
        ended = now()
        seconds.append(ended - began)
    q1_s, median_s, q3_s = statistics.quantiles(seconds, n=4, method="inclusive")
    return Passes(
        batch_size=batch_size,
        median_s=median_s,
        q1_s=q1_s,
        q3_s=q3_s,
        passes=len(seconds),
        first_s=first_s,
        warm_up=warm_up,
        memory_mib=memory.peak_mib(),
    )


def _give_back() -> None:
    """Memory that is free and still this process's goes back, so that what was made and dropped counts for nothing."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library than GNU's keeps what it likes
        ctypes.CDLL(None).malloc_trim(0)


def _status_kib(name: str) -> int | None:
    with contextlib.suppress(OSError):
        found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        return int(found[1]) if found else None
    return None
