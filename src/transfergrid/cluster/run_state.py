"""The noun that status, launch and report speak of: what is true of one run now; and what follows for it from the runs
that it is made from, as the launches that sent them say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from graphlib import TopologicalSorter
from typing import Literal

from transfergrid.cluster.evidence import Case, payload_of
from transfergrid.cluster.ledger import Ledger
from transfergrid.errors import next_step
from transfergrid.specs import RunSpec

State = Literal[
    "done",
    "failed",
    "running",
    "pending",
    "blocked",
    "cancelled",
    "lost",
    "unknown",
    "not submitted",
    "waiting",  # this and the next two are of a grid that is launched on this machine
    "interrupted",
    "not started",
]


ENDED: tuple[State, ...] = ("failed", "lost", "blocked", "cancelled")


@dataclass(frozen=True, slots=True)
class Failure:
    """How a run ended that did not complete. kind: its failure class, or how else it ended. step: what to do."""

    run_id: str
    kind: str
    reason: str
    step: str

    @property
    def what(self) -> str:
        return f"{self.kind}: {self.run_id}: {self.reason}"

    @property
    def line(self) -> str:
        return f"{self.what}; {self.step}" if self.step else self.what


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """reason: one line for people: why it waits, how it ended. failure_class: of failed, blocked, cancelled and lost.
    remedy: what helps, where that is not what helps its class; see errors.next_step.

    job_id: 123 or 123_4; None for a run of a local launcher. never_starts: pending, and SLURM will never start it.
    waits_for_needs: pending, because of another job that it depends on.
    undecided: unknown, and waiting here will not tell more. cluster: another than answers here, which has its job.
    """

    run_id: str
    state: State
    reason: str = ""
    failure_class: str | None = None
    remedy: str | None = None
    job_id: str | None = None
    node: str = ""
    attempts: int = 0
    elapsed_s: float | None = None
    left_s: float | None = None
    starts: datetime | None = None
    never_starts: bool = False
    waits_for_needs: bool = False
    undecided: bool = False
    cluster: str | None = None

    @property
    def failure(self) -> Failure | None:
        if self.state not in ENDED:
            return None
        kind = self.failure_class or self.state
        return Failure(self.run_id, kind, self.reason, next_step(kind, self.remedy))

    @property
    def is_live(self) -> bool:
        """Whether something may still come of it without a new launch."""
        return self.state in ("pending", "running", "unknown", "waiting")

    @property
    def may_change(self) -> bool:
        """Whether that is worth waiting for here."""
        return self.is_live and not self.undecided


# -------------------------------------------------------------------------------------------------------- what it needs
def needs_of(ledger: Ledger, run_ids: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """What each run is made from, extractions included, as the launches that sent it say; unknown runs are left out."""
    return {run_id: needs_of_spec(spec) for run_id, spec in specs_of(ledger, run_ids).items()}


def needs_of_spec(spec: RunSpec) -> tuple[str, ...]:
    return tuple(extraction.run_id for extraction in spec.extractions) + spec.needs


def specs_of(ledger: Ledger, run_ids: Iterable[str]) -> dict[str, RunSpec]:
    """The specs of those of these runs that were sent to SLURM by launches still on file."""
    ids = set(run_ids)
    launches = {s.launch: None for s in reversed(ledger.submissions) if any(ids.intersection(t) for t in s.tasks)}
    specs: dict[str, RunSpec] = {}
    for launch in launches:
        specs = {run_id: spec for run_id, (spec, _) in payload_of(launch).items() if run_id in ids} | specs
        if len(specs) == len(ids):
            break
    return specs


def with_ancestors(run_ids: Sequence[str], needs: Mapping[str, Sequence[str]]) -> list[str]:
    reached = dict.fromkeys(run_ids)
    frontier = list(reached)
    while frontier:
        frontier = [n for n in dict.fromkeys(n for r in frontier for n in needs.get(r, ())) if n not in reached]
        reached |= dict.fromkeys(frontier)
    return list(reached)


def follow_needs(states: dict[str, RunState], cases: Mapping[str, Case], needs: Mapping[str, Sequence[str]]) -> None:
    """Say of each run what it waits for, or what blocks it; needed ones first."""
    for run_id in TopologicalSorter({run_id: needs.get(run_id, ()) for run_id in states}).static_order():
        state = states[run_id]
        if state.state in ("not submitted", "cancelled", "lost", "blocked") or state.waits_for_needs:
            states[run_id] = _depending(state, cases[run_id], [states[n] for n in needs.get(run_id, ())])


def _depending(state: RunState, case: Case, needed: Sequence[RunState]) -> RunState:
    bad = next((n for n in needed if n.state in ENDED), None)
    if state.state == "pending":
        other = bad or next((n for n in needed if n.state != "done"), None)
        if other is None:
            return state
        never = bad is not None and state.never_starts
        return replace(state, reason=f"waits for {_named(other)}" + (": it never starts" if never else ""))
    has_started = state.state in ("lost", "cancelled") and (case.began or bool(state.elapsed_s))
    if bad is None or has_started:
        return state
    return replace(state, state="blocked", failure_class="blocked", reason=f"needs {_named(bad)}")


def _named(other: RunState) -> str:
    """`R, which failed (data)`; of one that is itself blocked, what blocks it stands in its own reason."""
    ways = {"failed": f"failed ({other.failure_class})", "lost": "was lost", "cancelled": "was cancelled"}
    ways["blocked"] = f"is blocked: {other.reason}"
    return f"{other.run_id}, which {ways.get(other.state, f'is {other.state}')}"
