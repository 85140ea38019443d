"""What a cluster is asked for: the nouns of `cluster=`, frozen. None of it changes a number beyond rounding."""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_PACKED = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one SLURM job asks for.

    partition: one, or several separated by commas (SLURM takes the first that can start the job). gpu_type: as SLURM
    names it in `gres`, e.g. `a100`. mem_gb: of host memory, in GiB as SLURM counts. timeout_min: of one job; a run
    that needs longer goes on in a requeued job.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus: int = 1
    gpu_type: str | None = None
    cpus: int = 4
    mem_gb: float = 16.0
    timeout_min: int = 240


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """How a grid is sent to a cluster.

    name: `auto`, `local`, `slurm`, or a file of the user's own in conf/cluster/, whose `kind` is then slurm or local.
    by_phase: resources of the phases that ask for others. array_parallelism: jobs of one array at a time, 0 = no limit.
    runs_per_job: so many runs share a job, one after the other. signal_delay_s: before the time limit a job is told to
    save. max_requeues: how often a job may go on after its time limit or a preemption. setup: shell lines before
    python. python: the command that starts python on the node, container prefix included; None = this interpreter.
    stage_folders: image folders are copied to scratch_dir on the node first. sbatch: further options of sbatch,
    True for those without a value. poll_s: seconds between two looks at the queue while waiting.
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
    poll_s: float = 10.0

    def of_phase(self, phase: str) -> Resources:
        """What a job of this phase asks for."""
        return self.by_phase.get(phase, self.resources)
