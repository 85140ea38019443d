"""How many jobs SLURM's queue takes of this user, and the sending of as many as it takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from transfergrid.cli.console import say
from transfergrid.cluster import slurm
from transfergrid.cluster.groups import Group, first_tasks
from transfergrid.cluster.limits import Limits, queue_room
from transfergrid.cluster.slurm import SlurmRefused
from transfergrid.cluster.slurm_words import Answer
from transfergrid.cluster.submit import Sender
from transfergrid.config import Request
from transfergrid.errors import ConfigError, one_line
from transfergrid.planning.plan import Plan

if TYPE_CHECKING:
    from rich.console import Console


def num_jobs(plan: Plan, packed: int) -> int:
    return sum(-(-count // packed) for count in Counter(p.run.phase for p in plan.to_run).values())


def assert_room(plan: Plan, request: Request, limits: Limits) -> None:
    room = room_in_queue(limits)
    jobs = num_jobs(plan, request.cluster.runs_per_job) + 1
    if room is None or jobs <= room or request.wait or request.emit is not None:
        return
    packed = -(-len(plan.to_run) // max(1, room - 1 - len({p.run.phase for p in plan.to_run})))
    raise ConfigError(
        f"{jobs} jobs are to be sent, but SLURM lets you queue {max(0, room)} more",
        remedy="launch_grid.py sends them as places become free with wait=true, or set"
        f" cluster.runs_per_job={max(2, packed)}",
    )


def room_in_queue(limits: Limits) -> int | None:
    return None if limits.max_jobs is None else queue_room(limits, slurm.count_own_jobs())


def fitting(groups: list[Group], room: int | None) -> tuple[list[Group], int]:
    """The groups, in order and the last one cut, that fit into the queue beside a finish job; and how many
    runs do not."""
    if room is None:
        return groups, 0
    taken: list[Group] = []
    places = room - 1
    for group in groups:
        if places <= 0:
            break
        taken.append(group if len(group.tasks) <= places else first_tasks(group, places))
        places -= len(group.tasks)
    return taken, _num_runs(groups) - _num_runs(taken)


def send_what_fits(console: Console, sender: Sender, groups: Sequence[Group]) -> int:
    """Send these in their order, as far as SLURM has places; limits that nobody could read are met here. Returns how
    many runs found none."""
    for index, group in enumerate(groups):
        part = group
        while True:
            try:
                sender.send(part)
                break
            except SlurmRefused as error:
                if error.answer is not Answer.NO_ROOM:
                    raise
                fewer = len(part.tasks) // 2
                if fewer == 0:
                    say(console, no_room("more runs", error), style="yellow")
                    return _num_runs(groups[index:])
                part = first_tasks(group, fewer)
        if part is not group:  # what fits beside it the next wave finds out
            return _num_runs(groups[index:]) - _num_runs([part])
    return 0


def _num_runs(groups: Sequence[Group]) -> int:
    return sum(len(task) for group in groups for task in group.tasks)


def no_room(what: str, error: SlurmRefused) -> str:
    return f"SLURM's queue has no place for {what} now ({one_line(error)[-160:]})"
