"""How fast this machine computes, measured: not for long, and by steps that had begun when all was set up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_runs import request

from transfergrid.training import speed


def test_the_first_step_sets_up_and_a_slow_machine_is_measured_by_it_alone() -> None:
    def measured(step_s: Iterator[float]) -> tuple[float, int]:
        now, steps = [0.0], [0]

        def step() -> None:
            now[0] += next(step_s)
            steps[0] += 1

        return speed._median_s(step, clock=lambda: now[0]), steps[0]

    cases = (([0.9, 0.1, 0.3, 0.2, 0.2], 0.2, 4), ([4.0], 4.0, 1), ([0.001] * 99, 0.001, 1 + speed.MOST_STEPS))
    for step_s, expected_s, expected_steps in cases:
        median_s, steps = measured(iter(step_s))
        assert median_s == pytest.approx(expected_s) and steps == expected_steps


@pytest.mark.slow
def test_this_machine_is_measured_in_seconds(tmp_path: Path) -> None:
    began = time.monotonic()
    found = speed.measure_speed(request(tmp_path, "phase=scratch", "model=tinynet").runtime)
    assert time.monotonic() - began < 60  # ten on an idle machine
    assert found.flop_per_s.keys() == {"fp32", "tf32", "bf16"}
    assert all(1e8 < rate < 1e16 for rate in found.flop_per_s.values())
    assert found.step_s >= 0 and found.image_s > 0 and found.head_flop_per_s > 0
