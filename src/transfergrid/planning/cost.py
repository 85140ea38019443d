"""What runs are expected to cost: by a record of the same kind where there is one, else by FLOPs. Imports no torch.

What an estimate leaves out: downloads, decoding of large photographs, waiting for a node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Literal

from transfergrid.planning.history import History, seconds_by_record
from transfergrid.planning.machine import Machine
from transfergrid.planning.work import images_and_epochs, seconds_by_flops
from transfergrid.specs import RunSpec, Runtime
from transfergrid.training.speed import assumed_speed
from transfergrid.training.usage import cpu_threads

if TYPE_CHECKING:
    from transfergrid.planning.plan import PlannedRun

# Measured: `python -m transfergrid.planning.job` on one thread of an AMD EPYC that others used too. Total minus the
# phase's own time was 8.8 to 14.1 s, median 11, in 16 runs that train on or extract from images; importing torch is 4.2
# s of it, torchvision and timm are the rest. Context and kernels of a GPU come on top: assumed, not measured.
START_S = 10.0
GPU_START_S = 5.0
# Of a child of the local pool, whose server has imported all that. Measured on an idle machine: the quickstart's ten
# extractions and probes took 0.8 s each, from one's start to the next's, of which their work is 0.1 to 0.4 s.
IN_POOL_S = 0.5

SHORT_S = 120.0
ADVISED_RUNS_PER_JOB = 16
Basis = Literal["records", "measured", "flops"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """seconds: expected wall time of one run on its own, start of the process included; 0 where nothing is left to do.
    basis: `records`; or FLOPs at the speed that this machine was `measured` to have, or at an assumed one (`flops`).
    record: the run_id that it rests on."""

    seconds: float
    basis: Basis
    record: str = ""


def estimate(
    runs: Sequence[RunSpec], runtime: Runtime, *, gpus: int, here: Machine | None = None
) -> dict[str, Estimate]:
    """By run_id. gpus: what one run gets; 0, or runtime.device `cpu`, means that it runs on the CPU. here: the machine
    whose pool carries them out; None: jobs of their own, on nodes of a cluster."""
    on_gpu = gpus > 0 and runtime.device != "cpu"
    history = History(runtime, on_gpu=on_gpu, here=here)
    measured = None if here is None else here.speeds.get(here.speed_key(runtime, on_gpu=on_gpu))
    speed = measured or assumed_speed(cores=cpu_threads(runtime), on_gpu=on_gpu)
    start_s = start_overhead_s(on_gpu=on_gpu, in_pool=here is not None)

    def one(run: RunSpec) -> Estimate:
        images, epochs = images_and_epochs(run, runtime)
        if images == 0:
            return Estimate(0.0, "flops")
        record = history.nearest(run, images, epochs)
        if record is not None:
            return Estimate(start_s + seconds_by_record(record, images, epochs), "records", record.run_id)
        seconds = start_s + seconds_by_flops(run, runtime, speed)
        return Estimate(seconds, "flops" if measured is None else "measured")

    return {run.run_id: one(run) for run in runs}


def start_overhead_s(*, on_gpu: bool = False, in_pool: bool = False) -> float:
    """What a process costs before its first step: python, torch and its companions, on a GPU also its context."""
    return (IN_POOL_S if in_pool else START_S) + (GPU_START_S if on_gpu else 0.0)


def gpu_hours(plan_runs: Iterable[PlannedRun], estimates: Mapping[str, Estimate], gpus: int) -> float:
    """Of what is to be run, each run on so many GPUs."""
    return gpus * sum(estimates[p.run.run_id].seconds for p in plan_runs if p.state == "run") / 3600


def packing_advice(estimates: Mapping[str, Estimate], *, runs_per_job: int, packed_jobs: int) -> str | None:
    """What several runs per job would save; None where runs are long, or packed already, or too few to be packed.

    packed_jobs: how many jobs ADVISED_RUNS_PER_JOB would make of them; runs of different phases share none.
    """
    seconds = [e.seconds for e in estimates.values() if e.seconds > 0]
    if runs_per_job > 1 or len(seconds) < 2 or median(seconds) >= SHORT_S:
        return None
    saved_min = (len(seconds) - packed_jobs) * start_overhead_s() / 60
    if saved_min < 1:
        return None
    jobs = "1 job" if packed_jobs == 1 else f"{packed_jobs} jobs"
    return (
        f"half of the {len(seconds)} runs take less than {median(seconds):.0f} s: cluster.runs_per_job="
        f"{ADVISED_RUNS_PER_JOB} makes {jobs} of them and saves {saved_min:.1f} min of starting python"
    )
