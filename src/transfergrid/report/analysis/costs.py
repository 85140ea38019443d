"""What runs cost: seconds and GPU seconds of all their attempts, of what they are made from, and in all.

SLURM's bill counts where the store has one (bills.py). Else what the record says of its attempts: their wall time, on
the GPUs they had. A record of an earlier release says neither, and stands with the seconds of its phase.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import fsum
from statistics import fmean
from typing import Any, Literal

from transfergrid.errors import DataError
from transfergrid.paths import StorePaths
from transfergrid.store import records
from transfergrid.store.bills import Bill, read_bill
from transfergrid.store.records import RunRecord

Source = Literal["accounting", "attempts", "phase"]
_SOURCES: dict[Source, str] = {
    "accounting": "as SLURM's accounting bills them (AllocTRES x elapsed, runs that share a job by their own time)",
    "attempts": "from the start and end of their attempts, times the GPUs they had (no bill of SLURM's)",
    "phase": "of their phase alone, because their records are of an earlier release and hold nothing else",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCost:
    """wall_s, gpu_s: of all attempts, those that failed or were requeued included; but for `unended` ones, which were
    killed, so that nothing but SLURM's accounting could tell how long they were."""

    wall_s: float
    gpu_s: float
    source: Source
    unended: int = 0


@dataclass(frozen=True, slots=True)
class Spent:
    """By run_id, of every run of a grid and of all that these are made from, in however many steps.

    needs: what each is made from itself. extractions: those of them that have completed. without_record: runs that
    are needed and have none.
    """

    costs: Mapping[str, RunCost] = field(default_factory=dict)
    needs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    extractions: frozenset[str] = frozenset()
    without_record: frozenset[str] = frozenset()

    def upstream(self, run_id: str) -> set[str]:
        """All that a run is made from, each once."""
        upstream: set[str] = set()
        frontier = set(self.needs.get(run_id, ()))
        while frontier:
            upstream |= frontier
            frontier = {need for run in frontier for need in self.needs.get(run, ())} - upstream
        return upstream

    def whole(self, run_ids: Iterable[str]) -> set[str]:
        """These runs and all they are made from, each once."""
        return {run for run_id in run_ids for run in (run_id, *self.upstream(run_id))}

    def is_known(self, run_ids: Iterable[str] | None = None) -> bool:
        """Whether nothing that these runs, all by default, are made from lacks a record."""
        return not self.without_record if run_ids is None else self.without_record.isdisjoint(self.whole(run_ids))

    def means(self, run_ids: Iterable[str]) -> dict[str, Any]:
        """Columns of the row whose runs these are, see ComparisonRow: without what it is made from where that is not
        known."""
        runs = list(run_ids)
        own, upstream, full = (
            [self.total(part) for part in parts]
            for parts in ([[run] for run in runs], map(self.upstream, runs), [self.whole([run]) for run in runs])
        )
        means: dict[str, Any] = {"wall_s": fmean(s for s, _ in own), "gpu_s": fmean(s for _, s in own)}
        if self.is_known(runs):
            means |= {"upstream_gpu_s": fmean(s for _, s in upstream)}
            means |= {"full_wall_s": fmean(s for s, _ in full), "full_gpu_s": fmean(s for _, s in full)}
        return means

    def total(self, run_ids: Iterable[str] | None = None) -> tuple[float, float]:
        """(wall seconds, GPU seconds) of these runs, of all by default: what several share is in it once."""
        costs = [self.costs[run_id] for run_id in set(self.costs if run_ids is None else run_ids) & self.costs.keys()]
        return fsum(c.wall_s for c in costs), fsum(c.gpu_s for c in costs)  # whatever their order


def cost_of(record: RunRecord, bill: Bill | None) -> RunCost:
    if bill is not None and bill.jobs:
        return _billed(bill)
    if record.attempts:
        gpus = 1 if record.on_gpu else 0
        times = [(a.wall_s or 0.0, gpus if a.gpus is None else a.gpus) for a in record.attempts]
        unended = sum(a.wall_s is None for a in record.attempts)
        wall_s, gpu_s = sum(s for s, _ in times), sum(s * n for s, n in times)
        return RunCost(wall_s=wall_s, gpu_s=gpu_s, source="attempts", unended=unended)
    return RunCost(wall_s=record.phase_s, gpu_s=record.phase_s if record.on_gpu else 0.0, source="phase")


def _billed(bill: Bill) -> RunCost:
    return RunCost(wall_s=bill.wall_s, gpu_s=bill.gpu_s, source="accounting")


def spent_on(run_ids: Iterable[str], run_records: Mapping[str, RunRecord], store: StorePaths) -> Spent:
    """run_ids: of a grid; run_records: their records that have been read, failed ones too. What else these need is read
    here; what has no record and a bill has been paid for, too."""
    all_records: dict[str, RunRecord] = dict(run_records)
    needs: dict[str, tuple[str, ...]] = {}
    without_record: set[str] = set()
    frontier = list(all_records)
    while frontier:
        run_id = frontier.pop()
        spec = all_records[run_id].spec
        needs[run_id] = tuple(dict.fromkeys((*spec.needs, *(run.run_id for run in spec.extractions))))
        for need in needs[run_id]:
            if need in all_records or need in without_record:
                continue
            if record := _record(need, store):
                all_records[need] = record
                frontier.append(need)
            else:
                without_record.add(need)
    bills = {run_id: read_bill(store.run(run_id)) for run_id in {*all_records, *run_ids, *without_record}}
    costs = {run_id: cost_of(record, bills[run_id]) for run_id, record in all_records.items()}
    costs |= {run_id: _billed(bill) for run_id, bill in bills.items() if bill is not None and run_id not in all_records}
    extractions = {i for i, r in all_records.items() if r.spec.phase == "extract" and r.status == "completed"}
    return Spent(costs, needs, frozenset(extractions), frozenset(without_record))


def _record(run_id: str, store: StorePaths) -> RunRecord | None:
    try:
        record = records.read_record(store.run(run_id))
    except DataError:
        return None
    return record if record is not None and record.run_id == run_id else None


def joined(several: Iterable[Spent]) -> Spent:
    """Of grids of one store: what they share is one run's cost."""
    whole = Spent()
    for spent in several:
        whole = Spent(
            {**whole.costs, **spent.costs},
            {**whole.needs, **spent.needs},
            whole.extractions | spent.extractions,
            whole.without_record | spent.without_record,
        )
    return whole


# ------------------------------------------------------------------------------------------------------------ in words
def in_words(spent: Spent) -> list[str]:
    """Paragraphs below the table of costs: the extractions, the total, where the seconds are from."""
    texts = []
    if spent.extractions:
        texts.append(
            f"Feature extraction, shared by all rows and in their full seconds alone:"
            f" {_runs(len(spent.extractions))}, {_seconds(*spent.total(spent.extractions))}."
        )
    if spent.costs:
        texts += [total_text(spent), _basis(spent)]
    return texts


def total_text(spent: Spent) -> str:
    return f"In all, what several rows share counted once: {_runs(len(spent.costs))}, {_seconds(*spent.total())}."


def _basis(spent: Spent) -> str:
    sources = [cost.source for cost in spent.costs.values()]
    parts = [f"{_runs(sources.count(s))} {words}" for s, words in _SOURCES.items() if s in sources]
    unended = sum(cost.unended for cost in spent.costs.values())
    unknown = len(spent.without_record - spent.costs.keys())
    gaps = [f"{_runs(unknown)} without a record"] if unknown else []
    gaps += [f"{unended} attempt{'' if unended == 1 else 's'} that ended without a word"] if unended else []
    return f"Seconds are those of {'; of '.join(parts)}." + (f" Not in it: {', '.join(gaps)}." if gaps else "")


def _runs(number: int) -> str:
    return f"{number} run{'' if number == 1 else 's'}"


def _seconds(wall_s: float, gpu_s: float) -> str:
    return f"{wall_s:,.1f} s wall, {gpu_s:,.1f} s GPU"
