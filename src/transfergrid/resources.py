"""What a cluster is asked for: the nouns of `cluster=`, frozen. None of it changes a number beyond rounding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from transfergrid.specs import setting

MAX_PACKED = 1000
UNLIMITED = -1  # of timeout_min, as sbatch --time spells it, too
MEMORY = ("mem_gb", "mem_per_cpu_gb", "mem_per_gpu_gb")  # of which a job names one at most
ONE_TASK = {"nodes": "1", "ntasks-per-node": "1"}
_MEMORY: dict[str, Any] = {"span": (0.1, 16384), "unit": "GiB"}
_BY_NAME = "choose it as cluster=NAME"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one SLURM job asks for.

    A run that needs longer than timeout_min goes on in a requeued job. defaults: the fields that nobody asked for,
    which yield to what a partition has.
    """

    partition: str | None = setting(None, "of SLURM; several as gpu,gpu2: the first that is free")
    account: str | None = setting(None, "SLURM account that pays")
    qos: str | None = setting(None, "SLURM quality of service")
    constraint: str | None = setting(None, "node features, as a100&nvme")
    gpus: int = setting(1, "GPUs per job; 0 = the CPU, also on this machine", (0, 64))
    gpu_type: str | None = setting(None, "as SLURM names it, as a100")
    cpus: int = setting(4, "CPU cores per job", (1, 1024))
    mem_gb: float | None = setting(16.0, "memory per job; 0 = all of the node; null = not asked", also=(0,), **_MEMORY)
    mem_per_cpu_gb: float | None = setting(None, "in place of mem_gb", **_MEMORY)
    mem_per_gpu_gb: float | None = setting(None, "in place of mem_gb", **_MEMORY)
    timeout_min: int | None = setting(
        240,
        "time limit, also as 4:00:00 or UNLIMITED; null = the site's own",
        (1, 60 * 24 * 365),
        also=(UNLIMITED,),
        unit="minutes",
    )
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
        amounts = {"mem": self.mem_gb, "mem-per-cpu": self.mem_per_cpu_gb, "mem-per-gpu": self.mem_per_gpu_gb}
        return {key: f"{round(gib * 1024)}M" if gib else "0" for key, gib in amounts.items() if gib is not None}

    def gpu_options(self, style: str, sbatch: Mapping[str, str | bool]) -> dict[str, str]:
        """As sbatch spells it, in the site's style; a gres of the user's own stands in one option with ours."""
        gres = str(sbatch["gres"]) if "gres" in sbatch else None
        if not self.gpus:
            return {"gres": gres} if gres else {}
        style = ("gres" if self.gpu_type is not None else "gpus-per-node") if style == "auto" else style
        gpus = f"{self.gpu_type + ':' if self.gpu_type else ''}{self.gpus}"
        if style == "gres":
            return {"gres": ",".join(filter(None, (f"gpu:{gpus}", gres)))}
        return {style: gpus} | ({"gres": gres} if gres else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """How a grid is sent to a cluster.

    name: `auto`, `local`, `slurm`, or a file of the user's own in conf/cluster/, whose `kind` is then slurm or local.
    by_phase: resources of the phases that ask for others.
    """

    name: str = setting("local", "the file in conf/cluster/", usual="auto", not_set=_BY_NAME)
    kind: str = setting(
        "local",
        "what runs are sent to",
        usual="auto",
        choices=("auto", "local", "slurm"),
        not_set="it is told by a file conf/cluster/NAME.yaml, chosen as cluster=NAME",
    )
    resources: Resources = field(default_factory=Resources)
    by_phase: dict[str, Resources] = setting({}, "other resources for a phase, as {finetune: {mem_gb: 32}}")
    finish_partition: str | None = setting(None, "partition of the job that makes the report")
    array_parallelism: int = setting(0, "jobs of one array at a time; 0 = no limit", (0, 1_000_000))
    runs_per_job: int = setting(1, "runs that share a job, one after the other", (1, MAX_PACKED))
    signal_delay_s: int = setting(120, "a job saves so long before its time limit", (10, 86_400), unit="s")
    max_requeues: int = setting(50, "how often a job goes on after a time limit or preemption", (0, 100_000))
    wckey: str | None = setting(None, "SLURM's workload characterization key")
    exclude: str | None = setting(None, "nodes to avoid, as node[1-3]")
    setup: tuple[str, ...] = setting((), "lines of shell before python, as ['module load cuda']")
    python: str | None = setting(None, "what starts python on a node, container included; null = this one")
    sbatch: dict[str, str | bool] = setting({}, "further options of sbatch, as {mail-type: END}")
    stage_folders: bool = setting(False, "copy image folders to scratch_dir on the node first")
    scratch_dir: str = setting("/tmp", "a folder of the node, as $TMPDIR")
    gpu_request: Literal["auto", "gpus-per-node", "gres", "gpus"] = setting(
        "auto", "sbatch's option for GPUs; auto = gres where they have a type"
    )
    poll_s: float = setting(10.0, "between two looks at the queue while waiting", (0.5, 3600), unit="s")

    def options(self, resources: Resources) -> dict[str, str | bool]:
        """All that such a job asks for, as sbatch spells it: the same in a job script and in a question to SLURM."""
        values = {key: getattr(resources, key) for key in ("partition", "account", "qos", "constraint")}
        values |= {"exclude": self.exclude, "wckey": self.wckey}
        values |= {"time": None if resources.timeout_min is None else str(resources.timeout_min)}
        options = {key: value for key, value in values.items() if value is not None}
        options |= ONE_TASK | {"cpus-per-task": str(resources.cpus)} | resources.memory_options()
        return self.sbatch | options | resources.gpu_options(self.gpu_request, self.sbatch)

    def of_phase(self, phase: str) -> Resources:
        """What a job of this phase asks for."""
        return self.by_phase.get(phase, self.resources)

    def all_as(self, resources: Resources) -> ClusterSettings:
        """With every job asking for this."""
        return replace(self, resources=resources, by_phase={})
