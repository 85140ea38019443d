"""jobs/sync.py against the stand-in W&B server: what it sends, what it says, and that it may run at any time."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tracked_runs import (
    PATIENCE_S,
    Ended,
    assert_holds,
    carry_out,
    checkpoint,
    complete,
    expected_lines,
    fail,
    lines_on,
    processes_at,
    scratch_run,
    start_mirror,
    sync,
    verified,
    wait_until,
    write_grid,
    write_lines,
)
from wandb_faults import BlackHole
from wandb_server import StandIn

from transfergrid import tracking
from transfergrid.paths import StorePaths
from transfergrid.specs import RunSpec
from transfergrid.store import attempts
from transfergrid.tracking import sync as syncing
from transfergrid.tracking.account import Unreachable

pytestmark = pytest.mark.wandb


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as started:
        yield started


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return StorePaths(tmp_path / "results")


# ------------------------------------------------------------------------------------------- one grid, step after step
@dataclass(frozen=True)
class Synced:
    server: StandIn
    store: StorePaths
    done: RunSpec
    failed: RunSpec
    training: RunSpec  # 14 lines, checkpoint at 6, its lock is held
    idle: RunSpec  # never began
    first: Ended
    second: Ended
    requests: Counter[str]  # of the second


@pytest.fixture(scope="module")
def synced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Synced]:
    store = StorePaths(tmp_path_factory.mktemp("synced") / "results")
    done, failed, training, idle = runs = [scratch_run(seed) for seed in range(4)]
    write_grid(store, runs)
    carry_out(store, done)
    with attempts.begin_attempt(store.run(failed.run_id), failed) as attempt:
        write_lines(store.run(failed.run_id), upto=8)
        checkpoint(attempt, lines=6)
        fail(store.run(failed.run_id), failed, attempt.number)
    with StandIn() as server, attempts.begin_attempt(store.run(training.run_id), training) as attempt:
        write_lines(store.run(training.run_id), upto=14)
        checkpoint(attempt, lines=6)
        first = sync(server, store)
        before = server.counts()
        second = sync(server, store)
        yield Synced(server, store, done, failed, training, idle, first, second, server.counts() - before)


def test_a_grid_with_runs_in_every_state_is_synced(synced: Synced) -> None:
    expected = "W&B: 3 runs in the store, 3 brought up to date, 3 read back and equal, 1 unfinished yet"
    assert (synced.first.code, synced.first.lines) == (0, [expected])
    ids = {synced.done.run_id, synced.failed.run_id, synced.training.run_id, "grid-g"}
    assert {run.id for run in synced.server.runs.values()} == ids  # nothing of the run that never began
    assert synced.server.errors == [] and not synced.server.unknown_operations


def test_a_completed_run_is_on_the_server_as_in_the_store(synced: Synced) -> None:
    assert_holds(synced.server, synced.store, synced.done.run_id)
    summary = synced.server.run(synced.done.run_id).summary
    assert {f"class_accuracy/class {n}" for n in range(10)} <= set(summary)
    (table,) = [f for f in synced.server.run(synced.done.run_id).files if f.endswith(".table.json")]
    cells = json.loads(synced.server.run(synced.done.run_id).files[table])["data"]
    assert len(cells) == 100 and sum(cell[2] for cell in cells) == 50


def test_a_failed_run_is_failed_with_its_reason_and_the_lines_of_its_checkpoint(synced: Synced) -> None:
    run = synced.server.run(synced.failed.run_id)
    assert (run.state, run.summary["failure_class"], run.summary["error"]) == ("failed", "cuda_oom", "no memory left")
    assert lines_on(run) == expected_lines(synced.store.run(synced.failed.run_id), 6)


def test_of_a_run_in_training_what_its_checkpoint_covers_is_there(synced: Synced) -> None:
    run = synced.server.run(synced.training.run_id)
    assert lines_on(run) == expected_lines(synced.store.run(synced.training.run_id), 6)
    assert "status" not in run.summary


def test_a_second_sync_sends_nothing(synced: Synced) -> None:
    expected = "W&B: 3 runs in the store, 0 brought up to date, 3 read back and equal, 1 unfinished yet"
    assert (synced.second.code, synced.second.lines) == (0, [expected])
    writing = {"UpsertBucket", "file_stream", "storage", "CreateRunFiles", "CreateArtifact"}
    assert not writing & set(synced.requests)


def test_sync_leaves_neither_its_own_files_nor_anything_at_home(synced: Synced) -> None:
    kept = [str(path.relative_to(synced.store.wandb)) for path in synced.store.wandb.rglob("*") if path.is_file()]
    assert sorted(path for path in kept if not path.startswith("locks/")) == ["grids/g/grid.json"]
    assert list((synced.store.root.parent / "home").iterdir()) == []


def test_what_earlier_releases_wrote_offline_is_left_alone_and_the_runs_are_sent_from_the_store(
    server: StandIn, store: StorePaths
) -> None:
    run = scratch_run()
    write_grid(store, [run])
    carry_out(store, run)
    former = store.wandb / "wandb" / f"offline-run-20260101_120000-{run.run_id}" / f"run-{run.run_id}.wandb"
    former.parent.mkdir(parents=True)
    former.write_bytes(b":W&B of an earlier release")
    ended = sync(server, store)
    assert (ended.code, ended.lines) == (0, [verified(1, sent=1)])
    assert_holds(server, store, run.run_id)
    assert former.read_bytes() == b":W&B of an earlier release"


# ------------------------------------------------------------------------------------------------------- what is mended
def test_lines_and_numbers_that_were_changed_on_the_server_are_named_and_sent_again(
    server: StandIn, store: StorePaths
) -> None:
    """In W&B a run's later row wins, so what is wrong there is mended by sending it again."""
    run = scratch_run()
    write_grid(store, [run])
    carry_out(store, run)
    assert sync(server, store).code == 0
    held = server.run(run.run_id)
    rows = [row | {"train/loss": 9.0} if row.get("line") in (5, 8) else row for row in held.history]
    held.history_lines.put(0, [json.dumps(row) for row in rows])
    held.summary["test_accuracy"] = 0.999
    server.fail("file_stream", 400)  # nothing can be mended, so the first differences stay
    seen = sync(server, store)
    server.clear_faults()
    assert seen.code == 1
    assert f"{run.run_id}: 2 of 12 lines are missing or other ones: 5, 8" in seen.lines
    accuracy = json.loads(store.run(run.run_id).record.read_text())["metrics"]["test_accuracy"]
    assert f"{run.run_id}: summary: test_accuracy is 0.999, not {accuracy}" in seen.out
    mended = sync(server, store)
    assert (mended.code, mended.lines) == (0, [verified(1, sent=1)])
    assert_holds(server, store, run.run_id, once=False)


def test_a_run_in_training_is_continued_where_the_last_sync_ended_and_a_live_mirror_is_left_alone(
    server: StandIn, store: StorePaths
) -> None:
    run = scratch_run()
    write_grid(store, [run])
    paths = store.run(run.run_id)
    with attempts.begin_attempt(paths, run) as attempt:
        write_lines(paths, upto=10)
        checkpoint(attempt, lines=4)
        assert sync(server, store).code == 0
        mirror = start_mirror(server, store, [run])
        write_lines(paths, kept=10, upto=20)
        checkpoint(attempt, lines=15)
        wait_until(lambda: len(lines_on(server.run(run.run_id))) == 15)
        beside = sync(server, store)
        complete(paths, run, attempt.number)
    assert tracking.wait_for_mirror(mirror, PATIENCE_S)
    expected = "W&B: 1 run in the store, 0 brought up to date, 0 read back and equal, 1 being sent by another process"
    assert (beside.code, beside.lines) == (0, [expected])
    assert_holds(server, store, run.run_id)
    assert sync(server, store).lines == [verified(1, sent=0)]


def test_of_a_run_made_again_from_an_older_state_the_later_rows_win(server: StandIn, store: StorePaths) -> None:
    run = scratch_run()
    write_grid(store, [run])
    paths = store.run(run.run_id)
    with attempts.begin_attempt(paths, run) as attempt:
        write_lines(paths, upto=12)
        checkpoint(attempt, lines=12)
        assert sync(server, store).code == 0
        write_lines(paths, kept=6, upto=12, scale=2.0)
        complete(paths, run, attempt.number)
    again = sync(server, store)
    assert (again.code, again.lines) == (0, [verified(1, sent=1)])
    assert [row["line"] for row in lines_on(server.run(run.run_id))] == [*range(1, 13), *range(7, 13)]
    assert_holds(server, store, run.run_id, once=False)


def test_a_failed_run_that_is_launched_again_ends_as_finished(server: StandIn, store: StorePaths) -> None:
    run = scratch_run()
    write_grid(store, [run])
    paths = store.run(run.run_id)
    with attempts.begin_attempt(paths, run) as attempt:
        write_lines(paths, upto=9)
        checkpoint(attempt, lines=6)
        fail(paths, run, attempt.number)
    assert sync(server, store).code == 0 and server.run(run.run_id).state == "failed"
    with attempts.begin_attempt(paths, run) as attempt:
        write_lines(paths, kept=6, upto=12)
        complete(paths, run, attempt.number)
    assert sync(server, store).code == 0
    assert server.run(run.run_id).summary["attempt"] == 2
    assert_holds(server, store, run.run_id)


# ----------------------------------------------------------------------------------------- several grids and processes
def test_a_run_of_two_grids_is_sent_once_and_carries_both_tags(server: StandIn, store: StorePaths) -> None:
    shared, own = scratch_run(0), scratch_run(1)
    write_grid(store, [shared], name="g")
    write_grid(store, [shared, own], name="other")
    carry_out(store, shared)
    carry_out(store, own)
    assert sync(server, store).lines == [verified(1, sent=1)]
    received = server.run(shared.run_id).history_lines.received
    assert sync(server, store, grid="other").lines == [verified(2, sent=1)]
    assert {"grid:g", "grid:other"} <= set(server.run(shared.run_id).tags)
    assert server.run(shared.run_id).history_lines.received == received
    for run in (shared, own):
        assert_holds(server, store, run.run_id)
    assert {"grid-g", "grid-other"} <= {run.id for run in server.runs.values()}


def test_two_syncs_at_once_send_each_line_once(server: StandIn, store: StorePaths) -> None:
    runs = [scratch_run(seed) for seed in range(6)]
    write_grid(store, runs)
    for run in runs:
        carry_out(store, run)
    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(lambda _: sync(server, store), range(2)))
    assert [one.code for one in ended] == [0, 0], [one.out for one in ended]
    for run in runs:
        assert_holds(server, store, run.run_id)
        assert len(server.run(run.run_id).history) == 13  # 12 lines, and the row that shows the predictions
    assert sync(server, store).lines == [verified(6, sent=0)]


def test_the_death_of_wandbs_process_is_overcome_and_a_list_of_runs_that_cannot_be_sent_is_one_line(
    server: StandIn, store: StorePaths
) -> None:
    """The list is sent last, as a run of its own."""
    run = scratch_run()
    write_grid(store, [run])
    carry_out(store, run)
    assert sync(server, store).code == 0
    write_grid(store, [run, scratch_run(1)])
    server.fail("UpsertBucket", 403)
    seen = sync(server, store)
    server.clear_faults()
    assert (seen.code, len(seen.lines)) == (1, 2) and seen.lines[0].startswith("grid.json: ")
    server.fail("CreateRunFiles", BlackHole(), times=1)
    with ThreadPoolExecutor(1) as pool:
        before = server.counts()["CreateRunFiles"]
        ended = pool.submit(sync, server, store)
        wait_until(lambda: server.counts()["CreateRunFiles"] > before)
        for pid in processes_at(store, "wandb-core"):
            os.kill(pid, signal.SIGKILL)
        server.clear_faults()
    assert (ended.result().code, ended.result().lines) == (0, [verified(1, sent=0)])
    assert server.run("grid-g").files["grid.json"] == (store.wandb / "grids" / "g" / "grid.json").read_bytes()


# ------------------------------------------------------------------------------------------- what sync says and refuses
def test_an_unknown_grid_is_one_line_with_those_that_are_known(server: StandIn, store: StorePaths) -> None:
    write_grid(store, [scratch_run()], name="known")
    ended = sync(server, store, grid="unknown")
    expected = f"error: grid 'unknown' was never launched in {store.root}; launched there: known"
    assert (ended.code, ended.lines) == (2, [expected])
    assert not store.wandb.exists()


def test_without_a_key_with_a_refused_key_and_without_a_server_there_is_one_line_each(
    server: StandIn, store: StorePaths
) -> None:
    write_grid(store, [scratch_run()])
    carry_out(store, scratch_run())
    no_key = sync(server, store, WANDB_API_KEY="")
    refused = sync(server, store, WANDB_API_KEY="e" * 40)
    server.stop()
    dead = sync(server, store)
    assert [one.code for one in (no_key, refused, dead)] == [1, 1, 1]
    assert no_key.lines == [
        f"error: no W&B key for {server.url} on this machine; run `wandb login`, or set WANDB_API_KEY"
    ]
    assert len(refused.lines) == 1 and "user is not logged in" in refused.out and server.url in refused.out
    assert len(dead.lines) == 1 and dead.out.startswith(f"error: {server.url} does not answer: ")
    assert dead.seconds < 30


def test_a_server_that_takes_nothing_for_a_minute_is_given_up(
    store: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed = [tracking.Followed(f"run-{n}", "", 0) for n in range(100)]
    server: Any = SimpleNamespace(account=SimpleNamespace(url="http://127.0.0.1:9"))
    monkeypatch.setattr(syncing, "why_silent", lambda url: None)
    monkeypatch.setattr(syncing, "STALLED_S", 0.0)
    monkeypatch.setattr(syncing, "wandb_processes", lambda: [1])
    monkeypatch.setattr(syncing._Sync, "_send_and_verify", lambda self, mirror: ["no answer in time"])
    one = syncing._Sync("g", store, server, followed, None)
    with pytest.raises(Unreachable, match="nothing went well for 0 s; at last run-\\d+: no answer in time"):
        one.carry_out()
    assert len(one.synced.problems) <= syncing.AT_ONCE


def test_names_that_are_not_utf8_reach_the_server_spelled_out(store: StorePaths, server: StandIn) -> None:
    """Of classes, of the data set and in an error: W&B takes text alone."""
    odd = os.fsdecode(b"caf\xe9")
    run, broken = scratch_run(), scratch_run(1)
    named = replace(run, dataset=replace(run.dataset, name=odd))
    write_grid(store, [named, broken])
    names = [odd, *(f"class {n}" for n in range(1, 10))]
    carry_out(store, named, details={"n_test": 50, "class_names": names})
    with attempts.begin_attempt(store.run(broken.run_id), broken) as attempt:
        write_lines(store.run(broken.run_id), upto=8)
        fail(store.run(broken.run_id), broken, attempt.number, error=f"{odd}/1.png cannot be read")

    first = sync(server, store)
    assert (first.code, first.lines) == (0, [verified(2, sent=2)])
    assert sync(server, store).lines == [verified(2, sent=0)]
    assert server.errors == [] and not server.unknown_operations
    sent = server.run(named.run_id)
    assert r"class_accuracy/caf\xe9" in sent.summary and r"caf\\xe9" in json.dumps(sent.config)
    assert "cannot be read" in json.dumps(server.run(broken.run_id).summary)
