"""What remains of a plan -> job arrays. Runs that share phase, resources and what they wait for form one array."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from transfergrid.planning.plan import PlannedRun
from transfergrid.resources import ClusterSettings, Resources
from transfergrid.specs import PHASES, digest, safe_name

T = TypeVar("T")
Edge = Literal["afterok", "afterany"]


@dataclass(frozen=True, slots=True)
class Group:
    """One sbatch: tasks of one phase and one shape of resources that wait for the same runs.

    tasks: the runs of each, one after the other where they share a job. waits_for: run_ids.
    edge: `afterok`, or `afterany` where runs share a job: each then checks its own needs, and one that lacks them does
    not keep the others from running.
    """

    name: str
    phase: str
    resources: Resources
    tasks: tuple[tuple[PlannedRun, ...], ...]
    waits_for: tuple[str, ...]
    edge: Edge = "afterok"

    @property
    def run_ids(self) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(p.run.run_id for p in task) for task in self.tasks)


def make_groups(
    todo: Sequence[PlannedRun], settings: ClusterSettings, *, grid: str, launch: str, max_array_size: int
) -> list[Group]:
    """Parents' groups before their children's. `launch` makes the names unique; max_array_size: tasks per array."""
    groups = []
    for phase in PHASES:
        by_needs: dict[tuple[str, ...], list[PlannedRun]] = {}
        for planned in (p for p in todo if p.run.phase == phase):
            by_needs.setdefault(() if settings.runs_per_job > 1 else tuple(sorted(planned.needs)), []).append(planned)
        for members in by_needs.values():
            for tasks in _cut([tuple(t) for t in _cut(members, settings.runs_per_job)], max(1, max_array_size)):
                packed = any(len(task) > 1 for task in tasks)
                waits_for = sorted({n for task in tasks for p in task for n in p.needs})
                run_ids = [[p.run.run_id for p in task] for task in tasks]
                name = f"tg-{safe_name(grid)[:40]}-{phase}-{digest([launch, run_ids], 10)}"
                edge: Edge = "afterany" if packed else "afterok"
                groups.append(Group(name, phase, settings.of_phase(phase), tuple(tasks), tuple(waits_for), edge))
    return groups


def first_tasks(group: Group, count: int) -> Group:
    """A group of its first tasks alone, under a name of its own; what they wait for stays."""
    return replace(group, name=f"{group.name}-{count}", tasks=group.tasks[:count])


def _cut(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
