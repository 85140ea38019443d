"""The process that feeds W&B: follows metrics.jsonl of many runs and writes each as a W&B offline run.

    python -m transfergrid.tracking.mirror --store results --grid quickstart --project transfergrid [--run-id ID ...]

By hand like this it catches up: it sends what is there and ends (without --run-id: all runs of the grid's last launch),
staying only for runs that are being trained. A launcher starts it with --stdin (see start_mirror): one JSON line says
which runs to follow, and the end of stdin, which is also the launcher's death, says that no more will start. It ignores
SIGTERM and SIGINT then; SIGKILL at any time is harmless.

A line is sent once, in order, with its number, and only when a checkpoint or the record covers it: a server cannot take
a line back, and a relaunch truncates metrics.jsonl to its checkpoint. How many lines earlier mirrors sent is read from
the `.wandb` files themselves, never from a state file: the file is flushed once a second, so any other count would be
wrong whenever a mirror is killed between the two writes. Where the mirrored lines are not the file's (a run was made
again from an older state), the fragments are deleted and the run is mirrored anew.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transfergrid import attempts, durable, records
from transfergrid.errors import MachineError
from transfergrid.paths import StorePaths
from transfergrid.specs import RunSpec, from_dict
from transfergrid.tracking import Followed, offline
from transfergrid.tracking.description import describe, summarise

logger = logging.getLogger(__name__)

POLL_S = 0.5
MAX_RESTARTS = 3
NOT_FINISHED = 75  # W&B's exit code of a run that was interrupted or lost: the next attempt continues it
# Lean, because the mirror shares its cores with training: no console capture, no system statistics, no code, no git.
# Without the flush interval W&B would hold rows back for 15 s, and lose them with the process.
SETTINGS: dict[str, Any] = {
    "console": "off",
    "silent": True,
    "disable_git": True,
    "disable_code": True,
    "x_disable_stats": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    "x_transaction_log_flush_interval": 1.0,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="transfergrid.tracking.mirror", description="metrics.jsonl -> W&B, offline")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--grid", required=True)
    parser.add_argument("--project", required=True)
    parser.add_argument("--run-id", action="append", default=[])
    parser.add_argument("--mode", choices=["offline"], default="offline")
    parser.add_argument("--stdin", action="store_true", help="follow the runs that a launcher names on stdin")
    given = parser.parse_args(arguments)
    store = StorePaths(given.store.resolve())  # as /proc spells the files that a process has open
    os.nice(10)
    if given.stdin:
        # SLURM signals every process of a job at once; the mirror has the last lines of training still to send. It
        # ends with its launcher, whatever ends that.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    log_to(store.wandb / "logs" / f"mirror-{socket.gethostname()}-{os.getpid()}.log")
    try:
        set_environment(store)
        if given.stdin:
            followed = [Followed(**f) for f in json.loads(sys.stdin.buffer.readline() or b"[]")]
        else:
            followed = runs_of_grid(store, given.grid, given.run_id)
        runs = [RunMirror(store, f, grid=given.grid, project=given.project) for f in followed]
        follow(runs, launched=given.stdin)
    except Exception:
        logger.exception("the mirror ends")
        return 1
    return int(any(run.broken for run in runs))


def follow(runs: list[RunMirror], *, launched: bool) -> None:
    """Look at the runs twice a second until none has anything more to come. `launched`: the end of stdin matters."""
    over = not launched
    restarts = 0
    while True:
        try:
            runs = [run for run in runs if not run.step(over=over)]
        except ConnectionError:
            # W&B's own process has died: of a signal to the whole job, or of its own faults.
            restarts += 1
            if restarts > MAX_RESTARTS:
                raise
            _restart_wandb(runs)
        if not runs:
            return
        if over:
            time.sleep(POLL_S)
        else:
            readable, _, _ = select.select([sys.stdin], [], [], POLL_S)
            over = bool(readable) and os.read(sys.stdin.fileno(), 4096) == b""


def _restart_wandb(runs: list[RunMirror]) -> None:
    """The next line to send starts W&B's process again; what had not reached the disk is sent again."""
    import wandb

    for run in runs:
        run.abandon()
    with contextlib.suppress(Exception):
        wandb.teardown()


def set_environment(store: StorePaths) -> None:
    """W&B keeps to the store and to itself: nothing from the user's settings, no key, no network, nothing in $HOME."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]
    for folder in (store.wandb, *(store.wandb / name for name in ("data", "cache", "config", "locks"))):
        durable.make_folder(folder)
    os.environ |= {
        # In the environment, not only as an argument: else W&B's exit still looks up its server's address.
        "WANDB_MODE": "offline",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_DIR": str(store.wandb),
        "WANDB_DATA_DIR": str(store.wandb / "data"),
        "WANDB_CACHE_DIR": str(store.wandb / "cache"),
        "WANDB_CONFIG_DIR": str(store.wandb / "config"),
    }


def log_to(path: Path) -> None:
    """Warnings go to stderr and to a file that is made with the first of them."""
    durable.make_folder(path.parent)
    handlers: list[logging.Handler] = [logging.StreamHandler(), logging.FileHandler(path, delay=True)]
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", handlers=handlers)


def runs_of_grid(store: StorePaths, grid: str, run_ids: Sequence[str]) -> list[Followed]:
    """The runs named, or all of the grid's last launch; variants as that launch named them."""
    try:
        variants = {entry.run_id: entry.variant for entry in records.read_grid(store.grid(grid))}
    except FileNotFoundError:
        variants = {}
    return [Followed(run_id, variants.get(run_id, ""), 0) for run_id in run_ids or variants]


# --------------------------------------------------------------------------------------------------------- one run
class RunMirror:
    """One run on its way into W&B: how far it is, its open W&B run, and the lock that keeps other mirrors off it."""

    def __init__(self, store: StorePaths, followed: Followed, *, grid: str, project: str) -> None:
        self.store = store
        self.followed = followed
        self.paths = store.run(followed.run_id)
        self.grid = grid
        self.project = project
        self.broken = False
        self._seen: tuple[int, ...] | None = None
        self._lock = contextlib.ExitStack()
        self._wandb_run: Any = None
        self._sent: list[tuple[int, str]] | None = None  # (line, time) of what W&B has; None until it was read back
        self._told: tuple[int, str] | None = None  # (attempt, status) of the record that W&B has

    def step(self, *, over: bool) -> bool:
        """Send what can be sent; whether nothing more will come. `over`: no run of this launch will start any more."""
        try:
            return self._step(over=over)
        except ConnectionError:
            raise
        except Exception:  # one run that cannot be mirrored must not cost W&B the others
            logger.exception("%s is not mirrored any further", self.followed.run_id)
            self.broken = True
            self.abandon()
            return True

    def abandon(self) -> None:
        """Forget how far the run is; its fragment ends as not finished where that can still be written."""
        self._seen = None
        with contextlib.suppress(Exception):
            self._close(NOT_FINISHED)

    def _step(self, *, over: bool) -> bool:
        # The order matters: what a run writes before it lets go of its lock is seen by what is read after.
        over = over and not durable.is_locked(self.paths.lock)
        seen = tuple(_changed_ns(p) for p in (self.paths.record, self.paths.checkpoints, self.paths.attempts))
        if seen == self._seen and not over:
            return False
        record = self._final_record(over=over)
        covered = records.lines_covered(self.paths)
        if covered == 0 and record is None and self._sent is None:
            self._seen = seen
            return over
        lines = records.read_metrics(self.paths.metrics)
        if self._sent is None:
            if not self._claim():
                return over  # another mirror is at this run, and sees to its end
            if self._being_written():
                self._lock.close()
                return False
            self._sent = self._read_back(lines)
        if self._sent != _identities(lines[: len(self._sent)]):  # begun again from an older checkpoint
            self.abandon()
            return False
        self._seen = seen
        new = lines[len(self._sent) : covered]
        told = record is None or self._told == (record.attempt, record.status)
        if new or not told:
            self._send(new)
        if record is not None and not told:
            self._wandb_run.summary.update(summarise(record))
        if record is not None or over:
            self._close(NOT_FINISHED if record is None else int(record.status != "completed"))
            return True
        return False

    def _final_record(self, *, over: bool) -> records.RunRecord | None:
        """The record that ends the run; a failed one only if no later attempt has begun or may still begin."""
        record = records.read_record(self.paths)
        if record is None or record.status == "completed":
            return record
        newest = record.attempt == attempts.newest_attempt(self.paths)
        return record if newest and (over or record.attempt > self.followed.after_attempt) else None

    def _claim(self) -> bool:
        lock = self.store.wandb / "locks" / f"{self.followed.run_id}.lock"
        return self._lock.enter_context(durable.lock(lock, wait=False))

    def _read_back(self, lines: list[dict[str, Any]]) -> list[tuple[int, str]]:
        """What earlier mirrors sent of this run; nothing, and their fragments removed, where `lines` are others."""
        files = offline.fragment_files(self.store, self.followed.run_id)
        fragments = [offline.read_run(file) for file in files]
        sent = _identities(offline.merged_rows(fragments))
        if sent != _identities(lines[: len(sent)]):
            logger.warning("%s was made again from an older state: mirrored anew", self.followed.run_id)
            for file in files:
                shutil.rmtree(file.parent)
            return []
        if fragments and fragments[-1].exit_code is not None and "attempt" in fragments[-1].summary:
            self._told = (fragments[-1].summary["attempt"], fragments[-1].summary["status"])
        return sent

    def _being_written(self) -> bool:
        """Whether W&B's own process has a fragment of this run open: it outlives a killed mirror by a moment."""
        names = [str(file) for file in offline.fragment_files(self.store, self.followed.run_id)]
        return bool(names) and any(name in names for name in _files_open_in("wandb-core"))

    def _send(self, lines: list[dict[str, Any]]) -> None:
        assert self._sent is not None
        if self._wandb_run is None:
            self._wandb_run = self._open()
        for line in lines:
            self._wandb_run.log(line)
        self._sent += _identities(lines)

    def _open(self) -> Any:
        import wandb  # here: a mirror without anything to send should cost nothing

        spec = from_dict(RunSpec, durable.read_json(self.paths.spec))
        run = wandb.init(
            project=self.project,
            dir=str(self.store.wandb),
            mode="offline",
            resume="allow",  # with it `wandb sync` continues the steps of the fragment before
            reinit="create_new",
            settings=wandb.Settings(**SETTINGS),
            **describe(spec, grid=self.grid, variant=self.followed.variant),
        )
        # Where its folder cannot be written W&B falls back to a temporary one of this machine.
        if not Path(run.dir).is_relative_to(self.store.wandb):
            run.finish(exit_code=NOT_FINISHED)
            raise MachineError(f"{self.store.wandb} is not writable (W&B took {run.dir}); mend its permissions")
        run.define_metric("epoch")
        run.define_metric("step")
        for name, axis in (("train/*", "step"), ("val/*", "epoch"), ("test/*", "epoch")):
            run.define_metric(name, step_metric=axis)
        return run

    def _close(self, exit_code: int) -> None:
        run, self._wandb_run, self._sent, self._told = self._wandb_run, None, None, None
        with self._lock:
            if run is not None:
                run.finish(exit_code=exit_code)


def _identities(lines: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """A line written again, even with the same values, has another time."""
    return [(line["line"], line["time"]) for line in lines]


def _changed_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _files_open_in(program: str) -> list[str]:
    """Files that processes of this name and this user have open."""
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and (process / "comm").read_text().strip() == program:
                found += [os.readlink(file) for file in (process / "fd").iterdir()]
    return found


if __name__ == "__main__":
    sys.exit(main())
