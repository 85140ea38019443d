"""jobs/launch_grid.py: plan the grid, show the plan, carry it out, show the comparison table."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from transfergrid import tracking
from transfergrid.cli.before import (
    check_without_writing,
    preflight,
    prepare_folders,
    queued,
    sent_states,
    with_tracking_decided,
)
from transfergrid.cli.console import OK, hashing_progress, make_console, run_script
from transfergrid.cli.grid_file import assert_keeps_rows, write_grid_of
from transfergrid.cli.progress import watching
from transfergrid.cli.shown import show_endings, show_plan, show_results
from transfergrid.cluster import local, slurm
from transfergrid.config import Request, load_grid
from transfergrid.config.arguments import CFG, without_cfg
from transfergrid.config.help import MOST_USED, OF_LAUNCH, Help
from transfergrid.errors import ConfigError
from transfergrid.planning.plan import make_plan
from transfergrid.resources import ClusterSettings

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
    return run_script(launch, HELP, flags=CFG)


def launch(arguments: Sequence[str]) -> int:
    """Exit code 0 when every configuration of the grid has completed, 1 when some failed."""
    if (others := without_cfg(arguments)) is not None:
        from transfergrid.config.printed import printed_grid

        print(printed_grid(others), end="")
        return OK
    return carry_out(load_grid(arguments, progress=hashing_progress()))


def carry_out(request: Request) -> int:
    """Plan, show, run or submit, report: what launch_grid and run_phase share."""
    console = make_console()
    assert_keeps_rows(console, request)
    submits = runs_on_slurm(console, request.cluster)
    tracking.validate(request.runtime, sends=not submits)
    if submits:
        from transfergrid.cli import on_slurm

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
    request = with_tracking_decided(console, request)
    write_grid_of(console, request)
    mirror = tracking.start_mirror(request.runtime, request.configurations)
    try:
        with watching(console, request.store, len(plan.to_run)) as watcher:
            endings = local.run_plan(plan, request.runtime, watcher)
    finally:
        tracking.wait_for_mirror(mirror, MIRROR_WAIT_S, by_hand=tracking.by_hand(request.runtime))
    show_results(console, request)
    return show_endings(console, plan, endings)


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
