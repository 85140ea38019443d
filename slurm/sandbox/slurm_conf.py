"""The configuration files of a sandbox SLURM (22.05), as text: what each option of the sandbox means to SLURM."""

from __future__ import annotations

import itertools
import socket
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MEMORY_MB = 8000  # per node; as its CPUs, declared, not measured
_MEMORY_IS_COUNTED = ("SelectTypeParameters=CR_Core_Memory", "DefMemPerCPU=1000")
JOB_IDS = 1000  # of each sandbox whose job numbers must be its own


@dataclass(frozen=True)
class Options:
    nodes: int = 2
    gpus: int = 2  # per node, fake: device nodes that no driver answers
    gpu_types: str = "fake"  # of a node's GPUs, in turn; several are separated by commas
    more_gres: str = ""  # of each node, beside its GPUs: `nvme:2,tmpdisk:100`
    cpus: int = 4  # per node, declared: may be more than the machine has
    accounting: bool = True
    memory_mb: int | None = MEMORY_MB  # per node; None: nobody has told SLURM, which then counts no memory
    max_array_size: int = 1001
    cgroup_memory: bool = False
    preempt: Literal["signal", "no-signal"] | None = None
    max_time_min: int = 60  # of the partition `short`
    kill_wait_s: int = 5
    slurmd_timeout_s: int = 60
    min_job_age_s: int = 300
    requeue_wait_s: int = 120  # SLURM's own default: the life of a job credential
    max_submit_jobs: int | None = None
    cluster_name: str = "sandbox"
    accounts_in: str | None = None  # folder of another sandbox, whose database keeps this cluster's accounts too


@dataclass(frozen=True)
class Ports:
    """TCP ports on the loopback interface; `slurmd` has one per node."""

    slurmctld: int
    slurmdbd: int
    slurmd: tuple[int, ...]


def node_names(options: Options) -> tuple[str, ...]:
    return tuple(f"n{number}" for number in range(1, options.nodes + 1))


def files(options: Options, ports: Ports, folder: Path, memory_cgroups: Path | None) -> dict[str, str]:
    """Name -> text. `memory_cgroups` is the root of the machine's cgroup v1 hierarchy `memory`, where it has one."""
    return {
        "slurm.conf": _slurm_conf(options, ports, folder),
        "slurmdbd.conf": _slurmdbd_conf(ports, folder),
        "gres.conf": _gres_conf(options, folder),
        "cgroup.conf": _cgroup_conf(options, memory_cgroups),
    }


def _slurm_conf(options: Options, ports: Ports, folder: Path) -> str:
    hostname = socket.gethostname().split(".")[0]
    lines = [
        f"ClusterName={options.cluster_name}",
        f"SlurmctldHost={hostname}(127.0.0.1)",
        f"SlurmctldPort={ports.slurmctld}",
        "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny",  # loopback only
        "SlurmUser=root",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        f"AuthInfo=socket={options.accounts_in or folder}/run/munge.socket,cred_expire={options.requeue_wait_s}",
        f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/spool/%n",
        f"SlurmctldPidFile={folder}/run/slurmctld.own.pid",
        f"SlurmdPidFile={folder}/run/slurmd-%n.own.pid",
        f"SlurmdLogFile={folder}/log/steps-%n.log",  # slurmstepd writes here, slurmd also to its own output
        "SlurmdParameters=config_overrides",  # believe the nodes' declared sizes
        "ProctrackType=proctrack/linuxproc",
        f"TaskPlugin={'task/cgroup' if options.cgroup_memory else 'task/none'}",
        "SelectType=select/cons_tres",
        *(["SelectTypeParameters=CR_Core"] if options.memory_mb is None else _MEMORY_IS_COUNTED),
        f"GresTypes={','.join(['gpu', *_more_gres(options)])}",
        "ReturnToService=2",
        "JobRequeue=1",
        "MailProg=/bin/true",
        "MpiDefault=none",
        f"MaxArraySize={options.max_array_size}",
        f"MinJobAge={options.min_job_age_s}",
        f"KillWait={options.kill_wait_s}",
        f"SlurmdTimeout={options.slurmd_timeout_s}",
        "SlurmctldTimeout=30",
        "MessageTimeout=10",
        "SchedulerType=sched/backfill",
        "SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=2,bf_interval=1",
        "JobAcctGatherType=jobacct_gather/linux",
        "JobAcctGatherFrequency=task=1",
        *_accounting_lines(options, ports, folder),
        *_preemption_lines(options),
    ]
    if options.cgroup_memory:
        # Nodes of two sandboxes share the machine's cgroups, where a job is its number: numbers of our own.
        lines.append(f"FirstJobId={ports.slurmctld * JOB_IDS}")
    gpus = [f"gpu:{kind}:{count}" for kind, count in Counter(_gpus(options)).items()]
    gres = ",".join(filter(None, [*gpus, options.more_gres]))
    memory = "" if options.memory_mb is None else f" RealMemory={options.memory_mb}"
    size = f"CPUs={options.cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={options.cpus} ThreadsPerCore=1"
    for name, port in zip(node_names(options), ports.slurmd, strict=True):
        lines.append(
            f"NodeName={name} NodeHostname={hostname} NodeAddr=127.0.0.1 Port={port} {size}{memory} "
            f"{'Gres=' + gres + ' ' if gres else ''}State=UNKNOWN"
        )
    return "\n".join([*lines, *_partition_lines(options)]) + "\n"


def _accounting_lines(options: Options, ports: Ports, folder: Path) -> list[str]:
    if not options.accounting:
        return ["AccountingStorageType=accounting_storage/none"]
    lines = [
        "AccountingStorageType=accounting_storage/slurmdbd",
        "AccountingStorageHost=127.0.0.1",
        f"AccountingStoragePort={ports.slurmdbd}",
        # AuthInfo does not hold for this connection.
        f"AccountingStoragePass={options.accounts_in or folder}/run/munge.socket",
        "AccountingStorageTRES=gres/gpu",
    ]
    if options.max_submit_jobs is not None:
        lines.append("AccountingStorageEnforce=associations,limits,qos")
    return lines


def _preemption_lines(options: Options) -> list[str]:
    if options.preempt is None:
        return []
    lines = ["PreemptType=preempt/partition_prio", "PreemptMode=REQUEUE"]
    if options.preempt == "signal":
        lines.append("SlurmctldParameters=preempt_send_user_signal")
    return lines


def _partition_lines(options: Options) -> list[str]:
    off = " PreemptMode=OFF" if options.preempt else ""
    lines = [
        f"PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP{off}",
        f"PartitionName=short Nodes=ALL MaxTime={options.max_time_min} State=UP{off}",
    ]
    if options.preempt:
        grace_s = 15 if options.preempt == "signal" else 0
        lines += [
            f"PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace_s} State=UP",
            "PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF State=UP",
        ]
    return lines


def _slurmdbd_conf(ports: Ports, folder: Path) -> str:
    """MariaDB is met at its socket, which MYSQL_UNIX_PORT names to slurmdbd."""
    lines = [
        "DbdHost=localhost",
        "DbdAddr=127.0.0.1",
        f"DbdPort={ports.slurmdbd}",
        "CommunicationParameters=NoInAddrAny",
        "SlurmUser=root",
        "AuthType=auth/munge",
        f"AuthInfo=socket={folder}/run/munge.socket",
        f"PidFile={folder}/run/slurmdbd.own.pid",
        "StorageType=accounting_storage/mysql",
        "StorageHost=localhost",
        "StorageUser=root",
        "StorageLoc=slurm",
    ]
    return "\n".join(lines) + "\n"


def _gres_conf(options: Options, folder: Path) -> str:
    """A count alone would leave the node INVAL: each GPU is a device file."""
    nodes = f"NodeName=n[1-{options.nodes}]"
    of_gpus = [f"{nodes} Name=gpu Type={kind} File={folder}/nvidia{i}" for i, kind in enumerate(_gpus(options))]
    others = [f"{nodes} Name={name} Count={count}" for name, count in _more_gres(options).items()]
    return "".join(f"{line}\n" for line in [*of_gpus, *others])


def _gpus(options: Options) -> list[str]:
    """The type of each of a node's GPUs."""
    return list(itertools.islice(itertools.cycle(options.gpu_types.split(",")), options.gpus))


def _more_gres(options: Options) -> dict[str, str]:
    return dict(each.split(":") for each in options.more_gres.split(",") if each)


def _cgroup_conf(options: Options, memory_cgroups: Path | None) -> str:
    """Needed in any case: without it slurmd looks for a plugin that fits the machine, and may find none."""
    mountpoint = memory_cgroups.parent if memory_cgroups else "/sys/fs/cgroup"
    lines = ["CgroupPlugin=cgroup/v1", "CgroupAutomount=no", f"CgroupMountpoint={mountpoint}"]
    if options.cgroup_memory:
        lines.append("ConstrainRAMSpace=yes")
        if memory_cgroups and (memory_cgroups / "memory.memsw.limit_in_bytes").exists():
            lines += ["ConstrainSwapSpace=yes", "AllowedSwapSpace=0"]  # or the job would swap instead
    return "\n".join(lines) + "\n"
