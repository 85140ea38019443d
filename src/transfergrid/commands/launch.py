"""jobs/launch_grid.py: plan the grid, show the plan, carry it out, show the comparison table."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from transfergrid import durable, tracking
from transfergrid.backbones.weight_files import Taken
from transfergrid.cluster import local, slurm
from transfergrid.cluster.child import Answer, ask, gpus_for
from transfergrid.cluster.ledger import Ledger, read_ledger
from transfergrid.cluster.states import Snapshot, take_snapshot
from transfergrid.commands.cautions import cautions, inventories
from transfergrid.commands.console import FAILED, OK, hashing_progress, make_console, run_script
from transfergrid.commands.grid_file import assert_keeps_rows, write_grid_of
from transfergrid.commands.progress import watching
from transfergrid.config import Request, load_grid
from transfergrid.config.help import help_for
from transfergrid.config.spelling import command_of_grid
from transfergrid.errors import ConfigError, DataError, MachineError, StoreFull, next_step
from transfergrid.paths import StorePaths
from transfergrid.plan import STATES, Plan, PlannedRun, make_plan
from transfergrid.resources import ClusterSettings
from transfergrid.specs import EvaluateSettings, ProbeSettings, RunSpec, Runtime

if TYPE_CHECKING:
    from rich.console import Console

FOLD_ABOVE = 40  # rows of the plan
MIRROR_WAIT_S = 60.0

HELP = help_for(
    "launch_grid.py",
    "Plan a grid of models x datasets x phases x variants x seeds, show the plan, carry it out, show the table.\n"
    "A grid goes by its file's name, by grid_name=NAME, or for grid=compare by its data: compare-<data set>. A launch\n"
    "that would take rows with results out of a grid is refused: grid_name=NAME makes another one beside it,\n"
    "replace=true takes its name and keeps the former grid and report under a dated one.",
    (
        "python jobs/launch_grid.py                                    the quickstart, minutes on a laptop",
        "python jobs/launch_grid.py dry_run=true                       show the plan, write nothing",
        "python jobs/launch_grid.py grid=individual_vs_parallel grid.datasets=[mnist] weights=random",
        "python jobs/launch_grid.py select_by=balanced_accuracy        choices on val by it, or macro_f1",
        "python jobs/launch_grid.py cluster=slurm wait=true            SLURM jobs; wait for the table",
        "python jobs/launch_grid.py cluster=slurm emit=DIR             write the job scripts instead of sending them",
        "python jobs/launch_grid.py grid=compare dataset=image_folder dataset.folder=DIR 'grid.models=[resnet18]'",
    ),
)


def main() -> int:
    return run_script(launch, HELP)


def launch(arguments: Sequence[str]) -> int:
    """Exit code 0 when every configuration of the grid has completed, 1 when some failed."""
    request = load_grid(arguments, progress=hashing_progress())
    return carry_out(request)


def carry_out(request: Request) -> int:
    """Plan, show, run or submit, report: what launch_grid and run_phase share."""
    console = make_console()
    assert_keeps_rows(console, request)
    submits = runs_on_slurm(console, request.cluster)
    tracking.validate(request.runtime, sends=not submits)
    if submits:
        from transfergrid.commands import on_slurm

        return on_slurm.carry_out(console, request)
    if request.emit is not None:
        raise ConfigError("emit=DIR writes SLURM job scripts; it needs cluster=slurm")
    request = on_cpu_without_gpus(request)
    in_queue = queued(sent_states(request))
    plan = make_plan([c.run.run_id for c in request.configurations], request.runs, request.runtime, queued=in_queue)
    show_plan(console, plan, request)
    if request.dry_run:
        check_without_writing(console, plan, request.runtime, runs_follow=True)
        console.print("dry run: nothing was started or written")
        return OK
    prepare_folders(request.runtime)
    preflight(console, plan, request.runtime, runs_follow=True)
    write_grid_of(console, request)
    mirror = tracking.start_mirror(request.runtime, request.configurations)
    try:
        with watching(console, request.store, len(plan.to_run)) as watcher:
            endings = local.run_plan(plan, request.runtime, watcher)
    finally:
        tracking.wait_for_mirror(mirror, MIRROR_WAIT_S, by_hand=tracking.by_hand(request.runtime))
    show_results(console, request)
    return show_failures(console, plan, endings)


def relaunch(
    grid: str, store: StorePaths, run_ids: Sequence[str], overrides: Sequence[str], *, though_unknown: bool = False
) -> int:
    """Submit these runs of a grid to SLURM again, and what needs them; `overrides`: `cluster.*` of a command line.
    though_unknown: on the user's word, though SLURM may still have them."""
    from transfergrid.commands import retry

    return retry.relaunch(grid, store, run_ids, overrides, though_unknown=though_unknown)


def on_cpu_without_gpus(request: Request) -> Request:
    """cluster.gpus=0 means the CPU, also on a machine that has a GPU."""
    if request.runtime.device != "auto" or request.cluster.resources.gpus > 0:
        return request
    return replace(request, runtime=replace(request.runtime, device="cpu"))


def runs_on_slurm(console: Console, cluster: ClusterSettings) -> bool:
    """`auto` is SLURM where its controller answers at once and this is not inside a job already; it says what it is."""
    if cluster.kind != "auto":
        return cluster.kind == "slurm"
    if not slurm.answers():
        if shutil.which("sbatch") is not None:
            console.print("SLURM does not answer: running here; cluster=slurm submits once it does")
        return False
    if slurm.inside_job():
        console.print("inside a SLURM job: running here; cluster=slurm submits")
        return False
    console.print("SLURM answers: submitting to it; cluster=local runs here")
    return True


def sent_states(request: Request, ledger: Ledger | None = None) -> Snapshot:
    """The states of this store's runs that were sent to SLURM."""
    ledger = ledger or read_ledger(request.store)
    sent = dict.fromkeys(r for s in ledger.submissions for task in s.tasks for r in task)
    return take_snapshot(sent, request.store, ledger, grid=request.grid)


def queued(snapshot: Snapshot) -> dict[str, str]:
    """Runs that SLURM has, or may have, with a word on each: they are not sent again."""
    found = {}
    for run_id, state in snapshot.states.items():
        if state.undecided:
            found[run_id] = f"unknown: {state.reason}"
        elif state.is_live and (state.job_id is not None or state.state == "unknown"):
            job = f"job {state.job_id} " if state.job_id is not None else ""
            found[run_id] = f"{job}{state.state}" + (f": {state.reason}" if state.reason else "")
    return found


# ---------------------------------------------------------------------------------------------------------------- plan
def show_plan(console: Console, plan: Plan, request: Request) -> None:
    for note in request.notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    counts = plan.counts()
    told = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    rows = f"{len(request.configurations)} configuration{'s' if len(request.configurations) != 1 else ''}"
    console.print(f"grid {request.grid}: {rows}; with what they need: {told or 'nothing to do'}", highlight=False)
    _show_runs(console, plan, request)
    for text, is_odd in inventories(request.facts):
        console.print(text, style="yellow" if is_odd else None, highlight=False, markup=False, soft_wrap=True)
    for line in cautions((c.run for c in request.configurations), request.facts):
        console.print(line, style="yellow", highlight=False, soft_wrap=True)


def _show_runs(console: Console, plan: Plan, request: Request) -> None:
    if len(plan.runs) <= FOLD_ABOVE:
        variants = {c.run.run_id: c.variant for c in request.configurations}
        for planned in plan.runs:
            run = planned.run
            # What the readable part of its name does not say.
            more = run.weights_label if run.phase == "extract" else variants.get(run.run_id, "")
            name = f"{run.run_id} ({more})" if more else run.run_id
            console.print(f"  {planned.state:<9} {name}  {planned.why}", highlight=False, soft_wrap=True)
        return
    groups: dict[tuple[str, str, str], list[PlannedRun]] = {}
    for planned in plan.runs:
        groups.setdefault((planned.state, planned.run.phase, planned.run.dataset.name), []).append(planned)
    for (state, phase, dataset), members in groups.items():
        models = list(dict.fromkeys(p.run.model for p in members))
        shown = ", ".join(models[:6]) + (f" and {len(models) - 6} more" if len(models) > 6 else "")
        console.print(
            f"  {state:<9} {len(members):>5} x {phase} on {dataset}: {shown}", highlight=False, soft_wrap=True
        )
        for planned in members[:3] if state in ("blocked", "in flight") else ():
            console.print(f"            {planned.run.run_id}  {planned.why}", highlight=False, soft_wrap=True)


# -------------------------------------------------------------------------------------------------------- before a run
def prepare_folders(runtime: Runtime) -> None:
    """Make store and cache, and write to each once. A folder that cannot be written is a bad argument."""
    for folder in (Path(runtime.store_dir), Path(runtime.cache_dir)):
        try:
            durable.make_folder(folder)
            probe = durable.temporary_beside(folder / "writable")
            with durable.explained(folder):
                probe.write_bytes(b"?")
                probe.unlink()
        except StoreFull:
            raise
        except (MachineError, OSError) as error:
            reason = error.strerror or type(error).__name__ if isinstance(error, OSError) else error
            raise ConfigError(_unusable(folder, reason)) from error


def preflight(console: Console, plan: Plan, runtime: Runtime, *, runs_follow: bool) -> None:
    """The GPU, data and weights of what is about to run, the latter fetched where there is a network, and verified.

    runs_follow: they are carried out by this process's children. Raises MachineError where device=cuda cannot be.
    """
    runs = [p.run for p in plan.to_run]
    if not runs:
        return
    # The first use of torch, some seconds: say what the silence is.
    with console.status("checking data and weights"):
        if runs_follow:
            _tell_device(console, runtime)
        answer = ask(check_inputs, (runs, runtime), runs_follow=runs_follow)
    _tell(console, answer)


def check_without_writing(console: Console, plan: Plan, runtime: Runtime, *, runs_follow: bool) -> None:
    """What a dry run can say of what prepare_folders() and preflight() refuse: nothing is written or fetched, and torch
    is loaded, in a child, only where the user names weights files or asks for a GPU. Raises as they do."""
    for folder in (Path(runtime.store_dir), Path(runtime.cache_dir)):
        there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        if not os.access(there, os.W_OK | os.X_OK):
            raise ConfigError(_unusable(folder, os.strerror(errno.EACCES)))
    if runs_follow and runtime.device == "cuda" and plan.to_run:
        _tell_device(console, runtime)
    runs = [p.run for p in plan.to_run if reads_file(p.run)]
    if runs:
        with console.status("checking weights files"):
            _tell(console, ask(check_weights, (runs, runtime), runs_follow=False))


def _tell(console: Console, answer: Answer) -> None:
    if answer.error is not None:
        raise DataError(answer.error)
    for line in answer.value:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _unusable(folder: Path, reason: object) -> str:
    return f"{folder} cannot be used ({reason}); give another store.dir= or cache.dir="


def _tell_device(console: Console, runtime: Runtime) -> None:
    """One line where a GPU stays unused, or none is there; each run would say it to its own log alone."""
    found = gpus_for(runtime)
    if found.problem is None:
        return
    if found.visible:
        console.print(f"not every GPU is used: {found.problem}", style="yellow", highlight=False, soft_wrap=True)
    elif runtime.device == "cuda":
        raise MachineError(f"device=cuda, but torch can use no GPU here: {found.problem}; device=cpu goes without")
    else:
        console.print(f"runs compute on the CPU: {found.problem}", highlight=False, soft_wrap=True)


def check_inputs(runs: Sequence[RunSpec], runtime: Runtime) -> tuple[str, ...]:
    """A line on what is taken of each of the user's weights files. Raises DataError for the first data set or weights
    that cannot be used. Loads torch where there are weights to check: call it in a child."""
    from transfergrid import data

    for dataset in dict.fromkeys(run.dataset for run in runs):
        folder = runtime.data_folders.get(dataset.name)
        data.find(dataset.kind, data_dir=Path(runtime.data_dir), folder=None if folder is None else Path(folder))
    return check_weights(runs, runtime)


def check_weights(runs: Sequence[RunSpec], runtime: Runtime) -> tuple[str, ...]:
    """The weights' part of check_inputs()."""
    from transfergrid.backbones.build import build
    from transfergrid.phases.evaluate import network_from_file

    told: list[tuple[bool, Taken]] = []
    evaluated = {run for run in runs if isinstance(run.settings, EvaluateSettings)}
    for run in runs:
        if isinstance(run.settings, EvaluateSettings) and reads_file(run):
            network_from_file(run, runtime, told=partial(_note, told, True))
    on_features = {r for r in runs if isinstance(r.settings, ProbeSettings) and r.settings.source == "features"}
    others = (run for run in runs if run not in on_features and not (run in evaluated and reads_file(run)))
    for backbone in dict.fromkeys(b for run in others for b in run.backbones):
        if not backbone.weights.identity.startswith("random:"):
            build(
                backbone,
                weights_dir=Path(runtime.weights_dir),
                weights_files=runtime.weights_files,
                told=partial(_note, told, backbone.weights.is_file),
            )
    return tuple(dict.fromkeys(taken.line for is_users, taken in told if is_users or not taken.is_plain))


def _note(told: list[tuple[bool, Taken]], is_users: bool, taken: Taken) -> None:
    told.append((is_users, taken))


def reads_file(run: RunSpec) -> bool:
    """Whether a run reads a weights file of the user's."""
    if isinstance(run.settings, EvaluateSettings):
        if run.settings.source.startswith("run:"):
            return False
        if run.settings.source.startswith("file:"):
            return True
    return any(b.weights.is_file for b in run.backbones)


# --------------------------------------------------------------------------------------------------------------- after
def show_results(console: Console, request: Request, *, reported: bool = False) -> None:
    """reported: SLURM's finish job has made the report, figures and all; it is not made again without them."""
    from transfergrid.commands.report import show_report

    console.print()
    if reported:
        show_report(console, [request.grid], request.store, figures=None)
        return
    figures = request.runtime.report_figures is True
    show_report(console, [request.grid], request.store, figures=figures)
    if request.runtime.tracking == "online":  # the runs are there, the table is not
        line = command_of_grid("report.py", request.grid, request.store, "publish=true")
        console.print(f"in W&B, with figures: {line}", highlight=False, soft_wrap=True)
    elif not figures:
        line = command_of_grid("report.py", request.grid, request.store)
        console.print(f"with figures: {line}", highlight=False, soft_wrap=True)


def show_failures(console: Console, plan: Plan, endings: Sequence[local.Ended]) -> int:
    """Each run that did not complete, with class, reason and next step."""
    failed = [e for e in endings if e.ending not in ("completed", "reused")]
    waiting = [p for p in plan.runs if p.state in ("blocked", "in flight")]
    for ended in failed:
        name = ended.failure_class or ended.ending
        step = "" if ended.failure_class is None else next_step(name, ended.remedy)
        text = "; ".join(filter(None, (f"{name}: {ended.run.run_id}: {ended.reason}", step)))
        console.print(text, style="red", highlight=False, soft_wrap=True)
    for planned in waiting:
        style = "red" if planned.state == "blocked" else "yellow"
        text = f"{planned.state}: {planned.run.run_id}: {planned.why}"
        console.print(text, style=style, highlight=False, soft_wrap=True)
    return FAILED if failed or any(p.state == "blocked" for p in waiting) else OK
