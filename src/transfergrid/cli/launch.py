"""jobs/launch_grid.py: plan the grid, show the plan, carry it out, show the comparison table."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from rich.console import Console

from transfergrid import tracking
from transfergrid.cli.before import look_at_folders, made_ready, plan_here
from transfergrid.cli.console import JSON, OK, make_console, progress_line, run_script
from transfergrid.cli.expected import expected_dry, expected_now, note_launch, say_expected
from transfergrid.cli.for_programs import answer_of_grid, exit_code_of, expected_as_json, plan_as_json, print_json
from transfergrid.cli.grid_file import assert_keeps_rows, write_grid_of
from transfergrid.cli.progress import watching
from transfergrid.cli.screen import show_endings, show_plan, show_results
from transfergrid.cluster import local, slurm
from transfergrid.config import Request, load_grid
from transfergrid.config.arguments import CFG, without_cfg
from transfergrid.config.help import MOST_USED, OF_LAUNCH, Help
from transfergrid.errors import ConfigError, MachineError
from transfergrid.phases import phase_module
from transfergrid.planning.plan import Plan
from transfergrid.planning.wall import Expected, expected_of
from transfergrid.resources import ClusterSettings
from transfergrid.store import durable

MIRROR_WAIT_S = 60.0

HELP = Help(
    script="launch_grid.py",
    purpose="Plan a grid of models x datasets x phases x variants x seeds, show the plan, carry it out, show the table."
    " Run it again to go on: what is done is reused. A launch that would take rows with results out of a grid is"
    " refused; grid_name=NAME makes another grid beside it.",
    examples=(
        " # the quickstart: minutes on a laptop, no GPU, no network",
        "grid=individual_vs_parallel dry_run=true",
        "grid=compare dataset=image_folder dataset.folder=DIR",
        "grid=compare dataset=mnist 'grid.models=[resnet18,vgg16]' cluster=slurm",
        "--cfg grid=quickstart  # prints the configuration; starts nothing",
    ),
    keys=OF_LAUNCH,
    first=MOST_USED,
)


def main() -> int:
    return run_script(launch, HELP, flags=(*CFG, JSON))


def launch(arguments: Sequence[str]) -> int:
    """Exit code 0 when every configuration of the grid has completed, 1 when some failed."""
    if (others := without_cfg(arguments)) is not None:
        from transfergrid.config.printed import printed_grid

        print(printed_grid(others), end="")
        return OK
    as_json = JSON in arguments
    arguments = [argument for argument in arguments if argument != JSON]
    request = load_grid(arguments, progress=progress_line("checking", in_logs=True))
    if not as_json:
        return carry_out(request)
    plan = plan_here(request)
    content = plan_as_json(request.grid, plan)
    code = carry_out(request, on_stderr=True)
    if not request.dry_run:
        expected = expected_of(request.store.grid(request.grid))
    else:
        is_here = request.cluster.kind == "local" or (request.cluster.kind == "auto" and not slurm.answers())
        expected = expected_dry(plan, on_cpu_without_gpus(request)) if is_here else None
    content["expected"] = expected_as_json(expected)
    answer = None if request.dry_run else answer_of_grid(request.grid, request.store)
    print_json(content, answer)
    return exit_code_of(code, answer)


def carry_out(request: Request, *, on_stderr: bool = False) -> int:
    """Plan, show, run or submit, report: what launch_grid and run_phase share."""
    console = make_console(on_stderr=on_stderr)
    assert_keeps_rows(console, request)
    submits = runs_on_slurm(console, request.cluster)
    tracking.validate(request.runtime, sends=not submits)
    if submits:
        from transfergrid.cli import on_slurm

        return on_slurm.carry_out(console, measured_in_jobs(request))
    if request.emit is not None:
        raise ConfigError("emit=DIR writes SLURM job scripts; it needs cluster=slurm")
    request = on_cpu_without_gpus(request)
    plan = plan_here(request)

    def run(ready: Request, expected: Expected | None) -> list[local.Ended]:
        with watching(console, ready.store, len(plan.to_run), expected) as watcher:
            return local.run_plan(plan, ready.runtime, watcher)

    return run_and_show(console, plan, request, run)


def run_and_show(
    console: Console,
    plan: Plan,
    request: Request,
    run: Callable[[Request, Expected | None], list[local.Ended]],
    *,
    runs_follow: bool = True,
    one_by_one: bool = False,
) -> int:
    """Show the plan, run it in one way or another, show the results: what a launch on this machine and a sweep share.

    runs_follow: as made_ready's. one_by_one: runs share no time, though there are several GPUs. Exit code 0 when
    everything has completed, 1 when some failed.
    """
    show_plan(console, plan, request)
    if request.dry_run and runs_follow:
        say_expected(console, expected_dry(plan, request, one_by_one=one_by_one))
    look_at_folders(console, plan, request)
    ready = made_ready(console, plan, request, runs_follow=runs_follow)
    if ready is None:
        return OK
    expected = None
    if runs_follow and plan.to_run:
        expected = expected_now(console, plan, ready, one_by_one=one_by_one)
        say_expected(console, expected)
    with contextlib.ExitStack() as at_work:
        at_work.enter_context(durable.lock(ready.store.launching(ready.grid), wait=False))
        with durable.lock(ready.store.collecting, wait=True):
            _assert_still_done(plan, ready)
            write_grid_of(console, ready, expected)
        mirror = tracking.start_mirror(ready.runtime, ready.configurations)
        began = time.monotonic()
        try:
            endings = run(ready, expected)
            ran_s = time.monotonic() - began
        finally:
            at_work.close()
            tracking.wait_for_mirror(mirror, MIRROR_WAIT_S, by_hand=tracking.by_hand(ready.runtime))
    began = time.monotonic()
    show_results(console, ready)
    if expected is not None:
        note_launch(ready, expected, endings, ran_s=ran_s, report_s=time.monotonic() - began)
    return show_endings(console, plan, endings)


def _assert_still_done(plan: Plan, request: Request) -> None:
    """Before the grid lists them, nothing keeps runs that are to be reused. Raises MachineError where one is gone."""
    for planned in plan.runs:
        if planned.state == "reuse" and not phase_module(planned.run.phase).is_done(planned.run, request.runtime):
            raise MachineError(f"{planned.run.run_id} was removed while this was planned", remedy="launch again")


def on_cpu_without_gpus(request: Request) -> Request:
    """cluster.gpus=0 means the CPU, also on a machine that has a GPU."""
    if request.runtime.device != "auto" or request.cluster.resources.gpus > 0:
        return request
    return replace(request, runtime=replace(request.runtime, device="cpu"))


def measured_in_jobs(request: Request) -> Request:
    """profile=true on SLURM: what a node measured once, whichever it was, is not measured again."""
    if request.runtime.profile == "no":
        return request
    return replace(request, runtime=replace(request.runtime, profile="in a job"))


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
