"""One wave of jobs to SLURM: what is neither done nor in flight, as far as its queue has places."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from transfergrid.cli.before import queued, sent_states
from transfergrid.cli.console import count, say
from transfergrid.cli.finish import finish
from transfergrid.cli.grid_file import write_grid_of
from transfergrid.cluster import slurm
from transfergrid.cluster.adopt import adopt_intents
from transfergrid.cluster.finish_job import is_due
from transfergrid.cluster.groups import Group, first_tasks, make_groups
from transfergrid.cluster.ledger import Ledger, read_ledger
from transfergrid.cluster.limits import Limits, queue_room
from transfergrid.cluster.ownership import Here, live_rows
from transfergrid.cluster.slurm import SlurmRefused
from transfergrid.cluster.slurm_words import Answer
from transfergrid.cluster.snapshot import take_snapshot_of_code
from transfergrid.cluster.states import Snapshot
from transfergrid.cluster.submit import Launch, Sender
from transfergrid.config import Request
from transfergrid.errors import ConfigError, MachineError, StoreFull, one_line
from transfergrid.planning import job
from transfergrid.planning.plan import Plan, make_plan
from transfergrid.resources import Resources
from transfergrid.specs import Runtime
from transfergrid.store import durable


@dataclass(slots=True)
class Submitting:
    """What one launcher sends, in one wave or in several, and what all its waves share.

    finish: what the finish job asks for. source: the snapshot of the code, once taken. sent: run_ids of all waves,
    which no later wave sends again, even if they failed. num_waiting: how many runs the last wave had no room for.
    is_finish_due: whether a finish job is still to be sent. has_finish: whether one is in the queue, or has ended well.
    """

    request: Request
    limits: Limits
    finish: Resources
    source: Path | None = None
    sent: set[str] = field(default_factory=set)
    num_waiting: int = 0
    is_finish_due: bool = False
    has_finish: bool = False


def plan_now(request: Request, ledger: Ledger, sent: Set[str] = frozenset()) -> tuple[Plan, Snapshot]:
    """The plan, and the states it was made from. sent: by this launcher, so that what the user wants sent again is not
    sent a third time."""
    rows = [c.run.run_id for c in request.configurations]
    states = sent_states(request, ledger)
    again = {run_id for run_id in request.again - sent if states.states[run_id].undecided}
    in_queue = {run_id: reason for run_id, reason in queued(states).items() if run_id not in again}
    can_wait = {run_id for run_id in in_queue if states.states[run_id].may_change}
    plan = make_plan(rows, request.runs, request.runtime, queued=in_queue, can_wait=can_wait)
    return plan, states


def submit(console: Console, submitting: Submitting) -> int:
    """Send what is neither done nor in flight, as far as there are places in the queue; returns the number of jobs.

    One launcher at a time: what another has sent meanwhile is seen, and not sent again. Raises SlurmDown, SlurmRefused.
    """
    request = submitting.request
    began = time.monotonic()
    with _alone(console, request):
        ledger = read_ledger(request.store)
        if adopt_intents(ledger, submitting.limits.here, alone=True):
            ledger = read_ledger(request.store)
        plan, snapshot = plan_now(request, ledger, submitting.sent)
        plan = _without(plan, submitting.sent)
        submitting.is_finish_due |= is_due(snapshot.finish)
        submitting.has_finish = snapshot.finish is not None and not is_due(snapshot.finish)
        write_grid_of(console, request)
        room = room_in_queue(submitting.limits)
        if not plan.to_run or (room is not None and room < 2):
            submitting.num_waiting = len(plan.to_run)
            if not plan.to_run and submitting.is_finish_due:
                _send_finish(console, submitting, Sender(make_launch(submitting, plan)[0], ledger, {}), ledger)
                console.print("no run to submit" + ("; submitted the finish job" if submitting.has_finish else ""))
            elif not submitting.num_waiting:
                console.print("nothing to submit")
            return 0
        launch, indices = make_launch(submitting, plan)
        groups, submitting.num_waiting = fitting(groups_of(plan, request, launch, submitting.limits), room)
        sender = Sender(launch, ledger, indices)
        try:
            submitting.num_waiting += send_what_fits(console, sender, groups)
        except StoreFull:
            if not sender.sent:  # what was meant to be sent has been withdrawn
                shutil.rmtree(launch.folder, ignore_errors=True)
                source = submitting.source
                submitting.source = source if source is not None and source.is_dir() else None
            raise
        finally:
            submitting.sent |= {run_id for s in sender.sent for task in s.tasks for run_id in task}
            submitting.is_finish_due |= bool(sender.sent)
            jobs = sum(len(s.tasks) for s in sender.sent)
            if sender.sent and not submitting.num_waiting:  # of several waves, the last one's comes after all
                _send_finish(console, submitting, sender, ledger)
    sent = sum(s.kind == "runs" for s in sender.sent)
    finishing = " and a finish job" if submitting.has_finish and not submitting.num_waiting else ""
    finishing += f"; {count(submitting.num_waiting, 'run')} waiting for places" if submitting.num_waiting else ""
    took = f"{time.monotonic() - began:.1f} s"
    say(console, f"submitted {count(jobs, 'job')} in {count(sent, 'submission')}{finishing}, {took}")
    return jobs


@contextlib.contextmanager
def _alone(console: Console, request: Request) -> Iterator[None]:
    path = request.store.submitting
    with durable.lock(path, wait=False) as obtained:
        if obtained:
            yield
            return
    console.print("another launch is submitting to this store; waiting for it")
    with durable.lock(path, wait=True):
        yield


def _without(plan: Plan, sent: set[str]) -> Plan:
    """The plan without what was sent before and would be sent again, and without what needs that."""
    dropped: set[str] = set()
    runs = []
    for planned in plan.runs:  # needed ones come first
        if planned.state == "run" and (planned.run.run_id in sent or dropped.intersection(planned.needs)):
            dropped.add(planned.run.run_id)
        else:
            runs.append(planned)
    return Plan(tuple(runs))


def make_launch(submitting: Submitting, plan: Plan) -> tuple[Launch, dict[str, int]]:
    """The launch and each run's place in its payload. The code is copied once, for all waves."""
    request = submitting.request
    runs = [p.run for p in plan.to_run]
    variants = {c.run.run_id: c.variant for c in request.configurations}
    names = {run.run_id: variants[run.run_id] for run in runs if run.run_id in variants}
    payload = job.write_payload(
        runs, _on_node(request.runtime), names, cluster=request.cluster_config, notify=request.notify
    )
    try:
        if submitting.source is None or not submitting.source.is_dir():  # it may be tidied up between two waves
            submitting.source = take_snapshot_of_code(payload.parent)
    except BaseException:  # as of a full disk: nothing half-copied stays
        shutil.rmtree(payload.parent, ignore_errors=True)
        raise
    launch = Launch(
        grid=request.grid,
        folder=payload.parent,
        payload=payload,
        source=submitting.source,
        settings=request.cluster,
        notify=request.notify,
        finish=submitting.finish,
        cluster=submitting.limits.here.name or None,
    )
    return launch, {run.run_id: index for index, run in enumerate(runs)}


def _on_node(runtime: Runtime) -> Runtime:
    """The runtime as a job needs it: with absolute folders."""
    return replace(
        runtime,
        store_dir=_absolute(runtime.store_dir),
        cache_dir=_absolute(runtime.cache_dir),
        data_dir=_absolute(runtime.data_dir),
        weights_dir=_absolute(runtime.weights_dir),
        cache_also_read=tuple(map(_absolute, runtime.cache_also_read)),
        data_folders={name: _absolute(folder) for name, folder in runtime.data_folders.items()},
        data_tables={name: _absolute(table) for name, table in runtime.data_tables.items()},
    )


def _absolute(folder: str) -> str:
    return str(Path(folder).absolute())


def groups_of(plan: Plan, request: Request, launch: Launch, limits: Limits) -> list[Group]:
    return make_groups(
        plan.to_run,
        request.cluster,
        grid=request.grid,
        launch=launch.folder.name,
        max_array_size=limits.max_array_size,
    )


def _send_finish(console: Console, submitting: Submitting, sender: Sender, ledger: Ledger) -> None:
    """One finish job after everything of this grid that is alive; an older one that still waits is cancelled. Where
    the queue has no place for it, it stays due."""
    grid, where = submitting.request.grid, submitting.limits.here
    new = [s.job_id for s in sender.sent if s.job_id is not None]
    try:
        sender.send_finish(finish, [*alive_jobs(ledger, grid, where), *new])
    except SlurmRefused as error:
        if error.answer is not Answer.NO_ROOM:
            raise
        submitting.is_finish_due, submitting.has_finish = True, False
        say(console, no_room("the finish job", error), style="yellow")
        return
    submitting.is_finish_due, submitting.has_finish = False, True
    try:
        finishing = [s for s in ledger.of_grid(grid, "finish") if s.proof.is_of(where.name)]
        older = {s.job_id: s.proof for s in finishing if s.job_id is not None}
        slurm.scancel(live_rows(older, where), pending_only=True)
    except MachineError as error:  # another user's, of a store that is shared
        say(console, f"cannot cancel an older finish job of this grid: {error}")


def alive_jobs(ledger: Ledger, grid: str, where: Here) -> list[str]:
    """Ids of the grid's jobs that this cluster has, in the order they were sent; none where it does not answer."""
    of_grid = [s for s in ledger.of_grid(grid, "runs") if s.proof.is_of(where.name)]
    earlier = {s.job_id: s.proof for s in of_grid if s.job_id is not None}
    alive: set[str] = set()
    with contextlib.suppress(MachineError):
        alive = {slurm.base_id(task) for task in live_rows(earlier, where)}
    return [job_id for job_id in earlier if job_id in alive]


# ------------------------------------------------------------------------------------------ places in SLURM's queue
def num_jobs(plan: Plan, packed: int) -> int:
    return sum(-(-count // packed) for count in Counter(p.run.phase for p in plan.to_run).values())


def assert_room(plan: Plan, request: Request, limits: Limits) -> None:
    room = room_in_queue(limits)
    jobs = num_jobs(plan, request.cluster.runs_per_job) + 1
    if room is None or jobs <= room or request.wait or request.emit is not None:
        return
    packed = -(-len(plan.to_run) // max(1, room - 1 - len({p.run.phase for p in plan.to_run})))
    raise ConfigError(
        f"{jobs} jobs are to be sent, but SLURM lets you queue {max(0, room)} more",
        remedy="launch_grid.py sends them as places become free with wait=true, or set"
        f" cluster.runs_per_job={max(2, packed)}",
    )


def room_in_queue(limits: Limits) -> int | None:
    return None if limits.max_jobs is None else queue_room(limits, slurm.count_own_jobs())


def fitting(groups: list[Group], room: int | None) -> tuple[list[Group], int]:
    """The groups, in order and the last one cut, that fit into the queue beside a finish job; and how many
    runs do not."""
    if room is None:
        return groups, 0
    taken: list[Group] = []
    places = room - 1
    for group in groups:
        if places <= 0:
            break
        taken.append(group if len(group.tasks) <= places else first_tasks(group, places))
        places -= len(group.tasks)
    return taken, _num_runs(groups) - _num_runs(taken)


def send_what_fits(console: Console, sender: Sender, groups: Sequence[Group]) -> int:
    """Send these in their order, as far as SLURM has places; limits that nobody could read are met here. Returns how
    many runs found none."""
    for index, group in enumerate(groups):
        part = group
        while True:
            try:
                sender.send(part)
                break
            except SlurmRefused as error:
                if error.answer is not Answer.NO_ROOM:
                    raise
                fewer = len(part.tasks) // 2
                if fewer == 0:
                    say(console, no_room("more runs", error), style="yellow")
                    return _num_runs(groups[index:])
                part = first_tasks(group, fewer)
        if part is not group:  # what fits beside it the next wave finds out
            return _num_runs(groups[index:]) - _num_runs([part])
    return 0


def _num_runs(groups: Sequence[Group]) -> int:
    return sum(len(task) for group in groups for task in group.tasks)


def no_room(what: str, error: SlurmRefused) -> str:
    return f"SLURM's queue has no place for {what} now ({one_line(error)[-160:]})"
