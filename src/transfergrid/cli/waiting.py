"""launch_grid wait=true: stay until SLURM has ended everything, and send more as places in its queue become free."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from transfergrid.cli.console import FAILED, OK, count, say
from transfergrid.cli.finish import runs_of
from transfergrid.cli.sending import Submitting, submit
from transfergrid.cli.shown import show_failures, show_results
from transfergrid.cli.usage import show_usage
from transfergrid.cluster.evidence import log_tail
from transfergrid.cluster.ledger import Ledger, read_ledger
from transfergrid.cluster.needs import needs_of
from transfergrid.cluster.ownership import here, live_rows
from transfergrid.cluster.run_state import RunState
from transfergrid.cluster.slurm import SlurmDown
from transfergrid.cluster.states import take_snapshot
from transfergrid.config import Request
from transfergrid.errors import MachineError
from transfergrid.paths import typed

if TYPE_CHECKING:
    from rich.console import Console

FINISH_GRACE_S = 600.0  # after the last run, for the finish job to start and end
STARVING_S = 300.0  # with nothing of the grid in the queue and no place for more: other jobs of the user fill it
CONTROLLER_AWAY_S = 1800.0


def wait(console: Console, submitting: Submitting) -> int:
    """Until everything of the grid has ended and the finish job has. Exit code 0 where all completed, else 1."""
    request = submitting.request
    told: dict[str, str] = {}
    since: dict[str, float] = {}  # what has lasted since when
    while True:
        ledger = read_ledger(request.store)
        run_ids = runs_of(request.grid, request.store, ledger)
        snapshot = take_snapshot(run_ids, request.store, ledger, needs=needs_of(ledger, run_ids))
        states = snapshot.states
        live = any(state.may_change for state in states.values())
        _tell_changes(console, states, told)
        try:
            if snapshot.slurm_error is not None:
                raise SlurmDown(snapshot.slurm_error)
            since.pop("away", None)
            if submitting.left or submitting.is_finish_due:
                if submit(console, submitting) or live:
                    since.pop("starving", None)
                elif (submitting.left or submitting.is_finish_due) and _lasts("starving", since) > STARVING_S:
                    left = count(submitting.left, "run") if submitting.left else "the finish job"
                    raise MachineError(f"{left} find no place in SLURM's queue", remedy="free some, and launch again")
            elif not live and (_finish_has_ended(ledger, request) or _lasts("ended", since) > FINISH_GRACE_S):
                break
        except SlurmDown as error:
            if _lasts("away", since) > CONTROLLER_AWAY_S:
                raise SlurmDown(str(error), remedy=f"the jobs go on, {typed('status.py')} shows them") from error
        time.sleep(request.cluster.poll_s)
    show_results(console, request, reported=True)
    show_usage(console, list(states), request.store)
    for line in published_lines(ledger, request.grid):
        say(console, line)
    return _show_endings(console, states)


def _lasts(what: str, since: dict[str, float]) -> float:
    """Seconds for which it has been so, looked at without a break."""
    return time.monotonic() - since.setdefault(what, time.monotonic())


def _finish_has_ended(ledger: Ledger, request: Request) -> bool:
    try:
        where = here()
        finishing = [s for s in ledger.of_grid(request.grid, "finish") if s.proof.is_of(where.name)]
        return not live_rows({s.job_id: s.proof for s in finishing if s.job_id is not None}, where)
    except MachineError:
        return False


def published_lines(ledger: Ledger, grid: str) -> list[str]:
    """What the newest finish job said last of W&B: where the tables are, or why they are not and what to do."""
    finishing = [s for s in ledger.of_grid(grid, "finish") if s.job_id is not None]
    log = log_tail(finishing[-1].logs(0)[0]) if finishing else ""
    return [line for line in log.splitlines() if re.match(r"W&B: |error: ", line)][-2:]


def _tell_changes(console: Console, states: Mapping[str, RunState], told: dict[str, str]) -> None:
    """One line per run that has started, ended, or changed its mind since the last look."""
    counts = Counter(s.state for s in states.values())
    for run_id, state in states.items():
        if told.get(run_id, "pending") == state.state or state.state in ("pending", "not submitted", "unknown"):
            continue
        told[run_id] = state.state
        why = f"  {state.reason}" if state.reason and state.state != "running" else ""
        where = f"  on {state.node}" if state.node and state.state == "running" else ""
        say(console, f"[{counts['done']}/{len(states)}] {state.state:<9} {run_id}{where}{why}")


def _show_endings(console: Console, states: Mapping[str, RunState]) -> int:
    """Each run that did not complete."""
    show_failures(console, (state.failure for state in states.values()))
    for state in states.values():
        if state.undecided:
            say(console, f"unknown: {state.run_id}: {state.reason}", style="yellow")
    return OK if all(s.state == "done" for s in states.values()) else FAILED
