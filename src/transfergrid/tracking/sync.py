"""Bring a W&B server to what the store holds of a grid, and see whether it is there: from the runs' own files alone.

Line numbers decide what is missing, so that it may be done again at any time, from several machines, and while runs are
being trained: what a checkpoint covers is sent, the rest another time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from PIL import Image

from transfergrid.data.images_at_hand import images_at_hand
from transfergrid.errors import DataError, GridError, one_line
from transfergrid.paths import StorePaths
from transfergrid.specs import safe_name
from transfergrid.store import checkpoints, durable, records
from transfergrid.store.attempts import read_spec
from transfergrid.store.metrics_log import read_metrics
from transfergrid.tracking import Followed
from transfergrid.tracking.account import Account, Unreachable, why_silent
from transfergrid.tracking.client import wandb_processes, wandb_session
from transfergrid.tracking.description import FILES, grid_tag
from transfergrid.tracking.mirror import RunMirror
from transfergrid.tracking.remote import md5_of
from transfergrid.tracking.server import Server, differences, read_run

AT_ONCE = 8  # runs; a server on the other side of the world answers ten questions a run
BUSY_S, POLL_S = 30.0, 0.5
STALLED_S = 60.0  # without a single run that went well: then the server is given up
HUNG_S = 600.0  # without the end of a single run, however it ended: then W&B's own process hangs
CORE_DEATHS = 3  # of W&B's own process, before it is given up

Tick = Callable[[int, int], None]  # (runs done, runs in all)


@dataclass(frozen=True, slots=True)
class Problem:
    """Of a run, by its id; or of another thing that a server has of a grid. As text, one line."""

    of: str
    what: str
    is_of_run: bool = True

    def __str__(self) -> str:
        return f"{self.of}: {self.what}"


@dataclass(slots=True)
class Synced:
    """runs: of the grid that have left anything. sent: those of which something was missing. elsewhere: in the hands of
    another process, which sees to them. unfinished: without a record yet."""

    runs: int = 0
    sent: int = 0
    elsewhere: int = 0
    unfinished: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def different(self) -> int:
        """Runs with a problem."""
        return len({problem.of for problem in self.problems if problem.is_of_run})


def sync_grid(
    grid: str, store: StorePaths, account: Account, *, images: bool = False, tick: Tick | None = None
) -> Synced:
    """Send what is missing, and verify all. tick(done, all) as it goes. images: also pictures and names of files.
    Raises FileNotFoundError and DataError as records.read_grid does, Unreachable where the server cannot be used."""
    followed = runs_of(grid, store)
    if reason := why_silent(account.url):
        raise Unreachable(f"{account.url} does not answer: {reason}")
    with wandb_session(store, account.url) as folder:
        server = Server(store, account, folder, images=images)
        _ = server.remote  # a key that is refused is refused here, once
        Image.init()  # here: its list of formats is not to be filled by several threads at once
        sync = _Sync(grid, store, server, followed, tick)
        with sync.watched():
            sync.carry_out()
            sync.send_grid_file()
            sync.take_back_tags()
        return sync.synced


def runs_of(grid: str, store: StorePaths) -> list[Followed]:
    """The grid's configurations and the extractions they need, as far as they have begun; in the grid's order."""
    variants = {entry.run_id: entry.variant for entry in records.read_grid(store.grid(grid))}
    needed: dict[str, str] = {}
    for run_id in variants:
        spec = read_spec(store.run(run_id))
        if spec is not None:  # else it has not begun, or is damaged: then its record says so
            needed |= dict.fromkeys((each.run_id for each in spec.extractions), "")
    return [Followed(run_id, v, 0) for run_id, v in (needed | variants).items() if store.run(run_id).spec.exists()]


class _Sync:
    def __init__(
        self, grid: str, store: StorePaths, server: Server, followed: Sequence[Followed], tick: Tick | None
    ) -> None:
        self.grid, self.store, self.server, self.followed = grid, store, server, followed
        self.synced = Synced(runs=len(followed))
        self._images = images_at_hand(store)
        self._tick = tick or (lambda done, total: None)
        self._stop: Unreachable | None = None
        self._guard = threading.Lock()
        self._done = 0
        self._last_good = self._last_end = time.monotonic()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """W&B's client waits for ever for a process of its own that is alive and silent: then this one is killed."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(POLL_S):
                if time.monotonic() - self._last_end > HUNG_S:
                    self._last_end = time.monotonic()
                    for pid in wandb_processes():
                        with contextlib.suppress(OSError):
                            os.kill(pid, signal.SIGKILL)

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def carry_out(self) -> None:
        waiting = list(self.followed)
        for _ in range(CORE_DEATHS):
            with ThreadPoolExecutor(AT_ONCE) as pool:
                again = [f for f in pool.map(self._one, waiting) if f is not None]
            if self._stop is not None:
                raise self._stop
            if not again:
                return
            self.server.restart()
            waiting = again
        self.synced.problems += [Problem(f.run_id, f"W&B's own process died {CORE_DEATHS} times") for f in waiting]

    def _one(self, followed: Followed) -> Followed | None:
        """What is to be tried again, because W&B's own process died."""
        if self._stop is not None:
            return None
        mirror = RunMirror(self.store, followed, grid=self.grid, server=self.server, images=self._images)
        try:
            problems = self._send_and_verify(mirror)
        except ConnectionError:
            mirror.abandon()
            return followed
        except Exception as error:
            problems = [one_line(error)]
        if problems and not wandb_processes():  # the same by another name
            mirror.abandon()
            return followed
        if problems and (reason := why_silent(self.server.account.url)):
            self._stop = Unreachable(f"{self.server.account.url} does not answer any more: {reason}")
        elif not problems:
            self._last_good = time.monotonic()
        elif time.monotonic() - self._last_good > STALLED_S:
            self._stop = Unreachable(
                f"nothing went well for {STALLED_S:.0f} s; at last {followed.run_id}: {problems[0]}"
            )
        with self._guard:
            self._last_end = time.monotonic()
            self._done += 1
            self.synced.sent += mirror.has_sent and not problems
            self.synced.elsewhere += mirror.is_elsewhere
            self.synced.problems += [Problem(followed.run_id, problem) for problem in problems]
            self._tick(self._done, len(self.followed))
        return None

    def _send_and_verify(self, mirror: RunMirror) -> list[str]:
        deadline = time.monotonic() + BUSY_S
        while not mirror.step(over=True):
            if durable.is_locked(mirror.paths.lock):
                mirror.abandon()  # it is being trained: what is covered has been sent
                break
            if time.monotonic() > deadline:
                mirror.abandon()
                return ["another W&B process is still at work on it; sync again"]
            time.sleep(POLL_S)
        if mirror.error or mirror.is_elsewhere:
            if mirror.is_deleted:
                self._last_good = time.monotonic()  # the server answers
                return ["it was deleted in W&B, which takes no id twice; sync into another project: project=NAME"]
            return [mirror.error] if mirror.error else []
        return self._verify(mirror)

    def _verify(self, mirror: RunMirror) -> list[str]:
        run_id = mirror.followed.run_id
        record = mirror.final_record(over=True)  # of an attempt that another has followed, nothing is told
        covered = checkpoints.lines_covered(mirror.paths) if record is None or record.status != "completed" else None
        lines = read_metrics(mirror.paths.metrics)[:covered]
        if record is None:
            self.synced.unfinished += 1
            if not lines:
                return []
        ending = None if record is None else self.server.ending(record)
        there = read_run(self.server.remote, run_id, files=FILES)
        self._last_good = time.monotonic()
        if there is not None and grid_tag(self.grid) not in there.run.tags:  # another grid sent it
            self.server.remote.update(there.run, tags=[*there.run.tags, grid_tag(self.grid)])
            there = read_run(self.server.remote, run_id, files=FILES)
        return differences(there, lines, ending=ending, tag=grid_tag(self.grid))

    def send_grid_file(self) -> None:
        """Which configurations the grid has, in its order: without it, nobody could say which rows a server lacks."""
        for _ in range(CORE_DEATHS):
            try:
                return self._send_grid_file()
            except Exception as error:
                problem = Problem("grid.json", one_line(error), is_of_run=False)
            if wandb_processes():
                break
            self.server.restart()
        self.synced.problems.append(problem)

    def _send_grid_file(self) -> None:
        path = self.store.wandb / "grids" / safe_name(self.grid) / "grid.json"
        own = self.store.grid(self.grid)
        select_by = records.selected_by(own)
        records.write_grid(path, grid=self.grid, entries=records.read_grid(own), select_by=select_by)
        run_id = f"grid-{safe_name(self.grid)}"
        there = read_run(self.server.remote, run_id, files=[path.name])
        if there is not None and there.files.get(path.name) == md5_of(path):
            return
        described = {"id": run_id, "name": run_id, "group": self.grid[:128], "tags": [f"gridfile:{self.grid}"[:64]]}
        run = self.server.open(job_type="grid", config={"grid": self.grid}, **described)
        run.save(str(path), base_path=str(path.parent), policy="now")
        run.finish()
        there = read_run(self.server.remote, run_id, files=[path.name])
        if there is None or there.files.get(path.name) != md5_of(path):
            raise DataError("the server does not have it as it was sent")

    def take_back_tags(self) -> None:
        """Runs of this store that the grid had when it was launched before, and has no more, are not shown as its."""
        tag, known = grid_tag(self.grid), {followed.run_id for followed in self.followed}
        try:
            for run in self.server.remote.tagged(tag).values():
                if run.id not in known and safe_name(run.id) == run.id and self.store.run(run.id).spec.exists():
                    self.server.remote.update(run, tags=[each for each in run.tags if each != tag])
        except GridError as error:
            self.synced.problems.append(Problem("tags", one_line(error), is_of_run=False))
