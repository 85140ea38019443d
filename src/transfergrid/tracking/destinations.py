"""Where the lines of runs go: W&B's offline files beside the store, or its server. Each knows what it holds already."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transfergrid.paths import StorePaths
from transfergrid.store.records import RunRecord
from transfergrid.tracking import offline
from transfergrid.tracking.account import Account
from transfergrid.tracking.ending import FILES, Ending
from transfergrid.tracking.remote import Remote
from transfergrid.tracking.server import differences, lines_held, read_run

Lines = Sequence[Mapping[str, Any]]
# Lean, because the mirror shares its cores with training: no console capture, no system statistics, no code, no git.
LEAN: dict[str, Any] = {
    "console": "off",
    "silent": True,
    "disable_git": True,
    "disable_code": True,
    "x_disable_stats": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
}


@dataclass(frozen=True, slots=True)
class Held:
    """lines: how many of the run's first lines are there as they are. told: with all that the record adds to them.
    tags: which the run has, and keeps: another grid may have given it some."""

    lines: int = 0
    told: bool = False
    tags: tuple[str, ...] = ()


class Destination(Protocol):
    @property
    def settings(self) -> Mapping[str, Any]:
        """Of wandb.Settings."""
        ...

    @property
    def init(self) -> Mapping[str, Any]:
        """Arguments of wandb.init that say where."""
        ...

    def lock(self, run_id: str) -> Path:
        """Who holds it alone sends this run there."""
        ...

    def is_busy(self, run_id: str) -> bool:
        """Whether W&B's own process is still at work on this run: it outlives a killed mirror by a moment."""
        ...

    def held(self, run_id: str, lines: Lines, record: RunRecord | None) -> Held:
        """Call it with the lock held."""
        ...


class OfflineFiles:
    """`.wandb` files in results/wandb/wandb, which `wandb sync` and `wandb leet` understand.

    What they hold is read from them, never from a state file: they are flushed once a second, so any other count would
    be wrong whenever a mirror is killed between the two writes. Where their lines are not the run's (it was made again
    from an older state) they are deleted.
    """

    def __init__(self, store: StorePaths, project: str) -> None:
        self._store = store
        # Without the flush interval W&B would hold rows back for 15 s, and lose them with the process.
        self.settings: dict[str, Any] = LEAN | {"x_transaction_log_flush_interval": 1.0}
        self.init: dict[str, Any] = {"mode": "offline", "project": project}

    def lock(self, run_id: str) -> Path:
        return offline.lock_file(self._store, run_id)

    def is_busy(self, run_id: str) -> bool:
        names = {str(file) for file in offline.fragment_files(self._store, run_id)}
        return bool(names) and any(name in names for name in _files_open_in("wandb-core"))

    def held(self, run_id: str, lines: Lines, record: RunRecord | None) -> Held:
        files = offline.fragment_files(self._store, run_id)
        if not files and record is not None and offline.verified(self._store, run_id) == told_by(record):
            return Held(len(lines), told=True)  # the server has it, and the files are gone for that reason
        fragments = [offline.read_run(file) for file in files]
        sent = _identities(offline.merged_rows(fragments))
        if sent != _identities(lines[: len(sent)]):
            for file in files:
                shutil.rmtree(file.parent)
            return Held()
        summary = fragments[-1].summary if fragments and fragments[-1].exit_code is not None else {}
        told = record is not None and (summary.get("attempt"), summary.get("status")) == told_by(record)
        return Held(len(sent), told=told)


class Server:
    """A project on a W&B server; what it holds is asked of the server itself."""

    def __init__(self, store: StorePaths, account: Account) -> None:
        self.account = account
        self._store = store
        self._remote: Remote | None = None
        self._guard = threading.Lock()
        self.settings: dict[str, Any] = LEAN | {
            "init_timeout": 30.0,
            "finish_timeout": 30.0,
            "finish_timeout_raises": True,
        }
        self.init: dict[str, Any] = {"mode": "online", "project": account.project, "entity": account.entity}

    @property
    def remote(self) -> Remote:
        """Raises Unreachable."""
        with self._guard:
            if self._remote is None:
                self._remote = Remote(self.account)
            return self._remote

    def forget(self) -> None:
        """The way to the server: W&B's own process, through which it leads, has died."""
        self._remote = None

    def lock(self, run_id: str) -> Path:
        return self._store.wandb / "locks" / f"{run_id}.online.lock"

    def is_busy(self, run_id: str) -> bool:
        folders = tuple(f"{folder}/" for folder in offline.run_folders(self._store, run_id))
        return bool(folders) and any(name.startswith(folders) for name in _files_open_in("wandb-core"))

    def held(self, run_id: str, lines: Lines, record: RunRecord | None) -> Held:
        found = read_run(self.remote, run_id, files=FILES)
        if found is None:
            return Held()
        count = lines_held(found, lines)
        if record is None or count < len(lines):
            return Held(count, tags=found.listed.tags)
        ending = Ending.of(record, self._store.run(run_id))
        return Held(count, told=not differences(found, lines, ending=ending), tags=found.listed.tags)


def told_by(record: RunRecord) -> tuple[int, str]:
    """What a summary says last: with it all that belongs to the record has been told."""
    return record.attempt, record.status


def _identities(lines: Lines) -> list[tuple[int, str]]:
    """A line written again, even with the same values, has another time."""
    return [(line["line"], line["time"]) for line in lines]


def _files_open_in(program: str) -> Iterator[str]:
    """Files that processes of this name and this user have open."""
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and (process / "comm").read_text().strip() == program:
                yield from [os.readlink(file) for file in (process / "fd").iterdir()]
