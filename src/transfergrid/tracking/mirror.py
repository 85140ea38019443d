"""The process that feeds W&B: follows metrics.jsonl of many runs and sends each line on to the server.

A launcher starts it (see start_mirror): an open file says which runs to follow, and the end of stdin, which is also the
launcher's death, says that no more will start. It ignores SIGTERM and SIGINT; SIGKILL at any time is harmless, because
`sync.py` sends what is missing.

A line is sent once, in order, with its number, and only when a checkpoint or the record covers it: a server cannot take
a line back, and a relaunch truncates metrics.jsonl to its checkpoint. How many lines earlier mirrors sent is asked of
the server, never of a state file.
"""

from __future__ import annotations

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

from transfergrid.config.spelling import command_of_grid
from transfergrid.data.images_at_hand import images_at_hand
from transfergrid.paths import StorePaths
from transfergrid.specs import from_dict
from transfergrid.store import durable
from transfergrid.tracking import Assignment
from transfergrid.tracking.account import Unreachable, find_account
from transfergrid.tracking.client import end_wandb, wandb_session
from transfergrid.tracking.run_mirror import RunMirror
from transfergrid.tracking.server import Server

logger = logging.getLogger(__name__)

POLL_S = 0.5
MAX_RESTARTS = 3
END_S = 30.0  # for a server to take the last lines when no more runs start; `sync.py` sends what is left then


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
