"""jobs/run_phase.py: one configuration by hand, with what it needs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from transfergrid.cli.console import OK, make_console, progress_line, run_script
from transfergrid.cli.launch import carry_out
from transfergrid.cluster import slurm
from transfergrid.cluster.ownership import requeue_this_job
from transfergrid.config import Request, load_run
from transfergrid.config.arguments import CFG, MULTIRUN, without_cfg
from transfergrid.config.help import MOST_USED_OF_RUN, OF_RUN, Help
from transfergrid.config.spelling import command, folder_value
from transfergrid.errors import ConfigError
from transfergrid.phases import phase_module
from transfergrid.planning.plan import make_plan

HELP = Help(
    script="run_phase.py",
    purpose="Run one configuration here: model, dataset, phase and seed. What it needs is run first, unless"
    " needs=check. With -m, keys may hold several values, and every combination is run.",
    examples=(
        "model=resnet18+googlenet dataset=mnist phase=probe",
        "model=baseline_cnn dataset=image_folder dataset.folder=DIR phase=scratch",
        "phase=evaluate run=RUN_ID dataset=cifar10",
        "again=RUN_ID",
        "phase=evaluate model=resnet50 dataset=imagenet dataset.folder=DIR",
        "-m model=resnet18,googlenet phase=probe 'seed=range(0,3)'",
        "-m cluster=slurm hydra/launcher=slurm model=vgg16,resnet18",
    ),
    keys=OF_RUN,
    first=MOST_USED_OF_RUN,
)


def main() -> int:
    return run_script(run_phase, HELP, flags=(*CFG, *MULTIRUN))


def run_phase(arguments: Sequence[str]) -> int:
    if (others := without_cfg(arguments)) is not None:
        from transfergrid.config.printed import printed_run

        if any(flag in arguments for flag in MULTIRUN):
            raise ConfigError("--cfg shows one configuration; leave -m out")
        print(printed_run(others), end="")
        return OK
    if any(flag in arguments for flag in MULTIRUN):
        from transfergrid.cli.sweep import sweep

        return sweep([a for a in arguments if a not in MULTIRUN])
    request = load_run(arguments, progress=progress_line("checking", in_logs=True))
    if any(argument.startswith("again=") for argument in arguments) and _is_done(request):
        return OK
    if request.needs_only_checked:
        _assert_needs_done(request)
    return _in_this_job(request) if slurm.inside_job() and request.cluster.kind != "local" else carry_out(request)


def _is_done(request: Request) -> bool:
    """Whether the run of `again=` is done; then that is said, and how it is computed anew."""
    run = request.configurations[0].run
    if not phase_module(run.phase).is_done(run, request.runtime):
        return False
    folder = request.store.run(run.run_id).root
    anew = command("run_phase.py", f"again={folder_value(str(folder))}", "store.dir=DIR")
    message = f"{run.run_id} is done: its results are in {folder}\nto compute it anew, into another store DIR: {anew}"
    make_console().print(message, highlight=False, markup=False, soft_wrap=True)
    return True


def _in_this_job(request: Request) -> int:
    """Inside a SLURM job the run is carried out right here, with the job's GPU if it has one; told to stop, the job
    saves and goes back into the queue."""
    runtime = request.runtime
    has_gpu = os.environ.get("SLURM_GPUS_ON_NODE", "0") not in ("", "0")
    if runtime.device == "auto" and has_gpu and request.cluster.resources.gpus > 0:
        runtime = replace(runtime, device="cuda")
    try:
        return carry_out(replace(request, runtime=runtime, cluster=replace(request.cluster, kind="local")))
    except KeyboardInterrupt as stopped:
        if stopped.args:  # by a signal of SLURM's, not by Ctrl-C
            requeue_this_job()
        raise


def _assert_needs_done(request: Request) -> None:
    own = {c.run.run_id for c in request.configurations}
    plan = make_plan(own, request.runs, request.runtime)
    missing = [p.run.run_id for p in plan.runs if p.run.run_id not in own and p.state != "reuse"]
    if missing:
        raise ConfigError(
            f"needs=check: {', '.join(missing)} must complete first", remedy="leave needs= out to run them here"
        )
