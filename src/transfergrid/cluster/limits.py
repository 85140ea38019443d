"""What a SLURM cluster allows: its partitions and nodes, and what this user may ask for, and hold at once."""

from __future__ import annotations

import getpass
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from transfergrid.cluster import slurm
from transfergrid.cluster.forms import ANY, MAYBE_NUMBER, NUMBER, WORD, duration_s, rows, tres_of
from transfergrid.cluster.ownership import Here, here_of, read_config
from transfergrid.errors import ConfigError
from transfergrid.resources import Resources

# How a node's state begins, as sinfo spells it; `powered_down` is none of them, such a node is woken when needed.
UNUSABLE = ("down", "drain", "error", "fail", "future", "inval", "maint", "unknown")
TRES = r"[^|\s]*"  # `cpu=4,gres/gpu:a100=1,mem=8G`, as sacctmgr prints it
KINDS = ("group", "job", "user", "account")  # whose sum a limit bounds
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
        return sum(s.usable for s in self.shapes)


@dataclass(frozen=True, slots=True)
class Ceiling:
    """owner: whose limit it is, as `QOS short`. most: (kind, TRES) -> number; memory in MiB."""

    owner: str
    most: Mapping[tuple[str, str], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class OfUser:
    """What the accounting database says of this user.

    accounts, qos: what may be named, None where SLURM does not know. max_jobs: in the queue at once, None = no limit
    known. qos_max_time_min: of those QOS that limit it. gpu_qos: those that start no job without a GPU. qos_ceilings,
    own_ceiling: what a QOS, by its name, and this user's association let one hold at once. default_qos: of a job that
    names none. over_partition: the QOS whose limits go before those of a partition's QOS.
    """

    accounts: frozenset[str] | None = None
    qos: frozenset[str] | None = None
    max_jobs: int | None = None
    qos_max_time_min: Mapping[str, int] = field(default_factory=dict)
    gpu_qos: frozenset[str] = frozenset()
    qos_ceilings: Mapping[str, Ceiling] = field(default_factory=dict)
    own_ceiling: Ceiling | None = None
    default_qos: str = "normal"
    over_partition: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits(OfUser):
    """here: which cluster it is. max_array_size: how many tasks an array may have. accounting: whether states are kept
    in a database. requeue: whether jobs may be requeued unless they say otherwise. preemption: by what (`none`,
    `partition_prio`, `qos`). user_signal: whether a preempted job gets the signal it asked for. kill_wait_s: between
    SIGTERM and SIGKILL at the time limit. min_job_age_s: so long squeue knows of a job that has ended.
    """

    here: Here
    max_array_size: int
    partitions: Mapping[str, Partition]
    accounting: bool = False
    requeue: bool = True
    preemption: str = "none"
    user_signal: bool = False
    kill_wait_s: int = 30
    min_job_age_s: int = 300

    @property
    def default_partition(self) -> str | None:
        return next((p.name for p in self.partitions.values() if p.is_default), None)


# ------------------------------------------------------------------------------------------------------------- reading
def read_limits(*, account: str | None = None, qos: str | None = None) -> Limits:
    """Ask the cluster, in five commands. account, qos: whose limit of jobs counts; None = the user's defaults. Raises
    SlurmDown where the controller does not answer. A silent database is no error: its answers are then None."""
    config = read_config()
    accounting = config.get("AccountingStorageType", "").endswith("/slurmdbd")
    user = _read_accounting(config, account, qos) if accounting else OfUser()
    max_jobs = [n for n in (_number(config.get("MaxJobCount", "")), user.max_jobs) if n is not None]
    of_user = {f.name: getattr(user, f.name) for f in fields(OfUser)} | {"max_jobs": min(max_jobs, default=None)}
    return Limits(
        **of_user,
        here=here_of(config),
        max_array_size=_max_array_size(config),
        partitions=_partitions(user.gpu_qos),
        accounting=accounting,
        requeue=config.get("JobRequeue", "1") == "1",
        preemption=config.get("PreemptType", "preempt/none").removeprefix("preempt/"),
        user_signal="send_user_signal" in config.get("SlurmctldParameters", "") + config.get("PreemptParameters", ""),
        kill_wait_s=_number(config.get("KillWait", "")) or 0,
        min_job_age_s=_number(config.get("MinJobAge", "")) or 0,
    )


def _max_array_size(config: Mapping[str, str]) -> int:
    """What an array may hold: tasks are numbered below MaxArraySize, and max_array_tasks bounds their count."""
    size = _number(config.get("MaxArraySize", "1001")) or 0
    tasks = re.search(r"\bmax_array_tasks=(\d+)", config.get("SchedulerParameters", ""))
    return size if tasks is None else min(size, int(tasks[1]))


def unseen_limits() -> Limits:
    """Of a cluster that does not answer, for what is only shown or written: SLURM's default of arrays, and no name."""
    return Limits(here=Here(""), max_array_size=1001, max_jobs=None, partitions={})


def _partitions(gpu_qos: frozenset[str]) -> dict[str, Partition]:
    """By name; their nodes as the partition hands them out."""
    partitions, shapes = {}, _shapes()
    for entry in slurm.show("partition"):
        name = entry["PartitionName"]
        most_mib, most_cpus = _number(entry.get("MaxMemPerNode", "")), _number(entry.get("MaxCPUsPerNode", ""))
        partitions[name] = Partition(
            name=name,
            shapes=tuple(
                replace(
                    shape,
                    cpus=shape.cpus if most_cpus is None else min(shape.cpus, most_cpus),
                    mem_mib=shape.mem_mib if most_mib is None else min(shape.mem_mib, most_mib),
                )
                for shape in shapes.get(name, [])
            ),
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
    return partitions


def _shapes() -> dict[str, list[NodeShape]]:
    """Partition -> its kinds of nodes. One line per kind, not per node: a cluster may have thousands."""
    shapes_of: dict[str, list[NodeShape]] = {}
    text = slurm.run(["sinfo", "-a", "-h", "-e", "-o", "%R|%T|%D|%c|%m|%G"])
    for name, state, count, cpus, mem_mib, gres in rows("sinfo", text, _OF_SINFO):
        shape = NodeShape(
            count=int(count),
            usable=int(count) if takes_jobs(state) else 0,
            cpus=_number(cpus) or 0,
            mem_mib=_number(mem_mib) or 0,
            gpus_by_type=gpus_of(gres),
        )
        shapes_of.setdefault(name, []).append(shape)
    return shapes_of


def takes_jobs(state: str) -> bool:
    """Of a node's state as sinfo spells it: `mixed-` and `idle~` do, `idle*` does not answer, `idle$` is maintained."""
    return not state.startswith(UNUSABLE) and not set(state) & set("*$")


def gpus_of(gres: str) -> dict[str, int]:
    """`gpu:a100:4(S:0-1),gpu:2` -> {"a100": 4, "": 2}."""
    count_of: dict[str, int] = {}
    for kind, count in re.findall(r"(?:^|,)gpu(?::([^:,()]+))?:(\d+)", gres):  # a type may be a number: gpu:3090:2
        count_of[kind or ANY_TYPE] = count_of.get(kind or ANY_TYPE, 0) + int(count)
    return count_of


def _read_accounting(config: Mapping[str, str], account: str | None, qos: str | None) -> OfUser:
    show = ["sacctmgr", "-nP", "show"]
    columns = "DefaultAccount,Account,QOS,DefaultQOS,MaxSubmitJobs,GrpSubmitJobs,GrpTRES,MaxTRESPerJob"
    of_user = [*show, "user", getpass.getuser(), "withassoc", f"cluster={config['ClusterName']}", f"format={columns}"]
    columns = "Name,MaxSubmitJobsPerUser,GrpSubmitJobs,MaxWall,MinTRESPerJob"
    of_qos = [*show, "qos", f"format={columns},GrpTRES,MaxTRESPerJob,MaxTRESPerUser,MaxTRESPerAccount,Flags"]
    try:
        associations = rows("sacctmgr", slurm.run(of_user), _OF_USER)
        qos_lines = rows("sacctmgr", slurm.run(of_qos), _OF_QOS)
    except (slurm.SlurmDown, slurm.SlurmRefused):
        return OfUser()
    enforced = config.get("AccountingStorageEnforce", "none").lower()
    all_qos = {line[0] for line in qos_lines}
    if not associations:  # SLURM asks nobody who he is; where it does, sbatch itself refuses him
        return OfUser(qos=frozenset(all_qos) or None)
    mine = [a for a in associations if a[1] == (account or a[0])] or associations
    named = {name for a in associations for name in a[2].split(",") if name}
    # Without enforcement any QOS there is will do.
    allowed = named if "qos" in enforced and named else all_qos
    if "limits" not in enforced and "safe" not in enforced and "qos" not in enforced:
        return OfUser(accounts=frozenset(a[1] for a in associations), qos=frozenset(allowed))
    used_qos = qos or mine[0][3] or "normal"
    submit = [cell for a in mine for cell in a[4:6]] + [c for q in qos_lines if q[0] == used_qos for c in q[1:3]]
    times = {line[0]: _minutes(line[3]) for line in qos_lines}
    return OfUser(
        accounts=frozenset(a[1] for a in associations),
        qos=frozenset(allowed),
        qos_max_time_min={name: time for name, time in times.items() if time is not None},
        gpu_qos=frozenset(line[0] for line in qos_lines if re.search(r"gres/gpu(:\S+)?=[1-9]", line[4])),
        max_jobs=min((n for n in map(_number, submit) if n is not None), default=None),
        qos_ceilings={
            line[0]: ceiling_of(f"QOS {line[0]}", dict(zip(KINDS, line[5:9], strict=True))) for line in qos_lines
        },
        own_ceiling=ceiling_of(f"account {mine[0][1]}", {"group": mine[0][6], "job": mine[0][7]}),
        default_qos=mine[0][3] or "normal",
        over_partition=frozenset(line[0] for line in qos_lines if "OverPartQOS" in line[9].split(",")),
    )


def _number(text: str) -> int | None:
    """`30 sec`, `1001`, `8000+` as a number; None for UNLIMITED, (null) or nothing."""
    match = re.match(r"\d+", text.strip())
    return int(match[0]) if match is not None else None


def _minutes(text: str) -> int | None:
    seconds = duration_s(text)
    return None if seconds is None else int(seconds // 60)


def _names(text: str) -> frozenset[str] | None:
    return None if text in ("ALL", "(null)", "") else frozenset(text.split(","))


def queue_room(limits: Limits, jobs_live_of_user: int) -> int | None:
    """How many more jobs (each task of an array is one) this user may submit now; None = no limit known."""
    return None if limits.max_jobs is None else max(0, limits.max_jobs - jobs_live_of_user)


# ------------------------------------------------------------------------------------------------------------ ceilings
def ceiling_of(owner: str, columns: Mapping[str, str]) -> Ceiling:
    """columns: kind -> what sacctmgr prints of it."""
    return Ceiling(
        owner, {(kind, tres): most for kind, text in columns.items() for tres, most in tres_of(text).items()}
    )


def above(request: Resources, layers: Sequence[Ceiling]) -> ConfigError | None:
    """Why such a job would wait for good; None where nothing forbids it. layers: the most important first, since SLURM
    takes each limit from the first of them that has it."""
    for key, tres, value in _amounts(request):
        most, owner = _least(layers, tres)
        if value > most:
            allowed = f"{most / 1024:g}" if tres == "mem" else f"{most:g}"
            amount = value / 1024 if tres == "mem" else value
            what = f"cluster.{key}={amount:g} is more than {owner} ever gives"
            return ConfigError(what, remedy=f"give cluster.{key}={allowed} or less")
    return None


def room(layers: Sequence[Ceiling]) -> tuple[float, float]:
    """The most CPUs, and MiB of memory, that one job may ever have."""
    return _least(layers, "cpu")[0], _least(layers, "mem")[0]


def _least(layers: Sequence[Ceiling], tres: str) -> tuple[float, str]:
    of_kinds = [
        next(((layer.most[kind, tres], layer.owner) for layer in layers if (kind, tres) in layer.most), None)
        for kind in KINDS
    ]
    return min((limit for limit in of_kinds if limit is not None), default=(math.inf, ""))


def _amounts(request: Resources) -> Iterable[tuple[str, str, float]]:
    yield "gpus", "gres/gpu", request.gpus
    if request.gpu_type is not None:
        yield "gpus", f"gres/gpu:{request.gpu_type}", request.gpus
    yield "cpus", "cpu", request.cpus
    if request.mem_gb is not None:
        yield "mem_gb", "mem", request.mem_gb * 1024
