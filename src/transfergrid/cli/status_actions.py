"""What jobs/status.py does to a grid: end its live jobs, or send again what did not complete."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from rich.console import Console

from transfergrid.cli.console import FAILED, OK, count, make_console, say
from transfergrid.cli.status_view import View
from transfergrid.cluster import slurm
from transfergrid.cluster.ledger import Submission, read_ledger
from transfergrid.cluster.ownership import UNMARKED, Here, Proof, live_rows
from transfergrid.cluster.run_state import needs_of
from transfergrid.cluster.settle import settle
from transfergrid.cluster.states import take_snapshot
from transfergrid.config.status import UNKNOWN, StatusRequest
from transfergrid.errors import ConfigError, MachineError
from transfergrid.paths import StorePaths, typed
from transfergrid.planning import job
from transfergrid.specs import Runtime
from transfergrid.store.records import read_grid, record_head

VERIFY_S = 30.0
VERIFY_POLL_S = 1.0
SET_ASIDE = ("code", "data")  # a plan does not try these again while nothing has changed


# -------------------------------------------------------------------------------------------------------------- cancel
def cancel(console: Console, view: View) -> int:
    """End every live job of the grid, or of the one run, that is proven ours; what has been done is looked up, not
    believed."""
    _assert_slurm_answers(view, "cancel")
    live = [row.run_id for row in view.rows if view.state(row).is_live]
    jobs, reasons = _own_jobs(view, live)
    for run_id, why in reasons.items():
        say(console, f"left alone: {run_id}: {why}")
    if any(view.snapshot.states[run_id].undecided for run_id in reasons):
        code, nothing = FAILED, "nothing was cancelled"
    else:
        code, nothing = OK, "nothing to cancel: no job of it is pending or running"
    where = Here(view.snapshot.cluster or "")
    proven = set(live_rows(jobs, where))  # now, not when the view was made
    if not proven:
        console.print(nothing)
        return code
    runs = {run_id for task in proven for run_id in _runs_of(view, task)}
    dependents = _dependents(view, runs)
    with contextlib.suppress(MachineError):  # it may say no, or nothing for minutes, and do it all the same
        slurm.scancel(_shortened(view, proven))
    remaining = _wait_until_gone({task: jobs[task] for task in proven}, where)
    # SLURM forgets within minutes, where it keeps no accounting, that a waiting job was cancelled.
    ended = take_snapshot(runs, view.store, view.ledger).states
    with contextlib.suppress(OSError):
        settle(ended, view.store, view.ledger)
    say(
        console,
        f"cancelled {count(len(proven) - len(remaining), 'job')} of {count(len(runs), 'run')}"
        + (f"; {len(dependents)} that wait for them are cancelled by SLURM" if dependents else ""),
    )
    if remaining:
        message = f"still there after {VERIFY_S:.0f} s: {', '.join(sorted(remaining)[:20])}; give the command again"
        say(console, message, style="red")
        return FAILED
    return code


def _own_jobs(view: View, live: Sequence[str]) -> tuple[dict[str, Proof], dict[str, str]]:
    """(tasks to cancel and what proves them ours, run -> why it is left alone)."""
    jobs: dict[str, Proof] = {}
    reasons: dict[str, str] = {}
    for run_id in live:
        newest, state = view.ledger.newest(run_id), view.snapshot.states[run_id]
        sent, task = (None, None) if newest is None else (newest[0], newest[0].task_id(newest[1]))
        if sent is None or task is None or state.job_id != task:
            if state.state == "running" or state.undecided:
                owner = f"job {state.job_id}" if state.job_id else f"a launcher on {state.node or 'a machine'}"
                reasons[run_id] = state.reason if state.undecided else f"belongs to {owner}"
        elif sent.cluster is not None and sent.cluster != view.snapshot.cluster:
            reasons[run_id] = (
                f"{state.reason}; cancel it there, or with SLURM_CLUSTERS={sent.cluster} before this command"
            )
        elif not sent.proof.is_complete:
            reasons[run_id] = f"{UNMARKED}; if `scontrol show job {task}` shows it as yours: scancel {task}"
        elif view.grid not in (None, sent.grid):
            reasons[run_id] = f"belongs to job {task} of another grid"
        else:
            jobs[task] = sent.proof
    return jobs, reasons


def _runs_of(view: View, task_id: str) -> list[str]:
    for submission in _sent_here(view):
        for index, task in enumerate(submission.tasks):
            if submission.task_id(index) == task_id:
                return list(task)
    return []


def _shortened(view: View, jobs: set[str]) -> list[str]:
    """An array's own id where all of its tasks that are not done are to go: one order instead of hundreds."""
    orders: set[str] = set()
    for submission in _sent_here(view):
        tasks = {str(submission.task_id(i)) for i in range(len(submission.tasks)) if _may_live(view, submission, i)}
        if submission.job_id is not None and tasks and tasks <= jobs:
            orders.add(submission.job_id)
            jobs = jobs - tasks
    return sorted(orders | jobs)


def _sent_here(view: View) -> list[Submission]:
    """Another cluster may have the same numbers."""
    return [s for s in view.ledger.submissions if s.cluster == view.snapshot.cluster]


def _may_live(view: View, submission: Submission, index: int) -> bool:
    states = (view.snapshot.states.get(run_id) for run_id in submission.tasks[index])
    return any(state is None or state.is_live for state in states)


def _dependents(view: View, cancelled: set[str]) -> list[str]:
    """Runs that were sent to SLURM, are not done, and need one of these, in however many steps."""
    every = [run_id for s in view.ledger.submissions for task in s.tasks for run_id in task]
    needs = needs_of(view.ledger, every)
    reached = set(cancelled)
    while more := {r for r, needed in needs.items() if r not in reached and reached.intersection(needed)}:
        reached |= more
    heads = {run_id: record_head(view.store.run(run_id)) for run_id in reached - cancelled}
    return sorted(run_id for run_id, head in heads.items() if head is None)


def _wait_until_gone(jobs: Mapping[str, Proof], where: Here) -> set[str]:
    """Those of these tasks that are neither ended nor ending when the time is up."""
    deadline = time.monotonic() + VERIFY_S
    while True:
        try:
            rows = live_rows(jobs, where)
            remaining = {task for task in jobs if task in rows and rows[task].state != "COMPLETING"}
        except MachineError:
            remaining = set(jobs)
        if not remaining or time.monotonic() > deadline:
            return remaining
        time.sleep(VERIFY_POLL_S)


# --------------------------------------------------------------------------------------------------------------- retry
def retry(console: Console, view: View, request: StatusRequest) -> int:
    """Send again the runs of these failure classes, and what needs them; or, on the user's word, those of which it is
    unknown whether SLURM still has them."""
    _assert_slurm_answers(view, "retry")
    though_unknown = request.retry == UNKNOWN
    states = [view.state(row) for row in view.rows]
    if though_unknown:
        picked = [s.run_id for s in states if s.undecided]
    else:
        picked = [s.run_id for s in states if not s.is_live and s.failure_class in request.retry]
    if not picked:
        classes = {s.failure_class for s in states if s.failure_class is not None}
        classes |= {"unknown" for s in states if s.undecided}
        console.print(
            f"nothing to retry: no run of that class; there is {', '.join(sorted(classes)) or 'no failed run'}"
        )
        return OK
    for state in states if though_unknown else ():
        if state.undecided:
            say(console, f"unknown: {state.run_id}: {state.reason}")
    grid = view.grid or _grid_of(view, picked[0])
    say(console, f"retrying {count(len(picked), 'run')} of grid {grid}")
    with _set_aside(view.store, picked):
        return relaunch(grid, view.store, picked, request.overrides, though_unknown=though_unknown)


def relaunch(
    grid: str, store: StorePaths, run_ids: Sequence[str], overrides: Sequence[str], *, though_unknown: bool = False
) -> int:
    """Submit these runs of a grid again, and what needs them; `overrides`: of cluster.*, on top of the last launch's.
    though_unknown: also those that SLURM may still have.

    Raises ConfigError where one of them was never sent to SLURM from this store.
    """
    # Hydra and submitit, which only those who launch need to wait for.
    from transfergrid.cli.on_slurm import carry_out
    from transfergrid.config import load_retry

    launches = dict.fromkeys(s.launch for s in read_ledger(store).submissions if s.grid == grid)
    payloads = [job.read_payload(launch / "specs.json") for launch in launches]
    runs = {run.run_id: run for payload in payloads for run in payload.runs}
    unknown = [run_id for run_id in run_ids if run_id not in runs]
    if unknown or not payloads:
        instead = typed("launch_grid.py")
        raise ConfigError(f"{(unknown or [grid])[0]} was not sent to SLURM from {store.root}", remedy=f"use {instead}")
    to_send = set(run_ids)
    for run in runs.values():  # needed ones come first in every payload
        if to_send.intersection((*run.needs, *(e.run_id for e in run.extractions))):
            to_send.add(run.run_id)
    candidates = (payload.configuration(run) for payload in payloads for run in payload.runs if run.run_id in to_send)
    # What needs a run may be of an earlier launch, whose rows have been replaced since.
    rows = {entry.run_id for entry in read_grid(store.grid(grid))} | set(run_ids)
    configurations = list({c.run.run_id: c for c in candidates if c is not None and c.run.run_id in rows}.values())
    if not configurations:
        raise ConfigError(
            f"{run_ids[0]} is needed by no configuration of grid {grid} that was sent", remedy="launch it again"
        )
    request = load_retry(
        configurations,
        list(runs.values()),
        _runtime_of_all(payloads),
        cluster_config=payloads[-1].cluster,
        notify=payloads[-1].notify,
        overrides=overrides,
    )
    if though_unknown:
        request = replace(request, again=frozenset(run_ids))
    return carry_out(make_console(), request)


def _runtime_of_all(payloads: Sequence[job.Payload]) -> Runtime:
    """The last launch's, with the folders, tables and weights files of all: runs by hand each know their own."""
    return replace(
        payloads[-1].runtime,
        data_folders={name: folder for p in payloads for name, folder in p.runtime.data_folders.items()},
        data_tables={name: table for p in payloads for name, table in p.runtime.data_tables.items()},
        weights_files={name: file for p in payloads for name, file in p.runtime.weights_files.items()},
    )


@contextlib.contextmanager
def _set_aside(store: StorePaths, run_ids: Iterable[str]) -> Iterator[None]:
    """Without the records that stop a plan from trying these again; they come back where nothing could be sent."""
    moved = []
    for run_id in run_ids:
        paths = store.run(run_id)
        head = record_head(paths)
        if head is not None and head.status == "failed" and head.failure_class in SET_ASIDE:
            aside = paths.record.with_name(f".{paths.record.name}.retried")
            os.replace(paths.record, aside)
            moved.append((aside, paths.record))
    began = datetime.now(UTC) - timedelta(seconds=1)  # the ledger counts whole seconds
    try:
        yield
    finally:
        ledger = read_ledger(store)
        for aside, record in moved:
            newest = ledger.newest(record.parent.name)
            was_sent = newest is not None and newest[0].submitted >= began
            if was_sent or record.exists():
                aside.unlink(missing_ok=True)
            else:
                os.replace(aside, record)


def _grid_of(view: View, run_id: str) -> str:
    newest = view.ledger.newest(run_id)
    if newest is not None:
        return newest[0].grid
    for path in sorted(view.store.grids.glob("*.json")):
        if any(entry.run_id == run_id for entry in read_grid(path)):
            return path.stem
    raise ConfigError(
        f"{run_id} stands in no grid of {view.store.root}", remedy=f"run it again with {typed('run_phase.py')}"
    )


def _assert_slurm_answers(view: View, what: str) -> None:
    if view.snapshot.slurm_error is not None:
        raise MachineError(
            f"SLURM does not answer, so what lives is not known and {what} did nothing", remedy="try again later"
        )
