"""jobs/run_phase.py: one configuration by hand, with what it needs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from transfergrid.cli.console import hashing_progress, run_script
from transfergrid.cli.launch import carry_out
from transfergrid.cluster import slurm
from transfergrid.cluster.requeue import requeue_this_job
from transfergrid.config import Request, load_run
from transfergrid.config.help import help_for
from transfergrid.errors import ConfigError
from transfergrid.planning.plan import make_plan

HELP = help_for(
    "run_phase.py",
    "Run one configuration here: model, dataset, phase and seed. What it needs is run first, unless needs=check.",
    (
        "model=resnet18+googlenet dataset=mnist phase=probe seed=0",
        "model=baseline_cnn dataset=image_folder dataset.folder=DIR phase=scratch",
        "phase=evaluate run=RUN_ID dataset=cifar10",
        "phase=evaluate model=resnet50 dataset=image_folder dataset.folder=IMAGENET",
        "-m model=resnet18,googlenet phase=probe seed=range(0,3)   one run after the other",
        "-m cluster=slurm hydra/launcher=slurm model=resnet18,googlenet phase=probe",
    ),
)


def main() -> int:
    return run_script(run_phase, HELP)


def run_phase(arguments: Sequence[str]) -> int:
    if any(flag in arguments for flag in ("-m", "--multirun")):
        from transfergrid.cli.sweep import sweep

        return sweep([a for a in arguments if a not in ("-m", "--multirun")])
    request = load_run(arguments, progress=hashing_progress())
    if request.needs_only_checked:
        _assert_needs_done(request)
    return _in_this_job(request) if slurm.inside_job() and request.cluster.kind != "local" else carry_out(request)


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
