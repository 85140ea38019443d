"""Whether a job can ever start on a cluster.

SLURM itself takes jobs that can never start (more time than any partition gives, a QOS nobody has) and lets them wait
for good. So a request is held against the cluster before anything is sent. A refusal is a ConfigError that is not
raised yet: what cannot be, what is known in its place, and what helps. A default of ours is never a reason to refuse a
job: it yields to what the partition has, and one line says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from transfergrid.cluster import slurm
from transfergrid.cluster.limits import UNKNOWN_MIB, Ceiling, Limits, NodeShape, Partition, above, room
from transfergrid.cluster.slurm import SlurmRefused
from transfergrid.errors import ConfigError, hints
from transfergrid.resources import UNLIMITED, ClusterSettings, Resources

_MEMORY = "the memory asked for; give less as cluster.mem_gb=, or cluster.mem_gb=null to ask for none"
# What sbatch says of a job that it would never take -> the setting that asks for it, and what there is.
NEVER_TAKEN = {
    "Invalid feature specification": "cluster.constraint: no node has it; sinfo -o %f lists the features there are",
    "Invalid node name specified": "cluster.exclude: it names no node of this cluster; sinfo -N lists them",
    r"unrecognized option|invalid option|requires an argument|allow an argument|ambiguous|Invalid (--|time spec)": (
        "cluster.sbatch: sbatch --help lists its options"
    ),
    "group not permitted": "cluster.partition: none of your groups may use it; name another",
    "mutually exclusive": "two options that exclude each other; look at cluster.sbatch",
    "Memory required by task|Memory specification can not be satisfied": _MEMORY,
    r"Invalid generic resource \(gres\) specification": (
        "the GPUs or gres asked for; look at cluster.gpu_type, cluster.gpu_request and cluster.sbatch"
    ),
}


def assert_possible(resources: Resources, limits: Limits, *, what: str) -> None:
    """Raises ConfigError, opened by `what`, where no partition that is named could ever start such a job."""
    refusal = impossible(resources, limits)
    if refusal is not None:
        raise opened(refusal, what)


def opened(refusal: ConfigError, what: str) -> ConfigError:
    """The same refusal, of what."""
    return ConfigError(f"{what}: {refusal.what}", remedy=refusal.remedy, known=refusal.known)


def impossible(resources: Resources, limits: Limits) -> ConfigError | None:
    """Why no partition that is named could ever start such a job; None where one could."""
    for of, name, known in (("account", resources.account, limits.accounts), ("qos", resources.qos, limits.qos)):
        if name is not None and known is not None and name not in known:
            noun = {"account": "SLURM account", "qos": "QOS"}[of]
            return ConfigError(f"cluster.{of}={name!r}: you have no such {noun}", **hints(name, sorted(known)))
    if resources.qos in limits.gpu_qos and not resources.gpus:
        return ConfigError(f"QOS {resources.qos} starts no job without a GPU", remedy="give cluster.gpus=1")
    max_time_min = limits.qos_max_time_min.get(resources.qos or "")
    if max_time_min is not None and resources.time_min > max_time_min:
        return _too_long(resources, f"QOS {resources.qos}", max_time_min)
    try:
        partitions = named_partitions(resources, limits)
    except ConfigError as error:
        return error
    refusals = []
    for partition in partitions:
        refusal = against(resources, partition) or above(resources, ceilings(resources, partition, limits))
        if refusal is None:
            return None
        refusals.append(refusal)
    if len(refusals) == 1:
        return refusals[0]
    remedies = dict.fromkeys(refusal.remedy for refusal in refusals if refusal.remedy)
    return ConfigError("; ".join(refusal.fact for refusal in refusals), remedy=" or ".join(remedies))


def ceilings(resources: Resources, partition: Partition, limits: Limits) -> list[Ceiling]:
    """What bounds such a job in this partition, the most important first."""
    qos = resources.qos or limits.default_qos
    layers = [limits.qos_ceilings.get(partition.qos or ""), limits.qos_ceilings.get(qos)]
    layers = layers[::-1] if qos in limits.over_partition else layers
    return [layer for layer in (*layers, limits.own_ceiling) if layer is not None]


def named_partitions(resources: Resources, limits: Limits, *, key: str = "cluster.partition") -> list[Partition]:
    """Those that the job may start in, SLURM's default where none is named. Raises ConfigError for an unknown one."""
    names = resources.partition.split(",") if resources.partition is not None else [limits.default_partition]
    for name in names:
        if name is None:
            known = ", ".join(sorted(limits.partitions))
            raise ConfigError("this cluster has no default partition", remedy=f"give {key}=, one of: {known}")
        if name not in limits.partitions:
            raise ConfigError(f"{key}={name!r} is unknown here", **hints(name, sorted(limits.partitions)))
    return [limits.partitions[name] for name in names if name is not None]


# ------------------------------------------------------------------------------------------------------- one partition
def against(request: Resources, partition: Partition) -> ConfigError | None:
    """Why such a job can never start in this partition; None where it can."""
    where, name_another = f"partition {partition.name}", "name another in cluster.partition="
    if partition.state != "UP":
        return ConfigError(f"{where} is {partition.state.lower()} and starts nothing", remedy=name_another)
    for key, name, allowed in (
        ("account", request.account, partition.allow_accounts),
        ("qos", request.qos, partition.allow_qos),
    ):
        if name is not None and allowed is not None and name not in allowed:
            takes = ", ".join(sorted(allowed))
            return ConfigError(f"{where} does not take cluster.{key}={name}; it takes: {takes}", remedy=name_another)
    if partition.demands_gpu and not request.gpus:
        what = f"{where} starts no job without a GPU (its QOS {partition.qos})"
        return ConfigError(what, remedy="name another, or give cluster.gpus=1")
    if partition.max_time_min is not None and request.time_min > partition.max_time_min:
        return _too_long(request, where, partition.max_time_min)
    return _against_nodes(request, partition, where)


def _against_nodes(request: Resources, partition: Partition, where: str) -> ConfigError | None:
    if not partition.shapes:
        return ConfigError(f"{where} has no nodes", remedy="name another in cluster.partition=")
    types = partition.gpus_by_type
    if request.gpus and not types:
        what = f"cluster.gpus={request.gpus}, but {where} has no GPUs"
        return ConfigError(what, remedy="name another partition, or give cluster.gpus=0")
    if request.gpus and request.gpu_type is not None and request.gpu_type not in types:
        what, typed = f"cluster.gpu_type={request.gpu_type!r} is unknown in {where}", [t for t in types if t]
        remedy = "give one of them, or another cluster.partition=" if typed else "leave cluster.gpu_type unset"
        return ConfigError(what, known=typed or ["none"], remedy=remedy)
    most_gpus = types[request.gpu_type] if request.gpus and request.gpu_type else max(s.gpus for s in partition.shapes)
    most_gib = math.inf if partition.has_unknown_memory else partition.max_mem_mib / 1024
    if request.mem_gb is None and request.node_mem_gb > most_gib:
        each = "mem_per_gpu_gb" if request.mem_per_gpu_gb is not None else "mem_per_cpu_gb"
        makes = f"cluster.{each}={getattr(request, each):g} makes {request.node_mem_gb:g} GiB"
        return ConfigError(f"{makes}, and no node of {where} has more than {_at_most(most_gib)}", remedy="give less")
    for key, value, most in (
        ("gpus", request.gpus, most_gpus),
        ("cpus", request.cpus, partition.max_cpus),
        ("mem_gb", request.node_mem_gb, most_gib),
    ):
        if value > most:
            what = f"cluster.{key}={value:g} is more than any node of {where} has"
            return ConfigError(what, remedy=f"give cluster.{key}={_at_most(most)} or less")
    if any(_fits(request, shape) for shape in partition.shapes):
        return None
    shapes = ", ".join(f"{s.cpus} CPUs {s.mem_mib / 1024:.1f} GiB {s.gpus} GPUs" for s in partition.shapes[:4])
    return ConfigError(
        f"no node of {where} has cluster.cpus={request.cpus}, cluster.mem_gb={request.node_mem_gb:g} and"
        f" cluster.gpus={request.gpus} at once; its nodes: {shapes}",
        remedy="ask for what one of them has, or name another in cluster.partition=",
    )


def _fits(request: Resources, shape: NodeShape) -> bool:
    gpus = shape.gpus_by_type.get(request.gpu_type, 0) if request.gpu_type is not None else shape.gpus
    has_memory = shape.mem_mib <= UNKNOWN_MIB or request.node_mem_gb * 1024 <= shape.mem_mib
    return request.cpus <= shape.cpus and has_memory and request.gpus <= gpus


def _at_most(number: float) -> str:
    """With one decimal at most, and never more than there is."""
    return f"{int(number * 10) / 10:g}"


def _too_long(request: Resources, where: str, max_time_min: int) -> ConfigError:
    time = "UNLIMITED" if request.timeout_min == UNLIMITED else request.timeout_min
    what = f"cluster.timeout_min={time} is more than {where} ever gives"
    return ConfigError(what, remedy=f"give cluster.timeout_min={max_time_min} or less")


# ------------------------------------------------------------------------------------------------- defaults that yield
def fitted(resources: Resources, limits: Limits, *, what: str) -> tuple[Resources, str | None]:
    """The request with those of its defaults lowered that no partition named could meet, and a line that says so. What
    somebody asked for stays. A request that is impossible all the same stays whole: assert_possible() names it."""
    try:
        partitions = named_partitions(resources, limits)
    except ConfigError:
        return resources, None
    for partition in partitions if resources.defaults else []:
        if "mem_gb" in resources.defaults and partition.max_mem_mib <= UNKNOWN_MIB:
            continue
        layers = ceilings(resources, partition, limits)
        possible = against(resources, partition) is None and above(resources, layers) is None
        if possible and resources.time_min <= _qos_time(resources, limits):
            return resources, None
    for partition in partitions if resources.defaults else []:
        layers = ceilings(resources, partition, limits)
        for shape in (_below(shape, room(layers)) for shape in partition.shapes):
            lowered = _lowered(resources, partition, shape, _qos_time(resources, limits))
            if lowered != resources and against(lowered, partition) is None and above(lowered, layers) is None:
                bounded = "" if room(layers) == (math.inf, math.inf) else " and your QOS or account allows"
                has = f"all that partition {partition.name} has{bounded}"
                if lowered.mem_gb is None and resources.mem_gb is not None:
                    has += "; nobody has told SLURM what memory its nodes have"
                return lowered, f"{what}: {_changes_in_words(resources, lowered)}, {has}"
    return resources, None


def _below(shape: NodeShape, room: tuple[float, float]) -> NodeShape:
    """What one job may have of such a node. room: CPUs and MiB that a QOS or an account lets it have."""
    return replace(shape, cpus=int(min(shape.cpus, room[0])), mem_mib=int(min(shape.mem_mib, room[1])))


def _qos_time(resources: Resources, limits: Limits) -> float:
    return limits.qos_max_time_min.get(resources.qos or "", math.inf)


def _lowered(request: Resources, partition: Partition, shape: NodeShape, qos_time_min: float) -> Resources:
    least: dict[str, Any] = {}
    time_min = min(qos_time_min, math.inf if partition.max_time_min is None else partition.max_time_min)
    if request.time_min > time_min:
        least["timeout_min"] = int(time_min)
    if request.cpus > shape.cpus:
        least["cpus"] = max(1, shape.cpus)
    if shape.mem_mib <= UNKNOWN_MIB:
        least["mem_gb"] = None
    elif request.node_mem_gb * 1024 > shape.mem_mib:
        least["mem_gb"] = shape.mem_mib / 1024
    return replace(request, **{key: value for key, value in least.items() if key in request.defaults})


def _changes_in_words(before: Resources, after: Resources) -> str:
    changes = []
    for key in sorted(before.defaults):
        was, now = getattr(before, key), getattr(after, key)
        if was != now:
            changes.append(f"cluster.{key}={'null' if now is None else f'{now:g}'} (default {was:g})")
    return "jobs ask for " + ", ".join(changes)


# ---------------------------------------------------------------------------------------------- what SLURM itself says
def start_estimate(settings: ClusterSettings, phases: Sequence[str]) -> dict[str, str]:
    """When SLURM expects a job of each phase to start, were it sent now; phases of one shape are asked about once.
    Raises ConfigError for what the cluster does not have, as a feature, a node or that much memory: to sbatch it would
    say the same, perhaps after other phases were sent."""
    by_shape: dict[Resources, list[str]] = {}
    for phase in phases:
        by_shape.setdefault(settings.of_phase(phase), []).append(phase)
    estimates = {}
    for resources, members in by_shape.items():
        options = settings.options(resources)
        try:
            estimates[", ".join(members)] = slurm.test_only(slurm.flags(options))
        except SlurmRefused as error:
            remedy = next((r for form, r in NEVER_TAKEN.items() if re.search(form, error.words, re.IGNORECASE)), None)
            if remedy is None and _is_taken_without(resources.memory_options(), options):
                remedy = _MEMORY
            if remedy is not None:
                raise ConfigError(f"phase {members[0]}: SLURM refuses {remedy} ({error})") from error
            estimates[", ".join(members)] = f"to be refused now: {error}"
    return {phase: text for phase, text in estimates.items() if text is not None}


def _is_taken_without(options: Mapping[str, str], request: Mapping[str, str | bool]) -> bool:
    """Whether SLURM takes what it refuses, once these options are left out."""
    try:
        rest = {key: value for key, value in request.items() if key not in options}
        return bool(options) and slurm.test_only(slurm.flags(rest)) is not None
    except SlurmRefused:
        return False
