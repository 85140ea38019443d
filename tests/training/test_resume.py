"""An interrupted or killed run ends bit for bit as any other."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import (
    assert_same_result,
    carry_out,
    final_run,
    metrics_without_times,
    paths_of,
    record_of,
    request,
    stop_after,
)

from transfergrid.config import Request
from transfergrid.phases import phase_module
from transfergrid.planning import job
from transfergrid.store import records
from transfergrid.store.checkpoints import checkpoint_files
from transfergrid.store.metrics_log import read_metrics


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


RANDOM = "weights=random"
MOBILE = "model=mobilenet_v3_small"  # its trunk has dropout and BatchNorm
EVERY_STEP = ("probe", "finetune", "scratch_ema")
RESUMED = {
    "probe": [MOBILE, RANDOM, "phase=probe"],
    "probe_sgd_momentum": [MOBILE, RANDOM, "phase=probe", "phase.probe.optimizer=sgd"],
    "finetune": [MOBILE, RANDOM, "phase=finetune"],
    "finetune_l2_sp": [MOBILE, RANDOM, "phase=finetune", "phase.finetune.l2_sp=0.5", "phase.finetune.clip_norm=1.0"],
    "scratch": ["model=tinynet", "phase=scratch"],
    "scratch_drawn_lookahead": ["model=tinynet", "phase=scratch", "phase.scratch.lookahead=true"]
    + ["phase.scratch.lookahead_k=2", "phase.scratch.sampling=replacement", "phase.scratch.steps_per_epoch=3"]
    + ["phase.scratch.lr_update=epoch", "phase.scratch.normalise=image", "phase.scratch.flip=true"]
    + ["phase.scratch.alternate_flip=true", "phase.scratch.perspective=0.3"],
    "scratch_ema": ["model=tinynet", "phase=scratch", "phase.scratch.ema_decay=0.9"],
    "scratch_adam_flip": ["model=tinynet", "phase=scratch", "phase.scratch.optimizer=adam", "phase.scratch.flip=true"],
    "scratch_micro_batch": ["model=tinynet", "phase=scratch", "phase.scratch.micro_batch=16"],
    "probe_on_images": [MOBILE, RANDOM, "phase=probe", "phase.probe.source=images", "phase.probe.bn=train"]
    + ["phase.probe.lrs=[1e-3]", "phase.probe.weight_decays=[0]"],
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def num_steps(asked: Request) -> int:
    return max(int(line["step"]) for line in read_metrics(paths_of(final_run(asked), asked.runtime).metrics))


@pytest.mark.slow
@pytest.mark.parametrize("case", RESUMED)
def test_interrupted_at_a_step_a_run_ends_bit_for_bit_the_same(
    case: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = request(tmp_path / "whole", *RESUMED[case], cache=cache)
    assert carry_out(whole) == "completed"
    run, total = final_run(whole), num_steps(whole)
    assert total in (4, 6) and record_of(run, whole.runtime).details["first_step"] == 1
    steps = range(1, total + 1) if case in EVERY_STEP else (1, total - 1)
    for step in steps:
        asked = request(tmp_path / f"step_{step}", *RESUMED[case], cache=cache)
        for needed in asked.runs.values():
            if needed.run_id != run.run_id:
                assert job.carry_out(needed, asked.runtime) == "completed"
        with monkeypatch.context() as patch:
            stop_after(patch, step)
            assert job.carry_out(run, asked.runtime) == "interrupted"
        (checkpoint,) = checkpoint_files(paths_of(run, asked.runtime))
        assert checkpoint.step == step
        assert job.carry_out(run, asked.runtime) == "completed"
        assert record_of(run, asked.runtime).details["first_step"] == step + 1 > 1
        assert_same_result(run, whole.runtime, asked.runtime)


def test_a_run_interrupted_at_every_step_in_turn_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, asked = (request(tmp_path / name, *RESUMED["scratch_ema"]) for name in ("whole", "pieces"))
    assert carry_out(whole) == "completed"
    run, total = final_run(whole), num_steps(whole)
    stop_after(monkeypatch, 1)
    for _ in range(total):
        assert job.carry_out(run, asked.runtime) == "interrupted"
    assert job.carry_out(run, asked.runtime) == "completed"
    record = record_of(run, asked.runtime)
    assert (record.attempt, record.details["first_step"]) == (total + 1, total + 1)
    assert_same_result(run, whole.runtime, asked.runtime)


def test_a_run_resumes_from_the_older_checkpoint_where_the_newest_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = [*RESUMED["scratch"], "checkpoint.min_interval_s=0"]
    whole, asked = (request(tmp_path / name, *often) for name in ("whole", "damaged"))
    assert carry_out(whole) == "completed"
    run = final_run(whole)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert carry_out(asked) == "interrupted"
    newest = checkpoint_files(paths_of(run, asked.runtime))[0]
    assert newest.step == 3
    newest.path.write_bytes(newest.path.read_bytes()[:-1])
    assert carry_out(asked) == "completed"
    assert record_of(run, asked.runtime).details["first_step"] == 3
    assert_same_result(run, whole.runtime, asked.runtime)


def test_what_a_killed_attempt_wrote_after_its_checkpoint_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, asked = (request(tmp_path / name, *RESUMED["scratch"]) for name in ("whole", "killed"))
    assert carry_out(whole) == "completed"
    run = final_run(whole)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert carry_out(asked) == "interrupted"
    with open(paths_of(run, asked.runtime).metrics, "a") as file:
        file.write('{"line": 4, "kind": "step", "step": 4, "train/loss": 99.0}\n{"line": 5, "ki')
    assert carry_out(asked) == "completed"
    assert_same_result(run, whole.runtime, asked.runtime)


def test_a_run_that_had_ended_training_when_it_was_killed_does_not_train_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(tmp_path, *RESUMED["scratch"], "checkpoint.min_interval_s=0")
    run = final_run(asked)

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "write_record", killed)
    assert carry_out(asked) == "interrupted"
    before = metrics_without_times(paths_of(run, asked.runtime))
    monkeypatch.setattr(job, "write_record", records.write_record)
    assert carry_out(asked) == "completed"
    assert record_of(run, asked.runtime).details["first_step"] == num_steps(asked) + 1
    assert metrics_without_times(paths_of(run, asked.runtime)) == before


def test_the_same_spec_gives_the_same_numbers_twice_and_another_seed_others(tmp_path: Path) -> None:
    first, second = (request(tmp_path / name, *RESUMED["scratch"]) for name in ("first", "second"))
    other = request(tmp_path / "other", *RESUMED["scratch"], "seed=1")
    assert [carry_out(asked) for asked in (first, second, other)] == ["completed"] * 3
    assert_same_result(final_run(first), first.runtime, second.runtime)
    losses = [
        metrics_without_times(paths_of(final_run(asked), asked.runtime))[0]["train/loss"] for asked in (first, other)
    ]
    assert losses[0] != losses[1]


# ------------------------------------------------------------------------------------------------------ killed runs
KILLED = {
    "probe": [*RESUMED["probe"], "phase.probe.epochs=10"],
    "finetune": [*RESUMED["finetune"], "phase.finetune.epochs=4"],
    "scratch": [*RESUMED["scratch"], "phase.scratch.epochs=8"],
}


def assert_survives_kills(case: str, folder: Path, cache: Path, *, kills: int) -> None:
    """Kill a real process each time it has got further than the one before, then let one end; compare."""
    whole, asked = (request(folder / name, *KILLED[case], cache=cache) for name in ("whole", "killed"))
    assert carry_out(whole) == "completed"
    run = final_run(whole)
    for needed in asked.runs.values():
        if needed.run_id != run.run_id:
            assert job.carry_out(needed, asked.runtime) == "completed"
    payload = job.write_payload([run], replace(asked.runtime, checkpoint_min_interval_s=0.0))
    rng, reached = np.random.default_rng(), 0
    for _ in range(kills):
        process = subprocess.Popen([sys.executable, "-m", "transfergrid.planning.job", str(payload), "0"])
        while max((c.step for c in checkpoint_files(paths_of(run, asked.runtime))), default=0) <= reached:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.03))
        process.kill()
        assert process.wait() != 0
        reached = checkpoint_files(paths_of(run, asked.runtime))[0].step
    assert not phase_module(run.phase).is_done(run, asked.runtime)
    assert job.carry_out(run, asked.runtime) == "completed"
    record = record_of(run, asked.runtime)
    assert (
        record.attempt == kills + 1 and record.details["first_step"] > reached - 1 and record.details["first_step"] > 1
    )
    assert_same_result(run, whole.runtime, asked.runtime)
    log = paths_of(run, asked.runtime).log.read_text()  # what a killed attempt did is there, and where each went on
    assert log.count(" INFO continues after step ") == kills and f" INFO epoch {record.epochs}/{record.epochs}: " in log
    root = paths_of(run, asked.runtime).root
    assert not list(root.rglob("*.tmp")) and not (root / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("case", "kills"), [("probe", 1), *((case, 3) for case in KILLED)])
def test_killed_with_sigkill_once_or_again_and_again_a_run_ends_bit_for_bit_the_same(
    case: str, kills: int, tmp_path: Path, cache: Path
) -> None:
    assert_survives_kills(case, tmp_path, cache, kills=kills)
