"""How long a launch on this machine takes: told before it begins, and held against what it then took."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from transfergrid.cli.console import count, duration, say
from transfergrid.cluster import local
from transfergrid.cluster.child import ask, gpus_for
from transfergrid.config import Request
from transfergrid.errors import GridError
from transfergrid.planning import machine
from transfergrid.planning.machine import Machine, PastLaunch
from transfergrid.planning.plan import Plan
from transfergrid.planning.wall import Expected, expect
from transfergrid.training.speed import measure_speed

BUSY = 0.75  # processes at work per core, in the last minute: a speed measured beside them is not kept
WORTH_MEASURING_S = 30.0  # a plan that takes less, at the assumed speed, is not held up for five seconds
MEASURING_TIMEOUT_S = 60.0  # it takes ten seconds, on a machine that has nothing else to do


def expected_dry(plan: Plan, request: Request, *, one_by_one: bool = False) -> Expected:
    """From what is known already: nothing is measured, and torch is not loaded. one_by_one: also on several GPUs."""
    here = machine.this_machine(request.runtime)
    on_gpu = bool(here.gpus) and request.runtime.device != "cpu"
    return _expect(
        plan, request, here, at_once=1 if one_by_one or not on_gpu else len(here.gpus), on_gpu=on_gpu, is_loaded=False
    )


def expected_now(console: Console, plan: Plan, request: Request, *, one_by_one: bool = False) -> Expected:
    """Before the first run begins. Where a run of a longer plan has no record to go by, this machine's speed is
    measured, once."""
    here, runtime = machine.this_machine(request.runtime), request.runtime
    places, on_gpu = 1 if one_by_one else len(local.slots_for(runtime)), bool(gpus_for(runtime).visible)
    expected = _expect(plan, request, here, at_once=places, on_gpu=on_gpu, is_loaded=True)
    key = here.speed_key(runtime, on_gpu=on_gpu)
    if "flops" not in expected.bases or key in here.speeds or expected.seconds < WORTH_MEASURING_S:
        return expected
    with console.status("measuring how fast this machine computes, once, for about 5 s"):
        of_runs = runtime if on_gpu else replace(runtime, device="cpu")  # its absence was told already
        answer = ask(measure_speed, (of_runs,), runs_follow=True, timeout_s=MEASURING_TIMEOUT_S)
    if answer.error is not None:  # an estimate is no reason to stop: the assumed speed does
        return expected
    here = replace(here, speeds={**here.speeds, key: answer.value})
    if os.getloadavg()[0] < BUSY * len(os.sched_getaffinity(0)):  # else it holds for this launch alone
        _keep(here, request)
    return _expect(plan, request, here, at_once=places, on_gpu=on_gpu, is_loaded=True)


def say_expected(console: Console, expected: Expected) -> None:
    """How long in all and per phase, on what that rests, and how right it has been; nothing where nothing is to run."""
    if not expected.steps:
        return
    phases = [f"{phase} {duration(s)}" for phase, s in expected.by_phase().items()]
    parts = [f"start {duration(expected.start_s)}"] * (expected.start_s > 0) + phases
    parts.append(f"report {duration(expected.report_s)}")
    gpu = f", {expected.gpu_hours:.2f} GPU-hours" if expected.on_gpu else ""
    low, high = duration(expected.low * expected.seconds), duration(expected.high * expected.seconds)
    for line in (
        f"expected: {duration(expected.seconds)}{gpu} ({', '.join(parts)})",
        f"  {_basis(expected)}; between {low} and {high}: {_judged(expected)}",
    ):
        say(console, line)


def _basis(expected: Expected) -> str:
    words = {
        "records": "records of this machine",
        "measured": "this machine's measured speed",
        "flops": "an assumed speed",
    }
    bases = expected.bases.most_common()
    if len(bases) == 1:
        return f"from {words[bases[0][0]]}"
    return "from " + ", ".join(f"{words[basis]} for {count(n, 'run')}" for basis, n in bases)


def _judged(expected: Expected) -> str:
    if expected.judged:
        return f"as right as the last {expected.judged} launches here were"
    return "too few launches here have shown how right that is"


def note_launch(
    request: Request, expected: Expected, endings: Sequence[local.Ended], *, ran_s: float, report_s: float
) -> None:
    """For the next launch's range, where all that was expected has been done."""
    if not endings or len(endings) != len(expected.steps) or any(ended.ending != "completed" for ended in endings):
        return
    here = machine.this_machine(request.runtime)
    past = PastLaunch(
        expected_s=round(expected.seconds, 1),
        took_s=round(ran_s + report_s, 1),
        report_s=round(report_s, 1),
        rows=len(request.configurations),
        figures=request.runtime.report_figures is True,
        by=expected.by,
    )
    _keep(replace(here, launches=(*here.launches, past)), request)


def _expect(plan: Plan, request: Request, here: Machine, *, at_once: int, on_gpu: bool, is_loaded: bool) -> Expected:
    rows = len(request.configurations)
    return expect(plan, request.runtime, here, at_once=at_once, on_gpu=on_gpu, rows=rows, is_loaded=is_loaded)


def _keep(here: Machine, request: Request) -> None:
    with contextlib.suppress(GridError, OSError):  # a cache that others own: the next launch measures again
        machine.keep(here, request.runtime)
