"""jobs/run_phase.py: one configuration by hand, with what it needs."""

from __future__ import annotations

from collections.abc import Sequence

from transfergrid.commands.console import hashing_progress, run_script
from transfergrid.commands.launch import carry_out
from transfergrid.config import Request, load_run
from transfergrid.config.help import help_for
from transfergrid.errors import ConfigError
from transfergrid.plan import make_plan

HELP = help_for(
    "run_phase.py",
    "Run one configuration here: model, dataset, phase and seed. What it needs is run first, unless needs=check.",
    (
        "python jobs/run_phase.py model=resnet18+googlenet dataset=mnist phase=probe seed=0",
        "python jobs/run_phase.py model=baseline_cnn dataset=image_folder dataset.folder=DIR phase=scratch",
        "python jobs/run_phase.py phase=evaluate run=RUN_ID dataset=cifar10",
        "python jobs/run_phase.py phase=evaluate model=resnet50 dataset=image_folder dataset.folder=IMAGENET",
    ),
)


def main() -> int:
    return run_script(run_phase, HELP)


def run_phase(arguments: Sequence[str]) -> int:
    request = load_run(arguments, progress=hashing_progress())
    if request.needs_only_checked:
        _assert_needs_done(request)
    return carry_out(request)


def _assert_needs_done(request: Request) -> None:
    own = {c.run.run_id for c in request.configurations}
    plan = make_plan(own, request.runs, request.runtime)
    missing = [p.run.run_id for p in plan.runs if p.run.run_id not in own and p.state != "reuse"]
    if missing:
        raise ConfigError(f"needs=check: {', '.join(missing)} must complete first; leave needs= out to run them here")
