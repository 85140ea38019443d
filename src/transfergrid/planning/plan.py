"""Which configurations remain, in which order, and on what each waits. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from transfergrid.errors import next_step
from transfergrid.paths import store_paths
from transfergrid.phases import extract, phase_module
from transfergrid.specs import PHASES, RunSpec, Runtime
from transfergrid.store import durable
from transfergrid.store.attempts import describe_owner
from transfergrid.store.provenance import code_hash
from transfergrid.store.records import record_head

State = Literal["run", "reuse", "in flight", "blocked"]
NOT_YET = "not done yet"  # why most runs are to be run
STATES: tuple[State, ...] = ("run", "reuse", "in flight", "blocked")


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """needs: run_ids of runs that must complete first, to be run or in SLURM's queue. why: for people."""

    run: RunSpec
    state: State
    why: str
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """Every run of a grid and every run those need, needed ones first."""

    runs: tuple[PlannedRun, ...]

    @property
    def to_run(self) -> tuple[PlannedRun, ...]:
        return tuple(p for p in self.runs if p.state == "run")

    def counts(self) -> Counter[State]:
        return Counter(p.state for p in self.runs)


def make_plan(
    rows: Iterable[str],
    runs: Mapping[str, RunSpec],
    runtime: Runtime,
    *,
    queued: Mapping[str, str] | None = None,
    can_wait: Container[str] = (),
) -> Plan:
    """rows: run_ids of the grid's configurations; runs: these and what they need. Reads the store and the cache only.

    queued: runs that SLURM has, with a word on each. can_wait: those of them for which what needs them can be sent to
    wait.
    A run that is only needed by others is left out where nothing that needs it remains to be run.
    """
    planner = _Planner(dict(runs), runtime, queued or {}, can_wait)
    run_ids = dict.fromkeys(rows)
    frontier = list(run_ids)
    while frontier:
        needed = dict.fromkeys(need for run_id in frontier for need in planner.worth_showing(run_id))
        frontier = [run_id for run_id in needed if run_id not in run_ids]
        run_ids |= needed
    decided = [planner.decide(run_id) for run_id in run_ids]
    return Plan(tuple(sorted(decided, key=lambda p: PHASES.index(p.run.phase))))


@dataclass(slots=True)
class _Planner:
    """Decides each run once. Lives for one make_plan. runs: gains the extractions that they need."""

    runs: dict[str, RunSpec]
    runtime: Runtime
    queued: Mapping[str, str]
    can_wait: Container[str]
    decided: dict[str, PlannedRun] = field(default_factory=dict)

    def decide(self, run_id: str) -> PlannedRun:
        if run_id not in self.decided:
            self.decided[run_id] = self._decide(self.runs[run_id])
        return self.decided[run_id]

    def worth_showing(self, run_id: str) -> list[str]:
        """Of what a run needs: all if it is to run; only what holds it up if it is blocked, so nothing runs in vain."""
        planned = self.decide(run_id)
        if planned.state not in ("run", "blocked"):
            return []
        needs = self._needs(planned.run)
        return [n for n in needs if planned.state == "run" or self.decide(n).state in ("blocked", "in flight")]

    def _decide(self, run: RunSpec) -> PlannedRun:
        paths = store_paths(self.runtime).run(run.run_id)
        if phase_module(run.phase).is_done(run, self.runtime):
            return PlannedRun(run, "reuse", "features are cached" if run.phase == "extract" else "completed before")
        if run.run_id in self.queued:
            return PlannedRun(run, "in flight", self.queued[run.run_id])
        if durable.is_locked(paths.lock):
            return PlannedRun(run, "in flight", describe_owner(paths))
        needs = self._needs(run)
        head = record_head(paths)
        if head is not None and head.failure_class in ("code", "data") and head.code_hash == code_hash():
            what = "; ".join(filter(None, (head.error, head.remedy)))
            again = f"delete {paths.record} to try it again"
            return PlannedRun(run, "blocked", f"failed before, nothing has changed: {what}; {again}")
        for need in needs:
            other = self.decide(need)
            if other.state in ("blocked", "in flight") and not self._can_wait_for(other):
                return PlannedRun(run, "blocked", f"waits for {need}, which is {other.state}")
        why = NOT_YET
        if run.phase == "extract" and (damaged := extract.damaged(run, self.runtime)) is not None:
            why = f"{damaged}: extracted again"
        if run.phase == "evaluate" and head is not None and head.status == "completed":
            why = "completed before: using its network is measured"
        elif head is not None and head.failure_class is not None:
            why = f"failed before ({head.failure_class}): {next_step(head.failure_class, head.remedy)}"
        elif paths.checkpoints.is_dir() and any(paths.checkpoints.iterdir()):
            why = "continues from its checkpoint"
        pending = tuple(n for n in needs if self.decide(n).state == "run" or self._can_wait_for(self.decide(n)))
        return PlannedRun(run, "run", why, pending)

    def _can_wait_for(self, other: PlannedRun) -> bool:
        return other.state == "in flight" and other.run.run_id in self.can_wait

    def _needs(self, run: RunSpec) -> tuple[str, ...]:
        extractions = run.extractions
        self.runs |= {e.run_id: e for e in extractions}
        return tuple(e.run_id for e in extractions) + tuple(n for n in run.needs if n in self.runs)
