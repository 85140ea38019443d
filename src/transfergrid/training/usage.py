"""What a run used of what it was given: CPU time, memory, and how busy its GPUs were, sampled while it runs."""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from transfergrid.specs import Runtime

SAMPLE_S = 5.0


class UsageMeter:
    """Measures from entry to exit; GPUs by their driver's library (NVML), in a thread that costs nothing to the
    training. A machine without that library, or a driver that does not answer, gives no samples."""

    def __init__(self, *, gpus: Sequence[str] = ()) -> None:
        """gpus: UUIDs of all GPUs that the run was given, each with `GPU-` or `MIG-`."""
        self._gpus = tuple(gpus)
        self._busy: list[float] = []  # of the time, in [0, 1]; the mean of the GPUs
        self._memory_mib: list[float] = []  # in use on the fullest GPU
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> UsageMeter:
        self._began, self._cpu_began = time.monotonic(), _cpu_s()
        if self._gpus:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()

    def gpu_now(self) -> dict[str, float]:
        """`gpu/utilisation` in [0, 1] and `gpu/memory_mib`, a few seconds old; without what is not measured."""
        if self._ended.is_set():
            return {}
        latest = {"gpu/utilisation": self._busy[-1:], "gpu/memory_mib": self._memory_mib[-1:]}
        return {name: value[0] for name, value in latest.items() if value}

    def summary(self) -> dict[str, Any]:
        """wall_s, cpu_s; cpus: those SLURM gave, else those it may use; memory_mib that SLURM gave, else
        None; max_rss_mib; gpu_utilisation in [0, 1], the mean of the run's GPUs; gpu_memory_mib in use on the fullest;
        None without a sample, as the utilisation of a slice of a GPU (MIG), which no driver tells."""
        memory = os.environ.get("SLURM_MEM_PER_NODE")
        return {
            "wall_s": round(time.monotonic() - self._began, 3),
            "cpu_s": round(_cpu_s() - self._cpu_began, 3),
            "cpus": slurm_cpus() or len(os.sched_getaffinity(0)),
            "max_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            "memory_mib": int(memory) if memory and memory.isdigit() else None,
            "gpu_utilisation": round(fmean(self._busy), 3) if self._busy else None,
            "gpu_memory_mib": max(self._memory_mib, default=None),
        }

    def _sample(self) -> None:
        import pynvml

        try:
            pynvml.nvmlInit()
            handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in self._gpus]
        except pynvml.NVMLError:
            return
        while not self._ended.wait(SAMPLE_S):
            busy = [_asked(lambda h: pynvml.nvmlDeviceGetUtilizationRates(h).gpu / 100, handle) for handle in handles]
            used = [_asked(lambda h: pynvml.nvmlDeviceGetMemoryInfo(h).used / 2**20, handle) for handle in handles]
            if known := [share for share in busy if share is not None]:
                self._busy.append(fmean(known))
            if sizes := [size_mib for size_mib in used if size_mib is not None]:
                self._memory_mib.append(round(max(sizes), 1))


def _asked(ask: Callable[[Any], float], handle: Any) -> float | None:
    """None where the driver does not tell, or lost the GPU."""
    import pynvml

    try:
        return ask(handle)
    except pynvml.NVMLError:
        return None


def driver_version() -> str | None:
    """Of the NVIDIA driver, as `580.65.06`; None where there is none that answers."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None


def gpu_names() -> tuple[str, ...]:
    """Of all GPUs of this machine, as torch names them; empty where there is no driver that answers."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return tuple(str(pynvml.nvmlDeviceGetName(handle)) for handle in handles)
    except pynvml.NVMLError:
        return ()


def slurm_cpus() -> int | None:
    """CPUs that SLURM gave this task; a cluster without task affinity lets it see all of the node's."""
    cpus = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return int(cpus) if cpus.isdigit() and int(cpus) > 0 else None


def cpu_threads(runtime: Runtime) -> int:
    """What a run computes with on this machine: as asked for, else the cores that it may use."""
    cores = len(os.sched_getaffinity(0))
    return runtime.num_threads or min(cores, slurm_cpus() or cores)


def host_name() -> str:
    """SLURM's name of this node inside a job, else the machine's own."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system
