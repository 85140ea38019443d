"""The process that feeds W&B: follows metrics.jsonl of many runs and sends each on, to offline files or to a server.

    python -m transfergrid.tracking.mirror --store results --grid quickstart --project transfergrid [--run-id ID ...]

By hand like this it catches up: it sends what is there and ends (without --run-id: all runs of the grid's last launch),
staying only for runs that are being trained. A launcher starts it with --followed (see start_mirror): an open file says
which runs to follow, and the end of stdin, which is also the launcher's death, says that no more will start. It ignores
SIGTERM and SIGINT then; SIGKILL at any time is harmless.

A line is sent once, in order, with its number, and only when a checkpoint or the record covers it: a server cannot take
a line back, and a relaunch truncates metrics.jsonl to its checkpoint. How many lines earlier mirrors sent is asked of
where they went (see destinations), never of a state file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from transfergrid.config.spelling import command_of_grid
from transfergrid.data.images_at_hand import images_at_hand
from transfergrid.paths import StorePaths
from transfergrid.store import durable, records
from transfergrid.tracking import Followed
from transfergrid.tracking.account import Unreachable, end_wandb, find_account, use_environment
from transfergrid.tracking.destinations import Destination, OfflineFiles, Server
from transfergrid.tracking.run_mirror import RunMirror

logger = logging.getLogger(__name__)

POLL_S = 0.5
MAX_RESTARTS = 3
END_S = 30.0  # for a server to take the last lines when no more runs start; `sync.py` sends what is left then


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="transfergrid.tracking.mirror", description="metrics.jsonl -> W&B")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--grid", required=True)
    parser.add_argument("--project", required=True)
    parser.add_argument("--run-id", action="append", default=[])
    parser.add_argument("--entity")
    parser.add_argument("--mode", choices=["offline", "online"], default="offline")
    parser.add_argument("--followed", type=int, help="number of the open file in which a launcher names the runs")
    given = parser.parse_args(arguments)
    store = StorePaths(given.store.resolve())  # as /proc spells the files that a process has open
    os.nice(10)
    is_launched = given.followed is not None
    if is_launched:
        # SLURM signals every process of a job at once; the mirror has the last lines of training still to send. It
        # ends with its launcher, whatever ends that.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    log_to(store.wandb / "logs" / f"mirror-{socket.gethostname()}-{os.getpid()}.log")
    try:
        tempfile.tempdir = str(store.wandb / "tmp")  # W&B's, too: nothing of it in the node's temporary folder
        destination = open_destination(store, given.mode, project=given.project, entity=given.entity)
        if is_launched:
            with open(given.followed, "rb") as listed:
                followed = [Followed(**f) for f in json.load(listed)]
        else:
            followed = runs_of_grid(store, given.grid, given.run_id)
        images = images_at_hand(store)
        runs = [RunMirror(store, f, grid=given.grid, destination=destination, images=images) for f in followed]
        over = threading.Event()
        if is_launched:
            patience_s = END_S if given.mode == "online" else None
            by_hand = command_of_grid("sync.py", given.grid, store)
            threading.Thread(target=_hear_end, args=(over, patience_s, by_hand), daemon=True).start()
        else:
            over.set()
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
    finally:
        if given.mode == "online":
            end_wandb()


def open_destination(store: StorePaths, mode: str, *, project: str, entity: str | None) -> Destination:
    """Sets W&B's environment for this process. Raises Unreachable where there is no key."""
    if mode == "offline":
        use_environment(store, url=None)
        return OfflineFiles(store, project)
    found = find_account(project, entity)
    use_environment(store, url=found.url)
    return Server(store, found)


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
            _restart_wandb(runs)
        if not runs:
            return
        if over.is_set():
            time.sleep(POLL_S)
        else:
            over.wait(POLL_S)


def _hear_end(over: threading.Event, patience_s: float | None, by_hand: str) -> None:
    """In a thread: the launcher's end, also while a server is waited for. Then this process ends within patience_s."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    over.set()
    if patience_s is not None:
        time.sleep(patience_s)
        logger.warning("W&B did not take all within %.0f s; `%s` sends the rest", patience_s, by_hand)
        end_wandb()
        os._exit(1)


def _restart_wandb(runs: list[RunMirror]) -> None:
    """The next line to send starts W&B's process again; what had not reached the disk is sent again."""
    import wandb

    for run in runs:
        run.abandon()
    with contextlib.suppress(Exception):
        wandb.teardown()


def log_to(path: Path) -> None:
    """Warnings go to stderr and to a file that is made with the first of them."""
    durable.make_folder(path.parent)
    handlers: list[logging.Handler] = [logging.StreamHandler(), durable.LogFile(path, delay=True)]
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", handlers=handlers)


def runs_of_grid(store: StorePaths, grid: str, run_ids: Sequence[str]) -> list[Followed]:
    """The runs named, or all of the grid's last launch; variants as that launch named them."""
    try:
        variants = {entry.run_id: entry.variant for entry in records.read_grid(store.grid(grid))}
    except FileNotFoundError:
        variants = {}
    return [Followed(run_id, variants.get(run_id, ""), 0) for run_id in run_ids or variants]


if __name__ == "__main__":
    sys.exit(main())
