"""How long a plan takes on this machine, by the clock: its runs on the local pool, then the report. Imports no torch.

And, while it is carried out, how long it still takes.
"""

from __future__ import annotations

import heapq
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from transfergrid.paths import RunPaths, StorePaths
from transfergrid.planning.cost import Basis, estimate, start_overhead_s
from transfergrid.planning.machine import Machine, PastLaunch
from transfergrid.planning.plan import Plan
from transfergrid.specs import Runtime, from_dict
from transfergrid.store import durable
from transfergrid.store.attempts import attempt_times
from transfergrid.store.records import record_head

# Measured on the quickstart, on an idle machine: a report without figures takes 4 s for 10 rows, figures 25 s more.
REPORT_S, ROW_S, FIGURES_S = 3.0, 0.1, 25.0
# Where nothing has shown yet how right an estimate is, it is taken to be right within these factors.
BY_RECORDS, BY_FLOPS = 1.3, 2.0
FEWEST_LAUNCHES, NEWEST_LAUNCHES = 3, 10
OVERDUE = 0.1  # of the time it has taken, a run is taken to need still, once it has taken longer than expected


@dataclass(frozen=True, slots=True)
class Step:
    """A run of the plan. kind: runs of one kind take about as long. needs: run_ids of steps that end before it."""

    run_id: str
    phase: str
    kind: str
    seconds: float
    basis: Basis
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Expected:
    """What a launch is expected to take here. Times in s, by the clock.

    at_once: how many runs the pool carries out at a time, each on a GPU of its own with on_gpu. start_s: until the
    first run begins; 0 once all is loaded. report_s: after the last one. low, high: factors around the whole, which
    the last `judged` launches have kept to; judged 0: which nothing has shown yet. at: when it was expected, as
    time.time().
    """

    steps: tuple[Step, ...]
    at_once: int
    on_gpu: bool
    start_s: float
    report_s: float
    low: float
    high: float
    judged: int
    at: float

    @property
    def seconds(self) -> float:
        return self.start_s + makespan_s(self.steps, self.at_once) + self.report_s

    @property
    def gpu_hours(self) -> float:
        return sum(step.seconds for step in self.steps) / 3600 if self.on_gpu else 0.0

    @property
    def bases(self) -> Counter[Basis]:
        return Counter(step.basis for step in self.steps)

    @property
    def by(self) -> str:
        """As PastLaunch's."""
        return _rests_on(self.steps)

    def by_phase(self) -> dict[str, float]:
        """The clock's seconds of the runs, to each phase as many as its share of the work."""
        work: dict[str, float] = {}
        for step in self.steps:
            work[step.phase] = work.get(step.phase, 0.0) + step.seconds
        whole_s, all_work_s = makespan_s(self.steps, self.at_once), sum(work.values())
        return {phase: whole_s * s / all_work_s if all_work_s else 0.0 for phase, s in work.items()}


def expect(
    plan: Plan, runtime: Runtime, here: Machine, *, at_once: int, on_gpu: bool, rows: int, is_loaded: bool
) -> Expected:
    """rows: of the table at the end. is_loaded: torch is, so that runs can begin at once."""
    estimates = estimate([p.run for p in plan.to_run], runtime, gpus=int(on_gpu), here=here)
    steps = []
    for planned in plan.to_run:
        run, of_run = planned.run, estimates[planned.run.run_id]
        kind = f"{run.phase} {run.dataset.name} {run.model}"
        steps.append(Step(run.run_id, run.phase, kind, of_run.seconds, of_run.basis, planned.needs))
    low, high, judged = _range(here.launches, _rests_on(steps))
    return Expected(
        steps=tuple(steps),
        at_once=at_once,
        on_gpu=on_gpu,
        start_s=0.0 if is_loaded or not steps else start_overhead_s(on_gpu=on_gpu),
        report_s=_report_s(here.launches, rows, figures=runtime.report_figures is True),
        low=low,
        high=high,
        judged=judged,
        at=time.time(),
    )


def makespan_s(steps: Sequence[Step], at_once: int) -> float:
    """From the first start to the last end, as cluster.local starts runs: whenever a place is free, the first in the
    plan whose needs have ended."""
    own = {step.run_id for step in steps}
    open_needs = [len(own.intersection(step.needs)) for step in steps]
    needed_by: dict[str, list[int]] = {}
    for i, step in enumerate(steps):
        for need in own.intersection(step.needs):
            needed_by.setdefault(need, []).append(i)
    ready = [i for i, count in enumerate(open_needs) if not count]
    running: list[tuple[float, int]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < at_once:
            i = heapq.heappop(ready)
            heapq.heappush(running, (now + steps[i].seconds, i))
        now, ended = heapq.heappop(running)
        for i in needed_by.get(steps[ended].run_id, ()):
            open_needs[i] -= 1
            if not open_needs[i]:
                heapq.heappush(ready, i)
    return now


def remaining_s(expected: Expected, took: Mapping[str, float | None], running: Mapping[str, float]) -> float:
    """Until the table stands there. took: run_id -> seconds of each run that ended, None of one that did not complete;
    running: run_id -> seconds since it began. What ended tells how long others of its kind take, else of its phase."""
    known = {step.run_id: step for step in expected.steps}
    told: dict[str, list[float]] = {}
    for run_id, seconds in took.items():
        if (step := known.get(run_id)) is not None and seconds is not None:
            for key in (step.kind, step.phase):
                ratio = told.setdefault(key, [0.0, 0.0])
                ratio[0], ratio[1] = ratio[0] + seconds, ratio[1] + step.seconds

    def left(step: Step) -> Step:
        actual_s, expected_s = told.get(step.kind) or told.get(step.phase) or (1.0, 1.0)
        seconds = step.seconds * (actual_s / expected_s if expected_s else 1.0)
        if (since_s := running.get(step.run_id)) is not None:
            return replace(step, seconds=max(seconds - since_s, OVERDUE * since_s))
        return replace(step, seconds=seconds)

    steps = [left(step) for step in expected.steps if step.run_id not in took]
    steps.sort(key=lambda step: step.run_id not in running)
    return makespan_s(steps, expected.at_once) + expected.report_s


# ----------------------------------------------------------------------------------------------- beside the grid's list
def expected_of(grid: Path) -> Expected | None:
    """What the newest launch of a grid on this machine was expected to take; None where its file does not say."""
    try:
        return from_dict(Expected, durable.read_json(grid)["expected"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def progress_of(expected: Expected, store: StorePaths) -> tuple[dict[str, float | None], dict[str, float]]:
    """remaining_s's took and running, as the store tells: of records written since then, and of locks that are held."""
    took: dict[str, float | None] = {}
    running: dict[str, float] = {}
    for step in expected.steps:
        paths = store.run(step.run_id)
        try:
            is_new = os.stat(paths.record).st_mtime >= expected.at
        except OSError:
            is_new = False
        if is_new:
            head = record_head(paths)
            is_whole = head is not None and head.status == "completed"
            took[step.run_id] = _newest_attempt_s(paths) if is_whole else None
        elif durable.is_locked(paths.lock):
            running[step.run_id] = _newest_attempt_s(paths)
    return took, running


def _newest_attempt_s(paths: RunPaths) -> float:
    """How long it lasted; until now where it has not ended, or nobody wrote when."""
    times = attempt_times(paths)
    if not times:
        return 0.0
    since = datetime.now(UTC) - datetime.fromisoformat(times[-1].started)
    return max(0.0, since.total_seconds()) if times[-1].wall_s is None else times[-1].wall_s


# ----------------------------------------------------------------------------------------------------- how right it is
def _rests_on(steps: Sequence[Step]) -> str:
    by_records_s = sum(step.seconds for step in steps if step.basis == "records")
    return "records" if 2 * by_records_s > sum(step.seconds for step in steps) else "flops"


def _range(launches: Sequence[PastLaunch], by: str) -> tuple[float, float, int]:
    """(low, high, how many launches have shown it); 0 launches: what is assumed before three have."""
    alike = [past for past in launches if past.by == by and past.expected_s > 0][-NEWEST_LAUNCHES:]
    if len(alike) < FEWEST_LAUNCHES:
        factor = BY_RECORDS if by == "records" else BY_FLOPS
        return 1 / factor, factor, 0
    ratios = [past.took_s / past.expected_s for past in alike]
    return min(1.0, *ratios), max(1.0, *ratios), len(ratios)


def _report_s(launches: Sequence[PastLaunch], rows: int, *, figures: bool) -> float:
    """As the newest launch with about as many rows took, else as measured once."""
    for past in reversed(launches):
        if past.figures == figures and past.rows <= 2 * rows and rows <= 2 * past.rows:
            return past.report_s
    return REPORT_S + ROW_S * rows + (FIGURES_S if figures else 0.0)
