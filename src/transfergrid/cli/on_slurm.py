"""launch_grid on SLURM: plan, show what it will cost, submit, and leave; or, with wait=true, stay until it is done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from transfergrid.cli import sending
from transfergrid.cli.before import look_at_folders, made_ready
from transfergrid.cli.console import FAILED, OK, count, say
from transfergrid.cli.grid_file import write_grid_of
from transfergrid.cli.screen import show_plan
from transfergrid.cluster.emit import emit
from transfergrid.cluster.finish_job import Place, find_place, finish_resources, is_due
from transfergrid.cluster.ledger import read_ledger
from transfergrid.cluster.limits import Limits, read_limits, unseen_limits
from transfergrid.cluster.possible import assert_possible, fitted, start_estimate
from transfergrid.cluster.run_state import RunState
from transfergrid.cluster.slurm import SlurmDown, SlurmRefused
from transfergrid.config import Request
from transfergrid.config.spelling import command_of_grid
from transfergrid.errors import ConfigError
from transfergrid.planning.cost import ADVISED_RUNS_PER_JOB, Estimate, estimate, gpu_hours, packing_advice
from transfergrid.planning.plan import Plan


def carry_out(console: Console, request: Request) -> int:
    """Exit code 0 when submitted, or with wait=true when all completed; 1 when some failed."""
    if "%" in str(Path(request.runtime.store_dir).absolute()):
        raise ConfigError(
            f"store.dir={request.runtime.store_dir}: SLURM reads % in the names of its log files", remedy="rename it"
        )
    limits = _limits(console, request)
    plan, snapshot = sending.plan_now(request, read_ledger(request.store))
    yielded: list[str] = []
    if limits is None:
        limits, finishing = unseen_limits(), Place(finish_resources(request.cluster))
    else:
        request, yielded = _fitted(request, limits, plan)
        finishing = _assert_possible(plan, request, limits, is_finish_due=is_due(snapshot.finish))
    show_plan(console, plan, request)
    for line in [*snapshot.elsewhere, finishing.note, _finish_again(snapshot.finish)]:
        if line:
            say(console, line, style="yellow")
    for line in yielded:
        say(console, line)
    _show_cost(console, plan, request, limits)
    if finishing.refusal:
        raise ConfigError(finishing.refusal)
    sending.assert_room(plan, request, limits)
    look_at_folders(console, plan, request)
    ready = made_ready(console, plan, request, runs_follow=False, not_done="submitted")
    if ready is None:
        return OK
    submitting = sending.Submitting(ready, limits, finishing.resources)
    if ready.emit is not None:
        return _emit(console, submitting, Path(ready.emit))
    sending.submit(console, submitting)
    if not ready.wait:
        _say_how_to_watch(console, submitting)
        return FAILED if submitting.num_waiting or submitting.is_finish_due else OK
    from transfergrid.cli.waiting import wait

    return wait(console, submitting)


def _limits(console: Console, request: Request) -> Limits | None:
    """What the cluster allows; None where it does not answer, and nothing is to be sent."""
    resources = request.cluster.resources
    try:
        return read_limits(account=resources.account, qos=resources.qos)
    except (SlurmDown, SlurmRefused) as error:
        if not request.dry_run and request.emit is None:
            remedy = "nothing was sent, launch again when it does"
            raise type(error)(f"SLURM does not answer ({error})", remedy=remedy) from error
        text = f"SLURM does not answer ({error}): the request was not checked against the cluster"
        say(console, text, style="yellow")
        return None


def _fitted(request: Request, limits: Limits, plan: Plan) -> tuple[Request, list[str]]:
    """The request with defaults that yield to what the partitions have, and a line about each that does."""
    settings = request.cluster
    common, note = fitted(settings.resources, limits, what="jobs")
    lines = {} if note is None else {common: note}
    by_phase = {}
    for phase in dict.fromkeys((*(p.run.phase for p in plan.to_run), *settings.by_phase)):
        by_phase[phase], note = fitted(settings.of_phase(phase), limits, what=f"phase {phase}")
        if note is not None:
            lines.setdefault(by_phase[phase], note)
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
    known = sum(e.basis == "records" for e in estimates.values())
    some = f"{known} of {len(estimates)} from records, the rest from FLOPs" if known else "from FLOPs, no records yet"
    basis = "from records" if known == len(estimates) else some
    wall_h = sum(e.seconds for e in estimates.values()) / 3600
    cost = f"{hours:.2f} GPU-hours" if hours else f"{wall_h:.2f} hours without a GPU"
    jobs = count(sending.num_jobs(plan, request.cluster.runs_per_job), "job")
    say(console, f"{jobs} and a finish job; expected {cost} ({basis})")
    expected = start_estimate(request.cluster, phases) if limits.here.name else {}
    for phase_names, text in expected.items():
        say(console, f"SLURM expects {phase_names} jobs {text}")
    packed_jobs = sending.num_jobs(plan, ADVISED_RUNS_PER_JOB)
    advice = packing_advice(estimates, runs_per_job=request.cluster.runs_per_job, packed_jobs=packed_jobs)
    if advice is not None:
        say(console, advice)


def _emit(console: Console, submitting: sending.Submitting, folder: Path) -> int:
    request = submitting.request
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"emit={folder} holds files already", remedy="give an empty or a new folder")
    ledger = read_ledger(request.store)
    plan, _ = sending.plan_now(request, ledger)
    write_grid_of(console, request)
    if not plan.to_run:
        console.print("nothing to submit, nothing written")
        return OK
    launch, indices = sending.make_launch(submitting, plan)
    groups = sending.groups_of(plan, request, launch, submitting.limits)
    live = sending.alive_jobs(ledger, request.grid, submitting.limits.here)
    script = emit(folder.absolute(), launch, groups, ledger, indices, live)
    scripts = count(len(groups) + 1, "job script")
    say(console, f"wrote {scripts}; send them with: bash {script}")
    return OK


def _say_how_to_watch(console: Console, submitting: sending.Submitting) -> None:
    request = submitting.request
    line = command_of_grid("status.py", request.grid, request.store, "watch=true")
    say(console, f"watch: {line}")
    table = request.store.report(request.grid) / "comparison.md"
    by_hand = command_of_grid("report.py", request.grid, request.store)
    if submitting.has_finish:
        text = f"the finish job writes {table}; until then: {by_hand}"
    elif submitting.num_waiting or submitting.is_finish_due:
        what = (
            count(submitting.num_waiting, "run") + " and the finish job" if submitting.num_waiting else "the finish job"
        )
        text = f"SLURM's queue had no place for {what}: launch again, or use wait=true; the table until then: {by_hand}"
    else:
        text = f"the table: {by_hand}"
    say(console, text)
