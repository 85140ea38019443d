"""What a sandbox takes from the machine: programs, root, TCP ports, memory control groups."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

PACKAGES = "slurmctld slurmd slurmdbd slurm-client munge mariadb-server"
PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "scontrol", "sacctmgr", "munged", "mariadbd", "mariadb-install-db")
PORTS = range(20000, 32000)  # below those that Linux gives to outgoing connections
SHARES = 64


class SandboxError(RuntimeError):
    """A daemon or a command of the sandbox failed; one line."""


class Unsupported(SandboxError):
    """This machine, user or request allows no such sandbox; one line with what is missing."""


def check(*, memory_limits: bool) -> None:
    """Raises Unsupported where a sandbox (with enforced memory limits, if asked for) cannot run."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        install = f"apt-get update && apt-get install -y --no-install-recommends {PACKAGES}"
        raise Unsupported(f"not on the PATH: {', '.join(missing)}; on Debian, as root: {install}")
    if os.geteuid() != 0:
        raise Unsupported("the sandbox needs root, as SLURM's daemons do: run it with sudo, or in a container")
    if memory_limits and memory_cgroups() is None and not _can_mount_memory_cgroup():
        raise Unsupported("no memory limits here: the cgroup v1 controller `memory` is neither mounted nor mountable")


def free_ports(count: int) -> list[int]:
    """Random ones of a share that is this process's, so that two sandboxes that start at one time do not meet: a port
    is free until its daemon has it."""
    ports: list[int] = []
    share = PORTS[os.getpid() % SHARES :: SHARES]
    for port in random.SystemRandom().sample(share, len(share)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise SandboxError(f"no {count} free TCP ports between {PORTS.start} and {PORTS.stop}")


def memory_cgroups() -> Path | None:
    """Where the machine mounts the cgroup v1 hierarchy `memory`: /sys/fs/cgroup/memory, or nowhere."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mountpoint, kind, flags = line.split()[:4]
        # SLURM looks for a folder of that name; not the mount that another sandbox made for itself, which goes with it.
        if kind == "cgroup" and "memory" in flags.split(",") and mountpoint == "/sys/fs/cgroup/memory":
            return Path(mountpoint)
    return None


def mount_memory_cgroups(folder: Path) -> None:
    """Raises CalledProcessError where the machine has none to mount (the controller is in cgroup v2's hands)."""
    subprocess.run(["mount", "-t", "cgroup", "-o", "memory", "none", str(folder)], check=True, capture_output=True)


def _can_mount_memory_cgroup() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        try:
            mount_memory_cgroups(Path(folder))
        except subprocess.CalledProcessError:
            return False
        subprocess.run(["umount", folder], check=True, capture_output=True)
    return True


def remove_job_cgroups(root: Path, jobs: range) -> None:
    """Remove what killed steps of these job numbers left. The folders above are the machine's, for all its SLURMs."""
    for job in root.glob("slurm*/uid_*/job_*"):
        if int(job.name.removeprefix("job_")) in jobs:
            for path, _, _ in os.walk(job, topdown=False):
                with contextlib.suppress(OSError):  # a process in it may not be collected yet
                    os.rmdir(path)
