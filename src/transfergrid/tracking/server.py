"""A project on a W&B server: what it holds of a run, how that differs from the store, and so what is to be sent."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transfergrid.names import some
from transfergrid.paths import StorePaths
from transfergrid.store import durable
from transfergrid.store.metrics_log import TIMING_FIELDS
from transfergrid.store.records import RunRecord
from transfergrid.tracking.account import Account
from transfergrid.tracking.client import end_wandb, files_open, open_run
from transfergrid.tracking.description import FILES, Ending, as_line
from transfergrid.tracking.remote import Remote, RemoteRun, md5_of

STATES = {"completed": "finished", "failed": "failed"}  # of a record -> of a W&B run
SHOWN = 3  # differences of one kind that are named

Lines = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class SentPart:
    """What a server has of a run. lines: how many of its first lines are there as they are. has_record: whether what
    the record adds is all there. tags: which the run keeps: another grid may have given it some."""

    lines: int = 0
    has_record: bool = False
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRun:
    """run: as the server lists it. lines: by their number, as they were in metrics.jsonl; where a number was sent
    twice, what was sent later. files: name -> MD5 in base64, as W&B states it."""

    run: RemoteRun
    lines: Mapping[int, dict[str, Any]]
    files: Mapping[str, str]


class Server:
    """Where the runs of a store go. What it holds is asked of the server itself, never of a state file. folder: of the
    wandb_session. images: whether pictures and names of files are sent."""

    def __init__(self, store: StorePaths, account: Account, folder: Path, *, images: bool) -> None:
        self.account = account
        self.folder = folder
        self._images = images
        self._store = store
        self._remote: Remote | None = None
        self._guard = threading.Lock()

    @property
    def remote(self) -> Remote:
        """Raises Unreachable."""
        with self._guard:
            if self._remote is None:
                self._remote = Remote(self.account)
            return self._remote

    def restart(self) -> None:
        """Where W&B's own process, through which the way to the server leads, has died: the next question or line
        starts another."""
        end_wandb()
        self._remote = None

    def lock(self, run_id: str) -> Path:
        """Who holds it alone sends this run."""
        return self._store.wandb / "locks" / f"{run_id}.online.lock"

    def is_busy(self, run_id: str) -> bool:
        """Whether W&B's own process is still at work on this run for a mirror or sync that was killed: it outlives them
        by a moment. Of a live one's it keeps files open as well, but then the run's lock decides."""
        place = self._store.wandb.resolve()
        folders = [path for path in (*place.glob("session-*"), place / "wandb") if path.is_dir()]  # the last: former
        prefixes = tuple(f"{path}/" for path in folders if not durable.is_locked(path / ".lock"))
        run_folder = re.compile(rf"/run-\d{{8}}_\d{{6}}-{re.escape(run_id)}(?:-\d+)?/")
        names = files_open() if prefixes else ()
        return any(name.startswith(prefixes) and run_folder.search(name) for name in names)

    def open(self, **described: Any) -> Any:
        """W&B's run that is described so, to be written to."""
        return open_run(self.account, self.folder, **described)

    def ending(self, record: RunRecord) -> Ending:
        return Ending(record, self._store.run(record.run_id), images=self._images, folder=self.folder)

    def sent_part(self, run_id: str, lines: Lines, record: RunRecord | None) -> SentPart:
        """Call it with the lock held."""
        there = read_run(self.remote, run_id, files=FILES)
        if there is None:
            return SentPart()
        count = sum(1 for _ in itertools.takewhile(partial(_has, there), lines))
        if record is None or count < len(lines):
            return SentPart(count, tags=there.run.tags)
        return SentPart(count, not differences(there, lines, ending=self.ending(record)), there.run.tags)


def read_run(remote: Remote, run_id: str, *, files: Sequence[str]) -> ServerRun | None:
    """None where the server has no such run. files: names of those that are looked for. Raises as Remote does."""
    run = remote.run(run_id)
    if run is None:
        return None
    rows = [as_line(row) for row in remote.history(run) if "line" in row]
    return ServerRun(
        run=run,
        lines={int(row["line"]): row for row in rows},
        files={name: file.md5 for name, file in remote.files(run, files).items()},
    )


def differences(there: ServerRun | None, lines: Lines, *, ending: Ending | None = None, tag: str = "") -> list[str]:
    """What the server lacks or has otherwise, one line each; [] where it holds the run as the store does. lines: those
    that a checkpoint or the record covers. ending: what is told with the record."""
    if there is None:
        return ["the server has no such run"]
    problems = []
    if wrong := [int(line["line"]) for line in lines if not _has(there, line)]:
        problems.append(f"{len(wrong)} of {len(lines)} lines are missing or other ones: {some(wrong, SHOWN)}")
    is_whole = ending is not None and ending.record.status == "completed"  # a failed one may have gone back since
    if extra := sorted(set(there.lines) - {int(line["line"]) for line in lines}) if is_whole else []:
        problems.append(f"lines that the store no longer has, and only another project can lack: {some(extra, SHOWN)}")
    if tag and tag not in there.run.tags:
        problems.append(f"no tag {tag!r}")
    if ending is None:
        return problems
    values = {name: (there.run.summary.get(name), value) for name, value in ending.summary.items()}
    if other := [f"{name} is {sent!r}, not {own!r}" for name, (sent, own) in values.items() if sent != own]:
        problems.append(f"summary: {some(other, SHOWN)}")
    if there.run.state != STATES[ending.record.status]:
        problems.append(f"state is {there.run.state!r}, not {STATES[ending.record.status]!r}")
    for path in ending.files:
        if there.files.get(path.name) != md5_of(path):
            problems.append(f"file {path.name} is {'another one' if path.name in there.files else 'missing'}")
    return problems


def _has(there: ServerRun, line: Mapping[str, Any]) -> bool:
    """Whether the line is there as it is, but for what was measured on a clock."""
    return _timeless(there.lines.get(int(line["line"]), {})) == _timeless(line)


def _timeless(line: Mapping[str, Any]) -> dict[str, Any]:
    # W&B drops a value that is None, and gives 0.0 back as 0.
    return {name: value for name, value in line.items() if name not in TIMING_FIELDS and value is not None}
