"""launch_grid wait=true: stay until SLURM has ended everything, and send more as places in its queue become free."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

from rich.console import Console

from transfergrid.cli.console import FAILED, OK, count, say
from transfergrid.cli.finish import snapshot_of
from transfergrid.cli.screen import show_failures, show_results, show_usage
from transfergrid.cli.sending import Submitting, submit
from transfergrid.cluster.evidence import FINISHED, read_object
from transfergrid.cluster.ledger import Ledger, read_ledger
from transfergrid.cluster.ownership import here, live_rows
from transfergrid.cluster.run_state import RunState
from transfergrid.cluster.slurm import SlurmDown
from transfergrid.config import Request
from transfergrid.errors import MachineError
from transfergrid.paths import typed

FINISH_GRACE_S = 600.0  # after the last run, for the finish job to start and end
STARVING_S = 300.0  # with nothing of the grid in the queue and no place for more: other jobs of the user fill it
CONTROLLER_AWAY_S = 1800.0


def wait(console: Console, submitting: Submitting) -> int:
    """Until everything of the grid has ended and the finish job has. Exit code 0 where all completed, else 1."""
    request = submitting.request
    last_states: dict[str, str] = {}
    since: dict[str, float] = {}  # what has lasted since when
    while True:
        ledger = read_ledger(request.store)
        snapshot = snapshot_of(request.grid, request.store, ledger)
        states = snapshot.states
        live = any(state.may_change for state in states.values())
        _tell_changes(console, states, last_states)
        try:
            if snapshot.slurm_error is not None:
                raise SlurmDown(snapshot.slurm_error)
            since.pop("away", None)
            if submitting.num_waiting or submitting.is_finish_due:
                if submit(console, submitting) or live:
                    since.pop("starving", None)
                elif (submitting.num_waiting or submitting.is_finish_due) and _lasts("starving", since) > STARVING_S:
                    what = count(submitting.num_waiting, "run") if submitting.num_waiting else "the finish job"
                    raise MachineError(f"{what} find no place in SLURM's queue", remedy="free some, and launch again")
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
    """What came of the newest finish job's sending to W&B: where the tables are, or why they are not, what to do."""
    finishing = [s for s in ledger.of_grid(grid, "finish") if s.job_id is not None]
    finished = read_object(finishing[-1].folder / FINISHED) if finishing else None
    return list((finished or {}).get("wandb", ()))


def _tell_changes(console: Console, states: Mapping[str, RunState], last_states: dict[str, str]) -> None:
    """One line per run that has started, ended, or changed its mind since the last look."""
    counts = Counter(s.state for s in states.values())
    for run_id, state in states.items():
        if last_states.get(run_id, "pending") == state.state or state.state in ("pending", "not submitted", "unknown"):
            continue
        last_states[run_id] = state.state
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
