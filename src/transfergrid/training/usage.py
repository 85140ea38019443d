"""What a run used of what it was given: CPU time, memory, and how busy its GPU was, sampled while it runs."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from transfergrid.specs import Runtime

SAMPLE_S = 5.0
ANSWER_S = 5.0  # then a silent nvidia-smi is given up, and asked again


class UsageMeter:
    """Measures from entry to exit; the GPU by nvidia-smi, in a thread that costs nothing to the training."""

    def __init__(self, *, gpu: bool) -> None:
        self._gpu = gpu and shutil.which("nvidia-smi") is not None
        self._samples: list[tuple[float, float]] = []  # (percent of the time busy, MiB in use)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> UsageMeter:
        self._began, self._cpu_began = time.monotonic(), _cpu_s()
        if self._gpu:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()

    def gpu_now(self) -> dict[str, float]:
        """`gpu/utilisation` in [0, 1] and `gpu/memory_mib`, a few seconds old; {} where no GPU is being measured."""
        if self._ended.is_set() or not self._samples:
            return {}
        busy, memory_mib = self._samples[-1]
        return {"gpu/utilisation": busy / 100, "gpu/memory_mib": memory_mib}

    def summary(self) -> dict[str, Any]:
        """wall_s, cpu_s; cpus: those SLURM gave, else those it may use; memory_mib that SLURM gave, else
        None; max_rss_mib; gpu_utilisation in [0, 1] and gpu_memory_mib in use there, both None without a sample."""
        memory = os.environ.get("SLURM_MEM_PER_NODE")
        return {
            "wall_s": round(time.monotonic() - self._began, 3),
            "cpu_s": round(_cpu_s() - self._cpu_began, 3),
            "cpus": slurm_cpus() or len(os.sched_getaffinity(0)),
            "max_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            "memory_mib": int(memory) if memory and memory.isdigit() else None,
            "gpu_utilisation": _mean([busy / 100 for busy, _ in self._samples]),
            "gpu_memory_mib": max((memory_mib for _, memory_mib in self._samples), default=None),
        }

    def _sample(self) -> None:
        command = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        command += ["-i", visible.split(",")[0]] if visible else []
        while not self._ended.wait(SAMPLE_S):
            try:
                output = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=True).stdout
            except (OSError, subprocess.SubprocessError):
                continue
            figures = re.match(r"\s*(\d+(?:\.\d+)?)\s*,\s*(\d+(?:\.\d+)?)", output)
            if figures:
                self._samples.append((float(figures[1]), float(figures[2])))


def slurm_cpus() -> int | None:
    """CPUs that SLURM gave this task; a cluster without task affinity lets it see all of the node's."""
    cpus = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return int(cpus) if cpus.isdigit() and int(cpus) > 0 else None


def cpu_threads(runtime: Runtime) -> int:
    """What a run computes with on this machine: as asked for, else the cores that it may use."""
    cores = len(os.sched_getaffinity(0))
    return runtime.num_threads or min(cores, slurm_cpus() or cores)


@functools.cache
def cpu_name() -> str:
    """The processor's own name, where the kernel tells it; else its architecture."""
    with contextlib.suppress(OSError):
        names = re.findall(r"^model name\s*:\s*(\S.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if names:
            return " ".join(names[0].split())
    return platform.machine()


def host_name() -> str:
    """SLURM's name of this node inside a job, else the machine's own."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system


def _mean(values: list[float]) -> float | None:
    return round(sum(values) / len(values), 3) if values else None
