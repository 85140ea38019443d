"""What a launch shows: the plan before it, the results and the failures after it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from transfergrid.cli.cautions import cautions, inventories
from transfergrid.cli.console import FAILED, OK, say
from transfergrid.cluster import local
from transfergrid.cluster.run_state import Failure
from transfergrid.config import Request
from transfergrid.config.spelling import command_of_grid
from transfergrid.names import printable, some
from transfergrid.planning.plan import STATES, Plan, PlannedRun

if TYPE_CHECKING:
    from rich.console import Console


FOLD_ABOVE = 40  # rows of the plan


def show_plan(console: Console, plan: Plan, request: Request) -> None:
    for note in request.notes:
        say(console, printable(note))
    counts = plan.counts()
    told = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    rows = f"{len(request.configurations)} configuration{'s' if len(request.configurations) != 1 else ''}"
    say(console, f"grid {request.grid}: {rows}; with what they need: {told or 'nothing to do'}")
    _show_runs(console, plan, request)
    for text, is_odd in inventories(request.facts):
        say(console, text, style="yellow" if is_odd else None)
    for line in cautions((c.run for c in request.configurations), request.facts):
        say(console, line, style="yellow")


def _show_runs(console: Console, plan: Plan, request: Request) -> None:
    if len(plan.runs) <= FOLD_ABOVE:
        variants = {c.run.run_id: c.variant for c in request.configurations}
        for planned in plan.runs:
            run = planned.run
            # What the readable part of its name does not say.
            more = run.weights_label if run.phase == "extract" else variants.get(run.run_id, "")
            name = f"{run.run_id} ({more})" if more else run.run_id
            say(console, f"  {planned.state:<9} {name}  {planned.why}")
        return
    groups: dict[tuple[str, str, str], list[PlannedRun]] = {}
    for planned in plan.runs:
        groups.setdefault((planned.state, planned.run.phase, planned.run.dataset.name), []).append(planned)
    for (state, phase, dataset), members in groups.items():
        models = list(dict.fromkeys(p.run.model for p in members))
        say(console, f"  {state:<9} {len(members):>5} x {phase} on {dataset}: {some(models, 6)}")
        for planned in members[:3] if state in ("blocked", "in flight") else ():
            say(console, f"            {planned.run.run_id}  {planned.why}")


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
        say(console, f"{what}: {line}")
        return
    if request.runtime.tracking == "offline":
        line = command_of_grid("sync.py", request.grid, request.store)
        say(console, f"to send the numbers to W&B: {line}")
    if not figures:
        line = command_of_grid("report.py", request.grid, request.store)
        say(console, f"with figures: {line}")


def show_failures(console: Console, failures: Iterable[Failure | None]) -> bool:
    """A line for each run that did not complete: class, reason and next step. Returns whether there is one."""
    failed = [failure for failure in failures if failure is not None]
    for failure in failed:
        say(console, failure.line, style="red")
    return bool(failed)


def show_endings(console: Console, plan: Plan, endings: Sequence[local.Ended]) -> int:
    """What did not complete, and what was not begun."""
    failed = show_failures(console, (ended.failure for ended in endings))
    waiting = [p for p in plan.runs if p.state in ("blocked", "in flight")]
    for planned in waiting:
        style = "red" if planned.state == "blocked" else "yellow"
        say(console, f"{planned.state}: {planned.run.run_id}: {planned.why}", style=style)
    return FAILED if failed or any(p.state == "blocked" for p in waiting) else OK
