"""What a launch shows: the plan before it, and after it results, failures and what the runs used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from rich.console import Console

from transfergrid.cli.cautions import cautions, inventories, lonely_joins
from transfergrid.cli.console import FAILED, OK, say
from transfergrid.cli.plan_view import show_runs
from transfergrid.cluster import local
from transfergrid.cluster.run_state import Failure
from transfergrid.config import Request
from transfergrid.config.spelling import command_of_grid
from transfergrid.names import printable
from transfergrid.paths import StorePaths
from transfergrid.planning.plan import STATES, Plan
from transfergrid.store.bills import read_bill
from transfergrid.store.records import RunRecord, read_record


def show_plan(console: Console, plan: Plan, request: Request) -> None:
    for note in request.notes:
        say(console, printable(note))
    counts = plan.counts()
    counted = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    rows = f"{len(request.configurations)} configuration{'s' if len(request.configurations) != 1 else ''}"
    say(console, f"grid {request.grid}: {rows}; with what they need: {counted or 'nothing to do'}")
    show_runs(console, plan, {c.run.run_id: c.variant for c in request.configurations})
    for text, is_odd in inventories(request.facts):
        say(console, text, style="yellow" if is_odd else None)
    runs = [c.run for c in request.configurations]
    for line in (*cautions(runs, request.facts), *(lonely_joins(runs) if request.replaces_grid else ())):
        say(console, line, style="yellow")


def show_results(console: Console, request: Request, *, reported: bool = False) -> None:
    """reported: SLURM's finish job has made the report, figures and all; it is not made again without them."""
    from transfergrid.cli.report import show_report

    console.print()
    evaluations = {c.run.run_id for c in request.configurations if c.run.phase == "evaluate"}
    figures = None if reported else request.runtime.report_figures is True
    show_report(console, [request.grid], request.store, figures=figures, evaluations=evaluations)
    if reported:
        return
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


# -------------------------------------------------------------------------------------------------------------- usage
def show_usage(console: Console, run_ids: Sequence[str], store: StorePaths) -> None:
    """What runs used of what they were given, for the next launch's settings: a row per phase, model and data set."""
    from transfergrid.cli.tables import rich_table
    from transfergrid.report.analysis.costs import cost_of
    from transfergrid.report.blocks import plain

    kinds: dict[tuple[str, str, str], list[RunRecord]] = {}
    for record in (read_record(store.run(run_id)) for run_id in run_ids):
        if record is not None and record.status == "completed" and record.usage:
            kind = (record.spec.phase, record.spec.model, record.spec.dataset.name)
            kinds.setdefault(kind, []).append(record)
    if not kinds:
        return
    header = ("phase", "model", "dataset", "runs", "own wall s", "CPU", "memory", "GPU busy", "GPU memory")
    lines = [(*kind, str(len(rows)), *_figures([row.usage for row in rows])) for kind, rows in kinds.items()]
    console.print()
    console.print(rich_table(plain(header, lines, left=3)))
    total_s = sum(cost_of(row, read_bill(store.run(row.run_id))).gpu_s for rows in kinds.values() for row in rows)
    if total_s:
        console.print(f"GPU time used by these runs alone: {total_s / 3600:.2f} h")


def _figures(used: Sequence[Mapping[str, Any]]) -> list[str]:
    """Wall seconds, cores busy of those given, memory of that given, GPU busy, GPU memory."""
    cores = mean(u["cpu_s"] / u["wall_s"] if u["wall_s"] else 0.0 for u in used)
    peak_gib = max(u["max_rss_mib"] for u in used) / 1024
    given_mib = used[0]["memory_mib"]
    busy = [u["gpu_utilisation"] for u in used if u["gpu_utilisation"] is not None]
    gpu_mib = [u["gpu_memory_mib"] for u in used if u["gpu_memory_mib"] is not None]
    return [
        f"{mean(u['wall_s'] for u in used):.1f}",
        f"{cores:.1f} of {used[0]['cpus']}",
        f"{peak_gib:.1f}" + (f" of {given_mib / 1024:.1f} GiB" if given_mib else " GiB"),
        f"{mean(busy):.0%}" if busy else "-",
        f"{max(gpu_mib) / 1024:.1f} GiB" if gpu_mib else "-",
    ]
