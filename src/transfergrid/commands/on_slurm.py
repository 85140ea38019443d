"""launch_grid on SLURM: plan, show what it will cost, submit, and leave; or, with wait=true, stay until it is done."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from transfergrid import durable, job
from transfergrid.cluster import slurm
from transfergrid.cluster.adopt import adopt_intents
from transfergrid.cluster.answers import Answer
from transfergrid.cluster.emit import emit
from transfergrid.cluster.finish_job import Place, find_place, finish_resources, is_due
from transfergrid.cluster.groups import Group, make_groups
from transfergrid.cluster.ledger import Ledger, read_ledger
from transfergrid.cluster.limits import Limits, assert_possible, read_limits, unseen_limits
from transfergrid.cluster.ownership import Here, live_rows
from transfergrid.cluster.run_state import RunState
from transfergrid.cluster.slurm import SlurmDown, SlurmRefused
from transfergrid.cluster.snapshot import take_snapshot_of_code
from transfergrid.cluster.states import Snapshot
from transfergrid.cluster.submit import Launch, Sender, start_estimate
from transfergrid.cluster.yielding import fitted
from transfergrid.commands.console import FAILED, OK, count
from transfergrid.commands.finish import finish
from transfergrid.commands.grid_file import write_grid_of
from transfergrid.commands.launch import (
    check_without_writing,
    preflight,
    prepare_folders,
    queued,
    sent_states,
    show_plan,
)
from transfergrid.commands.places import assert_room, fitting, no_room, num_jobs, room_in_queue, send_what_fits
from transfergrid.config import Request
from transfergrid.config.spelling import command_of_grid
from transfergrid.cost import ADVISED_RUNS_PER_JOB, Estimate, estimate, gpu_hours, packing_advice
from transfergrid.errors import ConfigError, MachineError, StoreFull
from transfergrid.plan import Plan, make_plan
from transfergrid.resources import Resources
from transfergrid.specs import Runtime

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(slots=True)
class Submitting:
    """What one launcher sends, in one wave or in several, and what all its waves share.

    finish: what the finish job asks for. source: the snapshot of the code, once taken. sent: run_ids of all waves,
    which no later wave sends again, even if they failed. left: how many runs the last wave had no room for.
    is_finish_due: whether a finish job is still to be sent. has_finish: whether one is in the queue, or has ended well.
    """

    request: Request
    limits: Limits
    finish: Resources
    source: Path | None = None
    sent: set[str] = field(default_factory=set)
    left: int = 0
    is_finish_due: bool = False
    has_finish: bool = False


def carry_out(console: Console, request: Request) -> int:
    """Exit code 0 when submitted, or with wait=true when all completed; 1 when some failed."""
    if "%" in str(Path(request.runtime.store_dir).absolute()):
        raise ConfigError(
            f"store.dir={request.runtime.store_dir}: SLURM reads % in the names of its log files; rename it"
        )
    limits = _limits(console, request)
    plan, snapshot = _plan(request, read_ledger(request.store))
    yielded: list[str] = []
    if limits is None:
        limits, finishing = unseen_limits(), Place(finish_resources(request.cluster))
    else:
        request, yielded = _fitted(request, limits, plan)
        finishing = _assert_possible(plan, request, limits, is_finish_due=is_due(snapshot.finish))
    show_plan(console, plan, request)
    for line in [*snapshot.elsewhere, finishing.note, _finish_again(snapshot.finish)]:
        if line:
            console.print(line, style="yellow", highlight=False, soft_wrap=True)
    for line in yielded:
        console.print(line, highlight=False, soft_wrap=True)
    _show_cost(console, plan, request, limits)
    if finishing.refusal:
        raise ConfigError(finishing.refusal)
    assert_room(plan, request, limits)
    if request.dry_run:
        check_without_writing(console, plan, request.runtime, runs_follow=False)
        console.print("dry run: nothing was submitted or written")
        return OK
    prepare_folders(request.runtime)
    preflight(console, plan, request.runtime, runs_follow=False)
    submitting = Submitting(request, limits, finishing.resources)
    if request.emit is not None:
        return _emit(console, submitting, Path(request.emit))
    submit(console, submitting)
    if not request.wait:
        _say_how_to_watch(console, submitting)
        return FAILED if submitting.left or submitting.is_finish_due else OK
    from transfergrid.commands.waiting import wait

    return wait(console, submitting)


def _limits(console: Console, request: Request) -> Limits | None:
    """What the cluster allows; None where it does not answer, and nothing is to be sent."""
    asked = request.cluster.resources
    try:
        return read_limits(account=asked.account, qos=asked.qos)
    except (SlurmDown, SlurmRefused) as error:
        if not request.dry_run and request.emit is None:
            text = f"SLURM does not answer ({error}); nothing was sent, launch again when it does"
            raise type(error)(text) from error
        text = f"SLURM does not answer ({error}): that the cluster has and allows what is asked for is not checked"
        console.print(text, style="yellow", highlight=False, soft_wrap=True)
        return None


# ---------------------------------------------------------------------------------------------------------------- plan
def _plan(request: Request, ledger: Ledger, sent: Set[str] = frozenset()) -> tuple[Plan, Snapshot]:
    """The plan, and the states it was made from. sent: by this launcher, so that what the user wants sent again is not
    sent a third time."""
    rows = [c.run.run_id for c in request.configurations]
    states = sent_states(request, ledger)
    again = {run_id for run_id in request.again - sent if states.states[run_id].undecided}
    in_queue = {run_id: told for run_id, told in queued(states).items() if run_id not in again}
    can_wait = {run_id for run_id in in_queue if states.states[run_id].may_change}
    plan = make_plan(rows, request.runs, request.runtime, queued=in_queue, can_wait=can_wait)
    return plan, states


def _fitted(request: Request, limits: Limits, plan: Plan) -> tuple[Request, list[str]]:
    """The request with defaults that yield to what the partitions have, and a line about each that does."""
    settings = request.cluster
    common, told = fitted(settings.resources, limits, what="jobs")
    lines = {} if told is None else {common: told}
    by_phase = {}
    for phase in dict.fromkeys((*(p.run.phase for p in plan.to_run), *settings.by_phase)):
        by_phase[phase], told = fitted(settings.of_phase(phase), limits, what=f"phase {phase}")
        if told is not None:
            lines.setdefault(by_phase[phase], told)
    return replace(request, cluster=replace(settings, resources=common, by_phase=by_phase)), list(lines.values())


def _assert_possible(plan: Plan, request: Request, limits: Limits, *, is_finish_due: bool) -> Place:
    """Before the first sbatch: SLURM takes jobs that can never start, and lets them wait for good. Returns where the
    finish job goes."""
    settings = request.cluster
    for phase in dict.fromkeys(p.run.phase for p in plan.to_run):
        assert_possible(settings.of_phase(phase), limits, what=f"cluster={settings.name}, phase {phase}")
    return find_place(settings, limits) if plan.to_run or is_finish_due else Place(finish_resources(settings))


def _finish_again(state: RunState | None) -> str:
    """Of a finish job that this launch sends once more."""
    if state is None or not is_due(state):
        return ""
    if state.state == "not submitted":
        return "the finish job of an earlier launch was not sent; it is sent now"
    job = f"finish job {state.job_id}" if state.job_id is not None else "the finish job"
    return f"{job}: {state.state}" + (f": {state.reason}" if state.reason else "") + "; it is sent again"


def _show_cost(console: Console, plan: Plan, request: Request, limits: Limits) -> None:
    """Jobs, expected GPU-hours, when SLURM thinks they start, and whether sharing jobs would pay."""
    if not plan.to_run:
        return
    estimates: dict[str, Estimate] = {}
    hours = 0.0
    phases = list(dict.fromkeys(p.run.phase for p in plan.to_run))
    for phase in phases:
        members = [p for p in plan.to_run if p.run.phase == phase]
        gpus = request.cluster.of_phase(phase).gpus
        of_phase = estimate([p.run for p in members], request.runtime, gpus=gpus)
        hours += gpu_hours(members, of_phase, gpus)
        estimates |= of_phase
    known = sum(e.basis != "flops" for e in estimates.values())
    some = f"{known} of {len(estimates)} from records, the rest from FLOPs" if known else "from FLOPs, no records yet"
    basis = "from records" if known == len(estimates) else some
    wall_h = sum(e.seconds for e in estimates.values()) / 3600
    cost = f"{hours:.2f} GPU-hours" if hours else f"{wall_h:.2f} hours without a GPU"
    jobs = count(num_jobs(plan, request.cluster.runs_per_job), "job")
    console.print(f"{jobs} and a finish job; expected {cost} ({basis})", highlight=False, soft_wrap=True)
    expected = start_estimate(request.cluster, phases) if limits.here.name else {}
    for phase_names, text in expected.items():
        console.print(f"SLURM expects {phase_names} jobs {text}", highlight=False, soft_wrap=True)
    packed_jobs = num_jobs(plan, ADVISED_RUNS_PER_JOB)
    advice = packing_advice(estimates, runs_per_job=request.cluster.runs_per_job, packed_jobs=packed_jobs)
    if advice is not None:
        console.print(advice, highlight=False, soft_wrap=True)


# -------------------------------------------------------------------------------------------------------------- submit
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
        plan, snapshot = _plan(request, ledger, submitting.sent)
        plan = _without(plan, submitting.sent)
        submitting.is_finish_due |= is_due(snapshot.finish)
        submitting.has_finish = snapshot.finish is not None and not is_due(snapshot.finish)
        write_grid_of(console, request)
        room = room_in_queue(submitting.limits)
        if not plan.to_run or (room is not None and room < 2):
            submitting.left = len(plan.to_run)
            if not plan.to_run and submitting.is_finish_due:
                _send_finish(console, submitting, Sender(_make_launch(submitting, plan)[0], ledger, {}), ledger)
                console.print("no run to submit" + ("; submitted the finish job" if submitting.has_finish else ""))
            elif not submitting.left:
                console.print("nothing to submit")
            return 0
        launch, indices = _make_launch(submitting, plan)
        groups, submitting.left = fitting(_groups(plan, request, launch, submitting.limits), room)
        sender = Sender(launch, ledger, indices)
        try:
            submitting.left += send_what_fits(console, sender, groups)
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
            if sender.sent and not submitting.left:  # of several waves, the last one's comes after all
                _send_finish(console, submitting, sender, ledger)
    sent = sum(s.kind == "runs" for s in sender.sent)
    finishing = " and a finish job" if submitting.has_finish and not submitting.left else ""
    finishing += f"; {count(submitting.left, 'run')} waiting for places" if submitting.left else ""
    took = f"{time.monotonic() - began:.1f} s"
    text = f"submitted {count(jobs, 'job')} in {count(sent, 'submission')}{finishing}, {took}"
    console.print(text, highlight=False, soft_wrap=True)
    return jobs


@contextlib.contextmanager
def _alone(console: Console, request: Request) -> Iterator[None]:
    path = request.store.launches / ".submitting"
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
    kept = []
    for planned in plan.runs:  # needed ones come first
        if planned.state == "run" and (planned.run.run_id in sent or dropped.intersection(planned.needs)):
            dropped.add(planned.run.run_id)
        else:
            kept.append(planned)
    return Plan(tuple(kept))


def _make_launch(submitting: Submitting, plan: Plan) -> tuple[Launch, dict[str, int]]:
    """The launch and each run's place in its payload. The code is copied once, for all waves."""
    request = submitting.request
    runs = [p.run for p in plan.to_run]
    variants = {c.run.run_id: c.variant for c in request.configurations}
    shown = {run.run_id: variants[run.run_id] for run in runs if run.run_id in variants}
    payload = job.write_payload(
        runs, _on_node(request.runtime), shown, cluster=request.cluster_config, notify=request.notify
    )
    try:
        submitting.source = submitting.source or take_snapshot_of_code(payload.parent)
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
    )


def _absolute(folder: str) -> str:
    return str(Path(folder).absolute())


def _groups(plan: Plan, request: Request, launch: Launch, limits: Limits) -> list[Group]:
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
        sender.send_finish(finish, [*_alive(ledger, grid, where), *new])
    except SlurmRefused as error:
        if error.answer is not Answer.NO_ROOM:
            raise
        submitting.is_finish_due, submitting.has_finish = True, False
        console.print(no_room("the finish job", error), style="yellow", highlight=False, soft_wrap=True)
        return
    submitting.is_finish_due, submitting.has_finish = False, True
    try:
        finishing = [s for s in ledger.of_grid(grid, "finish") if s.proof.is_of(where.name)]
        older = {s.job_id: s.proof for s in finishing if s.job_id is not None}
        slurm.scancel(live_rows(older, where), pending_only=True)
    except MachineError as error:  # another user's, of a store that is shared
        console.print(f"an older finish job of this grid stays: {error}", highlight=False, soft_wrap=True)


def _alive(ledger: Ledger, grid: str, where: Here) -> list[str]:
    """Ids of the grid's jobs that this cluster has, in the order they were sent; none where it does not answer."""
    of_grid = [s for s in ledger.of_grid(grid, "runs") if s.proof.is_of(where.name)]
    earlier = {s.job_id: s.proof for s in of_grid if s.job_id is not None}
    alive: set[str] = set()
    with contextlib.suppress(MachineError):
        alive = {slurm.base_id(task) for task in live_rows(earlier, where)}
    return [job_id for job_id in earlier if job_id in alive]


def _emit(console: Console, submitting: Submitting, folder: Path) -> int:
    request = submitting.request
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"emit={folder} holds files already; give an empty or a new folder")
    ledger = read_ledger(request.store)
    plan, _ = _plan(request, ledger)
    write_grid_of(console, request)
    if not plan.to_run:
        console.print("nothing to submit, nothing written")
        return OK
    launch, indices = _make_launch(submitting, plan)
    groups = _groups(plan, request, launch, submitting.limits)
    live = _alive(ledger, request.grid, submitting.limits.here)
    script = emit(folder.absolute(), launch, groups, ledger, indices, live)
    scripts = count(len(groups) + 1, "job script")
    console.print(f"wrote {scripts}; send them with: bash {script}", highlight=False, soft_wrap=True)
    return OK


def _say_how_to_watch(console: Console, submitting: Submitting) -> None:
    request = submitting.request
    line = command_of_grid("status.py", request.grid, request.store, "watch=true")
    console.print(f"watch: {line}", highlight=False, soft_wrap=True)
    table = request.store.report(request.grid) / "comparison.md"
    by_hand = command_of_grid("report.py", request.grid, request.store)
    if submitting.has_finish:
        text = f"the finish job writes {table}; until then: {by_hand}"
    elif submitting.left or submitting.is_finish_due:
        what = count(submitting.left, "run") + " and the finish job" if submitting.left else "the finish job"
        text = f"{what} found no place: launch again, or with wait=true; the table until then: {by_hand}"
    else:
        text = f"the table: {by_hand}"
    console.print(text, highlight=False, soft_wrap=True)
