"""The mirror against the stand-in server: what it sends of runs in every state, and that nothing is sent twice."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tracked_runs import (
    PATIENCE_S,
    assert_holds,
    carry_out,
    checkpoint,
    complete,
    expected_lines,
    fail,
    lines_on,
    scratch_run,
    start_mirror,
    wait_until,
    write_lines,
)
from wandb_server import StandIn

from transfergrid import tracking
from transfergrid.paths import StorePaths
from transfergrid.specs import RunSpec
from transfergrid.store import attempts, checkpoints, durable, provenance
from transfergrid.tracking.client import NOT_FINISHED

pytestmark = pytest.mark.wandb


@dataclass(frozen=True)
class Launch:
    server: StandIn
    store: StorePaths
    completed: RunSpec  # 7 lines, no checkpoint, record
    failed: RunSpec  # 7 lines, checkpoint at 4, failed record
    lost: RunSpec  # 7 lines, checkpoint at 5, lock released without a record
    idle: RunSpec  # never began


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """Four runs followed by one mirror, all of them while it was at work."""
    store = StorePaths(tmp_path_factory.mktemp("launch") / "results")
    completed, failed, lost, idle = runs = [scratch_run(seed) for seed in range(4)]
    with StandIn() as server:
        process = start_mirror(server, store, runs, grid="quickstart")
        for run, covered in ((completed, 0), (failed, 4), (lost, 5)):
            paths = store.run(run.run_id)
            with attempts.begin_attempt(paths, run) as attempt:
                write_lines(paths, upto=7)
                if covered:
                    checkpoint(attempt, lines=covered)
                if run is completed:
                    complete(paths, run, attempt.number)
                if run is failed:
                    fail(paths, run, attempt.number)
        assert tracking.wait_for_mirror(process, PATIENCE_S)
        yield Launch(server, store, completed, failed, lost, idle)


def numbers(server: StandIn, run: RunSpec) -> list[int]:
    return [row["line"] for row in lines_on(server.run(run.run_id))]


def test_a_completed_run_is_on_the_server_as_in_the_store(launch: Launch) -> None:
    assert_holds(launch.server, launch.store, launch.completed.run_id)
    assert numbers(launch.server, launch.completed) == [1, 2, 3, 4, 5, 6, 7]


def test_a_completed_run_is_described_in_the_words_of_the_grid(launch: Launch) -> None:
    run = launch.server.run(launch.completed.run_id)
    assert (run.name, run.group, run.job_type) == (launch.completed.slug, "quickstart", "scratch")
    assert run.tags == ["grid:quickstart", "baseline_cnn", "digits", "scratch"]
    expected = {"grid": "quickstart", "model": "baseline_cnn", "dataset": "digits", "phase": "scratch", "seed": 0}
    expected |= {"protocol": "fair", "git_commit": provenance.git_state()[0]}
    assert {name: run.plain_config[name] for name in expected} == expected
    told = {name: run.summary[name] for name in ("status", "attempt", "phase_s", "epochs")}
    assert told == {"status": "completed", "attempt": 1, "phase_s": 2.5, "epochs": 2}


def test_of_a_failed_run_only_the_lines_its_checkpoint_covers_are_sent(launch: Launch) -> None:
    run = launch.server.run(launch.failed.run_id)
    assert lines_on(run) == expected_lines(launch.store.run(launch.failed.run_id), 4)
    assert (run.exit_code, run.summary["status"], run.summary["failure_class"]) == (1, "failed", "cuda_oom")


def test_a_run_that_ended_without_a_record_is_not_finished_in_wandb_either(launch: Launch) -> None:
    run = launch.server.run(launch.lost.run_id)
    assert numbers(launch.server, launch.lost) == [1, 2, 3, 4, 5]
    assert run.exit_code == NOT_FINISHED and "status" not in run.summary


def test_a_run_that_never_began_leaves_nothing(launch: Launch) -> None:
    assert launch.idle.run_id not in {run.id for run in launch.server.runs.values()}


def test_the_mirror_leaves_nothing_of_wandbs_behind(launch: Launch) -> None:
    assert sorted(path.name for path in launch.store.root.iterdir()) == ["runs", "wandb"]
    assert sorted(path.name for path in launch.store.wandb.iterdir()) == ["locks", "logs"]
    assert list((launch.store.wandb / "logs").iterdir()) == []  # nothing to complain of
    names = {path.name for path in launch.store.run(launch.completed.run_id).root.iterdir()}
    assert names == {".lock", "attempts", "metrics.jsonl", "predictions.npz", "record.json", "spec.json"}


def test_a_second_launch_sends_what_is_new_and_repeats_nothing(launch: Launch) -> None:
    store, specs = launch.store, (launch.completed, launch.failed, launch.lost)
    process = start_mirror(launch.server, store, specs, grid="quickstart")
    for run, kept in ((launch.failed, 4), (launch.lost, 5)):  # relaunched: truncated to the checkpoint, then on to 9
        paths = store.run(run.run_id)
        with attempts.begin_attempt(paths, run) as attempt:
            write_lines(paths, kept=kept, upto=9)
            complete(paths, run, attempt.number)
    assert tracking.wait_for_mirror(process, PATIENCE_S)
    for run in specs:
        assert_holds(launch.server, store, run.run_id)
    assert launch.server.errors == [] and not launch.server.unknown_operations


# ------------------------------------------------------------------------------------------------------ interruptions
def wandb_processes_of(mirror_pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if re.search(rf"\(wandb-core\) \w {mirror_pid} ", stat.read_text()):
                found.append(int(stat.parent.name))
    return found


def test_every_line_is_sent_once_though_the_mirror_is_killed_and_the_next_one_loses_wandb_to_a_signal(
    tmp_path: Path,
) -> None:
    store, run = StorePaths(tmp_path / "results"), scratch_run()
    paths = store.run(run.run_id)
    with StandIn() as server:
        first = start_mirror(server, store, [run])
        with attempts.begin_attempt(paths, run) as attempt:
            write_lines(paths, upto=300)
            checkpoint(attempt, lines=200)
            wait_until(lambda: server.runs and numbers(server, run))
            first.send_signal(signal.SIGKILL)
            assert not tracking.wait_for_mirror(first, PATIENCE_S)
            second = start_mirror(server, store, [run])
            write_lines(paths, kept=300, upto=310)
            checkpoint(attempt, lines=305)
            wait_until(lambda: wandb_processes_of(second.pid))
            for pid in (
                second.pid,
                *wandb_processes_of(second.pid),
            ):  # as SLURM does: the mirror survives
                os.kill(pid, signal.SIGTERM)
            complete(paths, run, attempt.number)
        assert tracking.wait_for_mirror(second, PATIENCE_S)
        assert numbers(server, run) == list(range(1, 311))
        assert_holds(server, store, run.run_id)


def test_a_run_made_again_from_its_beginning_is_sent_anew_and_the_mirror_outlives_its_launcher(tmp_path: Path) -> None:
    store, run = StorePaths(tmp_path / "results"), scratch_run()
    paths = store.run(run.run_id)
    with StandIn() as server:
        process = start_mirror(server, store, [run])
        with attempts.begin_attempt(paths, run) as attempt:
            write_lines(paths, upto=6)
            checkpoint(attempt, lines=4)
            wait_until(lambda: server.runs)
            checkpoints.remove_checkpoints(paths)
            write_lines(paths, upto=6, scale=2.0)
            checkpoint(attempt, lines=3)
            # The launcher is gone (its end of the pipe is closed), training is not: the mirror stays for it.
            assert process.stdin is not None
            process.stdin.close()
            wait_until(lambda: server.run(run.run_id).exit_code == NOT_FINISHED)  # it gave up what it had sent
            assert numbers(server, run) == [1, 2, 3, 4]
            assert process.poll() is None
            checkpoint(attempt, lines=6)
        assert tracking.wait_for_mirror(process, PATIENCE_S)
        last = {row["line"]: row for row in lines_on(server.run(run.run_id))}
        assert list(last.values()) == expected_lines(paths)
        assert server.run(run.run_id).exit_code == NOT_FINISHED


def test_an_unreadable_run_does_not_keep_the_others_from_wandb(tmp_path: Path) -> None:
    store = StorePaths(tmp_path / "results")
    good, bad = scratch_run(0), scratch_run(1)
    for run in (good, bad):
        carry_out(store, run, lines=2)
    durable.write_bytes(store.run(bad.run_id).record, b"{")
    with StandIn() as server:
        assert not tracking.wait_for_mirror(start_mirror(server, store, [bad, good]), PATIENCE_S)
        assert_holds(server, store, good.run_id)
    (log,) = (store.wandb / "logs").iterdir()
    assert f"{bad.run_id}: " in log.read_text() and "is damaged" in log.read_text()
