"""Processes by what /proc says of them: which belong to a sandbox, and whether a remembered one still lives."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

DAEMONS = ("munged", "mariadbd", "mysqld", "slurmdbd", "slurmctld", "slurmd", "slurmstepd")


@dataclass(frozen=True)
class Process:
    """A pid with its start time (clock ticks since boot), so that a reused pid is not taken for the old process."""

    pid: int
    started: int


def spawn(argv: list[str], *, environment: dict[str, str], log: Path) -> int:
    """Start a daemon in a session of its own, in the log's folder; its pid. It is not our child: nobody must wait."""
    script = 'cd "$1"; shift; log=$1; shift; setsid "$@" </dev/null >>"$log" 2>&1 & echo $!'
    done = subprocess.run(
        ["/bin/sh", "-c", script, "sh", str(log.parent), str(log), *argv],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return int(done.stdout)


def identify(pid: int) -> Process | None:
    """None where no such process lives; one that ended and only waits to be collected does not live."""
    fields = _stat_fields(pid)
    return None if fields is None else Process(pid, int(fields[19]))


def is_alive(process: Process) -> bool:
    return identify(process.pid) == process


def send(process: Process, number: signal.Signals) -> bool:
    """Whether it was alive to get the signal."""
    if not is_alive(process):
        return False
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return False
    return True


def of_sandbox(folder: Path, *, node: str | None = None) -> list[Process]:
    """The daemons, step daemons and job processes of the sandbox in `folder` (with `node`: of that node alone).

    A job process is known by its environment, or by its ancestor. A shell that merely has SLURM_CONF set, or that
    stands in the folder, is none.
    """
    parents = {pid: int(fields[1]) for pid in _pids() if (fields := _stat_fields(pid)) is not None}
    ours = {pid for pid in parents if _is_daemon(pid, folder, node) or _is_job(pid, folder, node)}
    grew = True
    while grew:
        children = {pid for pid, parent in parents.items() if parent in ours} - ours
        ours |= children
        grew = bool(children)
    myself = os.getpid()
    while myself in parents:  # never the asking process or those it runs in
        ours.discard(myself)
        myself = parents[myself]
    return [process for pid in sorted(ours) if (process := identify(pid)) is not None]


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _stat_fields(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name: state, parent, ..., start time at index 19."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields


def _read(path: str) -> list[str]:
    try:
        return Path(path).read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _is_daemon(pid: int, folder: Path, node: str | None) -> bool:
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        if name not in DAEMONS:
            return False
        opened = [os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return False
    if node is not None:
        return str(folder / "log" / f"steps-{node}.log") in opened
    return any(path.startswith(f"{folder}/") for path in opened) or any(
        f"{folder}/" in argument for argument in _read(f"/proc/{pid}/cmdline")
    )


def _is_job(pid: int, folder: Path, node: str | None) -> bool:
    variables = _read(f"/proc/{pid}/environ")
    if f"SLURM_CONF={folder}/slurm.conf" not in variables:
        return False
    if node is not None:
        return f"SLURMD_NODENAME={node}" in variables
    return any(variable.startswith("SLURM_JOB_ID=") for variable in variables)
