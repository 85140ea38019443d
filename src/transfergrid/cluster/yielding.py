"""A default of ours is never a reason to refuse a job: it yields to what the partition has, and one line says so."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from transfergrid.cluster.ceilings import above, room
from transfergrid.cluster.limits import UNKNOWN_MIB, Limits, NodeShape, Partition
from transfergrid.cluster.possible import against, ceilings, named_partitions
from transfergrid.errors import ConfigError
from transfergrid.resources import Resources


def fitted(resources: Resources, limits: Limits, *, what: str) -> tuple[Resources, str | None]:
    """The request with those of its defaults lowered that no partition named could meet, and a line that says so.

    What somebody asked for stays. A request that is impossible all the same stays whole: assert_possible() names it.
    """
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
                return lowered, f"{what}: {_told(resources, lowered)}, {has}"
    return resources, None


def _below(shape: NodeShape, room: tuple[float, float]) -> NodeShape:
    """What one job may have of such a node. room: CPUs and MiB that a QOS or an account lets it have."""
    return replace(shape, cpus=int(min(shape.cpus, room[0])), mem_mib=int(min(shape.mem_mib, room[1])))


def _qos_time(resources: Resources, limits: Limits) -> float:
    return limits.qos_max_time_min.get(resources.qos or "", math.inf)


def _lowered(asked: Resources, partition: Partition, shape: NodeShape, qos_time_min: float) -> Resources:
    least: dict[str, Any] = {}
    time_min = min(qos_time_min, math.inf if partition.max_time_min is None else partition.max_time_min)
    if asked.time_min > time_min:
        least["timeout_min"] = int(time_min)
    if asked.cpus > shape.cpus:
        least["cpus"] = max(1, shape.cpus)
    if shape.mem_mib <= UNKNOWN_MIB:
        least["mem_gb"] = None
    elif asked.node_mem_gb * 1024 > shape.mem_mib:
        least["mem_gb"] = shape.mem_mib / 1024
    return replace(asked, **{key: value for key, value in least.items() if key in asked.defaults})


def _told(before: Resources, after: Resources) -> str:
    told = []
    for key in sorted(before.defaults):
        was, now = getattr(before, key), getattr(after, key)
        if was != now:
            told.append(f"cluster.{key}={'null' if now is None else f'{now:g}'} (default {was:g})")
    return "jobs ask for " + ", ".join(told)
