"""What a launch shows: the plan before it, the results and the failures after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from transfergrid.cli.cautions import cautions, inventories
from transfergrid.cli.console import FAILED, OK
from transfergrid.cluster import local
from transfergrid.config import Request
from transfergrid.config.spelling import command_of_grid
from transfergrid.errors import next_step
from transfergrid.names import shown
from transfergrid.planning.plan import STATES, Plan, PlannedRun

if TYPE_CHECKING:
    from rich.console import Console


FOLD_ABOVE = 40  # rows of the plan


def show_plan(console: Console, plan: Plan, request: Request) -> None:
    for note in request.notes:
        console.print(shown(note), highlight=False, markup=False, soft_wrap=True)
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


def show_results(console: Console, request: Request, *, reported: bool = False) -> None:
    """reported: SLURM's finish job has made the report, figures and all; it is not made again without them."""
    from transfergrid.cli.report import show_report

    console.print()
    if reported:
        show_report(console, [request.grid], request.store, figures=None)
        return
    figures = request.runtime.report_figures is True
    show_report(console, [request.grid], request.store, figures=figures)
    if request.runtime.tracking == "online":  # the runs are there, the table is not
        line = command_of_grid("report.py", request.grid, request.store, "publish=true")
        what = "in W&B, with figures" if request.runtime.wandb_images else "in W&B"
        console.print(f"{what}: {line}", highlight=False, soft_wrap=True)
        return
    if request.runtime.tracking == "offline":
        line = command_of_grid("sync.py", request.grid, request.store)
        console.print(f"to send the numbers to W&B: {line}", highlight=False, soft_wrap=True)
    if not figures:
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
