"""The process that feeds W&B: follows metrics.jsonl of many runs and sends each line on to the server.

A launcher starts it (see start_mirror): an open file says which runs to follow, and the end of stdin, which is also the
launcher's death, says that no more will start. It ignores SIGTERM and SIGINT; SIGKILL at any time is harmless, because
`sync.py` sends what is missing.

A line is sent once, in order, with its number, and only when a checkpoint or the record covers it: a server cannot take
a line back, and a relaunch truncates metrics.jsonl to its checkpoint. How many lines earlier mirrors sent is asked of
the server, never of a state file.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transfergrid.config.spelling import command_of_grid
from transfergrid.data.images_at_hand import Images, images_at_hand
from transfergrid.errors import one_line
from transfergrid.paths import StorePaths
from transfergrid.specs import RunSpec, from_dict
from transfergrid.store import attempts, checkpoints, durable, records
from transfergrid.store.metrics_log import MetricsTail, read_metrics
from transfergrid.store.records import RunRecord
from transfergrid.tracking import Assignment, Followed
from transfergrid.tracking.account import Unreachable, find_account
from transfergrid.tracking.client import NOT_FINISHED, DeletedRun, end_wandb, wandb_session
from transfergrid.tracking.description import AXES, IMAGES_SENT, Ending, as_row, describe, references
from transfergrid.tracking.server import Server

logger = logging.getLogger(__name__)

POLL_S = 0.5
MAX_RESTARTS = 3
END_S = 30.0  # for a server to take the last lines when no more runs start; `sync.py` sends what is left then
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 300.0  # before a server that failed is tried again


def main(arguments: Sequence[str]) -> int:
    """arguments: the store, and the number of the open file that holds an Assignment."""
    store = StorePaths(Path(arguments[0]).resolve())  # as /proc spells the files that a process has open
    with open(int(arguments[1]), "rb") as file:
        assignment: Assignment = from_dict(Assignment, json.load(file))
    os.nice(10)
    # SLURM signals every process of a job at once; the mirror has the last lines of training still to send. It ends
    # with its launcher, whatever ends that.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    log = store.wandb / "logs" / f"mirror-{socket.gethostname()}-{os.getpid()}.log"
    durable.make_folder(log.parent)
    # To stderr, and to a file that is made with the first warning.
    handlers: list[logging.Handler] = [logging.StreamHandler(), durable.LogFile(log, delay=True)]
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", handlers=handlers)
    try:
        account = find_account(assignment.project, assignment.entity)
        with wandb_session(store, account.url) as folder:
            tempfile.tempdir = str(folder)  # W&B's, too: nothing of it in the node's temporary folder
            server = Server(store, account, folder, images=assignment.images)
            images = images_at_hand(store)
            grid, over = assignment.grid, threading.Event()
            runs = [RunMirror(store, f, grid=grid, server=server, images=images) for f in assignment.followed]
            by_hand = command_of_grid("sync.py", grid, store)
            threading.Thread(target=_hear_end, args=(over, by_hand, folder), daemon=True).start()
            follow(runs, over)
        for run in runs:
            if run.error:
                logger.warning("%s: %s", run.followed.run_id, run.error)
        return int(any(run.error for run in runs))
    except Unreachable as error:
        logger.warning("nothing is sent to W&B: %s", error)
        return 1
    except Exception:
        logger.exception("the mirror ends")
        return 1


def follow(runs: list[RunMirror], over: threading.Event) -> None:
    """Look at the runs twice a second until none has anything more to come. `over`: no run will start any more."""
    restarts = 0
    while True:
        try:
            runs = [run for run in runs if not run.step(over=over.is_set())]
        except ConnectionError:
            # W&B's own process has died: of a signal to the whole job, or of its own faults.
            restarts += 1
            if restarts > MAX_RESTARTS:
                raise
            for run in runs:
                run.abandon()  # what had not reached the server is sent again
            runs[0].server.restart()
        if not runs:
            return
        if over.is_set():
            time.sleep(POLL_S)
        else:
            over.wait(POLL_S)


def _hear_end(over: threading.Event, by_hand: str, folder: Path) -> None:
    """In a thread: the launcher's end, also while a server is waited for. Then this process ends within END_S."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    over.set()
    time.sleep(END_S)
    logger.warning("W&B did not take all within %.0f s; `%s` sends the rest", END_S, by_hand)
    end_wandb()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


# -------------------------------------------------------------------------------------------------------------- one run
class RunMirror:
    """How far a run is, its open W&B run, and the lock that keeps other mirrors off it."""

    def __init__(self, store: StorePaths, followed: Followed, *, grid: str, server: Server, images: Images) -> None:
        self.followed = followed
        self.paths = store.run(followed.run_id)
        self.grid = grid
        self.server = server
        self.error = ""  # why W&B lacks something of this run
        self.is_deleted = False  # in W&B, by somebody: the reason of the error
        self.has_sent = False
        self.is_elsewhere = False  # in another process's hands
        self._images = images
        self._changed_ns: tuple[int, ...] | None = None  # when its files were, at the last look
        self._lock = contextlib.ExitStack()
        self._wandb_run: Any = None
        self._tail: MetricsTail | None = None  # behind what W&B has; None until it was asked
        self._sent_mark: tuple[int, str] | None = None  # of the record that W&B has, see _mark
        self._tags: tuple[str, ...] = ()
        self._pause_s = FIRST_PAUSE_S
        self._not_before = 0.0

    def step(self, *, over: bool) -> bool:
        """Send what can be sent; whether nothing more will come. `over`: no run of this launch will start any more.
        What fails is tried again after a pause, until it is over. Raises ConnectionError where W&B's process died."""
        if time.monotonic() < self._not_before and not over:
            return False
        try:
            done = self._step(over=over)
            self._pause_s = FIRST_PAUSE_S
            return done
        except ConnectionError:
            raise
        except Exception as error:  # one run that cannot be mirrored must not cost W&B the others
            self.abandon()
            if over:
                self.error, self.is_deleted = one_line(error), isinstance(error, DeletedRun)  # for the caller to tell
                return True
            logger.warning("%s: %s", self.followed.run_id, one_line(error), exc_info=logger.isEnabledFor(logging.DEBUG))
            self._not_before = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            return False

    def abandon(self) -> None:
        """Forget how far the run is; W&B is told that it is not finished, where it still can be."""
        self._changed_ns = None
        with contextlib.suppress(Exception):
            self._close(NOT_FINISHED)

    def _step(self, *, over: bool) -> bool:
        # The order matters: what a run writes before it lets go of its lock is seen by what is read after.
        over = over and not durable.is_locked(self.paths.lock)
        changed_ns = tuple(_changed_ns(p) for p in (self.paths.record, self.paths.checkpoints, self.paths.attempts))
        if changed_ns == self._changed_ns and not over:
            return False
        record = self.final_record(over=over)
        covered = checkpoints.lines_covered(self.paths)
        if covered == 0 and record is None and self._tail is None:
            self._changed_ns = changed_ns
            return over
        if self._tail is None:
            if not self._lock.enter_context(durable.lock(self.server.lock(self.followed.run_id), wait=False)):
                self.is_elsewhere = True
                return over  # another mirror is at this run, and sees to its end
            if self.server.is_busy(self.followed.run_id):
                self._lock.close()
                return False
            part = self.server.sent_part(self.followed.run_id, read_metrics(self.paths.metrics)[:covered], record)
            self._tags = part.tags
            self._sent_mark = _mark(record) if record is not None and part.has_record else None
            self._tail = MetricsTail(self.paths.metrics, after=part.lines)
        if not self._tail.is_intact:  # begun again from an older checkpoint
            self.abandon()
            return False
        self._changed_ns = changed_ns
        new = self._tail.read(covered)
        is_sent = record is None or self._sent_mark == _mark(record)
        if new or not is_sent:
            self._send(new, record)
        if record is not None and not is_sent:
            self._finish(record)
        if record is not None or over:
            self._close(NOT_FINISHED if record is None else int(record.status != "completed"))
            return True
        return False

    def final_record(self, *, over: bool) -> RunRecord | None:
        """The record that ends the run; a failed one only if no later attempt has begun or may still begin."""
        record = records.read_record(self.paths)
        if record is None or record.status == "completed":
            return record
        newest = record.attempt == attempts.newest_attempt(self.paths)
        return record if newest and (over or record.attempt > self.followed.after_attempt) else None

    def _send(self, lines: list[dict[str, Any]], record: RunRecord | None) -> None:
        self.has_sent = True
        if self._wandb_run is None:
            self._wandb_run = self._open(record)
        for line in lines:
            self._wandb_run.log(as_row(line))

    def _finish(self, record: RunRecord) -> None:
        """What belongs to the record; its attempt and status go last, so that they say that all was told."""
        ending = self.server.ending(record)
        try:
            self._show(ending)
        except ConnectionError:
            raise
        except Exception as error:  # pictures must not cost W&B the numbers
            logger.warning("%s: not all can be shown: %s", self.followed.run_id, one_line(error))
        for path in ending.files:
            self._wandb_run.save(str(path), base_path=str(path.parent), policy="now")
        self._wandb_run.summary.update(ending.summary)

    def _show(self, ending: Ending) -> None:
        summary = self._wandb_run.summary
        has_images = not ending.images or summary.get(IMAGES_SENT)
        if summary.get("shown_attempt") == ending.record.attempt and has_images:
            return
        if row := ending.row(self._images):
            self._wandb_run.log(row | {"shown_attempt": ending.record.attempt})
        for artifact in references(ending.record, self.paths):
            self._wandb_run.log_artifact(artifact)

    def _open(self, record: RunRecord | None) -> Any:
        spec = from_dict(RunSpec, durable.read_json(self.paths.spec))
        described = describe(spec, grid=self.grid, variant=self.followed.variant, record=record)
        described["tags"] = list(dict.fromkeys([*self._tags, *described["tags"]]))
        run = self.server.open(**described)
        for axis in sorted(set(AXES.values())):
            run.define_metric(axis)
        for name, axis in AXES.items():
            run.define_metric(name, step_metric=axis)
        return run

    def _close(self, exit_code: int) -> None:
        run, self._wandb_run, self._tail, self._sent_mark = self._wandb_run, None, None, None
        with self._lock:
            if run is not None:
                run.finish(exit_code=exit_code)


def _mark(record: RunRecord) -> tuple[int, str]:
    """What a summary gets last: with it all that belongs to the record has been sent."""
    return record.attempt, record.status


def _changed_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
