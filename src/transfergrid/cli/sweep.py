"""`run_phase.py -m key=a,b ...`: a run per combination, by Hydra's basic launcher or by hydra-submitit-launcher."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rich.console import Console

from transfergrid import tracking
from transfergrid.cli.before import plan_here
from transfergrid.cli.console import BAD_ARGUMENTS, count, make_console, progress_line, say
from transfergrid.cli.launch import measured_in_jobs, run_and_show
from transfergrid.cli.progress import watching
from transfergrid.cluster import accounting, ledger, local, slurm
from transfergrid.cluster.adopt import adopt, adopt_intents
from transfergrid.cluster.batch_script import ASKS_FOR_REQUEUE, ends_in_one_line, prelude
from transfergrid.cluster.limits import read_limits
from transfergrid.cluster.ownership import here, is_alive, new_token, requeue_this_job
from transfergrid.cluster.possible import assert_possible, fitted
from transfergrid.cluster.run_state import RunState
from transfergrid.cluster.settle import settle
from transfergrid.cluster.slurm_words import meaning
from transfergrid.cluster.snapshot import take_snapshot_of_code
from transfergrid.cluster.states import take_snapshot
from transfergrid.config import Request
from transfergrid.config.sweep import Sweep, launch_line, load_sweep, run_sweep
from transfergrid.errors import ConfigError, MachineError, one_line
from transfergrid.names import some
from transfergrid.paths import typed
from transfergrid.planning import job
from transfergrid.planning.plan import Plan, PlannedRun
from transfergrid.planning.wall import Expected
from transfergrid.specs import RunSpec
from transfergrid.store import durable
from transfergrid.training.stopping import StopFlag


def sweep(arguments: Sequence[str]) -> int:
    """Exit code 0 when every combination has completed, 1 when some failed, 2 where what they need is missing."""
    multirun = load_sweep(arguments, progress=progress_line("checking", in_logs=True))
    on_slurm = multirun.launcher == "slurm"
    if on_slurm:
        multirun = _assert_slurm_can(multirun)
        multirun = replace(multirun, request=measured_in_jobs(multirun.request))
    multirun = _with_its_device(multirun, on_slurm=on_slurm)
    request = multirun.request
    tracking.validate(request.runtime, sends=True)
    if on_slurm and not request.dry_run:
        adopt_intents(ledger.read_ledger(request.store), alone=False)  # a sweep that still waits has no job's id yet
    plan = plan_here(request)
    if request.needs_only_checked and (missing := _missing(plan)):
        line, names = launch_line(multirun, missing), some([run.run_id for run in missing], 3)
        remedy = f"; make what is missing by: {line}" if line else ""
        # Whole, however long the command is.
        print(f"error: needs=check: {names} must complete first{remedy}", file=sys.stderr)
        return BAD_ARGUMENTS
    console, carry = make_console(), _on_slurm if on_slurm else _here

    def run(ready: Request, expected: Expected | None) -> list[local.Ended]:
        return carry(console, replace(multirun, request=ready), plan.to_run, expected) if plan.to_run else []

    return run_and_show(console, plan, request, run, runs_follow=not on_slurm, one_by_one=True)


# ------------------------------------------------------------------------------------------------------------- checking
def _assert_slurm_can(multirun: Sweep) -> Sweep:
    """The sweep as this cluster can carry it out.

    Raises ConfigError where SLURM does not answer, keeps no accounts, or has no node for such a job.
    """
    instead = f"use {typed('launch_grid.py')}"
    if not slurm.answers():
        raise ConfigError(
            f"cluster={multirun.request.cluster.name}: SLURM does not answer here", remedy="submit from a login node"
        )
    resources = multirun.resources
    limits = read_limits(account=resources.account, qos=resources.qos)
    # The launcher asks sacct alone how a job ended, and waits for ever for one that died without a word.
    if not limits.accounting or accounting.sacct(["1"], since=datetime.now(UTC)) is None:
        raise ConfigError("hydra/launcher=slurm needs SLURM's accounting, but sacct does not answer", remedy=instead)
    resources, note = fitted(resources, limits, what="sweep")
    if note is not None:
        say(make_console(), note)
    assert_possible(resources, limits, what="sweep")
    if len(multirun.request.configurations) > limits.max_array_size:
        raise ConfigError(
            f"a sweep is one job array, of at most {limits.max_array_size} runs on this cluster", remedy=instead
        )
    return replace(multirun, request=replace(multirun.request, cluster=multirun.request.cluster.all_as(resources)))


def _with_its_device(multirun: Sweep, *, on_slurm: bool) -> Sweep:
    """A job that asked for a GPU is to use it, or to fail; what asked for none computes on the CPU."""
    runtime = multirun.request.runtime
    if runtime.device != "auto" or (multirun.resources.gpus > 0 and not on_slurm):
        return multirun
    device: Literal["cuda", "cpu"] = "cuda" if multirun.resources.gpus > 0 else "cpu"
    return replace(multirun, request=replace(multirun.request, runtime=replace(runtime, device=device)))


def _missing(plan: Plan) -> list[RunSpec]:
    """What the sweep's own runs need and is not done: no run of a sweep waits for another."""
    needed = {need for p in plan.to_run for need in (*(e.run_id for e in p.run.extractions), *p.run.needs)}
    return [p.run for p in plan.runs if p.run.run_id in needed and p.state != "reuse"]


# -------------------------------------------------------------------------------------------------- on this machine
def _here(
    console: Console, multirun: Sweep, todo: Sequence[PlannedRun], expected: Expected | None
) -> list[local.Ended]:
    """By Hydra's basic launcher: one run after the other, each in a child of the local pool."""
    request = multirun.request
    planned = {p.run.run_id: p for p in todo}
    endings: list[local.Ended] = []
    with watching(console, request.store, len(todo), expected) as watcher:

        def task(payload: str, run_id: str) -> None:
            endings.extend(local.run_plan(Plan((planned[run_id],)), request.runtime, watcher))

        launch_name = f"{datetime.now(UTC).strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(4)}"
        payload = request.store.launches / launch_name / "specs.json"  # the pool writes one of its own for each run
        name = f"sweep-{launch_name}"
        folder = payload.parent / "slurm" / name
        run_sweep(task, list(planned), sweep=multirun, payload=payload, name=name, folder=folder)
    return endings


# --------------------------------------------------------------------------------------------------------- on SLURM
def _on_slurm(console: Console, multirun: Sweep, todo: Sequence[PlannedRun], _: Expected | None) -> list[local.Ended]:
    """By hydra-submitit-launcher: one job array, waited for."""
    from transfergrid.cluster.submit import slurm_environment  # submitit

    store = multirun.request.store
    variants = {c.run.run_id: c.variant for c in multirun.request.configurations}
    payload = job.write_payload(
        [p.run for p in todo], multirun.request.runtime, variants, cluster=multirun.request.cluster_config
    )
    submission = ledger.Submission(
        name=f"sweep-{payload.parent.name}",
        grid=multirun.request.grid,
        launch=payload.parent,
        tasks=tuple((p.run.run_id,) for p in todo),
        submitted=datetime.now(UTC),
        gpus=multirun.resources.gpus,
        cluster=here().name,
        token=new_token(),
        uid=os.getuid(),
        sender="sweep",
    )
    ledger.record(submission)  # without a job's id, which the launcher does not tell
    try:
        setup = _write_setup(submission, multirun, take_snapshot_of_code(payload.parent))
    except BaseException:  # as of a full disk: nothing half-copied stays
        shutil.rmtree(payload.parent, ignore_errors=True)
        raise
    waiting = "waiting for them" if len(todo) > 1 else "waiting for it"
    say(console, f"{count(len(todo), 'job')} named {submission.job_name}; {waiting}")
    run_ids = [p.run.run_id for p in todo]
    try:
        with slurm_environment():
            _launch(run_ids, multirun, payload, submission, setup)
        _wait_for(submission.job_name, multirun.request.cluster.poll_s)
    except KeyboardInterrupt:
        print(f"the jobs continue; to end them: scancel --name={submission.job_name}", file=sys.stderr)
        raise
    adopt([submission])
    known = ledger.read_ledger(store)
    states = take_snapshot(run_ids, store, known).states
    settle(states, store, known)
    return [_ended(p.run, states[p.run.run_id]) for p in todo]


def _launch(run_ids: Sequence[str], multirun: Sweep, payload: Path, submission: ledger.Submission, setup: Path) -> None:
    """Returns when all jobs have left a result, or the first has ended without one. Raises MachineError where SLURM
    took none; SlurmDown where it cannot be asked, and then all stays as it is."""
    try:
        name, folder = submission.job_name, submission.folder
        run_sweep(on_node, run_ids, sweep=multirun, payload=payload, name=name, folder=folder, setup=setup)
    except Exception as error:
        # By name, since submitit is known to `cluster` alone: a job that ended without a result, as failed runs' do.
        if type(error).__name__ != "UncompletedJobError":
            # What was taken all the same has lost its launcher. Where no queue is shown, nothing is taken away.
            slurm.scancel(e.job_id for e in slurm.squeue(names=[submission.job_name]) if e.name == submission.job_name)
            shutil.rmtree(payload.parent, ignore_errors=True)
            raise MachineError(f"SLURM did not take the sweep: {one_line(error)}") from error


def _write_setup(submission: ledger.Submission, multirun: Sweep, code: Path) -> Path:
    """What each job does before python. A file, because Hydra would take the shell's ${NAME} for its own."""
    cpus = "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"  # srun since 22.05 does not take it from the job
    lines = prelude(multirun.request.cluster, code, cpus, token=submission.token)
    folder = submission.folder
    durable.make_folder(folder)
    durable.write_bytes(folder / "setup.sh", os.fsencode("\n".join([*lines, ""])))
    return (folder / "setup.sh").resolve()


def on_node(payload: str, run_id: str) -> None:
    """What the job of one run does. SystemExit, because Hydra keeps any Exception to itself, and SLURM would then show
    a failed run as COMPLETED."""
    stop = StopFlag()
    try:
        with ends_in_one_line(), stop.installed():
            work = job.read_payload(Path(payload))
            work.assert_same_code()
            run = next(r for r in work.runs if r.run_id == run_id)
            outcome = job.carry_out(run, work.runtime, stop=stop, is_alive=is_alive)
            if outcome == "interrupted" and requeue_this_job() == "cannot ask":
                raise SystemExit(ASKS_FOR_REQUEUE)
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
    print(f"{outcome}: {run_id}", flush=True)
    if outcome not in ("completed", "reused"):
        raise SystemExit(1)


def _wait_for(name: str, poll_s: float) -> None:
    """Until no job of this name is left. The launcher itself waits for results, and not after the first that failed."""
    while True:
        try:
            if all(meaning(entry.state).kind == "ended" for entry in slurm.squeue(names=[name])):
                return
        except slurm.SlurmDown:
            pass  # a controller that restarts knows its jobs again
        time.sleep(poll_s)


def _ended(run: RunSpec, state: RunState) -> local.Ended:
    endings: dict[str, local.Ending] = {"done": "completed", "failed": "failed", "cancelled": "interrupted"}
    endings |= {"unknown": "in flight", "pending": "in flight", "running": "in flight"}  # as far as SLURM tells
    return local.Ended(run, endings.get(state.state, "lost"), state.reason, state.failure_class, state.remedy)
