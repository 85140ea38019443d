"""The job that ends a grid: where it may run, and what became of it.

It asks for no GPU. Where its partition takes no such job another is looked for, and where none does it gets a GPU: a
grid without it has no table, and nobody is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from transfergrid.cluster import slurm
from transfergrid.cluster.limits import Limits, Partition
from transfergrid.cluster.possible import impossible, named_partitions, opened
from transfergrid.cluster.run_state import RunState
from transfergrid.cluster.slurm import SlurmRefused
from transfergrid.cluster.slurm_words import Answer
from transfergrid.errors import ConfigError
from transfergrid.resources import ClusterSettings, Resources

CPUS, MEM_GB, MINUTES = 2, 4.0, 60
PLACES_TRIED = 6
WHAT = "the finish job"
OF_NODES_WITH_GPUS = ("gres", "gpus", "gpus-per-node", "gpus-per-task", "nodelist", "nodes", "ntasks", "exclusive")
OF_THEIR_TIME = ("hold", "begin", "deadline")  # of the runs; it comes when they have ended


# --------------------------------------------------------------------------------------------------------------- place
@dataclass(frozen=True, slots=True)
class Place:
    """resources: what the finish job asks for. note: a line for the plan, where that is not what was asked for.

    refusal: why SLURM takes it nowhere; what the runs ask for may be the cause, so they are asked about first.
    """

    resources: Resources
    note: str = ""
    refusal: str = ""


def find_place(settings: ClusterSettings, limits: Limits) -> Place:
    """Where SLURM takes the finish job, asked before anything is sent; there or nowhere, where the user named a
    partition for it."""
    key = "cluster.partition" if settings.finish_partition is None else "cluster.finish_partition"
    try:
        request = _bounded(finish_resources(settings), limits, key)
    except ConfigError as error:
        raise opened(error, WHAT) from error
    reason = _why_not(request, settings, limits)
    if reason is None:
        return Place(request)
    if settings.finish_partition is not None:
        return Place(request, refusal=f"{WHAT} (cluster.finish_partition): {reason}")
    for resources in _other_places(request, settings, limits):
        if _why_not(resources, settings, limits) is None:
            taken = f"asks for {resources.gpus} GPU" if resources.gpus else f"goes to partition {resources.partition}"
            return Place(resources, f"{WHAT} {taken}, since {reason}; cluster.finish_partition= names another place")
    remedy = "give cluster.finish_partition=, a partition that takes jobs without a GPU"
    return Place(request, refusal=f"{WHAT}: {reason}; {remedy}")


def finish_resources(settings: ClusterSettings) -> Resources:
    """Of a job that needs no GPU, nor a node that has one."""
    own_partition = settings.finish_partition is not None
    return replace(
        settings.resources.at_most(gpus=0, cpus=CPUS, mem_gb=MEM_GB, timeout_min=MINUTES),
        gpu_type=None,
        constraint=None,
        qos=None if own_partition else settings.resources.qos,
        partition=settings.finish_partition or settings.resources.partition,
    )


def _bounded(request: Resources, limits: Limits, key: str = "cluster.partition") -> Resources:
    """With no more time than its partitions give."""
    partitions = named_partitions(request, limits, key=key)
    times = [p.max_time_min for p in partitions if p.max_time_min]
    return replace(request, timeout_min=min([MINUTES, *([max(times)] if times else [])]))


def _other_places(request: Resources, settings: ClusterSettings, limits: Limits) -> Iterator[Resources]:
    """Other partitions, those without GPUs first; then a GPU where the runs get theirs."""
    tried = {p.name for p in named_partitions(request, limits)}
    others = [p for p in limits.partitions.values() if p.name not in tried and p.usable_nodes and p.state == "UP"]
    for partition in sorted(others, key=_has_gpus)[:PLACES_TRIED]:
        yield _bounded(replace(request, partition=partition.name, qos=None), limits)
    yield replace(request, gpus=1, gpu_type=settings.resources.gpu_type, constraint=settings.resources.constraint)


def _has_gpus(partition: Partition) -> tuple[bool, bool, str]:
    return bool(partition.gpus_by_type), not partition.is_default, partition.name


def _why_not(resources: Resources, settings: ClusterSettings, limits: Limits) -> str | None:
    """Why SLURM would not take, or never start, such a job; None where it would."""
    if (refusal := impossible(resources, limits)) is not None:
        return str(refusal)
    try:
        slurm.test_only(slurm.flags(settings_of_finish(settings, resources).options(resources)))
    except SlurmRefused as error:
        if error.answer is not Answer.NO_ROOM:
            return f"SLURM refuses it in partition {resources.partition or limits.default_partition} ({error})"
    return None


def settings_of_finish(settings: ClusterSettings, resources: Resources) -> ClusterSettings:
    """With what holds for the finish job of cluster.sbatch."""
    dropped = OF_THEIR_TIME if resources.gpus else (*OF_THEIR_TIME, *OF_NODES_WITH_GPUS)
    return replace(settings, sbatch={key: value for key, value in settings.sbatch.items() if key not in dropped})


def is_due(state: RunState | None) -> bool:
    """Whether the next launch sends it (again): it was not sent, did not do its work, or can never start."""
    return state is not None and (state.never_starts or state.state in ("not submitted", "failed", "lost", "cancelled"))
