"""SLURM's finish job: when all has ended, whatever its outcome, the report is made and somebody is told, once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from transfergrid.cli.console import make_console, say, say_first
from transfergrid.cli.report import publish_as_launched, sent_line, show_report
from transfergrid.cli.screen import show_usage
from transfergrid.cli.sync import summary, sync_as_launched
from transfergrid.cluster.batch_script import ends_in_one_line
from transfergrid.cluster.child import Answer, ask
from transfergrid.cluster.evidence import FINISHED
from transfergrid.cluster.ledger import Ledger, read_ledger
from transfergrid.cluster.run_state import RunState, needs_of
from transfergrid.cluster.settle import settle, settle_bills
from transfergrid.cluster.states import Snapshot, take_snapshot
from transfergrid.config.spelling import command_of_grid
from transfergrid.names import spelled_out
from transfergrid.paths import StorePaths, store_paths
from transfergrid.planning import job
from transfergrid.specs import Runtime
from transfergrid.store import durable
from transfergrid.store.records import read_grid
from transfergrid.tracking.account import Unreachable, find_account, why_silent

SETTLE_S = 180.0  # for SLURM to say how the last jobs ended
POLL_S = 5.0
BILLS_S = 30.0  # for its accounting to say how long they were
NOTIFY_TIMEOUT_S = 120.0
WANDB_S = 1800.0  # at most, for the runs and for the report, each


@ends_in_one_line()
def finish(folder: str) -> dict[str, int]:
    """`folder`: of this job, with finish.json. Returns how many runs are in which state."""
    order = durable.read_json(Path(folder) / "finish.json")
    payload = job.read_payload(Path(order["payload"]))
    grid, store = str(order["grid"]), store_paths(payload.runtime)
    console = make_console()
    states = _settled_states(grid, store)
    try:
        for run_id in settle(states, store, read_ledger(store)):
            if (failure := states[run_id].failure) is not None:
                say(console, failure.line)
        _wait_for_bills(list(states), store)
        show_report(console, [grid], store, figures=payload.runtime.report_figures is not False)
        show_usage(console, list(states), store)
    finally:  # whatever became of the report, somebody waits to be told
        if order["notify"]:
            _notify(console, order["notify"], Path(folder), grid, store, states)
    wandb = sync_and_report(console, payload.runtime, grid)
    durable.write_json(Path(folder) / FINISHED, {"wandb": wandb})
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


def snapshot_of(grid: str, store: StorePaths, ledger: Ledger) -> Snapshot:
    run_ids = runs_of(grid, store, ledger)
    return take_snapshot(run_ids, store, ledger, needs=needs_of(ledger, run_ids))


def _settled_states(grid: str, store: StorePaths) -> dict[str, RunState]:
    """States once nothing is undecided; what a later launch added and still waits is that launch's to finish."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        states = snapshot_of(grid, store, read_ledger(store)).states
        unsettled = [s for s in states.values() if s.state == "unknown" and s.may_change]
        if not unsettled or time.monotonic() > deadline:
            return dict(states)
        time.sleep(POLL_S)


def _wait_for_bills(run_ids: list[str], store: StorePaths) -> None:
    """The accounting hears of a job's end some seconds later than the queue."""
    deadline = time.monotonic() + BILLS_S
    while not settle_bills(store, read_ledger(store), run_ids).is_final and time.monotonic() < deadline:
        time.sleep(POLL_S)


def sync_and_report(console: Console, runtime: Runtime, grid: str) -> list[str]:
    """Bring W&B up to date with tracking=online: never an error, whatever W&B does. Returns what came of it, in lines.

    In processes of their own: one that hangs ends in time, and one that dies takes nothing with it.
    """
    if runtime.tracking != "online":
        return []
    by_hand = f"`{command_of_grid('sync.py', grid, store_paths(runtime))}` sends what the server lacks"
    lines: list[str] = []

    def tell(line: str) -> None:
        say(console, line)
        lines.append(line)

    try:
        url = find_account(runtime.wandb_project, runtime.wandb_entity).url
        if reason := why_silent(url):
            raise Unreachable(f"{url} does not answer ({reason})")
    except Unreachable as error:
        tell(f"W&B: {error}; {by_hand}")
        return lines
    synced = _in_time(console, sync_as_launched, runtime, grid)
    tell(synced.error or summary(synced.value))
    if synced.error is not None or synced.value.problems:
        tell(f"W&B: {by_hand}")
    sent = _in_time(console, publish_as_launched, runtime, grid)  # whatever sync found
    tell(sent.error or sent_line(sent.value))
    return lines


def _in_time(console: Console, do: Callable[[str, Runtime], Any], runtime: Runtime, grid: str) -> Answer:
    """What a child process has done for W&B, its problems told; or its error, with what helps, in one line."""
    answer = ask(do, (grid, runtime), runs_follow=False, timeout_s=WANDB_S)
    if answer.error is not None:
        return Answer(error=f"error: {'; '.join(filter(None, (answer.error, answer.remedy)))}")
    say_first(console, answer.value.problems)
    return answer


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
    facts = {
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
            env=os.environ | facts,
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
