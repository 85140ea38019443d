"""What was sent to SLURM, as the launches on file tell it."""

from __future__ import annotations

import json
import multiprocessing
import resource
import signal
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from transfergrid.cluster.ledger import Kind, Submission, forget, read_ledger, record
from transfergrid.errors import StoreFull
from transfergrid.paths import StorePaths

NOON = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return StorePaths(tmp_path / "results")


def sent(
    store: StorePaths,
    name: str,
    *tasks: tuple[str, ...],
    job_id: str | None = None,
    minutes: float = 0,
    grid: str = "g",
    launch: str = "l1",
    kind: Kind = "runs",
) -> Submission:
    submission = Submission(
        name=name,
        grid=grid,
        launch=store.launches / launch,
        tasks=tasks,
        job_id=job_id,
        kind=kind,
        submitted=NOON + timedelta(minutes=minutes),
        gpus=1,
    )
    record(submission)
    return submission


def ledger_file(store: StorePaths, launch: str = "l1") -> Path:
    return store.launches / launch / "slurm" / "submissions.jsonl"


def test_a_submission_comes_back_as_it_was_recorded(store: StorePaths) -> None:
    one = sent(store, "a", ("r1", "r2"), ("r3",), job_id="12")
    two = sent(store, "b", (), job_id="13", minutes=1, kind="finish", launch="l2")
    assert read_ledger(store).submissions == [one, two]
    assert (one.folder, two.folder) == (store.launches / "l1" / "slurm" / "a", store.launches / "l2" / "slurm" / "b")


def test_what_proves_a_job_ours_is_kept_and_stands_in_the_jobs_name(store: StorePaths) -> None:
    one = replace(sent(store, "a", ("r1",)), cluster="alpha", token="0a1b2c3d4e5f", uid=1000)
    record(one)
    assert read_ledger(store).submissions == [one]
    assert one.job_name == "a-0a1b2c3d4e5f" and one.proof.is_of("alpha") and not one.proof.is_of("beta")


def test_a_line_of_an_older_release_is_read_and_proves_nothing(store: StorePaths) -> None:
    one = sent(store, "a", ("r1", "r2"), job_id="12")
    lines = [json.loads(line) for line in ledger_file(store).read_text().splitlines()]
    for line in lines:
        for name in ("cluster", "token", "uid"):
            del line[name]
    ledger_file(store).write_text("".join(json.dumps(line) + "\n" for line in lines))
    [read] = read_ledger(store).submissions
    assert read == one and (read.cluster, read.token, read.job_name) == (None, None, "a")
    assert not read.proof.is_complete and not read.proof.is_of("alpha")


def test_a_store_from_which_nothing_was_sent_has_an_empty_ledger(store: StorePaths) -> None:
    ledger = read_ledger(store)
    assert (ledger.submissions, ledger.unsettled, ledger.newest("r1")) == ([], [], None)


def test_a_later_line_of_a_name_replaces_the_earlier_one(store: StorePaths) -> None:
    intent = sent(store, "a", ("r1",))
    assert read_ledger(store).unsettled == [intent]
    settled = replace(intent, job_id="12")
    record(settled)
    assert len(ledger_file(store).read_bytes().splitlines()) == 2
    assert read_ledger(store).submissions == [settled] and read_ledger(store).unsettled == []


def test_the_newest_submission_of_a_run_is_the_one_sent_last_whichever_launch_is_read_last(store: StorePaths) -> None:
    newer = sent(store, "a", ("r0",), ("r1", "r2"), job_id="20", minutes=5, launch="l1")
    older = sent(store, "z", ("r2",), ("r3",), job_id="10", minutes=0, launch="l2")
    ledger = read_ledger(store)
    assert ledger.submissions == [older, newer]
    assert ledger.newest("r2") == (newer, 1)
    assert ledger.newest("r0") == (newer, 0)
    assert ledger.newest("r3") == (older, 1)
    assert ledger.newest("r4") is None


def test_what_is_forgotten_holds_no_run_and_is_no_intent_and_the_one_before_counts_again(store: StorePaths) -> None:
    before = sent(store, "a", ("r1",), job_id="12")
    intent = sent(store, "b", ("r1",), minutes=1)
    assert read_ledger(store).newest("r1") == (intent, 0)
    forget(intent)
    ledger = read_ledger(store)
    assert ledger.newest("r1") == (before, 0)
    assert ledger.unsettled == [] and ledger.of_grid("g", "runs") == [before]


def test_submissions_are_told_apart_by_grid_and_kind(store: StorePaths) -> None:
    runs = sent(store, "a", ("r1",), job_id="12")
    sent(store, "b", ("r1",), job_id="13", grid="other")
    finish = sent(store, "c", (), job_id="14", kind="finish")
    ledger = read_ledger(store)
    assert ledger.of_grid("g", "runs") == [runs] and ledger.of_grid("g", "finish") == [finish]


def test_a_torn_last_line_is_left_out(store: StorePaths) -> None:
    whole = sent(store, "a", ("r1",), job_id="12")
    sent(store, "b", ("r2",), job_id="13", minutes=1)
    content = ledger_file(store).read_bytes()
    first = content.index(b"\n") + 1
    for cut in range(first, len(content) - 1, 7):
        ledger_file(store).write_bytes(content[:cut])
        assert read_ledger(store).submissions == [whole]
    ledger_file(store).write_bytes(content[:-1])  # whole but for its end
    assert [s.name for s in read_ledger(store).submissions] == ["a", "b"]


def test_a_line_that_follows_a_torn_one_is_not_torn_with_it(store: StorePaths) -> None:
    """Else the id of a job would be lost, and its runs sent a second time."""
    intent = sent(store, "a", ("r1",))
    with open(ledger_file(store), "ab") as file:
        file.write(b'{"name": "b", "gr')
    settled = replace(intent, job_id="12")
    record(settled)
    assert read_ledger(store).submissions == [settled]


def test_a_line_for_which_there_is_no_room_is_an_error_and_not_half_a_line(store: StorePaths) -> None:
    intent = sent(store, "a", ("r1",))
    size = ledger_file(store).stat().st_size

    def write_where_the_disk_is_full() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, size + 20))
        try:
            record(replace(intent, job_id="12"))
        except StoreFull:
            raise SystemExit(7) from None

    child = multiprocessing.get_context("fork").Process(target=write_where_the_disk_is_full)
    child.start()
    child.join(60)
    assert child.exitcode == 7
    assert read_ledger(store).submissions == [intent]


@pytest.mark.parametrize(
    ("job_id", "tasks", "expected"),
    [
        (None, (("r1",),), [None]),
        (None, (("r1",), ("r2",)), [None, None]),
        ("12", (("r1", "r2"),), ["12"]),  # a plain job
        ("12", (("r1",), ("r2",)), ["12_0", "12_1"]),
    ],
)
def test_a_task_has_the_id_that_squeue_shows(
    store: StorePaths, job_id: str | None, tasks: tuple[tuple[str, ...], ...], expected: list[str | None]
) -> None:
    submission = sent(store, "a", *tasks, job_id=job_id)
    assert [submission.task_id(i) for i in range(len(tasks))] == expected


def test_a_tasks_logs_lie_in_the_folder_of_its_group(store: StorePaths) -> None:
    array = sent(store, "a", ("r1",), ("r2",), job_id="12")
    assert array.logs(1) == (array.folder / "12_1_0_log.out", array.folder / "12_1_0_log.err")
    plain = sent(store, "b", ("r3",), job_id="13")
    assert plain.logs(0) == (plain.folder / "13_0_log.out", plain.folder / "13_0_log.err")
