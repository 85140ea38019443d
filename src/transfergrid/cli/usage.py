"""What runs used of what they were given, for the next launch's cluster settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from rich.console import Console

from transfergrid.paths import StorePaths
from transfergrid.report.analysis.costs import cost_of
from transfergrid.store.bills import read_bill
from transfergrid.store.records import RunRecord, read_record


def show_usage(console: Console, run_ids: Sequence[str], store: StorePaths) -> None:
    """One row per kind of run (phase, model, data set): wall time, CPU, memory and GPU in use."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    kinds: dict[tuple[str, str, str], list[RunRecord]] = {}
    for run_id in run_ids:
        record = read_record(store.run(run_id))
        if record is not None and record.status == "completed" and record.usage:
            kind = (record.spec.phase, record.spec.model, record.spec.dataset.name)
            kinds.setdefault(kind, []).append(record)
    if not kinds:
        return
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, title_justify="left")
    for name in ("phase", "model", "dataset", "runs", "mean wall s", "CPU", "memory", "GPU busy", "GPU memory"):
        table.add_column(name, justify="left" if name in ("phase", "model", "dataset") else "right")
    for (phase, model, dataset), records in kinds.items():
        used = [record.usage for record in records]
        table.add_row(phase, model, dataset, str(len(records)), *_figures(used))
    total_s = sum(
        cost_of(record, read_bill(store.run(record.run_id))).gpu_s for records in kinds.values() for record in records
    )
    console.print()
    console.print(table)
    if total_s:
        console.print(f"GPU time used: {total_s / 3600:.2f} h")


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
