"""A project on a W&B server: what it holds of a run, how that differs from the store, and so what is to be sent."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfergrid.names import some
from transfergrid.paths import StorePaths
from transfergrid.store import durable
from transfergrid.store.metrics_log import TIMING_FIELDS
from transfergrid.store.records import RunRecord
from transfergrid.tracking.account import Account
from transfergrid.tracking.client import end_wandb, files_open, open_run
from transfergrid.tracking.description import as_line
from transfergrid.tracking.ending import FILES, Ending
from transfergrid.tracking.remote import Remote, RemoteRun, md5_of

STATES = {"completed": "finished", "failed": "failed"}  # of a record -> of a W&B run
SHOWN = 3  # differences of one kind that are named

Lines = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Held:
    """lines: how many of the run's first lines are there as they are. told: with all that the record adds to them.
    tags: which the run has, and keeps: another grid may have given it some."""

    lines: int = 0
    told: bool = False
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRun:
    """listed: as the server lists it. lines: by their number, as they were in metrics.jsonl; where a number was sent
    twice, what was sent later. files: name -> MD5 in base64, as W&B states it."""

    listed: RemoteRun
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
        left = tuple(f"{path}/" for path in folders if not durable.is_locked(path / ".lock"))
        run_folder = re.compile(rf"/run-\d{{8}}_\d{{6}}-{re.escape(run_id)}(?:-\d+)?/")
        names = files_open() if left else ()
        return any(name.startswith(left) and run_folder.search(name) for name in names)

    def open(self, **described: Any) -> Any:
        """W&B's run that is described so, to be written to."""
        return open_run(self.account, self.folder, **described)

    def ending(self, record: RunRecord) -> Ending:
        return Ending(record, self._store.run(record.run_id), images=self._images, folder=self.folder)

    def held(self, run_id: str, lines: Lines, record: RunRecord | None) -> Held:
        """Call it with the lock held."""
        there = read_run(self.remote, run_id, files=FILES)
        if there is None:
            return Held()
        count = lines_held(there, lines)
        if record is None or count < len(lines):
            return Held(count, tags=there.listed.tags)
        return Held(count, told=not differences(there, lines, ending=self.ending(record)), tags=there.listed.tags)


def read_run(remote: Remote, run_id: str, *, files: Sequence[str]) -> ServerRun | None:
    """None where the server has no such run. files: names of those that are looked for. Raises as Remote does."""
    run = remote.run(run_id)
    if run is None:
        return None
    rows = [as_line(row) for row in remote.history(run) if "line" in row]
    return ServerRun(
        listed=run,
        lines={int(row["line"]): row for row in rows},
        files={name: file.md5 for name, file in remote.files(run, files).items()},
    )


def lines_held(there: ServerRun, lines: Lines) -> int:
    """How many of the first lines the server has as they are, but for what was measured on a clock."""
    for count, line in enumerate(lines):
        if _timeless(there.lines.get(int(line["line"]), {})) != _timeless(line):
            return count
    return len(lines)


def differences(there: ServerRun | None, lines: Lines, *, ending: Ending | None = None, tag: str = "") -> list[str]:
    """What the server lacks or has otherwise, one line each; [] where it holds the run as the store does. lines: those
    that a checkpoint or the record covers. ending: what is told with the record."""
    if there is None:
        return ["the server has no such run"]
    problems = []
    wrong = [n for line in lines if _timeless(there.lines.get(n := int(line["line"]), {})) != _timeless(line)]
    if wrong:
        problems.append(f"{len(wrong)} of {len(lines)} lines are missing or other ones: {some(wrong, SHOWN)}")
    is_whole = ending is not None and ending.record.status == "completed"  # a failed one may have gone back since
    if extra := sorted(set(there.lines) - {int(line["line"]) for line in lines}) if is_whole else []:
        problems.append(f"lines that the store no longer has, and only another project can lack: {some(extra, SHOWN)}")
    if tag and tag not in there.listed.tags:
        problems.append(f"no tag {tag!r}")
    if ending is None:
        return problems
    held = there.listed.summary
    if other := [
        f"{name} is {held.get(name)!r}, not {v!r}" for name, v in ending.summary.items() if held.get(name) != v
    ]:
        problems.append(f"summary: {some(other, SHOWN)}")
    if there.listed.state != STATES[ending.record.status]:
        problems.append(f"state is {there.listed.state!r}, not {STATES[ending.record.status]!r}")
    for path in ending.files:
        if there.files.get(path.name) != md5_of(path):
            problems.append(f"file {path.name} is {'another one' if path.name in there.files else 'missing'}")
    return problems


def _timeless(line: Mapping[str, Any]) -> dict[str, Any]:
    # W&B drops a value that is None, and gives 0.0 back as 0.
    return {name: value for name, value in line.items() if name not in TIMING_FIELDS and value is not None}
