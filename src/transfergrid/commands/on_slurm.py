"""launch_grid on SLURM: plan, show what it will cost, submit, and leave; or, with wait=true, stay until it is done."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from transfergrid import durable, job
from transfergrid.cluster import slurm
from transfergrid.cluster.emit import emit
from transfergrid.cluster.groups import Group, first_tasks, make_groups
from transfergrid.cluster.ledger import Ledger, Submission, read_ledger
from transfergrid.cluster.limits import Limits, assert_possible, queue_room, read_limits
from transfergrid.cluster.settle import ENDED
from transfergrid.cluster.slurm import SlurmDown
from transfergrid.cluster.snapshot import take_snapshot_of_code
from transfergrid.cluster.states import RunState, needs_of, take_snapshot
from transfergrid.cluster.submit import Launch, Sender, adopt_intents, start_estimate
from transfergrid.commands.console import FAILED, OK, make_console
from transfergrid.commands.finish import finish, runs_of
from transfergrid.commands.launch import (
    preflight,
    prepare_folders,
    queued,
    show_plan,
    show_results,
    write_grid_of,
)
from transfergrid.commands.usage import show_usage
from transfergrid.config import Request, load_retry
from transfergrid.cost import estimate, gpu_hours, packing_advice
from transfergrid.errors import NEXT_STEP, ConfigError, MachineError
from transfergrid.paths import StorePaths
from transfergrid.plan import Plan, make_plan
from transfergrid.specs import Runtime

if TYPE_CHECKING:
    from rich.console import Console

FINISH_GRACE_S = 600.0  # after the last run, for the finish job to start and end
STARVING_S = 300.0  # with nothing of the grid in the queue and no place for more: others of the user's jobs fill it
CONTROLLER_AWAY_S = 1800.0  # that waiting outlasts


@dataclass(slots=True)
class _Wave:
    """What one submission sent, how many runs there was no room for, and all that this launcher has sent so far."""

    sent: list[Submission]
    left: int = 0
    before: frozenset[str] = frozenset()


def carry_out(console: Console, request: Request) -> int:
    """Exit code 0 when submitted, or with wait=true when all completed; 1 when some failed."""
    limits = read_limits(account=request.cluster.resources.account, qos=request.cluster.resources.qos)
    plan = _plan(request, read_ledger(request.store))
    _assert_possible(plan, request, limits)
    show_plan(console, plan, request)
    _show_cost(console, plan, request, limits)
    if request.dry_run:
        console.print("dry run: nothing was submitted or written")
        return OK
    _assert_room(plan, request, limits)
    prepare_folders(request.runtime)
    preflight(console, plan, request.runtime)
    if request.emit is not None:
        return _emit(console, request, Path(request.emit), limits)
    source: Path | None = None
    wave, source = _submit(console, request, limits, source, _Wave([]))
    if not request.wait:
        _say_how_to_watch(console, request)
        return OK
    return _wait(console, request, limits, wave, source)


# ---------------------------------------------------------------------------------------------------------------- plan
def _plan(request: Request, ledger: Ledger) -> Plan:
    rows = [c.run.run_id for c in request.configurations]
    in_queue = queued(request, ledger)
    return make_plan(rows, request.runs, request.runtime, queued=in_queue, can_wait=True)


def _assert_possible(plan: Plan, request: Request, limits: Limits) -> None:
    """Before the first sbatch: SLURM takes jobs that can never start, and lets them wait for good."""
    for phase in dict.fromkeys(p.run.phase for p in plan.to_run):
        assert_possible(request.cluster.of_phase(phase), limits, what=f"cluster={request.cluster.name}, phase {phase}")
    if plan.to_run and request.cluster.finish_partition is not None:
        asked = replace(request.cluster.resources, gpus=0, gpu_type=None, partition=request.cluster.finish_partition)
        assert_possible(replace(asked, timeout_min=1), limits, what="cluster.finish_partition")


def _num_jobs(plan: Plan, request: Request) -> int:
    packed = request.cluster.runs_per_job
    return sum(-(-count // packed) for count in Counter(p.run.phase for p in plan.to_run).values())


def _show_cost(console: Console, plan: Plan, request: Request, limits: Limits) -> None:
    """Jobs, expected GPU-hours, when SLURM thinks they start, and whether sharing jobs would pay."""
    if not plan.to_run:
        return
    runs = [p.run for p in plan.to_run]
    gpus = request.cluster.resources.gpus
    estimates = estimate(runs, request.runtime, gpus=gpus)
    hours = gpu_hours(plan.to_run, estimates, gpus)
    known = sum(e.basis != "flops" for e in estimates.values())
    basis = f"{known} of {len(runs)} from records, the rest from FLOPs" if known else "from FLOPs, no records yet"
    wall_h = sum(e.seconds for e in estimates.values()) / 3600
    cost = f"{hours:.2f} GPU-hours" if gpus else f"{wall_h:.2f} hours without a GPU"
    console.print(
        f"{count(_num_jobs(plan, request), 'job')} and a finish job; expected {cost} ({basis})",
        highlight=False,
        soft_wrap=True,
    )
    for phase, text in start_estimate(request.cluster, list(dict.fromkeys(r.phase for r in runs))).items():
        console.print(f"SLURM expects {phase} jobs {text}", highlight=False, soft_wrap=True)
    advice = packing_advice(estimates, runs_per_job=request.cluster.runs_per_job)
    if advice is not None:
        console.print(advice, highlight=False, soft_wrap=True)


def _assert_room(plan: Plan, request: Request, limits: Limits) -> None:
    room = _room(limits)
    jobs = _num_jobs(plan, request) + 1
    if room is None or jobs <= room or request.wait or request.emit is not None:
        return
    packed = -(-len(plan.to_run) // max(1, room - 1 - len({p.run.phase for p in plan.to_run})))
    raise ConfigError(
        f"{jobs} jobs are to be sent, SLURM lets you have {max(0, room)} more in its queue; add wait=true, which sends"
        f" them as places become free, or cluster.runs_per_job={max(2, packed)}"
    )


def _room(limits: Limits) -> int | None:
    return None if limits.max_jobs is None else queue_room(limits, slurm.count_own_jobs())


# -------------------------------------------------------------------------------------------------------------- submit
def _submit(
    console: Console, request: Request, limits: Limits, source: Path | None, earlier: _Wave
) -> tuple[_Wave, Path | None]:
    """Send what is neither done nor in flight. One launcher at a time: what another has sent meanwhile is seen.

    earlier: this launcher's last wave; what it sent is not sent again by a later one, even if it failed.
    """
    began = time.monotonic()
    with durable.lock(request.store.launches / ".submitting", wait=True):
        ledger = read_ledger(request.store)
        if adopt_intents(ledger):
            ledger = read_ledger(request.store)
        plan = _without(_plan(request, ledger), earlier.before)
        write_grid_of(request)
        if not plan.to_run:
            console.print("nothing to submit")
            return _Wave([]), source
        launch, indices, source = _make_launch(request, plan, source)
        groups = _groups(plan, request, launch, limits)
        fitting, left = _fitting(groups, _room(limits))
        sender = Sender(launch, ledger, indices)
        try:
            for group in fitting:
                sender.send(group)
        finally:
            if sender.sent and not left:  # the last wave's comes after all
                _replace_finish(sender, ledger, request)
    if sender.sent:
        jobs = sum(len(s.tasks) for s in sender.sent if s.kind == "runs")
        finishing = f"; {left} runs wait for places in the queue" if left else " and a finish job"
        took = f"{time.monotonic() - began:.1f} s"
        console.print(
            f"submitted {count(jobs, 'job')} in {count(len(fitting), 'submission')}{finishing}, {took}",
            highlight=False,
            soft_wrap=True,
        )
    sent = frozenset(run_id for s in sender.sent for task in s.tasks for run_id in task)
    return _Wave(sender.sent, left, earlier.before | sent), source


def _without(plan: Plan, sent: frozenset[str]) -> Plan:
    """The plan without what was sent before and would be sent again, and without what needs that."""
    dropped: set[str] = set()
    kept = []
    for planned in plan.runs:  # needed ones come first
        if planned.state == "run" and (planned.run.run_id in sent or dropped.intersection(planned.needs)):
            dropped.add(planned.run.run_id)
        else:
            kept.append(planned)
    return Plan(tuple(kept))


def _make_launch(request: Request, plan: Plan, source: Path | None) -> tuple[Launch, dict[str, int], Path]:
    """The payload and the code, which all waves of one launcher share."""
    runs = [p.run for p in plan.to_run]
    variants = {c.run.run_id: c.variant for c in request.configurations}
    payload = job.write_payload(
        runs,
        on_node(request),
        {r.run_id: variants[r.run_id] for r in runs if r.run_id in variants},
        cluster=request.cluster_config,
        notify=request.notify,
    )
    source = source or take_snapshot_of_code(payload.parent)
    launch = Launch(
        grid=request.grid,
        folder=payload.parent,
        payload=payload,
        source=source,
        settings=request.cluster,
        notify=request.notify,
    )
    return launch, {run.run_id: index for index, run in enumerate(runs)}, source


def on_node(request: Request) -> Runtime:
    """The runtime as a job needs it: absolute folders; and a job that asked for a GPU must use it."""
    runtime = request.runtime
    asked_for_gpu = request.cluster.resources.gpus > 0 and runtime.device == "auto"
    return replace(
        runtime,
        store_dir=_absolute(runtime.store_dir),
        cache_dir=_absolute(runtime.cache_dir),
        data_dir=_absolute(runtime.data_dir),
        weights_dir=_absolute(runtime.weights_dir),
        cache_also_read=tuple(map(_absolute, runtime.cache_also_read)),
        data_folders={name: _absolute(folder) for name, folder in runtime.data_folders.items()},
        device="cuda" if asked_for_gpu else runtime.device,
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


def _replace_finish(sender: Sender, ledger: Ledger, request: Request) -> None:
    """One finish job after everything of this grid that is alive; an older one that still waits is cancelled."""
    older = [s.job_id for s in ledger.of_grid(request.grid, "finish") if s.job_id is not None]
    earlier = [s.job_id for s in ledger.of_grid(request.grid, "runs") if s.job_id is not None]
    alive = {slurm.base_id(e.job_id) for e in slurm.squeue(earlier) if e.state in ("PENDING", "RUNNING", "SUSPENDED")}
    sender.send_finish(finish, [*sorted(alive), *(s.job_id for s in sender.sent if s.job_id is not None)])
    if older:
        slurm.scancel(older, pending_only=True)


def _emit(console: Console, request: Request, folder: Path, limits: Limits) -> int:
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"emit={folder} holds files already; give an empty or a new folder")
    ledger = read_ledger(request.store)
    plan = _plan(request, ledger)
    write_grid_of(request)
    if not plan.to_run:
        console.print("nothing to submit, nothing written")
        return OK
    launch, indices, _ = _make_launch(request, plan, None)
    groups = _groups(plan, request, launch, limits)
    earlier = [s.job_id for s in ledger.of_grid(request.grid, "runs") if s.job_id is not None]
    live = sorted({slurm.base_id(e.job_id) for e in slurm.squeue(earlier) if e.state in ("PENDING", "RUNNING")})
    script = emit(folder.absolute(), launch, groups, ledger, indices, live)
    console.print(
        f"wrote {len(groups) + 1} job scripts; send them with: bash {script}", highlight=False, soft_wrap=True
    )
    return OK


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _say_how_to_watch(console: Console, request: Request) -> None:
    where = "" if request.runtime.store_dir == "results" else f" store.dir={request.runtime.store_dir}"
    console.print(
        f"watch: python jobs/status.py grid={request.grid}{where} watch=true", highlight=False, soft_wrap=True
    )
    console.print(f"the finish job writes the table to {request.store.report(request.grid)}", soft_wrap=True)


# ---------------------------------------------------------------------------------------------------------------- wait
def _wait(console: Console, request: Request, limits: Limits, wave: _Wave, source: Path | None) -> int:
    """Until everything of the grid has ended and the finish job has; more is sent as places become free."""
    if wave.left and not wave.sent:
        console.print(f"{wave.left} runs wait for places in the queue")
    told: dict[str, str] = {}
    away_since: float | None = None
    starving_since: float | None = None
    ended_since: float | None = None
    while True:
        ledger = read_ledger(request.store)
        run_ids = runs_of(request.grid, request.store, ledger)
        snapshot = take_snapshot(run_ids, request.store, ledger, needs=needs_of(request.store, ledger, run_ids))
        states = snapshot.states
        live = any(state.is_live for state in states.values())
        _tell_changes(console, states, told)
        try:
            if snapshot.slurm_error is not None:
                raise SlurmDown(snapshot.slurm_error)
            if wave.left:
                wave, source = _submit(console, request, limits, source, wave)
                starving_since = None if wave.sent or live else starving_since or time.monotonic()
                if starving_since is not None and time.monotonic() - starving_since > STARVING_S:
                    raise MachineError(f"{wave.left} runs find no place in SLURM's queue; free some, and launch again")
            elif not live:
                ended_since = ended_since or time.monotonic()
                if _finish_ended(ledger, request) or time.monotonic() - ended_since > FINISH_GRACE_S:
                    break
            away_since = None
        except SlurmDown as error:
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > CONTROLLER_AWAY_S:
                raise SlurmDown(f"{error}; the jobs go on, jobs/status.py shows them") from error
        time.sleep(request.cluster.poll_s)
    show_results(console, request)
    show_usage(console, list(states), request.store)
    return _show_endings(console, states)


def _finish_ended(ledger: Ledger, request: Request) -> bool:
    jobs = [s.job_id for s in ledger.of_grid(request.grid, "finish") if s.job_id is not None]
    live = (e for e in slurm.squeue(jobs) if e.state in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING"))
    return next(live, None) is None


def _tell_changes(console: Console, states: Mapping[str, RunState], told: dict[str, str]) -> None:
    """One line per run that has started, ended, or changed its mind since the last look."""
    counts = Counter(s.state for s in states.values())
    for run_id, state in states.items():
        if told.get(run_id, "pending") == state.state or state.state in ("pending", "not submitted", "unknown"):
            continue
        told[run_id] = state.state
        why = f"  {state.reason}" if state.reason and state.state != "running" else ""
        where = f"  on {state.node}" if state.node and state.state == "running" else ""
        console.print(
            f"[{counts['done']}/{len(states)}] {state.state:<9} {run_id}{where}{why}", highlight=False, soft_wrap=True
        )


def _show_endings(console: Console, states: Mapping[str, RunState]) -> int:
    failed = [s for s in states.values() if s.state in ENDED]
    for state in failed:
        name = state.failure_class or state.state
        step = f"; {NEXT_STEP[name]}" if name in NEXT_STEP and "launch again" not in state.reason else ""
        console.print(f"{name}: {state.run_id}: {state.reason}{step}", style="red", highlight=False, soft_wrap=True)
    return FAILED if failed or any(s.state != "done" for s in states.values()) else OK


# --------------------------------------------------------------------------------------------------------------- retry
def relaunch(grid: str, store: StorePaths, run_ids: Sequence[str], overrides: Sequence[str]) -> int:
    """Submit these runs of a grid again, and what needs them, as they were launched; `overrides`: of cluster.*.

    Raises ConfigError where one of them was never sent to SLURM from this store.
    """
    launches = dict.fromkeys(s.launch for s in read_ledger(store).submissions if s.grid == grid)
    payloads = [job.read_payload(launch / "specs.json") for launch in launches]
    runs = {run.run_id: run for payload in payloads for run in payload.runs}
    unknown = [run_id for run_id in run_ids if run_id not in runs]
    if unknown or not payloads:
        raise ConfigError(f"{(unknown or [grid])[0]} was not sent to SLURM from {store.root}; use jobs/launch_grid.py")
    wanted = set(run_ids)
    for run in runs.values():  # needed ones come first in every payload
        if wanted.intersection((*run.needs, *(e.run_id for e in run.extractions))):
            wanted.add(run.run_id)
    found = (payload.configuration(run) for payload in payloads for run in payload.runs if run.run_id in wanted)
    newest = payloads[-1]
    request = load_retry(
        list({c.run.run_id: c for c in found if c is not None}.values()),
        list(runs.values()),
        newest.runtime,
        cluster_config=newest.cluster,
        notify=newest.notify,
        overrides=overrides,
    )
    return carry_out(make_console(), request)
