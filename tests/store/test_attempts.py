"""Who may begin a run: what the kernel lock, the newest attempt's owner and SLURM tell of it, taken together."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cluster_cases import as_job, scratch_run
from replayed_slurm import CLUSTER, TOKEN

from transfergrid.errors import AlreadyRunning, Superseded
from transfergrid.paths import RunPaths
from transfergrid.specs import from_dict
from transfergrid.store import durable
from transfergrid.store.attempts import (
    ATTEMPTS_KEPT,
    attempt_times,
    begin_attempt,
    describe_owner,
    job_mark,
    newest_attempt,
    read_owner,
    restart_count,
    slurm_gpus,
    slurm_task,
)
from transfergrid.store.provenance import code_hash

SPEC = scratch_run()
HERE = socket.gethostname()


class Slurm:
    """is_alive() of a SLURM that has these alive; None: it does not answer."""

    def __init__(self, alive: Mapping[str, int] | None) -> None:
        self.alive = alive
        self.asked: list[str] = []

    def __call__(self, owner: Mapping[str, Any]) -> bool | None:
        self.asked.append(owner["slurm_task"])
        return None if self.alive is None else owner["slurm_task"] in self.alive


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    as_job(monkeypatch, None)


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path / "runs" / "one")


def test_each_attempt_says_what_it_computed_on_and_hears_where_the_one_before_was_on_another_kind(
    paths: RunPaths,
) -> None:
    heard = []
    for name in (None, "cpu", "cpu", None, "H200", "A100", "A100"):
        with begin_attempt(paths, SPEC) as attempt:
            heard.append(None if name is None else attempt.note_device(name))
            assert read_owner(paths) == attempt.owner  # also where it is killed after this
    assert heard == [None, None, None, None, "cpu", "H200", None]
    assert [t.device for t in attempt_times(paths)] == [None, "cpu", "cpu", None, "H200", "A100", "A100"]


def owned(paths: RunPaths, task: str | None, *, number: int = 1, **owner: Any) -> None:
    """The newest attempt, begun by a task of SLURM's on another node; `owner` wins."""
    content = {"host": "node-7", "pid": 1, "node": "node-7", "started": "2026-11-20T12:00:00+00:00", "attempt": number}
    content |= {"slurm_job_id": task, "slurm_task": task, "slurm_restart_count": 0}
    content |= {"slurm_cluster": CLUSTER, "slurm_mark": TOKEN, "uid": os.getuid(), **owner}
    paths.attempts.mkdir(parents=True, exist_ok=True)
    paths.attempt(number).write_text(json.dumps(content))


def begins(paths: RunPaths, slurm: Slurm | None) -> bool:
    """Whether an attempt may begin. If so it is the next; if not nothing of the run has changed."""
    before = newest_attempt(paths)
    try:
        with begin_attempt(paths, SPEC, is_alive=slurm) as attempt:
            assert attempt.number == newest_attempt(paths) == before + 1
            attempt.assert_newest()
            return True
    except AlreadyRunning as error:
        assert str(error).startswith("one is running already (") and newest_attempt(paths) == before
        return False


# ------------------------------------------------------------------------------------------------------- who may begin
@pytest.mark.parametrize("is_held", [False, True])
def test_outside_slurm_the_lock_alone_decides(paths: RunPaths, is_held: bool) -> None:
    slurm = Slurm({})
    for owner in (None, {"host": HERE}, {"host": "node-7"}):
        if owner is not None:
            owned(paths, None, number=newest_attempt(paths) + 1, **owner)
        with durable.lock(paths.lock, wait=False) if is_held else durable.lock(paths.lock.with_name("x"), wait=False):
            assert begins(paths, slurm) is not is_held
    assert slurm.asked == []


@pytest.mark.parametrize(
    ("alive", "is_held", "expected"),
    [
        ({"7": 0}, False, False),  # its lock is not seen from this node
        ({"7": 0}, True, False),
        ({}, False, True),
        ({}, True, True),  # SLURM has given it up; its copy still holds the lock
        ({"71": 0, "7_1": 0}, True, True),  # other jobs
        (None, False, True),  # SLURM silent: the lock alone decides
        (None, True, False),
    ],
)
def test_another_nodes_job_is_taken_over_when_slurm_no_longer_knows_it(
    paths: RunPaths, alive: Mapping[str, int] | None, is_held: bool, expected: bool
) -> None:
    owned(paths, "7")
    slurm = Slurm(alive)
    with durable.lock(paths.lock if is_held else paths.lock.with_name("x"), wait=False):
        assert begins(paths, slurm) is expected
    assert slurm.asked == ["7"]


@pytest.mark.parametrize("is_held", [False, True])
def test_without_a_way_to_ask_slurm_the_lock_decides(paths: RunPaths, is_held: bool) -> None:
    owned(paths, "7")
    with durable.lock(paths.lock if is_held else paths.lock.with_name("x"), wait=False):
        assert begins(paths, None) is not is_held


def test_slurm_is_asked_for_the_task_of_an_array_as_squeue_shows_it(paths: RunPaths) -> None:
    owned(paths, "7_3")
    slurm = Slurm({"7_3": 0})
    assert not begins(paths, slurm)
    assert slurm.asked == ["7_3"]


def test_on_one_machine_a_free_lock_tells_that_its_owner_is_gone(paths: RunPaths) -> None:
    owned(paths, "7", host=HERE)
    slurm = Slurm({"7": 0})
    assert begins(paths, slurm)
    assert slurm.asked == []


@pytest.mark.parametrize(("is_held", "expected"), [(False, True), (True, False)])
def test_an_attempt_that_has_ended_owns_nothing(paths: RunPaths, is_held: bool, expected: bool) -> None:
    """Its job may go on with other runs, and so be alive."""
    owned(paths, "7", ended="2026-11-20T12:30:00+00:00")
    slurm = Slurm({"7": 0})
    with durable.lock(paths.lock if is_held else paths.lock.with_name("x"), wait=False):
        assert begins(paths, slurm) is expected
    assert slurm.asked == []


@pytest.mark.parametrize(
    ("restarts", "is_held", "expected"),
    [(1, True, True), (3, True, True), (0, True, False), (None, True, False), (0, False, True), (1, False, True)],
)
def test_a_requeued_job_supersedes_its_older_copy_though_that_still_holds_the_lock(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch, restarts: int | None, is_held: bool, expected: bool
) -> None:
    owned(paths, "7_2", slurm_restart_count=0)
    as_job(monkeypatch, "7", task=2, restarts=restarts)
    slurm = Slurm({"7_2": 1})  # of course it is alive: it is this one
    with durable.lock(paths.lock if is_held else paths.lock.with_name("x"), wait=False):
        assert begins(paths, slurm) is expected
    assert slurm.asked == []


@pytest.mark.parametrize("other", [{"slurm_cluster": "elsewhere"}, {"slurm_mark": "ba9876543210"}])
def test_a_job_of_the_same_number_on_another_cluster_or_of_another_time_is_another_job(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    """Its restart count says nothing of this one, and it is asked for by what the attempt noted of it."""
    owned(paths, "7", **other)
    as_job(monkeypatch, "7", restarts=1)
    slurm = Slurm({"7": 0})
    assert not begins(paths, slurm) and slurm.asked == ["7"]


def test_another_task_of_the_same_array_is_another_job(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    owned(paths, "7_2")
    as_job(monkeypatch, "7", task=3, restarts=5)
    assert not begins(paths, Slurm({"7_2": 0}))


# ------------------------------------------------------------------------------------------------------------ takeover
def test_a_takeover_makes_a_new_lock_which_the_old_copy_does_not_hold(paths: RunPaths) -> None:
    owned(paths, "7")
    with durable.lock(paths.lock, wait=False) as old_copy:
        assert old_copy
        before = paths.lock.stat().st_ino
        with begin_attempt(paths, SPEC, is_alive=Slurm({})) as attempt:
            assert attempt.number == 2
            assert paths.lock.stat().st_ino != before
            assert durable.is_locked(paths.lock)
            assert not begins(paths, Slurm({}))  # the new owner is known by its lock
        assert not durable.is_locked(paths.lock)  # the old copy still has its lock, on a file that has no name


def test_the_older_copy_notices_that_it_is_superseded_and_its_end_changes_nothing(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_job(monkeypatch, "7", restarts=0)
    with begin_attempt(paths, SPEC) as older:
        as_job(monkeypatch, "7", restarts=1)
        with begin_attempt(paths, SPEC, is_alive=Slurm({"7": 1})) as newer:
            assert (older.number, newer.number) == (1, 2)
            with pytest.raises(Superseded, match="^one: attempt 1 is superseded by attempt 2$"):
                older.assert_newest()
            newer.assert_newest()
    assert newest_attempt(paths) == 2
    assert [read_json(paths, n)["slurm_restart_count"] for n in (1, 2)] == [0, 1]


def test_an_attempt_whose_file_was_cleared_away_does_not_write_it_again(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_job(monkeypatch, "7", restarts=0)
    with begin_attempt(paths, SPEC):
        for restarts in range(1, ATTEMPTS_KEPT + 1):
            as_job(monkeypatch, "7", restarts=restarts)
            with begin_attempt(paths, SPEC):
                pass
    assert sorted(p.name for p in paths.attempts.iterdir()) == ["002.json", "003.json", "004.json", "005.json"]


# ---------------------------------------------------------------------------------------------------- what is recorded
def test_an_attempt_states_who_has_the_run_and_later_that_it_has_ended(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_job(monkeypatch, "7", task=4, restarts=2)
    monkeypatch.setenv("SLURMD_NODENAME", "n3")
    monkeypatch.setenv("SLURM_JOB_GPUS", "1,3")
    with begin_attempt(paths, SPEC) as attempt:
        owner = read_owner(paths)
        assert owner == attempt.owner
        assert {k: owner[k] for k in owner if k != "started"} == {
            "attempt": 1,
            "host": HERE,
            "pid": os.getpid(),
            "slurm_job_id": "999",
            "slurm_task": "7_4",
            "slurm_restart_count": 2,
            "slurm_cluster": CLUSTER,
            "slurm_mark": TOKEN,
            "uid": os.getuid(),
            "node": "n3",
            "slurm_gpus": 2,
            "code_hash": code_hash(),
            "earlier": [],
        }
        assert describe_owner(paths) == f"attempt 1, job 7_4 on n3 since {owner['started']}"
    ended = read_owner(paths)
    assert ended is not None and ended.pop("ended") >= owner["started"]
    assert 0 <= ended.pop("wall_s") < 60
    assert ended == owner
    assert from_dict(type(SPEC), json.loads(paths.spec.read_text())) == SPEC


def test_the_times_of_all_attempts_are_kept_when_their_files_go(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    for restarts in range(ATTEMPTS_KEPT + 3):
        as_job(monkeypatch, "7", task=4, restarts=restarts)
        monkeypatch.setenv("SLURM_GPUS_ON_NODE", str(restarts))
        with begin_attempt(paths, SPEC):
            pass
    assert len(list(paths.attempts.iterdir())) == ATTEMPTS_KEPT
    times = attempt_times(paths)
    assert [(t.number, t.task, t.gpus) for t in times] == [(n, "7_4", n - 1) for n in range(1, ATTEMPTS_KEPT + 4)]
    assert all(t.wall_s is not None and 0 <= t.wall_s < 60 for t in times)


def test_an_attempt_of_an_earlier_release_has_its_time_too(paths: RunPaths) -> None:
    started = {"started": "2026-11-20T13:00:00+00:00"}
    durable.write_json(paths.attempt(1), started | {"ended": "2026-11-20T13:02:03+00:00"})
    durable.write_json(paths.attempt(2), started)  # killed
    assert [t.wall_s for t in attempt_times(paths)] == [123.0, None]


def test_gpus_are_those_of_the_job_that_this_process_was_told_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    as_job(monkeypatch, None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert slurm_gpus() is None
    as_job(monkeypatch, "7")
    assert slurm_gpus() == 0
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    assert slurm_gpus() == 2
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert slurm_gpus() == 4


def test_it_has_ended_also_where_the_run_failed(paths: RunPaths) -> None:
    with pytest.raises(ZeroDivisionError), begin_attempt(paths, SPEC):
        _ = 1 // 0
    assert "ended" in read_json(paths, 1)
    assert not durable.is_locked(paths.lock)


def test_what_an_attempt_finds_is_cleared_of_what_killed_writers_left(paths: RunPaths) -> None:
    paths.checkpoints.mkdir(parents=True)
    left = [folder / f".x.{HERE}.{2**22 + 1}.abcd.tmp" for folder in (paths.root, paths.checkpoints)]
    for path in left:
        path.touch()
    with begin_attempt(paths, SPEC):
        assert [path.exists() for path in left] == [False, False]


def test_an_owner_that_cannot_be_read_is_unknown_and_the_lock_decides(paths: RunPaths) -> None:
    paths.attempts.mkdir(parents=True)
    paths.attempt(3).write_text('{"host": "no')
    assert read_owner(paths) is None and describe_owner(paths) == "owner unknown"
    with durable.lock(paths.lock, wait=False):
        assert not begins(paths, Slurm({}))
    assert begins(paths, Slurm({}))


@pytest.mark.parametrize(
    ("job_id", "task", "restarts", "expected"),
    [
        (None, None, None, (None, 0)),
        ("12", None, None, ("12", 0)),
        ("12", None, 3, ("12", 3)),
        ("12", 0, None, ("12_0", 0)),
        ("12", 41, 2, ("12_41", 2)),
    ],
)
def test_a_job_is_named_as_squeue_names_it(
    monkeypatch: pytest.MonkeyPatch,
    job_id: str | None,
    task: int | None,
    restarts: int | None,
    expected: tuple[str | None, int],
) -> None:
    as_job(monkeypatch, job_id, task=task, restarts=restarts)
    assert (slurm_task(), restart_count()) == expected


def read_json(paths: RunPaths, number: int) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(paths.attempt(number).read_text())
    return content


def test_a_job_sent_by_hand_from_one_of_ours_does_not_take_its_token_for_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRANSFERGRID_JOB_TOKEN", "4f0c1b2a9d3e")
    monkeypatch.setenv("SLURM_JOB_NAME", "tg-mine-4f0c1b2a9d3e")
    assert job_mark() == "4f0c1b2a9d3e"
    monkeypatch.setenv("SLURM_JOB_NAME", "by-hand")
    assert job_mark() == "by-hand"
