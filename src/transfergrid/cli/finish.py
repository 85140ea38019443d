"""SLURM's finish job: when all has ended, whatever its outcome, the report is made and somebody is told, once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from transfergrid.cli.console import make_console, say
from transfergrid.cli.report import show_report
from transfergrid.cli.sync import sync_and_report
from transfergrid.cli.usage import show_usage
from transfergrid.cluster.batch_script import ends_in_one_line
from transfergrid.cluster.evidence import FINISHED
from transfergrid.cluster.ledger import Ledger, read_ledger
from transfergrid.cluster.needs import needs_of
from transfergrid.cluster.run_state import RunState
from transfergrid.cluster.settle import settle, settle_bills
from transfergrid.cluster.states import Snapshot, take_snapshot
from transfergrid.names import spelled_out
from transfergrid.paths import StorePaths, store_paths
from transfergrid.planning import job
from transfergrid.store import durable
from transfergrid.store.records import read_grid

if TYPE_CHECKING:
    from rich.console import Console

SETTLE_S = 180.0  # for SLURM to say how the last jobs ended
POLL_S = 5.0
BILLS_S = 30.0  # for its accounting to say how long they were
NOTIFY_TIMEOUT_S = 120.0


def finish(folder: str) -> dict[str, int]:
    """`folder`: of this job, with finish.json. Returns how many runs are in which state."""
    with ends_in_one_line():
        return _finish(folder)


def _finish(folder: str) -> dict[str, int]:
    asked = durable.read_json(Path(folder) / "finish.json")
    payload = job.read_payload(Path(asked["payload"]))
    grid, store = str(asked["grid"]), store_paths(payload.runtime)
    console = make_console()
    states = _wait_until_all_is_told(grid, store)
    try:
        for run_id in settle(states, store, read_ledger(store)):
            if (failure := states[run_id].failure) is not None:
                say(console, failure.line)
        _wait_for_bills(list(states), store)
        show_report(console, [grid], store, figures=payload.runtime.report_figures is not False)
        show_usage(console, list(states), store)
    finally:  # whatever became of the report, somebody waits to be told
        if asked["notify"]:
            _notify(console, asked["notify"], Path(folder), grid, store, states)
    sync_and_report(console, payload.runtime, grid)
    durable.write_bytes(Path(folder) / FINISHED, b"")
    return {str(state): n for state, n in Counter(s.state for s in states.values()).items()}


def runs_of(grid: str, store: StorePaths, ledger: Ledger) -> list[str]:
    """The grid's configurations, and what was sent to SLURM for them."""
    rows = [entry.run_id for entry in read_grid(store.grid(grid))]
    sent = [r for s in ledger.of_grid(grid, "runs") for task in s.tasks for r in task]
    needed = set(rows)
    needs = needs_of(ledger, sent)
    for run_id in rows:
        needed.update(needs.get(run_id, ()))
    return list(dict.fromkeys([r for r in sent if r in needed] + rows))


def _wait_until_all_is_told(grid: str, store: StorePaths) -> dict[str, RunState]:
    """States once nothing is undecided; what a later launch added and still waits is that launch's to finish."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        ledger = read_ledger(store)
        run_ids = runs_of(grid, store, ledger)
        snapshot: Snapshot = take_snapshot(run_ids, store, ledger, needs=needs_of(ledger, run_ids))
        unsettled = [s for s in snapshot.states.values() if s.state == "unknown" and s.may_change]
        if not unsettled or time.monotonic() > deadline:
            return dict(snapshot.states)
        time.sleep(POLL_S)


def _wait_for_bills(run_ids: list[str], store: StorePaths) -> None:
    """The accounting hears of a job's end some seconds later than the queue."""
    deadline = time.monotonic() + BILLS_S
    while not settle_bills(store, read_ledger(store), run_ids).is_final and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _notify(
    console: Console, command: str, folder: Path, grid: str, store: StorePaths, states: dict[str, RunState]
) -> None:
    """Once, also when this job is requeued: the claim stands before the command runs."""
    if not durable.claim(folder / "notified", b"claimed\n"):
        return
    failures = [s.failure for s in states.values() if s.failure is not None]
    done = sum(s.state == "done" for s in states.values())
    lines = [
        f"grid {grid}: {done} of {len(states)} runs done, {len(failures)} not",
        *(failure.line for failure in failures[:20]),
        f"report: {store.report(grid) / 'comparison.md'}",
    ]
    told = {
        "TRANSFERGRID_GRID": grid,
        "TRANSFERGRID_DONE": str(done),
        "TRANSFERGRID_FAILED": str(len(failures)),
        "TRANSFERGRID_REPORT": str(store.report(grid)),
    }
    try:
        subprocess.run(
            ["sh", "-c", command],
            input="\n".join(lines) + "\n",
            text=True,
            errors=spelled_out(),
            env=os.environ | told,
            timeout=NOTIFY_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        say(console, f"notify.command failed: {error}")


def main() -> int:
    """`python -m transfergrid.cli.finish FOLDER`: for job scripts that are written out."""
    finish(sys.argv[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
