"""What a cluster is asked for: the nouns of `cluster=`, frozen. None of it changes a number beyond rounding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

MAX_PACKED = 1000
UNLIMITED = -1  # of timeout_min, as sbatch --time spells it, too
MEMORY = ("mem_gb", "mem_per_cpu_gb", "mem_per_gpu_gb")  # of which a job names one at most
ONE_TASK = {"nodes": "1", "ntasks-per-node": "1"}
GPU_REQUESTS = ("auto", "gpus-per-node", "gres", "gpus")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one SLURM job asks for.

    partition: one, or several separated by commas (SLURM takes the first that can start the job). gpu_type: as SLURM
    names it in `gres`, e.g. `a100`. mem_gb: of host memory, in GiB as SLURM counts; 0 = all of the node, None = it is
    not asked for here. mem_per_cpu_gb, mem_per_gpu_gb: in its place. timeout_min: of one job; a run that needs longer
    goes on in a requeued job; UNLIMITED, or None = the site's own. defaults: the fields that nobody asked for, which
    yield to what a partition has.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus: int = 1
    gpu_type: str | None = None
    cpus: int = 4
    mem_gb: float | None = 16.0
    mem_per_cpu_gb: float | None = None
    mem_per_gpu_gb: float | None = None
    timeout_min: int | None = 240
    defaults: frozenset[str] = field(default=frozenset(), compare=False)

    @property
    def node_mem_gb(self) -> float:
        """What one node must have at least; 0 where nothing is asked, or whatever it has."""
        per_gpu, per_cpu = self.mem_per_gpu_gb or 0, self.mem_per_cpu_gb or 0
        return self.mem_gb or per_gpu * self.gpus or per_cpu * self.cpus

    @property
    def time_min(self) -> float:
        """What a partition must give at least: infinite for UNLIMITED, 0 where the site's own is taken."""
        return math.inf if self.timeout_min == UNLIMITED else float(self.timeout_min or 0)

    def at_most(self, *, gpus: int, cpus: int, mem_gb: float, timeout_min: int) -> Resources:
        """A smaller job of the same place, which asks for its memory in the same way."""
        gpus, cpus = min(gpus, self.gpus), min(cpus, self.cpus)
        per_cpu = None if self.mem_per_cpu_gb is None else min(self.mem_per_cpu_gb, mem_gb / cpus)
        per_gpu = None if self.mem_per_gpu_gb is None or not gpus else min(self.mem_per_gpu_gb, mem_gb / gpus)
        return replace(
            self,
            gpus=gpus,
            cpus=cpus,
            mem_gb=None if self.mem_gb is None else min(self.mem_gb or mem_gb, mem_gb),
            mem_per_cpu_gb=per_cpu,
            mem_per_gpu_gb=per_gpu,
            timeout_min=timeout_min,
        )

    def memory_options(self) -> dict[str, str]:
        """As sbatch spells it: none, or one of mem, mem-per-cpu, mem-per-gpu."""
        asked = {"mem": self.mem_gb, "mem-per-cpu": self.mem_per_cpu_gb, "mem-per-gpu": self.mem_per_gpu_gb}
        return {key: f"{round(gib * 1024)}M" if gib else "0" for key, gib in asked.items() if gib is not None}

    def gpu_options(self, style: str, sbatch: Mapping[str, str | bool]) -> dict[str, str]:
        """As sbatch spells it, in the site's style; a gres of the user's own stands in one option with ours."""
        own = str(sbatch["gres"]) if "gres" in sbatch else None
        if not self.gpus:
            return {"gres": own} if own else {}
        style = ("gres" if self.gpu_type is not None else "gpus-per-node") if style == "auto" else style
        typed = f"{self.gpu_type + ':' if self.gpu_type else ''}{self.gpus}"
        if style == "gres":
            return {"gres": ",".join(filter(None, (f"gpu:{typed}", own)))}
        return {style: typed} | ({"gres": own} if own else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """How a grid is sent to a cluster.

    name: `auto`, `local`, `slurm`, or a file of the user's own in conf/cluster/, whose `kind` is then slurm or local.
    by_phase: resources of the phases that ask for others. array_parallelism: jobs of one array at a time, 0 = no limit.
    runs_per_job: so many runs share a job, one after the other. signal_delay_s: before the time limit a job is told to
    save. max_requeues: how often a job may go on after its time limit or a preemption. setup: shell lines before
    python. python: the command that starts python on the node, container prefix included; None = this interpreter.
    stage_folders: image folders are copied to scratch_dir on the node first. sbatch: further options of sbatch,
    True for those without a value. gpu_request: by which option GPUs are asked for, one of GPU_REQUESTS; auto = gres
    where they have a type, else gpus-per-node. poll_s: seconds between two looks at the queue while waiting.
    """

    name: str = "local"
    kind: str = "local"
    resources: Resources = field(default_factory=Resources)
    by_phase: dict[str, Resources] = field(default_factory=dict)
    finish_partition: str | None = None
    array_parallelism: int = 0
    runs_per_job: int = 1
    signal_delay_s: int = 120
    max_requeues: int = 50
    wckey: str | None = None
    exclude: str | None = None
    setup: tuple[str, ...] = ()
    python: str | None = None
    sbatch: dict[str, str | bool] = field(default_factory=dict)
    stage_folders: bool = False
    scratch_dir: str = "/tmp"
    gpu_request: str = "auto"
    poll_s: float = 10.0

    def options(self, asked: Resources) -> dict[str, str | bool]:
        """All that such a job asks for, as sbatch spells it: the same in a job script and in a question to SLURM."""
        named = {key: getattr(asked, key) for key in ("partition", "account", "qos", "constraint")}
        named |= {"exclude": self.exclude, "wckey": self.wckey}
        named |= {"time": None if asked.timeout_min is None else str(asked.timeout_min)}
        given = {key: value for key, value in named.items() if value is not None}
        given |= ONE_TASK | {"cpus-per-task": str(asked.cpus)} | asked.memory_options()
        return self.sbatch | given | asked.gpu_options(self.gpu_request, self.sbatch)

    def of_phase(self, phase: str) -> Resources:
        """What a job of this phase asks for."""
        return self.by_phase.get(phase, self.resources)

    def all_as(self, asked: Resources) -> ClusterSettings:
        """With every job asking for this."""
        return replace(self, resources=asked, by_phase={})
