"""How long a plan takes by the clock: the pool simulated, against a pool with a clock; ranges; what is still to go."""

from __future__ import annotations

import os
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
from report_cases import completed
from small_runs import final_run, request

from transfergrid.paths import cache_paths, store_paths
from transfergrid.planning import machine, wall
from transfergrid.planning.cost import IN_POOL_S, estimate
from transfergrid.planning.machine import Machine, PastLaunch
from transfergrid.planning.plan import Plan, PlannedRun
from transfergrid.planning.wall import Expected, Step, expect, makespan_s, remaining_s
from transfergrid.specs import from_dict, to_dict
from transfergrid.training.speed import Speed, assumed_speed

SCRATCH = ("phase=scratch", "model=tinynet")


def step(run_id: str, seconds: float, *needs: str, phase: str = "probe", kind: str = "") -> Step:
    return Step(run_id, phase, kind or run_id, seconds, "flops", needs)


def expected(*steps: Step, at_once: int = 1, report_s: float = 5.0) -> Expected:
    return Expected(steps, at_once, False, 0.0, report_s, 0.5, 2.0, 0, 0.0)


def past(took_s: float, *, by: str = "records", rows: int = 10, report_s: float = 6.0) -> PastLaunch:
    return PastLaunch(expected_s=100.0, took_s=took_s, report_s=report_s, rows=rows, figures=False, by=by)


def with_a_clock(steps: list[Step], at_once: int, *, tick_s: float = 1.0) -> float:
    """cluster.local's loop on a clock of whole seconds: what waits is looked through in the plan's order."""
    waiting, running, now = list(steps), dict[str, float](), 0.0
    while waiting or running:
        pending = {s.run_id for s in waiting} | set(running)
        for s in list(waiting):
            if len(running) < at_once and not pending.intersection(s.needs):
                waiting.remove(s)
                running[s.run_id] = now + s.seconds
        now += tick_s
        running = {run_id: end for run_id, end in running.items() if end > now}
    return now


# ------------------------------------------------------------------------------------------------------------ the pool
def test_one_after_the_other_is_the_sum_and_on_two_gpus_what_needs_another_waits_for_it() -> None:
    steps = [step("extract", 4.0), step("probe", 2.0, "extract"), step("tune", 10.0, "probe"), step("scratch", 3.0)]
    assert makespan_s(steps, 1) == 19.0
    assert makespan_s(steps, 2) == 16.0 and makespan_s(steps, 9) == 16.0
    assert makespan_s([], 2) == 0.0
    assert makespan_s([step("probe", 2.0, "made elsewhere")], 1) == 2.0


@pytest.mark.parametrize("seed", range(20))
def test_any_plan_takes_as_long_as_the_pool_with_a_clock(seed: int) -> None:
    draw = random.Random(seed)
    steps: list[Step] = []
    for i in range(draw.randint(1, 25)):
        needs = draw.sample([s.run_id for s in steps], k=min(len(steps), draw.choice((0, 0, 1, 2))))
        steps.append(step(f"run{i}", float(draw.randint(1, 9)), *needs))
    at_once = draw.randint(1, 4)
    assert makespan_s(steps, at_once) == with_a_clock(steps, at_once)


def test_the_phases_share_the_clock_as_they_share_the_work() -> None:
    told = expected(step("a", 4.0), step("b", 4.0), step("c", 8.0, phase="finetune"), at_once=2)
    assert told.by_phase() == {"probe": 6.0, "finetune": 6.0}
    assert told.seconds == 12.0 + 5.0


# ------------------------------------------------------------------------------------------------------- still to go
def test_what_ended_tells_how_long_its_kind_takes_and_else_its_phase() -> None:
    steps = [step(f"a{i}", 10.0, kind="a") for i in range(3)] + [step("b", 20.0, kind="b"), step("c", 7.0, phase="x")]
    told = expected(*steps)
    assert remaining_s(told, {}, {}) == told.seconds == 62.0
    assert remaining_s(told, {"a0": 15.0}, {}) == 2 * 15.0 + 30.0 + 7.0 + 5.0
    assert remaining_s(told, {"a0": 15.0}, {"a1": 5.0}) == 10.0 + 15.0 + 30.0 + 7.0 + 5.0
    assert remaining_s(told, {"a0": None}, {}) == 2 * 10.0 + 20.0 + 7.0 + 5.0, "a failure tells nothing"
    assert remaining_s(told, dict.fromkeys((s.run_id for s in steps), 1.0), {}) == 5.0


def test_a_run_that_takes_longer_than_expected_is_never_said_to_be_over() -> None:
    told = expected(step("a", 10.0), report_s=0.0)
    assert remaining_s(told, {}, {"a": 40.0}) == pytest.approx(4.0)


def test_progress_is_read_from_the_store_and_an_old_record_is_none(tmp_path: Path) -> None:
    asked = request(tmp_path, *SCRATCH)
    run, store = final_run(asked), store_paths(asked.runtime)
    completed(store, run)
    told = replace(expected(step(run.run_id, 10.0)), at=time.time() + 60)
    assert wall.progress_of(told, store) == ({}, {})
    assert wall.progress_of(replace(told, at=time.time() - 60), store)[0].keys() == {run.run_id}
    assert from_dict(Expected, to_dict(told)) == told


# ------------------------------------------------------------------------------------------------------ how right it is
def test_the_range_is_what_the_last_launches_alike_have_kept_to_and_is_said_to_be_assumed_before() -> None:
    few = (past(90.0), past(120.0), past(500.0, by="flops"))
    assert wall._range(few, "records") == (1 / 1.3, 1.3, 0)
    assert wall._range(few, "flops") == (0.5, 2.0, 0)
    assert wall._range((*few, past(110.0)), "records") == (0.9, 1.2, 3)
    assert wall._range((past(300.0), *[past(110.0)] * 10), "records") == (1.0, 1.1, 10), "the oldest is forgotten"


def test_the_report_takes_what_the_newest_launch_of_about_its_size_took() -> None:
    launches = (past(100.0, rows=10, report_s=6.0), past(100.0, rows=100, report_s=60.0))
    assert wall._report_s(launches, 12, figures=False) == 6.0
    assert wall._report_s(launches, 120, figures=False) == 60.0
    assert wall._report_s(launches, 12, figures=True) == pytest.approx(3.0 + 1.2 + 25.0)


# ----------------------------------------------------------------------------------------------------- records of here
HERE = Machine("AMD EPYC, 2 CPUs")


def test_records_of_this_machine_foretell_a_plan_of_like_runs_within_a_factor_of_1_3(tmp_path: Path) -> None:
    """Runs of a kind that take 20 s, give or take 10 %: three seeds are done, five are to come."""
    draw = random.Random(0)
    runs = []
    for seed in range(8):
        asked = request(tmp_path, *SCRATCH, f"seed={seed}")
        runs.append(final_run(asked))
    facts = {"machine": HERE.name, "threads": 1}
    for run in runs[:3]:
        took_s = 20.0 * draw.uniform(0.9, 1.1)
        completed(
            store_paths(asked.runtime), run, wall_s=took_s, gpu_s=0.0, n_train=90, epochs=2, images_per_s=10.0,
            provenance=facts,
        )  # fmt: skip
    plan = Plan(tuple(PlannedRun(run, "run", "") for run in runs[3:]))
    told = expect(plan, asked.runtime, HERE, at_once=1, on_gpu=False, rows=8, is_loaded=True)
    truth_s = sum(20.0 * draw.uniform(0.9, 1.1) + IN_POOL_S for _ in runs[3:]) + 4.0
    assert told.bases == {"records": 5} and truth_s / 1.3 < told.seconds < truth_s * 1.3


@pytest.mark.parametrize(
    ("facts", "basis"),
    [
        ({"machine": HERE.name, "threads": 1}, "records"),
        ({"machine": "another, 64 CPUs", "threads": 1}, "flops"),
        ({"machine": HERE.name, "threads": 2}, "flops"),
        ({"host": os.uname().nodename, "threads": 1}, "records"),
        ({"host": "another", "threads": 1}, "flops"),
    ],
)
def test_a_record_of_another_machine_or_of_other_threads_is_no_evidence(
    tmp_path: Path, facts: dict[str, object], basis: str
) -> None:
    done, asked = request(tmp_path, *SCRATCH, "seed=1"), request(tmp_path, *SCRATCH)
    completed(store_paths(done.runtime), final_run(done), gpu_s=0.0, epochs=2, provenance=facts)
    run = final_run(asked)
    assert estimate([run], asked.runtime, gpus=0, here=HERE)[run.run_id].basis == basis
    assert estimate([run], asked.runtime, gpus=0)[run.run_id].basis == "records", "a cluster's nodes are not told apart"


def test_a_measured_speed_takes_the_place_of_the_assumed_one(tmp_path: Path) -> None:
    asked = request(tmp_path, *SCRATCH)
    run = final_run(asked)
    assumed = assumed_speed(cores=1, on_gpu=False)
    slower = Speed(
        {name: rate / 3 for name, rate in assumed.flop_per_s.items()},
        step_s=3 * assumed.step_s,
        parameter_s=3 * assumed.parameter_s,
        image_s=3 * assumed.image_s,
        head_flop_per_s=assumed.head_flop_per_s / 3,
        head_step_s=3 * assumed.head_step_s,
    )
    here = replace(HERE, speeds={HERE.speed_key(asked.runtime, on_gpu=False): slower})
    bare, measured = (estimate([run], asked.runtime, gpus=0, here=h)[run.run_id] for h in (HERE, here))
    assert (bare.basis, measured.basis) == ("flops", "measured")
    assert measured.seconds - IN_POOL_S == pytest.approx(3 * (bare.seconds - IN_POOL_S))


def test_what_is_known_of_a_machine_is_kept_and_a_damaged_file_is_passed_over(tmp_path: Path) -> None:
    runtime = request(tmp_path, *SCRATCH).runtime
    here = machine.this_machine(runtime)
    assert here.name.endswith(" CPUs") and not here.speeds and not here.launches
    known = replace(here, speeds={"2 threads": assumed_speed(cores=2, on_gpu=False)}, launches=(past(1.0),) * 30)
    machine.keep(known, runtime)
    assert machine.this_machine(runtime) == replace(known, launches=(past(1.0),) * machine.LAUNCHES_KEPT)
    [file] = cache_paths(runtime).machines.iterdir()
    file.write_text('{"speeds": 3}')
    assert machine.this_machine(runtime) == here
