"""The noun that status, launch and report speak of: what is true of one run now."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from transfergrid.errors import next_step

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
