"""The right to carry out a run: attempts/NNN.json, one per start, of which only the newest may write (fencing).

A run's kernel lock says who holds it, and SLURM where nodes do not see each other's locks. Being wrong about that costs
time, never a result: an attempt checks before it publishes that it is still the newest.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from transfergrid.errors import AlreadyRunning, Superseded
from transfergrid.paths import RunPaths
from transfergrid.specs import RunSpec, from_dict, to_dict
from transfergrid.store import durable
from transfergrid.store.provenance import code_hash

ATTEMPTS_KEPT = 4  # of the files in attempts/: a run that is requeued often still leaves at most 12 files

# Whether the SLURM job of an attempt's owner is alive; None where SLURM does not answer, or proves neither.
IsAlive = Callable[[Mapping[str, Any]], bool | None]


@dataclass(slots=True)
class Attempt:
    """The right to write one run's files, until a newer attempt exists. Obtained from begin_attempt only."""

    paths: RunPaths
    number: int
    started: datetime
    owner: dict[str, Any] = field(default_factory=dict)

    def assert_newest(self) -> None:
        """Raises Superseded if a newer attempt has begun: two copies of one job can be alive after a node failure."""
        newest = newest_attempt(self.paths)
        if newest != self.number:
            raise Superseded(f"{self.paths.root.name}: attempt {self.number} is superseded by attempt {newest}")

    def note_device(self, name: str) -> str | None:
        """Write down what this attempt computes on. Returns what the one before it did, where that is another kind."""
        self.owner["device"] = name
        with contextlib.suppress(Exception):  # a run is worth more than this line about it
            if self.paths.attempt(self.number).exists():
                durable.write_json(self.paths.attempt(self.number), self.owner)
        known = [t.device for t in attempt_times(self.paths) if t.number < self.number and t.device is not None]
        return known[-1] if known and known[-1] != name else None


@contextlib.contextmanager
def begin_attempt(paths: RunPaths, spec: RunSpec, *, is_alive: IsAlive | None = None) -> Iterator[Attempt]:
    """Claim a run: its kernel lock while the block lasts, and the next attempt number for good. Raises AlreadyRunning
    if another process holds the run and is alive, as far as locks and SLURM can tell."""
    with contextlib.ExitStack() as locks:
        has_lock = locks.enter_context(durable.lock(paths.lock, wait=False))
        if not _may_begin(read_owner(paths), has_lock, is_alive):
            raise AlreadyRunning(f"{paths.root.name} is running already ({describe_owner(paths)})")
        if not has_lock:
            # A copy that SLURM has given up still holds the lock. A new file is a new lock; the old one guards nothing.
            durable.break_lock(paths.lock)
            locks.enter_context(durable.lock(paths.lock, wait=False))
        durable.sweep(paths.root)
        durable.sweep(paths.checkpoints)
        if not paths.spec.exists():
            durable.write_json(paths.spec, to_dict(spec))
        started = datetime.now(UTC)
        number = newest_attempt(paths) + 1
        owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": started.isoformat(timespec="seconds"),
            "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
            "slurm_task": slurm_task(),
            "slurm_restart_count": restart_count(),
            "slurm_cluster": os.environ.get("SLURM_CLUSTER_NAME"),
            "slurm_mark": job_mark(),
            "uid": os.getuid(),
            "node": os.environ.get("SLURMD_NODENAME"),
            "slurm_gpus": slurm_gpus(),
            "code_hash": code_hash(),
            # Of the attempts whose files are removed now.
            "earlier": [asdict(t) for t in attempt_times(paths) if t.number <= number - ATTEMPTS_KEPT],
        }
        # Even without locks two starts get two numbers: the file system makes a hard link once.
        while not durable.claim(paths.attempt(number), json.dumps(owner | {"attempt": number}, indent=2).encode()):
            number += 1
        for old in _attempt_numbers(paths):
            if old <= number - ATTEMPTS_KEPT:
                paths.attempt(old).unlink(missing_ok=True)
        began = time.monotonic()
        attempt = Attempt(paths, number, started, owner | {"attempt": number})
        try:
            yield attempt
        finally:
            ended = datetime.now(UTC).isoformat(timespec="seconds")
            with contextlib.suppress(Exception):  # that it has ended is told by lock and SLURM as well
                if paths.attempt(number).exists():
                    ending = {"ended": ended, "wall_s": round(time.monotonic() - began, 3)}
                    durable.write_json(paths.attempt(number), attempt.owner | ending)


def _may_begin(owner: Mapping[str, Any] | None, has_lock: bool, is_alive: IsAlive | None) -> bool:
    """Whether the newest attempt's process is gone, or is an older copy of this very job."""
    if owner is None or owner.get("ended") or not owner.get("slurm_task"):
        return has_lock
    if _is_this_job(owner):
        earlier = restart_count() - owner["slurm_restart_count"]
        return earlier > 0 or (earlier == 0 and has_lock)
    if has_lock and owner["host"] == socket.gethostname():
        return True  # on one machine the lock tells for certain
    alive = None if is_alive is None else is_alive(owner)
    return has_lock if alive is None else not alive


def _is_this_job(owner: Mapping[str, Any]) -> bool:
    """By more than its number, which another cluster's job has as well."""
    me = (slurm_task(), os.environ.get("SLURM_CLUSTER_NAME"), job_mark())
    return (owner["slurm_task"], owner.get("slurm_cluster"), owner.get("slurm_mark")) == me


def job_mark() -> str | None:
    """What the name of the job of SLURM's that this process is in ends with: the token of the submission that sent it,
    or the whole name where somebody wrote the job by hand. None outside SLURM."""
    token, name = os.environ.get("TRANSFERGRID_JOB_TOKEN"), os.environ.get("SLURM_JOB_NAME")
    # A job that one of ours sends by hand inherits a token that is not its own.
    return token if token and (name is None or name.endswith(f"-{token}")) else name


def slurm_task() -> str | None:
    """`123`, or `123_4` for a task of an array: as squeue shows the job this process is in; None outside SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def slurm_gpus() -> int | None:
    """GPUs that SLURM gave this process, of those of its job the ones it was told to use; None outside SLURM."""
    if slurm_task() is None:
        return None
    on_node = os.environ.get("SLURM_GPUS_ON_NODE", "")
    ids = [g for g in os.environ.get("SLURM_JOB_GPUS", "").split(",") if g]
    of_job = int(on_node) if on_node.isdigit() else len(ids)
    visible = [g for g in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if g]
    return min(of_job, len(visible)) if visible else of_job


def restart_count() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def read_spec(paths: RunPaths) -> RunSpec | None:
    """spec.json, which the first attempt leaves; None where there is none, or it is of no release that is known."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return from_dict(RunSpec, durable.read_json(paths.spec))
    return None


def newest_attempt(paths: RunPaths) -> int:
    """The highest attempt number, 0 before the first."""
    return max(_attempt_numbers(paths), default=0)


def _attempt_numbers(paths: RunPaths) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [int(name[:-5]) for name in os.listdir(paths.attempts) if re.fullmatch(r"\d+\.json", name)]
    return []


@dataclass(frozen=True, slots=True)
class AttemptTime:
    """How long an attempt lasted and on what. wall_s: None where its end was not written. task: of SLURM, as in
    `slurm_task`. gpus: those SLURM gave it; None outside SLURM, where the run's record tells. device: the kind of GPU
    that it computed on, or `cpu`; None where it ended before it knew, or was of an earlier release."""

    number: int
    started: str
    wall_s: float | None
    task: str | None = None
    cluster: str | None = None
    gpus: int | None = None
    device: str | None = None


def attempt_times(paths: RunPaths) -> tuple[AttemptTime, ...]:
    """Of every start of a run, in their order, those too whose files have gone; nothing of what cannot be read."""
    times: dict[int, AttemptTime] = {}
    for number in sorted(_attempt_numbers(paths)):
        try:
            owner = durable.read_json(paths.attempt(number))
            for earlier in owner.get("earlier", ()):
                times.setdefault(earlier["number"], AttemptTime(**earlier))
            times[number] = AttemptTime(
                number=number,
                started=owner["started"],
                wall_s=owner.get("wall_s", _seconds_until(owner["started"], owner.get("ended"))),
                task=owner.get("slurm_task"),
                cluster=owner.get("slurm_cluster"),
                gpus=owner.get("slurm_gpus"),
                device=owner.get("device"),
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return tuple(times[number] for number in sorted(times))


def _seconds_until(started: str, ended: str | None) -> float | None:
    """Of an attempt of an earlier release, which wrote its times in whole seconds."""
    if ended is None:
        return None
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds()


def read_owner(paths: RunPaths) -> dict[str, Any] | None:
    """The newest attempt as it was claimed; None before the first, or where it cannot be read."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        owner: dict[str, Any] = durable.read_json(paths.attempt(newest_attempt(paths)))
        return owner
    return None


def describe_owner(paths: RunPaths) -> str:
    owner = read_owner(paths) or {}
    try:
        who = f"job {owner['slurm_task']}" if owner.get("slurm_task") else f"process {owner['pid']}"
        where = owner.get("node") or owner["host"]
        return f"attempt {owner['attempt']}, {who} on {where} since {owner['started']}"
    except KeyError:
        return "owner unknown"
