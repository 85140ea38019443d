"""What a SLURM cluster allows, and whether a job can ever start there.

SLURM itself takes jobs that can never start (more time than any partition gives, a QOS nobody has) and lets them wait
for good. So a request is held against the cluster before anything is sent.
"""

from __future__ import annotations

import getpass
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from transfergrid.cluster import slurm
from transfergrid.cluster.ceilings import KINDS, TRES, Ceiling, above, ceiling_of
from transfergrid.cluster.forms import ANY, MAYBE_NUMBER, NUMBER, WORD, rows
from transfergrid.cluster.ownership import Here, here_of, read_config
from transfergrid.errors import ConfigError
from transfergrid.resources import UNLIMITED, Resources

# How a node's state begins, as sinfo spells it; `powered_down` is none of them, such a node is woken when needed.
UNUSABLE = ("down", "drain", "error", "fail", "future", "inval", "maint", "unknown")
_OF_SINFO = (WORD, r"[A-Za-z_]+[^\sA-Za-z|]*", NUMBER, r"\d+\+?", r"\d+\+?", ANY)
_OF_USER = (r"[^|]*", WORD, r"[^|]*", r"[^|]*", MAYBE_NUMBER, MAYBE_NUMBER, TRES, TRES)
_OF_QOS = (WORD, MAYBE_NUMBER, MAYBE_NUMBER, r"[\d:-]*|UNLIMITED", TRES, TRES, TRES, TRES, TRES, ANY)
ANY_TYPE = ""  # GPUs that SLURM counts without a type
UNKNOWN_MIB = 1  # RealMemory of a node for which nobody has set it


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeShape:
    """Nodes of one kind: how many, how many of them take jobs, and what one of them has."""

    count: int
    usable: int
    cpus: int
    mem_mib: int
    gpus_by_type: Mapping[str, int]

    @property
    def gpus(self) -> int:
        return sum(self.gpus_by_type.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """max_time_min: None = no limit. state: UP, DOWN, DRAIN or INACTIVE. qos: its own, whose limits hold for all of its
    jobs. demands_gpu: that QOS starts no job without one. allow_*: None = all.

    preempt_mode: what becomes of its jobs when they are preempted. grace_s: between warning and end of such a job.
    """

    name: str
    shapes: tuple[NodeShape, ...]
    max_time_min: int | None = None
    state: str = "UP"
    is_default: bool = False
    qos: str | None = None
    demands_gpu: bool = False
    allow_qos: frozenset[str] | None = None
    allow_accounts: frozenset[str] | None = None
    preempt_mode: str = "OFF"
    grace_s: int = 0

    @property
    def max_mem_mib(self) -> int:
        """Of its largest node."""
        return max((s.mem_mib for s in self.shapes), default=0)

    @property
    def has_unknown_memory(self) -> bool:
        """Whether SLURM was not told what memory some of its nodes have."""
        return any(s.mem_mib <= UNKNOWN_MIB for s in self.shapes)

    @property
    def max_cpus(self) -> int:
        return max((s.cpus for s in self.shapes), default=0)

    @property
    def gpus_by_type(self) -> dict[str, int]:
        """GPU type -> the most of it that one node has."""
        types = {t for shape in self.shapes for t in shape.gpus_by_type}
        return {t: max(shape.gpus_by_type.get(t, 0) for shape in self.shapes) for t in sorted(types)}

    @property
    def nodes(self) -> int:
        return sum(s.count for s in self.shapes)

    @property
    def usable_nodes(self) -> int:
        """Those that are neither down nor drained."""
        return sum(s.usable for s in self.shapes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """here: which cluster it is. max_array_size: how many tasks an array may have. max_jobs: what this user may have in
    the queue at once, None = no limit known. accounts, qos: what this user may name, None where SLURM does not know.
    qos_max_time_min: of those QOS that limit it. gpu_qos: those that start no job without a GPU. accounting: whether
    states are kept in a database. requeue: whether jobs may be requeued unless they say otherwise. preemption: by what
    (`none`, `partition_prio`, `qos`). user_signal: whether a preempted job gets the signal it asked for. kill_wait_s:
    between SIGTERM and SIGKILL at the time limit. min_job_age_s: so long squeue knows of a job that has ended.
    qos_ceilings, own_ceiling: what a QOS, by its name, and this user's association let one hold at once. default_qos:
    of a job that names none. over_partition: the QOS whose limits go before those of a partition's QOS.
    """

    here: Here
    max_array_size: int
    max_jobs: int | None
    partitions: Mapping[str, Partition]
    accounts: frozenset[str] | None = None
    qos: frozenset[str] | None = None
    qos_max_time_min: Mapping[str, int] = field(default_factory=dict)
    gpu_qos: frozenset[str] = frozenset()
    accounting: bool = False
    requeue: bool = True
    preemption: str = "none"
    user_signal: bool = False
    kill_wait_s: int = 30
    min_job_age_s: int = 300
    qos_ceilings: Mapping[str, Ceiling] = field(default_factory=dict)
    own_ceiling: Ceiling | None = None
    default_qos: str = "normal"
    over_partition: frozenset[str] = frozenset()

    @property
    def default_partition(self) -> str | None:
        return next((p.name for p in self.partitions.values() if p.is_default), None)


# ------------------------------------------------------------------------------------------------------------- reading
def read_limits(*, account: str | None = None, qos: str | None = None, timeout_s: float = slurm.TIMEOUT_S) -> Limits:
    """Ask the cluster, in five commands. account, qos: whose limit of jobs counts; None = the user's defaults.

    Raises SlurmDown where the controller does not answer. A silent database is no error: its answers are then None.
    """
    config = read_config(timeout_s)
    accounting = config.get("AccountingStorageType", "").endswith("/slurmdbd")
    known = _read_accounting(config, account, qos, timeout_s) if accounting else _Known()
    partitions = _partitions(slurm.show("partition", timeout_s=timeout_s), _shapes(timeout_s), known.gpu_qos)
    max_jobs = [n for n in (_number(config.get("MaxJobCount", "")), known.max_jobs) if n is not None]
    return Limits(
        here=here_of(config),
        max_array_size=_max_array_size(config),
        max_jobs=min(max_jobs, default=None),
        partitions=partitions,
        accounts=known.accounts,
        qos=known.qos,
        qos_max_time_min=known.qos_max_time_min,
        gpu_qos=known.gpu_qos,
        accounting=accounting,
        requeue=config.get("JobRequeue", "1") == "1",
        preemption=config.get("PreemptType", "preempt/none").removeprefix("preempt/"),
        user_signal="send_user_signal" in config.get("SlurmctldParameters", "") + config.get("PreemptParameters", ""),
        kill_wait_s=_number(config.get("KillWait", "")) or 0,
        min_job_age_s=_number(config.get("MinJobAge", "")) or 0,
        qos_ceilings=known.qos_ceilings,
        own_ceiling=known.own_ceiling,
        default_qos=known.default_qos,
        over_partition=known.over_partition,
    )


def _max_array_size(config: Mapping[str, str]) -> int:
    """What an array may hold: tasks are numbered below MaxArraySize, and max_array_tasks bounds their count."""
    size = _number(config.get("MaxArraySize", "1001")) or 0
    tasks = re.search(r"\bmax_array_tasks=(\d+)", config.get("SchedulerParameters", ""))
    return size if tasks is None else min(size, int(tasks[1]))


def unseen_limits() -> Limits:
    """Of a cluster that does not answer, for what is only shown or written: SLURM's default of arrays, and no name."""
    return Limits(here=Here(""), max_array_size=1001, max_jobs=None, partitions={})


def _partitions(
    entries: Iterable[Mapping[str, str]], shapes: Mapping[str, list[NodeShape]], gpu_qos: frozenset[str]
) -> dict[str, Partition]:
    found = {}
    for entry in entries:
        name = entry["PartitionName"]
        max_mem_mib, max_cpus = _number(entry.get("MaxMemPerNode", "")), _number(entry.get("MaxCPUsPerNode", ""))
        found[name] = Partition(
            name=name,
            shapes=tuple(_capped(shape, max_mem_mib, max_cpus) for shape in shapes.get(name, [])),
            max_time_min=_minutes(entry.get("MaxTime", "")),
            state=entry.get("State", "UP"),
            is_default=entry.get("Default") == "YES",
            qos=entry.get("QoS"),
            demands_gpu=entry.get("QoS") in gpu_qos,
            allow_qos=_names(entry.get("AllowQos", "ALL")),
            allow_accounts=_names(entry.get("AllowAccounts", "ALL")),
            preempt_mode=entry.get("PreemptMode", "OFF"),
            grace_s=_number(entry.get("GraceTime", "")) or 0,
        )
    return found


def _shapes(timeout_s: float) -> dict[str, list[NodeShape]]:
    """Partition -> its kinds of nodes. One line per kind, not per node: a cluster may have thousands."""
    found: dict[str, list[NodeShape]] = {}
    text = slurm.run(["sinfo", "-a", "-h", "-e", "-o", "%R|%T|%D|%c|%m|%G"], timeout_s=timeout_s)
    for name, state, count, cpus, mem_mib, gres in rows("sinfo", text, _OF_SINFO):
        usable = int(count) if takes_jobs(state) else 0
        shape = NodeShape(
            count=int(count),
            usable=usable,
            cpus=_number(cpus) or 0,
            mem_mib=_number(mem_mib) or 0,
            gpus_by_type=gpus_of(gres),
        )
        found.setdefault(name, []).append(shape)
    return found


def takes_jobs(state: str) -> bool:
    """Of a node's state as sinfo spells it: `mixed-` and `idle~` do, `idle*` does not answer, `idle$` is maintained."""
    return not state.startswith(UNUSABLE) and not set(state) & set("*$")


def gpus_of(gres: str) -> dict[str, int]:
    """`gpu:a100:4(S:0-1),gpu:2` -> {"a100": 4, "": 2}."""
    found: dict[str, int] = {}
    for kind, count in re.findall(r"(?:^|,)gpu(?::([^:,()]+))?:(\d+)", gres):  # a type may be a number: gpu:3090:2
        found[kind or ANY_TYPE] = found.get(kind or ANY_TYPE, 0) + int(count)
    return found


def _capped(shape: NodeShape, max_mem_mib: int | None, max_cpus: int | None) -> NodeShape:
    """A node as the partition hands it out."""
    return NodeShape(
        count=shape.count,
        usable=shape.usable,
        cpus=min(shape.cpus, max_cpus if max_cpus is not None else shape.cpus),
        mem_mib=min(shape.mem_mib, max_mem_mib if max_mem_mib is not None else shape.mem_mib),
        gpus_by_type=shape.gpus_by_type,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What the accounting database says of this user."""

    accounts: frozenset[str] | None = None
    qos: frozenset[str] | None = None
    qos_max_time_min: Mapping[str, int] = field(default_factory=dict)
    gpu_qos: frozenset[str] = frozenset()
    max_jobs: int | None = None
    qos_ceilings: Mapping[str, Ceiling] = field(default_factory=dict)
    own_ceiling: Ceiling | None = None
    default_qos: str = "normal"
    over_partition: frozenset[str] = frozenset()


def _read_accounting(config: Mapping[str, str], account: str | None, qos: str | None, timeout_s: float) -> _Known:
    show = ["sacctmgr", "-nP", "show"]
    columns = "DefaultAccount,Account,QOS,DefaultQOS,MaxSubmitJobs,GrpSubmitJobs,GrpTRES,MaxTRESPerJob"
    of_user = [*show, "user", user_name(), "withassoc", f"cluster={config['ClusterName']}", f"format={columns}"]
    columns = "Name,MaxSubmitJobsPerUser,GrpSubmitJobs,MaxWall,MinTRESPerJob"
    of_qos = [*show, "qos", f"format={columns},GrpTRES,MaxTRESPerJob,MaxTRESPerUser,MaxTRESPerAccount,Flags"]
    try:
        associations = rows("sacctmgr", slurm.run(of_user, timeout_s=timeout_s), _OF_USER)
        qos_lines = rows("sacctmgr", slurm.run(of_qos, timeout_s=timeout_s), _OF_QOS)
    except (slurm.SlurmDown, slurm.SlurmRefused):
        return _Known()
    enforced = config.get("AccountingStorageEnforce", "none").lower()
    all_qos = {line[0] for line in qos_lines}
    if not associations:  # SLURM asks nobody who he is; where it does, sbatch itself refuses him
        return _Known(qos=frozenset(all_qos) or None)
    mine = [a for a in associations if a[1] == (account or a[0])] or associations
    named = {name for a in associations for name in a[2].split(",") if name}
    # Without enforcement any QOS there is will do.
    allowed = named if "qos" in enforced and named else all_qos
    if "limits" not in enforced and "safe" not in enforced and "qos" not in enforced:
        return _Known(accounts=frozenset(a[1] for a in associations), qos=frozenset(allowed))
    used_qos = qos or mine[0][3] or "normal"
    submit = [cell for a in mine for cell in a[4:6]]
    submit += [cell for line in qos_lines if line[0] == used_qos for cell in line[1:3]]
    times = {line[0]: _minutes(line[3]) for line in qos_lines}
    of_account = dict(zip(("group", "job"), mine[0][6:8], strict=True))
    return _Known(
        accounts=frozenset(a[1] for a in associations),
        qos=frozenset(allowed),
        qos_max_time_min={name: time for name, time in times.items() if time is not None},
        gpu_qos=frozenset(line[0] for line in qos_lines if re.search(r"gres/gpu(:\S+)?=[1-9]", line[4])),
        max_jobs=min((n for n in map(_number, submit) if n is not None), default=None),
        qos_ceilings={
            line[0]: ceiling_of(f"QOS {line[0]}", dict(zip(KINDS, line[5:9], strict=True))) for line in qos_lines
        },
        own_ceiling=ceiling_of(f"account {mine[0][1]}", of_account),
        default_qos=mine[0][3] or "normal",
        over_partition=frozenset(line[0] for line in qos_lines if "OverPartQOS" in line[9].split(",")),
    )


def user_name() -> str:
    return getpass.getuser()


def _number(text: str) -> int | None:
    """`30 sec`, `1001`, `8000+` as a number; None for UNLIMITED, (null) or nothing."""
    match = re.match(r"\d+", text.strip())
    return int(match[0]) if match is not None else None


def _minutes(text: str) -> int | None:
    seconds = slurm.duration_s(text)
    return None if seconds is None else int(seconds // 60)


def _names(text: str) -> frozenset[str] | None:
    return None if text in ("ALL", "(null)", "") else frozenset(text.split(","))


# ------------------------------------------------------------------------------------------------------------ deciding
def assert_possible(resources: Resources, limits: Limits, *, what: str) -> None:
    """Raises ConfigError, opened by `what`, where no partition that is named could ever start such a job."""
    for key, name, known in (
        ("account", resources.account, limits.accounts),
        ("qos", resources.qos, limits.qos),
    ):
        if name is not None and known is not None and name not in known:
            raise ConfigError(f"{what}: cluster.{key}={name!r} is none that you may use{_nearest(name, sorted(known))}")
    if resources.qos in limits.gpu_qos and not resources.gpus:
        raise ConfigError(f"{what}: QOS {resources.qos} starts no job without a GPU; give cluster.gpus=1")
    max_time_min = limits.qos_max_time_min.get(resources.qos or "")
    if max_time_min is not None and resources.time_min > max_time_min:
        raise ConfigError(
            f"{what}: cluster.timeout_min={_shown_time(resources)} is more than QOS {resources.qos} ever gives;"
            f" give cluster.timeout_min={max_time_min} or less"
        )
    reasons = [
        against(resources, partition) or above(resources, ceilings(resources, partition, limits))
        for partition in named_partitions(resources, limits, what=what)
    ]
    if None not in reasons:
        raise ConfigError(f"{what}: {'; '.join(map(str, reasons))}")


def ceilings(resources: Resources, partition: Partition, limits: Limits) -> list[Ceiling]:
    """What bounds such a job in this partition, the most important first."""
    qos = resources.qos or limits.default_qos
    layers = [limits.qos_ceilings.get(partition.qos or ""), limits.qos_ceilings.get(qos)]
    layers = layers[::-1] if qos in limits.over_partition else layers
    return [layer for layer in (*layers, limits.own_ceiling) if layer is not None]


def named_partitions(
    resources: Resources, limits: Limits, *, what: str, key: str = "cluster.partition"
) -> list[Partition]:
    """Those that the job may start in, SLURM's default where none is named. Raises ConfigError for an unknown one."""
    names = resources.partition.split(",") if resources.partition is not None else [limits.default_partition]
    for name in names:
        if name is None:
            known = ", ".join(sorted(limits.partitions))
            raise ConfigError(f"{what}: this cluster has no default partition; give {key}=, one of: {known}")
        if name not in limits.partitions:
            raise ConfigError(f"{what}: {key}={name!r} is unknown here{_nearest(name, sorted(limits.partitions))}")
    return [limits.partitions[name] for name in names if name is not None]


def _nearest(name: str, known: Iterable[str]) -> str:
    from transfergrid.config.compose import nearest  # with Hydra, which those who only read states need not load

    return nearest(name, known)


def queue_room(limits: Limits, jobs_live_of_user: int) -> int | None:
    """How many more jobs (each task of an array is one) this user may submit now; None = no limit known."""
    return None if limits.max_jobs is None else max(0, limits.max_jobs - jobs_live_of_user)


def against(asked: Resources, partition: Partition) -> str | None:
    """Why such a job can never start in this partition, and what to give instead; None where it can."""
    where = f"partition {partition.name}"
    if partition.state != "UP":
        return f"{where} is {partition.state.lower()} and starts nothing; name another in cluster.partition="
    if partition.allow_accounts is not None and asked.account is not None:
        if asked.account not in partition.allow_accounts:
            allowed = ", ".join(sorted(partition.allow_accounts))
            return f"{where} does not take cluster.account={asked.account}; it takes: {allowed}"
    if partition.allow_qos is not None and asked.qos is not None and asked.qos not in partition.allow_qos:
        return f"{where} does not take cluster.qos={asked.qos}; it takes: {', '.join(sorted(partition.allow_qos))}"
    if partition.demands_gpu and not asked.gpus:
        return f"{where} starts no job without a GPU (its QOS {partition.qos}); name another, or give cluster.gpus=1"
    if partition.max_time_min is not None and asked.time_min > partition.max_time_min:
        return (
            f"cluster.timeout_min={_shown_time(asked)} is more than {where} ever gives;"
            f" give cluster.timeout_min={partition.max_time_min} or less"
        )
    return _against_nodes(asked, partition)


def _against_nodes(asked: Resources, partition: Partition) -> str | None:
    where = f"partition {partition.name}"
    if not partition.shapes:
        return f"{where} has no nodes; name another in cluster.partition="
    types = partition.gpus_by_type
    if asked.gpus and not types:
        return f"cluster.gpus={asked.gpus}, but {where} has no GPUs; name another partition, or give cluster.gpus=0"
    if asked.gpus and asked.gpu_type is not None and asked.gpu_type not in types:
        known = ", ".join(t for t in types if t) or "none, so leave cluster.gpu_type unset"
        return f"cluster.gpu_type={asked.gpu_type!r} is unknown in {where}; known: {known}"
    most_gpus = types[asked.gpu_type] if asked.gpus and asked.gpu_type else max(s.gpus for s in partition.shapes)
    for key, value, most in (
        ("gpus", asked.gpus, most_gpus),
        ("cpus", asked.cpus, partition.max_cpus),
        ("mem_gb", asked.node_mem_gb, math.inf if partition.has_unknown_memory else partition.max_mem_mib / 1024),
    ):
        if key == "mem_gb" and value > most and asked.mem_gb is None:
            each = "mem_per_gpu_gb" if asked.mem_per_gpu_gb is not None else "mem_per_cpu_gb"
            return (
                f"cluster.{each}={getattr(asked, each):g} makes {value:g} GiB, and no node of {where} has more than"
                f" {int(most * 10) / 10:g}; give less"
            )
        if value > most:
            most = int(most * 10) / 10  # never more than there is
            return f"cluster.{key}={value:g} is more than any node of {where} has; give cluster.{key}={most:g} or less"
    if not any(_fits(asked, shape) for shape in partition.shapes):
        shapes = ", ".join(f"{s.cpus} CPUs {s.mem_mib / 1024:.1f} GiB {s.gpus} GPUs" for s in partition.shapes[:4])
        return (
            f"no node of {where} has cluster.cpus={asked.cpus}, cluster.mem_gb={asked.node_mem_gb:g} and"
            f" cluster.gpus={asked.gpus} at once; its nodes: {shapes}"
        )
    return None


def _fits(asked: Resources, shape: NodeShape) -> bool:
    gpus = shape.gpus_by_type.get(asked.gpu_type, 0) if asked.gpu_type is not None else shape.gpus
    has_memory = shape.mem_mib <= UNKNOWN_MIB or asked.node_mem_gb * 1024 <= shape.mem_mib
    return asked.cpus <= shape.cpus and has_memory and asked.gpus <= gpus


def _shown_time(asked: Resources) -> str:
    return "UNLIMITED" if asked.timeout_min == UNLIMITED else str(asked.timeout_min)
