"""launch_grid on SLURM: plan, show what it will cost, submit, and leave; or, with wait=true, stay until it is done."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from transfergrid import durable, job
from transfergrid.cluster import slurm
from transfergrid.cluster.adopt import adopt_intents
from transfergrid.cluster.emit import emit
from transfergrid.cluster.groups import Group, first_tasks, make_groups
from transfergrid.cluster.ledger import Ledger, read_ledger
from transfergrid.cluster.limits import Limits, assert_possible, named_partitions, queue_room, read_limits
from transfergrid.cluster.ownership import Here, live_rows
from transfergrid.cluster.slurm import SlurmDown
from transfergrid.cluster.snapshot import take_snapshot_of_code
from transfergrid.cluster.submit import Launch, Sender, finish_resources, start_estimate
from transfergrid.commands.console import OK, command_line, count
from transfergrid.commands.finish import finish
from transfergrid.commands.grid_file import write_grid_of
from transfergrid.commands.launch import preflight, prepare_folders, queued, sent_states, show_plan
from transfergrid.config import Request
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
    """

    request: Request
    limits: Limits
    finish: Resources
    source: Path | None = None
    sent: set[str] = field(default_factory=set)
    left: int = 0
    is_finish_due: bool = False


def carry_out(console: Console, request: Request) -> int:
    """Exit code 0 when submitted, or with wait=true when all completed; 1 when some failed."""
    if "%" in str(Path(request.runtime.store_dir).absolute()):
        raise ConfigError(
            f"store.dir={request.runtime.store_dir}: SLURM reads % in the names of its log files; rename it"
        )
    try:
        limits = read_limits(account=request.cluster.resources.account, qos=request.cluster.resources.qos)
    except SlurmDown as error:
        raise SlurmDown(f"SLURM does not answer ({error}); nothing was sent, launch again when it does") from error
    plan, elsewhere = _plan(request, read_ledger(request.store))
    finishing = _assert_possible(plan, request, limits)
    show_plan(console, plan, request)
    for line in elsewhere:
        console.print(line, style="yellow", highlight=False, soft_wrap=True)
    _show_cost(console, plan, request)
    if request.dry_run:
        console.print("dry run: nothing was submitted or written")
        return OK
    _assert_room(plan, request, limits)
    prepare_folders(request.runtime)
    preflight(console, plan, request.runtime, runs_follow=False)
    submitting = Submitting(request, limits, finishing)
    if request.emit is not None:
        return _emit(console, submitting, Path(request.emit))
    submit(console, submitting)
    if not request.wait:
        _say_how_to_watch(console, request)
        return OK
    from transfergrid.commands.waiting import wait

    return wait(console, submitting)


# ---------------------------------------------------------------------------------------------------------------- plan
def _plan(request: Request, ledger: Ledger, sent: Set[str] = frozenset()) -> tuple[Plan, list[str]]:
    """The plan, and what is to be said of runs whose jobs are on other clusters. sent: by this launcher, so that what
    the user wants sent again is not sent a third time."""
    rows = [c.run.run_id for c in request.configurations]
    states = sent_states(request, ledger)
    again = {run_id for run_id in request.again - sent if states.states[run_id].undecided}
    in_queue = {run_id: told for run_id, told in queued(states).items() if run_id not in again}
    can_wait = {run_id for run_id in in_queue if states.states[run_id].may_change}
    plan = make_plan(rows, request.runs, request.runtime, queued=in_queue, can_wait=can_wait)
    return plan, states.elsewhere


def _assert_possible(plan: Plan, request: Request, limits: Limits) -> Resources:
    """Before the first sbatch: SLURM takes jobs that can never start, and lets them wait for good. Returns what the
    finish job asks for."""
    settings = request.cluster
    for phase in dict.fromkeys(p.run.phase for p in plan.to_run):
        assert_possible(settings.of_phase(phase), limits, what=f"cluster={settings.name}, phase {phase}")
    asked = finish_resources(settings, max_time_min=None)
    key = "cluster.partition" if settings.finish_partition is None else "cluster.finish_partition"
    named = named_partitions(asked, limits, what="the finish job", key=key)
    times = [p.max_time_min for p in named if p.max_time_min]
    finishing = finish_resources(settings, max_time_min=max(times) if times else None)
    assert_possible(finishing, limits, what="the finish job (cluster.finish_partition)")
    return finishing


def _num_jobs(plan: Plan, packed: int) -> int:
    return sum(-(-count // packed) for count in Counter(p.run.phase for p in plan.to_run).values())


def _show_cost(console: Console, plan: Plan, request: Request) -> None:
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
    jobs = count(_num_jobs(plan, request.cluster.runs_per_job), "job")
    console.print(f"{jobs} and a finish job; expected {cost} ({basis})", highlight=False, soft_wrap=True)
    for phase_names, text in start_estimate(request.cluster, phases).items():
        console.print(f"SLURM expects {phase_names} jobs {text}", highlight=False, soft_wrap=True)
    packed_jobs = _num_jobs(plan, ADVISED_RUNS_PER_JOB)
    advice = packing_advice(estimates, runs_per_job=request.cluster.runs_per_job, packed_jobs=packed_jobs)
    if advice is not None:
        console.print(advice, highlight=False, soft_wrap=True)


def _assert_room(plan: Plan, request: Request, limits: Limits) -> None:
    room = _room(limits)
    jobs = _num_jobs(plan, request.cluster.runs_per_job) + 1
    if room is None or jobs <= room or request.wait or request.emit is not None:
        return
    packed = -(-len(plan.to_run) // max(1, room - 1 - len({p.run.phase for p in plan.to_run})))
    raise ConfigError(
        f"{jobs} jobs are to be sent, SLURM lets you have {max(0, room)} more in its queue; launch_grid.py sends them"
        f" as places become free with wait=true, or set cluster.runs_per_job={max(2, packed)}"
    )


def _room(limits: Limits) -> int | None:
    return None if limits.max_jobs is None else queue_room(limits, slurm.count_own_jobs())


# -------------------------------------------------------------------------------------------------------------- submit
def submit(console: Console, submitting: Submitting) -> int:
    """Send what is neither done nor in flight, as far as there are places in the queue; returns the number of jobs.

    One launcher at a time: what another has sent meanwhile is seen, and not sent again. Raises SlurmDown, SlurmRefused.
    """
    request = submitting.request
    began = time.monotonic()
    with _alone(console, request):
        ledger = read_ledger(request.store)
        if adopt_intents(ledger, submitting.limits.here):
            ledger = read_ledger(request.store)
        plan = _without(_plan(request, ledger, submitting.sent)[0], submitting.sent)
        write_grid_of(console, request)
        room = _room(submitting.limits)
        if not plan.to_run or (room is not None and room < 2):
            submitting.left = len(plan.to_run)
            if not plan.to_run and submitting.is_finish_due:  # what was left has become impossible meanwhile
                _send_finish(console, submitting, Sender(_make_launch(submitting, plan)[0], ledger, {}), ledger)
            elif not submitting.left:
                console.print("nothing to submit")
            return 0
        launch, indices = _make_launch(submitting, plan)
        groups, submitting.left = _fitting(_groups(plan, request, launch, submitting.limits), room)
        sender = Sender(launch, ledger, indices)
        try:
            for group in groups:
                sender.send(group)
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
    finishing = f"; {count(submitting.left, 'run')} waiting for places" if submitting.left else " and a finish job"
    took = f"{time.monotonic() - began:.1f} s"
    text = f"submitted {count(jobs, 'job')} in {count(len(groups), 'submission')}{finishing}, {took}"
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
        cluster=submitting.limits.here.name,
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


def _fitting(groups: list[Group], room: int | None) -> tuple[list[Group], int]:
    """The groups, in order and the last one cut, that fit into the queue beside a finish job; and how many
    runs do not."""
    if room is None:
        return groups, 0
    fitting: list[Group] = []
    places = room - 1
    for group in groups:
        if places <= 0:
            break
        fitting.append(group if len(group.tasks) <= places else first_tasks(group, places))
        places -= len(group.tasks)
    sent = sum(len(task) for group in fitting for task in group.tasks)
    return fitting, sum(len(task) for group in groups for task in group.tasks) - sent


def _send_finish(console: Console, submitting: Submitting, sender: Sender, ledger: Ledger) -> None:
    """One finish job after everything of this grid that is alive; an older one that still waits is cancelled."""
    grid, where = submitting.request.grid, submitting.limits.here
    new = [s.job_id for s in sender.sent if s.job_id is not None]
    sender.send_finish(finish, [*_alive(ledger, grid, where), *new])
    submitting.is_finish_due = False
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


def _say_how_to_watch(console: Console, request: Request) -> None:
    line = command_line("status.py", request.grid, request.store, "watch=true")
    console.print(f"watch: {line}", highlight=False, soft_wrap=True)
    table = request.store.report(request.grid) / "comparison.md"
    console.print(f"the finish job writes {table}", highlight=False, soft_wrap=True)
