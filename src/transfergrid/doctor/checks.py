"""What jobs/doctor.py looks at on this machine and in SLURM's settings, one function per line of its output; what a
node answers is judged in node_findings.py."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from transfergrid import data
from transfergrid.cluster import slurm
from transfergrid.cluster.finish_job import finish_resources
from transfergrid.cluster.limits import Limits, Partition, queue_room
from transfergrid.cluster.possible import assert_possible, fitted, named_partitions
from transfergrid.errors import ConfigError, DataError, GridError, MissingFiles, one_line
from transfergrid.resources import ClusterSettings
from transfergrid.specs import PHASES, Runtime
from transfergrid.store import durable
from transfergrid.tracking.account import TURN_ON, key_place, server_url

MIN_FREE_GB = 2.0  # the largest published data set with the largest weights is 1.1 GB
MIN_JOB_AGE_S = 60  # without accounting, a job that ended is known for so long; status looks more often


@dataclass(frozen=True, slots=True)
class Check:
    """One line. ok: None = could not be checked, or was not asked for. remedy: where it failed."""

    name: str
    ok: bool | None
    message: str
    remedy: str = ""


# ------------------------------------------------------------------------------------------------------------- folders
def check_folder(name: str, folder: Path) -> Check:
    """`name` is store or cache. Makes the folder where it is missing, as a launch does."""
    try:
        durable.make_folder(folder)
        durable.write_bytes(probe := folder / f".doctor-{os.getpid()}", b"?")
        probe.unlink()
        with durable.lock(probe, wait=False):
            locks = "" if durable.has_kernel_locks(folder) else "; it has no locks, hard links take their place"
        durable.break_lock(probe)
    except (GridError, OSError) as error:
        return Check(f"{name} folder", False, one_line(error), f"give a folder that you can write to as {name}.dir=")
    return Check(f"{name} folder", True, f"{folder} is writable{locks}")


def check_space(name: str, folder: Path, *, least_gb: float = MIN_FREE_GB) -> Check:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free_gb = shutil.disk_usage(there).free / 1e9
    message = f"{free_gb:.1f} GB free"
    if free_gb < least_gb:
        remedy = f"free space there until it has {least_gb:g} GB, or give another {name}.dir="
        return Check(f"{name} space", False, message, remedy)
    return Check(f"{name} space", True, message)


# ------------------------------------------------------------------------------------------------- settings and limits
def check_partition(settings: ClusterSettings, limits: Limits) -> Check:
    """Whether each phase's request, and the finish job's, can ever start, and whether any node takes jobs now."""
    requests = {"runs": settings.resources} | {f"phase {p}": r for p in PHASES if (r := settings.by_phase.get(p))}
    if settings.finish_partition is not None:
        requests["finish job"] = finish_resources(settings)
    try:
        for what, resources in requests.items():
            assert_possible(fitted(resources, limits, what=what)[0], limits, what=what)
        partitions = named_partitions(settings.resources, limits)
    except ConfigError as error:
        return Check("partition", False, error.fact, error.remedy or "give one of those")
    message = "; ".join(_described(partition) for partition in partitions)
    if not any(partition.usable_nodes for partition in partitions):
        others = [p.name for p in limits.partitions.values() if p.usable_nodes]
        remedy = f"name another in cluster.partition= ({', '.join(others) or 'none has a node that is up'}), or wait"
        return Check("partition", False, f"{message}: every node is down or drained", remedy)
    return Check("partition", True, message)


def _described(partition: Partition) -> str:
    time = "no time limit" if partition.max_time_min is None else f"at most {partition.max_time_min} min"
    gpus = " ".join(f"{count} {kind or 'GPU'}" for kind, count in partition.gpus_by_type.items()) or "no GPUs"
    known = f"{partition.max_mem_mib / 1024:.1f} GiB"
    memory = "memory that SLURM was not told" if partition.has_unknown_memory else known
    return (
        f"{partition.name}, {time}, {partition.usable_nodes} of {partition.nodes} nodes take jobs, each up to "
        f"{partition.max_cpus} CPUs, {memory}, {gpus}"
    )


def check_arrays(limits: Limits) -> Check:
    """Index 0 alone would be a limit of 1; SLURM's own default is 1001."""
    message = f"MaxArraySize={limits.max_array_size}: arrays of up to {limits.max_array_size} runs"
    if limits.max_array_size < 2:
        remedy = "ask the cluster's administrators for job arrays (MaxArraySize in slurm.conf)"
        return Check("arrays", False, f"MaxArraySize={limits.max_array_size}: no job arrays here", remedy)
    return Check("arrays", True, message)


def check_queue(limits: Limits) -> Check:
    """How many more jobs this user may submit."""
    try:
        live = slurm.count_own_jobs()
    except (slurm.SlurmDown, slurm.SlurmRefused) as error:
        return Check("queue", None, f"could not be checked: {one_line(error)}")
    room = queue_room(limits, live)
    if room is None:
        return Check("queue", True, f"{live} of your jobs in the queue, no limit known")
    message = f"{live} of your jobs in the queue, {limits.max_jobs} allowed"
    remedy = "wait until some have ended; then wait=true sends a large grid in waves"
    return Check("queue", True, message) if room else Check("queue", False, message, remedy)


def check_accounting(limits: Limits) -> Check:
    """Works without, from squeue alone, where squeue remembers long enough."""
    memory = f"squeue knows a job for {limits.min_job_age_s} s after its end"
    if not limits.accounting:
        if limits.min_job_age_s < MIN_JOB_AGE_S:
            longer = f"MinJobAge of at least {MIN_JOB_AGE_S} s"
            remedy = f"ask for accounting (slurmdbd) or {longer}; until then use wait=true"
            return Check("accounting", False, f"none, and {memory}", remedy)
        return Check("accounting", True, f"none: states are told by squeue alone; {memory}")
    try:
        slurm.run(["sacct", "-n", "-X", "-P", "-S", "now-1minute", "-o", "JobID"])
    except (slurm.SlurmDown, slurm.SlurmRefused) as error:
        remedy = "ask the administrators to look after slurmdbd; until then states are told by squeue alone"
        return Check("accounting", False, one_line(error), remedy)
    return Check("accounting", True, "sacct answers")


def check_requeue(settings: ClusterSettings, limits: Limits) -> Check:
    """A run that needs more than one job goes on in its requeued job; jobs ask for that themselves."""
    if "no-requeue" in settings.sbatch:
        remedy = "take no-requeue out of cluster.sbatch="
        return Check("requeue", False, "cluster.sbatch holds no-requeue: no run goes on after its time limit", remedy)
    default = "" if limits.requeue else " (not this cluster's default, so each job asks for it)"
    return Check("requeue", True, f"jobs may go on after their time limit{default}; KillWait={limits.kill_wait_s} s")


def check_preemption(settings: ClusterSettings, limits: Limits) -> Check:
    if limits.preemption == "none":
        return Check("preemption", True, "none on this cluster")
    partitions = named_partitions(settings.resources, limits)
    message = ", ".join(f"{p.name} PreemptMode={p.preempt_mode} GraceTime={p.grace_s} s" for p in partitions)
    with_or_without = "with" if limits.user_signal else "without"
    message = f"by {limits.preemption}: {message}; {with_or_without} the job's own signal"
    if any("CANCEL" in p.preempt_mode for p in partitions):
        others = [p.name for p in limits.partitions.values() if "CANCEL" not in p.preempt_mode]
        remedy = "a preempted run is cancelled and goes on only when launched again; "
        remedy += f"name another in cluster.partition= ({', '.join(others)})" if others else "launch again when it was"
        return Check("preemption", False, message, remedy)
    return Check("preemption", True, message)


# ------------------------------------------------------------------------------------------------- tracking and inputs
def check_tracking(runtime: Runtime, environ: Mapping[str, str]) -> Check:
    where = {"disabled": "nothing goes to W&B", "offline": "nothing goes to W&B until sync sends it"}
    if runtime.tracking in where:
        return Check("tracking", True, f"{runtime.tracking}: {where[runtime.tracking]}")
    url = server_url(environ)
    host = urlsplit(url).netloc  # with the port, as W&B looks for it
    if place := key_place(url, environ):
        return Check("tracking", True, f"{runtime.tracking}: key for {host} in {place}")
    if runtime.tracking == "auto":
        return Check("tracking", True, f"auto: no key for {host}, so nothing goes to W&B; {TURN_ON}")
    remedy = f"{TURN_ON}, or give tracking=offline"
    return Check("tracking", False, f"online, and there is no key for {host}", remedy)


def check_data(data_dir: Path, kinds: Sequence[str]) -> Check:
    """Which published data sets are there and whole. What is missing is fetched by a launch, before its jobs."""
    there, missing = [], []
    for kind in kinds:
        try:
            data.find(kind, data_dir=data_dir, download=False)
            there.append(kind)
        except MissingFiles:
            missing.append(kind)
        except DataError as error:
            message = f"{kind}: {one_line(error, with_remedy=False)}"
            return Check("data", False, message, error.remedy or "remove that file; a launch fetches it anew")
    message = f"in {data_dir}: {', '.join(there) or 'nothing'}"
    return Check("data", True, message + (f"; fetched when launched: {', '.join(missing)}" if missing else ""))


def check_weights(weights_dir: Path, *, was_named: bool) -> Check:
    """Information, unless a folder was named that is not there."""
    files = [f for f in weights_dir.glob("*") if f.suffix in (".pth", ".pt", ".safetensors", ".bin")]
    if was_named and not weights_dir.is_dir():
        remedy = "give the folder that holds the weights files as weights_dir=, or leave it out to fetch them"
        return Check("weights", False, f"weights_dir={weights_dir} is not a folder", remedy)
    size_mb = sum(f.stat().st_size for f in files) / 1e6
    return Check("weights", True, f"{len(files)} files ({size_mb:.0f} MB) in {weights_dir}; a launch fetches others")
