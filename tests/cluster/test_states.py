"""True states: every ending seen on real clusters, and what must be said of it. squeue and sacct are replayed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from replayed_slurm import (
    CLUSTER,
    TOKEN,
    ReplayedSlurm,
    account_line,
    ago,
    attempt,
    completed,
    failed,
    queue_line,
    submit,
)

from transfergrid.cluster import slurm_words
from transfergrid.cluster.ledger import read_ledger
from transfergrid.cluster.needs import needs_of
from transfergrid.cluster.ownership import Proof, is_alive, live_rows
from transfergrid.cluster.run_state import RunState
from transfergrid.cluster.slurm import SlurmDown
from transfergrid.cluster.states import Snapshot, take_snapshot
from transfergrid.config import load_run
from transfergrid.errors import FAILURE_CLASSES
from transfergrid.paths import StorePaths
from transfergrid.planning import job
from transfergrid.store import durable


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return StorePaths(tmp_path / "results")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReplayedSlurm:
    return ReplayedSlurm(tmp_path / "bin", monkeypatch)


def look(store: StorePaths, *run_ids: str, **needs: tuple[str, ...]) -> Snapshot:
    return take_snapshot(run_ids, store, read_ledger(store), needs=needs)


def state_of(store: StorePaths, run_id: str = "a") -> RunState:
    return look(store, run_id).states[run_id]


# ---------------------------------------------------------------------------------------------------------- own record
def test_a_completed_record_is_done_and_asks_nobody(store: StorePaths, slurm: ReplayedSlurm) -> None:
    submit(store, ("a",))
    completed(store, "a", attempt=3)
    snapshot = look(store, "a")
    assert snapshot.states["a"] == RunState(run_id="a", state="done", attempts=3, elapsed_s=12.5)
    assert snapshot.commands == 0 and slurm.calls == []


def test_slurm_says_failed_and_the_record_completed_it_is_done(store: StorePaths, slurm: ReplayedSlurm) -> None:
    """A child of the job was killed for its memory after the result had been written."""
    submit(store, ("a",))
    slurm.answers("squeue", queue_line("7", "FAILED", "OutOfMemory", status=256))
    completed(store, "a")
    assert state_of(store).state == "done"


@pytest.mark.parametrize(
    ("failure_class", "state"),
    [("code", "failed"), ("cuda_oom", "failed"), ("blocked", "blocked"), ("cancelled", "cancelled"), ("lost", "lost")],
)
def test_a_failed_record_tells_how(store: StorePaths, slurm: ReplayedSlurm, failure_class: str, state: str) -> None:
    submit(store, ("a",))
    attempt(store, "a")
    failed(store, "a", failure_class)
    found = state_of(store)
    assert (found.state, found.failure_class, found.reason, found.job_id) == (state, failure_class, "it broke", "7")


def test_a_failed_record_is_past_once_a_newer_job_lives(store: StorePaths, slurm: ReplayedSlurm) -> None:
    submit(store, ("a",), job_id="6", seconds_ago=7200)
    attempt(store, "a", seconds_ago=7000, slurm_task="6", slurm_job_id="6")
    failed(store, "a", seconds_ago=6900)
    submit(store, ("a",), seconds_ago=60)
    slurm.answers("squeue", queue_line("7", "PENDING", "Priority"))
    found = state_of(store)
    assert found.state == "pending" and found.job_id == "7" and found.attempts == 1


def test_a_failed_record_counts_though_its_job_is_still_ending(store: StorePaths, slurm: ReplayedSlurm) -> None:
    submit(store, ("a",))
    attempt(store, "a")
    failed(store, "a")
    slurm.answers("squeue", queue_line("7", "COMPLETING", "NonZeroExitCode", node="n1"))
    assert state_of(store).state == "failed"


def test_a_record_of_the_time_before_a_requeue_is_past(store: StorePaths, slurm: ReplayedSlurm) -> None:
    submit(store, ("a",))
    attempt(store, "a")
    failed(store, "a")
    slurm.answers("squeue", queue_line("7", "PENDING", "BeginTime", restarts=1))
    assert state_of(store).state == "pending"


def test_an_attempt_after_the_record_counts_more_than_the_record(store: StorePaths, slurm: ReplayedSlurm) -> None:
    """Requeued after a failure, then killed for good: what SLURM says of the second start."""
    submit(store, ("a",))
    attempt(store, "a", 2, slurm_restart_count=1)
    failed(store, "a", attempt=1)
    slurm.answers("squeue", queue_line("7", "TIMEOUT", "TimeLimit", started=ago(4000), used="1:00", restarts=1))
    found = state_of(store)
    assert (found.state, found.failure_class) == ("failed", "timeout")


def test_an_old_failure_stands_where_nothing_is_known_of_the_new_job(store: StorePaths, slurm: ReplayedSlurm) -> None:
    submit(store, ("a",), job_id="6", seconds_ago=7200)
    attempt(store, "a", seconds_ago=7000, slurm_task="6", slurm_job_id="6")
    failed(store, "a", seconds_ago=6900)
    submit(store, ("a",), seconds_ago=3600)
    found = state_of(store)
    assert (found.state, found.failure_class) == ("failed", "code") and "of job 7 nothing is known" in found.reason


# ------------------------------------------------------------------------------------------------ local, unsubmitted
def test_a_lock_held_without_a_job_is_a_run_on_this_machine(store: StorePaths, slurm: ReplayedSlurm) -> None:
    attempt(store, "a", slurm_job_id=None, slurm_task=None, node=None, host="laptop", seconds_ago=90)
    with durable.lock(store.run("a").lock, wait=False):
        found = state_of(store)
    assert (found.state, found.job_id, found.node) == ("running", None, "laptop")
    assert found.elapsed_s is not None and 89 < found.elapsed_s < 120
    assert slurm.calls == []
    ended = state_of(store)
    assert (ended.state, ended.reason) == ("not submitted", "its last attempt was interrupted")


def test_what_was_never_sent_is_not_submitted(store: StorePaths, slurm: ReplayedSlurm) -> None:
    assert state_of(store) == RunState(run_id="a", state="not submitted")
    assert not state_of(store).is_live


def test_an_intent_without_a_job_is_unknown(store: StorePaths, slurm: ReplayedSlurm) -> None:
    submit(store, ("a",), job_id=None, seconds_ago=1)
    assert (state_of(store).state, state_of(store).reason) == ("unknown", "is being submitted")


def test_a_job_that_no_ledger_knows_is_followed_by_its_attempt(store: StorePaths, slurm: ReplayedSlurm) -> None:
    attempt(store, "a", slurm_task="9_2", slurm_job_id="11")
    slurm.answers("squeue", queue_line("9_2", "RUNNING", used="5:00", node="n2"))
    found = state_of(store)
    assert (found.state, found.job_id, found.node, found.elapsed_s) == ("running", "9_2", "n2", 300.0)


# ------------------------------------------------------------------------------------------------------------- in queue
LIVE = [
    ("PENDING", "Priority", "pending", False),
    ("PENDING", "Resources", "pending", False),
    ("PENDING", "BeginTime", "pending", False),
    ("PENDING", "JobArrayTaskLimit", "pending", False),
    ("PENDING", "AssocMaxJobsLimit", "pending", False),
    ("PENDING", "QOSMaxJobsPerUserLimit", "pending", False),
    ("PENDING", "QOSMaxGRESPerUser", "pending", False),
    ("PENDING", "QOSGrpGRES", "pending", False),
    ("PENDING", "AssocGrpCPUMinutesLimit", "pending", False),
    ("PENDING", "PartitionNodeLimit", "pending", False),
    ("PENDING", "ReqNodeNotAvail, UnavailableNodes:n1", "pending", False),
    ("PENDING", "Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved", "pending", False),
    ("PENDING", "JobHeldUser", "pending", False),
    ("PENDING", "launch failed requeued held", "pending", False),
    ("PENDING", "Dependency", "pending", False),
    ("PENDING", "SomethingNew", "pending", False),
    ("PENDING", "DependencyNeverSatisfied", "pending", True),
    ("PENDING", "PartitionTimeLimit", "pending", True),
    ("PENDING", "QOSMaxWallDurationPerJobLimit", "pending", True),
    ("PENDING", "AssocMaxWallDurationPerJobLimit", "pending", True),
    ("PENDING", "AssociationTimeLimit", "pending", True),
    ("PENDING", "QOSMaxGRESPerJob", "pending", True),
    ("PENDING", "QOSMaxMemoryPerNode", "pending", True),
    ("PENDING", "MaxMemPerLimit", "pending", True),
    ("PENDING", "QOSMinCpuNotSatisfied", "pending", True),
    ("PENDING", "BadConstraints", "pending", True),
    ("PENDING", "InvalidAccount", "pending", True),
    ("PENDING", "AccountNotAllowed", "pending", True),
    ("PENDING", "InvalidQOS", "pending", True),
    ("PENDING", "ReservationDeleted", "pending", True),
    ("CONFIGURING", "None", "pending", False),
    ("REQUEUED", "None", "pending", False),
    ("REQUEUE_FED", "None", "pending", False),
    ("REQUEUE_HOLD", "None", "pending", False),
    ("SPECIAL_EXIT", "None", "pending", False),
    ("RESV_DEL_HOLD", "None", "pending", False),
    ("RUNNING", "None", "running", False),
    ("SUSPENDED", "None", "running", False),
    ("COMPLETING", "None", "running", False),
    ("STOPPED", "None", "running", False),
    ("SIGNALING", "None", "running", False),
    ("STAGE_OUT", "None", "running", False),
    ("RESIZING", "None", "running", False),
    ("A_STATE_TO_COME", "None", "unknown", False),
]


@pytest.mark.parametrize(("word", "reason", "state", "never"), LIVE)
def test_what_lives_in_the_queue(
    store: StorePaths, slurm: ReplayedSlurm, word: str, reason: str, state: str, never: bool
) -> None:
    submit(store, ("a",))
    slurm.answers("squeue", queue_line("7", word, reason))
    found = state_of(store)
    assert (found.state, found.never_starts, found.is_live, found.failure_class) == (state, never, True, None)
    assert reason == "None" or reason[:60] in found.reason
    assert slurm.asked() == ["squeue"]


def test_a_pending_job_tells_when_it_is_to_start(store: StorePaths, slurm: ReplayedSlurm) -> None:
    submit(store, ("a",), ("b",))
    lines = queue_line("7_0", "PENDING", "Priority", started=ago(-600)) + queue_line("7_1", "RUNNING", used="0:42")
    slurm.answers("squeue", lines)
    states = look(store, "a", "b").states
    assert states["a"].starts is not None and abs((states["a"].starts - ago(-600)).total_seconds()) < 1
    assert "higher priority" in states["a"].reason
    assert (states["b"].elapsed_s, states["b"].left_s, states["b"].reason) == (42.0, 3600.0, "is starting")


def test_runs_that_share_a_job_take_turns(store: StorePaths, slurm: ReplayedSlurm) -> None:
    submit(store, ("a", "b", "c", "d"))
    completed(store, "a")
    attempt(store, "b", seconds_ago=500)
    failed(store, "b", seconds_ago=400)
    attempt(store, "c", seconds_ago=300)
    slurm.answers("squeue", queue_line("7", "RUNNING", used="30:00", node="n1"))
    states = look(store, "a", "b", "c", "d").states
    assert {r: s.state for r, s in states.items()} == {"a": "done", "b": "failed", "c": "running", "d": "pending"}
    assert states["d"].reason == "waits for its turn in job 7"
    assert look(store, "d").states["d"].state == "pending", "its companions count though nobody asks for them"
    slurm.answers("squeue", queue_line("7", "COMPLETING", used="30:00", node="n1"))
    assert look(store, "d").states["d"].reason == "its job 7 is ending"


def test_runs_that_share_a_job_take_turns_also_by_the_accounting_alone(store: StorePaths, slurm: ReplayedSlurm) -> None:
    slurm.controller_is_down()
    submit(store, ("a", "b"))
    attempt(store, "a", seconds_ago=10)
    slurm.answers("sacct", account_line("7", "RUNNING"))
    states = look(store, "a", "b").states
    assert [s.state for s in states.values()] == ["running", "pending"]
    assert states["b"].reason.startswith("waits for its turn in job 7, as the accounting says")


def test_the_first_of_a_pack_runs_before_it_has_an_attempt(store: StorePaths, slurm: ReplayedSlurm) -> None:
    submit(store, ("a", "b"))
    slurm.answers("squeue", queue_line("7", "RUNNING"))
    assert [s.state for s in look(store, "a", "b").states.values()] == ["running", "pending"]


def test_a_requeued_job_whose_old_copy_is_still_alive_waits(store: StorePaths, slurm: ReplayedSlurm) -> None:
    submit(store, ("a",))
    attempt(store, "a")
    slurm.answers("squeue", queue_line("7", "PENDING", "BeginTime", restarts=1))
    with durable.lock(store.run("a").lock, wait=False):
        assert state_of(store).state == "pending"
        slurm.answers("squeue", queue_line("7", "NODE_FAIL", "NodeDown", started=ago(900), used="5:00"))
        found = state_of(store)
    assert found.state == "running" and "goes on" in found.reason


# -------------------------------------------------------------------------------------------------------------- endings
ENDINGS = [
    ("TIMEOUT", "0:0", "", "failed", "timeout"),
    ("DEADLINE", "0:0", "", "failed", "timeout"),
    ("OUT_OF_MEMORY", "0:125", "", "failed", "host_oom"),
    ("NODE_FAIL", "1:0", "", "failed", "node_failure"),
    ("BOOT_FAIL", "1:0", "", "failed", "node_failure"),
    ("PREEMPTED", "0:0", "", "failed", "preempted"),
    ("CANCELLED by 0", "0:0", "", "cancelled", "cancelled"),
    ("REVOKED", "0:0", "", "cancelled", "cancelled"),
    ("COMPLETED", "0:0", "", "lost", "lost"),
    ("FAILED", "7:0", "", "lost", "lost"),
    ("FAILED", "9:0", "", "lost", "lost"),
    ("FAILED", "127:0", "", "failed", "environment"),
    ("FAILED", "126:0", "", "failed", "environment"),
    ("FAILED", "1:0", "ModuleNotFoundError: No module named 'torch'\n", "failed", "environment"),
    ("FAILED", "1:0", "ImportError: libcuda.so.1\n", "failed", "environment"),
    ("FAILED", "1:0", "Waited for 60 seconds but could not find submitted jobs in path:\n", "failed", "environment"),
    ("FAILED", "1:0", "slurmstepd: error: Detected 1 oom-kill event(s)\n", "failed", "host_oom"),
    ("FAILED", "1:0", "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0\n", "failed", "host_oom"),
]


@pytest.mark.parametrize(("word", "code", "log", "state", "failure_class"), ENDINGS)
def test_how_a_job_ended_by_the_accounting(
    store: StorePaths, slurm: ReplayedSlurm, word: str, code: str, log: str, state: str, failure_class: str
) -> None:
    errors = submit(store, ("a",)).logs(0)[1]
    errors.parent.mkdir(parents=True)
    errors.write_text(log)
    slurm.answers("sacct", account_line("7", word, exit_code=code, elapsed_s=30))
    found = state_of(store)
    assert (found.state, found.failure_class) == (state, failure_class)
    assert found.failure_class in FAILURE_CLASSES and found.reason and not found.is_live
    assert slurm.asked() == ["squeue", "sacct"]


@pytest.mark.parametrize(
    ("word", "status", "log", "failure_class", "reason"),
    [
        ("TIMEOUT", 0, "", "timeout", "time limit"),
        ("CANCELLED", 15, "", "cancelled", "was cancelled"),
        ("NODE_FAIL", 0, "", "node_failure", "node failed"),
        ("FAILED", 7 << 8, "", "lost", "exit code 7"),
        ("FAILED", 9, "", "lost", "signal SIGKILL"),
        ("FAILED", 137 << 8, "", "lost", "signal SIGKILL"),
        ("FAILED", 9 << 8, "srun: error: n1: task 0: Killed\n", "lost", "signal SIGKILL"),
        ("FAILED", 9 << 8, "slurm_script: line 25: 25301 Killed   srun --unbuffered\n", "lost", "signal SIGKILL"),
        ("FAILED", 9 << 8, "", "lost", "exit code 9"),
        ("FAILED", 127 << 8, "", "environment", "exit code 127"),
        ("FAILED", 1 << 8, "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0\n", "host_oom", "memory"),
        ("OUT_OF_MEMORY", 0, "", "host_oom", "memory"),
    ],
)
def test_how_a_job_ended_by_the_queue_alone(
    store: StorePaths, slurm: ReplayedSlurm, word: str, status: int, log: str, failure_class: str, reason: str
) -> None:
    slurm.has_no_accounting()
    errors = submit(store, ("a",)).logs(0)[1]
    errors.parent.mkdir(parents=True)
    errors.write_text(log)
    slurm.answers("squeue", queue_line("7", word, started=ago(900), used="1:00", status=status, node="n1"))
    found = state_of(store)
    assert found.failure_class == failure_class and reason in found.reason and found.node == "n1"


def test_a_step_out_of_memory_stands_for_a_job_that_says_only_failed(store: StorePaths, slurm: ReplayedSlurm) -> None:
    submit(store, ("a",))
    slurm.answers("squeue", queue_line("7", "FAILED", "NonZeroExitCode", started=ago(900), used="1:00", status=256))
    step = account_line("7.0", "OUT_OF_MEMORY", exit_code="0:125", max_rss="1003520K")
    slurm.answers("sacct", account_line("7", "FAILED", exit_code="1:0") + step)
    found = state_of(store)
    assert (found.state, found.failure_class) == ("failed", "host_oom")
    assert found.reason.endswith("(seen using 1.0 of 1.0 GiB)")


@pytest.mark.parametrize(
    ("number", "told"), [(signal.SIGKILL, ("failed", "host_oom")), (signal.SIGSEGV, ("lost", "lost"))]
)
def test_of_runs_that_share_a_job_the_one_killed_for_its_memory_is_named(
    store: StorePaths, slurm: ReplayedSlurm, number: signal.Signals, told: tuple[str, str]
) -> None:
    """The job saw a signal and recorded that; only when it had ended did SLURM write why."""
    submission = submit(store, ("a", "b"))
    completed(store, "a")
    attempt(store, "b")
    failed(store, "b", "lost", "its process ended; the end of its log.txt may say why", details={"signal": number})
    _, errors = submission.logs(0)
    errors.parent.mkdir(parents=True)
    errors.write_text("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0\n")
    found = look(store, "a", "b").states
    assert found["a"].state == "done"
    assert (found["b"].state, found["b"].failure_class) == told


@pytest.mark.parametrize("word", ["NODE_FAIL", "PREEMPTED", "BOOT_FAIL"])
def test_what_slurm_may_start_again_is_not_final_yet(store: StorePaths, slurm: ReplayedSlurm, word: str) -> None:
    submit(store, ("a",))
    slurm.answers("sacct", account_line("7", word, ended=ago(100)))
    assert state_of(store).state == "unknown" and state_of(store).is_live
    slurm.answers("sacct", account_line("7", word, ended=ago(200)))
    assert state_of(store).state == "failed"
    slurm.answers("squeue", queue_line("7", "PENDING", "BeginTime", restarts=1))
    assert state_of(store).state == "pending"


def test_a_job_that_completed_a_moment_ago_may_still_show_its_record(store: StorePaths, slurm: ReplayedSlurm) -> None:
    submit(store, ("a",))
    slurm.answers("squeue", queue_line("7", "COMPLETED", started=ago(110), used="1:40"))
    assert state_of(store).state == "unknown" and "record" in state_of(store).reason
    slurm.answers("squeue", queue_line("7", "COMPLETED", started=ago(200), used="1:40"))
    assert (state_of(store).state, state_of(store).reason) == ("lost", "job 7 ended without a record")


def test_absent_everywhere_is_just_submitted_and_later_lost(store: StorePaths, slurm: ReplayedSlurm) -> None:
    submit(store, ("a",), seconds_ago=100)
    assert (state_of(store).state, state_of(store).reason) == ("pending", "just submitted")
    submit(store, ("b",), job_id="8", seconds_ago=200)
    lost = state_of(store, "b")
    assert (lost.state, lost.failure_class) == ("lost", "lost") and "job 8" in lost.reason
    slurm.has_no_accounting()
    assert state_of(store, "b").state == "lost"


def test_a_log_tells_the_ending_that_slurm_has_forgotten(store: StorePaths, slurm: ReplayedSlurm) -> None:
    slurm.has_no_accounting()
    errors = submit(store, ("a",), seconds_ago=90000).logs(0)[1]
    errors.parent.mkdir(parents=True)
    told = "slurmstepd-n1: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-20T10:00:00 DUE TO {} ***\n"
    errors.write_text(told.format("PREEMPTION") + told.format("TIME LIMIT"))
    attempt(store, "a", seconds_ago=80000)
    assert (state_of(store).state, state_of(store).failure_class) == ("failed", "timeout")


def test_a_waiting_task_that_is_cancelled_leaves_a_trace_in_its_siblings(
    store: StorePaths, slurm: ReplayedSlurm
) -> None:
    submit(store, ("a",), ("b",), seconds_ago=20)
    slurm.answers("squeue", queue_line("7_0", "RUNNING"))
    states = look(store, "a", "b").states
    assert [s.state for s in states.values()] == ["running", "cancelled"]
    assert states["b"].reason == "was cancelled before it started"


# ------------------------------------------------------------------------------------------------- whose job, and blind
STRANGER = "train-their-net"


@pytest.mark.parametrize("state", ["RUNNING", "CANCELLED", "COMPLETED"])
def test_a_strangers_job_of_the_same_number_tells_nothing_of_a_run(
    store: StorePaths, slurm: ReplayedSlurm, state: str
) -> None:
    submit(store, ("a",), seconds_ago=20)
    submit(store, ("b",), job_id="8")
    slurm.answers("squeue", "".join(queue_line(j, state, name=STRANGER, uid=4711) for j in "78"))
    slurm.answers("sacct", account_line("7", state, name=STRANGER) + account_line("8", state, name=STRANGER))
    states = look(store, "a", "b").states
    assert (states["a"].state, states["a"].reason) == ("pending", "just submitted")
    assert (states["b"].state, states["b"].reason) == ("lost", "SLURM no longer knows job 8, and it left no record")


@pytest.mark.parametrize("state", ["PENDING", "RUNNING"])
def test_a_job_that_its_user_has_renamed_is_neither_lost_nor_sent_again_nor_touched(
    store: StorePaths, slurm: ReplayedSlurm, state: str
) -> None:
    """As does `scontrol update JobId=7 JobName=mine`: no token proves it any more, and nothing says that it is gone."""
    sent = submit(store, ("a",), ("b",), seconds_ago=90_000)
    lines = queue_line("7_0", state, name="mine") + queue_line("7_1", "PENDING", name="mine")
    slurm.answers("squeue", lines)
    found = state_of(store)
    assert (found.state, found.undecided, found.is_live, found.may_change) == ("unknown", True, True, False)
    assert (
        found.reason == f"job 7_0 of the same user is {state}, and its name is mine, not what was sent; was it renamed?"
    )
    assert live_rows({"7": sent.proof}) == {}
    slurm.answers("sacct", account_line("7_0", "FAILED", exit_code="1:0"))  # under its own name: the number is new
    assert state_of(store).state == "lost"


def test_of_two_submissions_of_the_same_number_each_is_told_by_its_own_token(
    store: StorePaths, slurm: ReplayedSlurm
) -> None:
    """Numbers have begun anew. The older's row is gone, the newer's is there."""
    submit(store, ("a",), token="aaaaaaaaaaaa", name="old")
    submit(store, ("b",), token="bbbbbbbbbbbb", name="new", seconds_ago=300)
    slurm.answers("squeue", queue_line("7", "RUNNING", name="digits-cnn-bbbbbbbbbbbb"))
    assert [s.state for s in look(store, "a", "b").states.values()] == ["lost", "running"]


@pytest.mark.parametrize("word", ["PENDING", "RUNNING", "REQUEUED", "SUSPENDED"])
def test_what_the_accounting_says_lives_is_never_lost(store: StorePaths, slurm: ReplayedSlurm, word: str) -> None:
    """The queue does not show it, for whatever reason: it is blind, not the job gone."""
    submit(store, ("a",), seconds_ago=90_000)
    slurm.answers("sacct", account_line("7", word))
    found = state_of(store)
    assert (found.state, found.undecided, found.is_live, found.may_change) == ("unknown", True, True, False)
    assert found.reason == f"SLURM's accounting says {word}, its queue does not show job 7"
    submit(store, ("a",), seconds_ago=60)
    assert (state_of(store).state, state_of(store).may_change) == ("unknown", True)  # it may just be late


def test_where_others_jobs_are_hidden_a_colleagues_job_is_never_lost(store: StorePaths, slurm: ReplayedSlurm) -> None:
    slurm.is_cluster(CLUSTER, PrivateData="accounts,jobs")
    submit(store, ("mine",), job_id="6", uid=os.getuid())
    submit(store, ("theirs",), job_id="7", uid=4711)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getuid", lambda: 1000)
        assert state_of(store, "theirs").undecided and "PrivateData" in state_of(store, "theirs").reason
        submit(store, ("mine",), job_id="6", uid=1000)
        assert state_of(store, "mine").state == "lost"


def test_a_job_of_another_cluster_belongs_to_that(store: StorePaths, slurm: ReplayedSlurm) -> None:
    """This one has a job of that number, and even of that name."""
    submit(store, ("a",), cluster="beta")
    submit(store, ("b",), job_id="8")
    slurm.answers("squeue", queue_line("7", "CANCELLED") + queue_line("8", "RUNNING"))
    snapshot = look(store, "a", "b")
    found = snapshot.states["a"]
    assert (found.state, found.undecided, found.cluster) == ("unknown", True, "beta")
    assert found.reason == "its job 7 is on cluster beta" and snapshot.states["b"].state == "running"
    [line] = snapshot.elsewhere
    assert line.startswith(
        "cluster beta has the jobs of 1 of these runs; this is cluster here, which leaves them alone"
    )
    assert "-j 8 " in slurm.calls[1] and "sacct -M beta" in slurm.calls[2]


@pytest.mark.parametrize(
    ("word", "told"),
    [("RUNNING", "unknown"), ("PENDING", "unknown"), ("CANCELLED by 0", "cancelled"), ("TIMEOUT", "failed")],
)
def test_accounts_that_clusters_share_tell_how_a_job_of_another_ended(
    store: StorePaths, slurm: ReplayedSlurm, word: str, told: str
) -> None:
    submit(store, ("a",), cluster="beta")
    slurm.answers("sacct", account_line("7", word, cluster="beta") + account_line("7", "COMPLETED"))
    found = state_of(store)
    assert (found.state, found.undecided) == (told, told == "unknown")
    assert told != "unknown" or found.reason == f"its job 7 is on cluster beta; its accounting says {word}"


def test_what_an_older_release_sent_is_shown_by_its_name_and_never_lost(
    store: StorePaths, slurm: ReplayedSlurm
) -> None:
    """Renamed tasks keep that name as their comment."""
    for number, run_id in enumerate(("a", "b", "c", "d"), start=5):
        name = f"tg-g-{run_id}-0a1b2c3d4e"
        submit(store, (run_id,), job_id=str(number), name=name, cluster=None, token=None)
    lines = queue_line("5", "PENDING", name="tg-g-a-0a1b2c3d4e")
    lines += queue_line("6", "RUNNING", name="digits-cnn", comment="tg-g-b-0a1b2c3d4e")
    slurm.answers("squeue", lines + queue_line("7", "RUNNING", name=STRANGER, uid=4711, comment="tg-g-a-0a1b2c3d4e"))
    slurm.answers("sacct", account_line("8", "TIMEOUT", name="tg-g-d-0a1b2c3d4e"))
    states = look(store, "a", "b", "c", "d").states
    assert [s.state for s in states.values()] == ["pending", "running", "unknown", "failed"]
    assert states["c"].undecided and states["c"].reason == (
        "SLURM shows no job 7 of its name: an older release sent it, and noted neither its cluster nor a mark"
    )


def test_an_intent_is_sent_again_only_where_it_can_be_looked_for(store: StorePaths, slurm: ReplayedSlurm) -> None:
    submit(store, ("here",), job_id=None, name="one")
    submit(store, ("there",), job_id=None, name="two", cluster="beta")
    submit(store, ("old",), job_id=None, name="three", cluster=None, token=None)
    taken = submit(store, ("taken",), job_id=None, name="four")
    taken.folder.mkdir(parents=True)
    (taken.folder / "41_submitted.pkl").touch()
    states = look(store, "here", "there", "old", "taken").states
    assert {r: (s.state, s.undecided) for r, s in states.items()} == {
        "here": ("not submitted", False),
        "there": ("unknown", True),
        "old": ("unknown", True),
        "taken": ("unknown", True),
    }
    assert "to cluster beta" in states["there"].reason and "sbatch took it" in states["taken"].reason
    slurm.controller_is_down()
    assert [s.state for s in look(store, "here", "there").states.values()] == ["unknown", "unknown"]


@pytest.mark.parametrize("clusters", ["alpha,beta", "all"])
def test_a_shell_that_names_several_clusters_is_told_to_name_one(
    store: StorePaths, slurm: ReplayedSlurm, monkeypatch: pytest.MonkeyPatch, clusters: str
) -> None:
    submit(store, ("a",))
    monkeypatch.setenv("SBATCH_CLUSTERS", clusters)
    snapshot = look(store, "a")
    assert snapshot.states["a"].state == "unknown"
    assert f"SLURM_CLUSTERS={clusters} names several clusters; set it to one" in str(snapshot.slurm_error)


def test_variables_of_slurms_commands_reach_none_of_them(
    store: StorePaths, slurm: ReplayedSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(store, ("a",))
    slurm.answers("squeue", queue_line("7", "PENDING", "Priority"))
    for command in ("squeue", "scontrol", "sacct"):
        path = slurm.folder / command
        path.write_text(path.read_text().replace("#!/bin/sh\n", f"#!/bin/sh\nenv >> {slurm.folder}/seen\n"))
    for prefix in ("SQUEUE", "SCANCEL", "SINFO", "SACCT", "SCONTROL", "SBATCH", "SALLOC", "SRUN", "SACCTMGR"):
        monkeypatch.setenv(f"{prefix}_PARTITION", "cpu")
    monkeypatch.setenv("SLURM_CONF", "/etc/mine.conf")
    assert state_of(store).state == "pending"
    seen = (slurm.folder / "seen").read_text()
    assert "_PARTITION=" not in seen and "SLURM_CONF=/etc/mine.conf" in seen


# --------------------------------------------------------------------------------------------------------- take-over
OWNER = {"slurm_task": "7", "slurm_cluster": CLUSTER, "slurm_mark": TOKEN, "uid": 0}
ALIVE = {
    "it runs": (queue_line("7", "RUNNING"), "", OWNER, True),
    "it has ended": (queue_line("7", "FAILED"), "", OWNER, False),
    "it is gone": ("", "", OWNER, False),
    "it is gone, says the accounting too": ("", account_line("7", "NODE_FAIL"), OWNER, False),
    "the queue is blind": ("", account_line("7", "RUNNING"), OWNER, None),
    "a stranger has its number": (queue_line("7", "RUNNING", name=STRANGER, uid=4711), "", OWNER, False),
    "its user has renamed it": (queue_line("7", "RUNNING", name="mine"), "", OWNER, None),
    "its user has another job of its number": (queue_line("7", "FAILED", name="mine"), "", OWNER, False),
    "the accounting's number is a stranger's": ("", account_line("7", "RUNNING", name=STRANGER), OWNER, False),
    "it is of another cluster": (queue_line("7", "FAILED"), "", OWNER | {"slurm_cluster": "beta"}, None),
    "an older release began it": (queue_line("7", "RUNNING"), "", {"slurm_task": "7"}, None),
}


@pytest.mark.parametrize(("queue", "account", "owner", "expected"), ALIVE.values(), ids=ALIVE)
def test_whether_the_job_of_a_runs_owner_is_alive(
    slurm: ReplayedSlurm, queue: str, account: str, owner: dict[str, object], expected: bool | None
) -> None:
    slurm.answers("squeue", queue)
    slurm.answers("sacct", account)
    assert is_alive(owner) is expected
    slurm.controller_is_down()
    assert is_alive(owner) is None


def test_a_job_written_by_hand_is_known_by_its_whole_name(slurm: ReplayedSlurm) -> None:
    owner = OWNER | {"slurm_mark": "run_phase"}
    slurm.answers("squeue", queue_line("7", "RUNNING", name="run_phase"))
    assert is_alive(owner) is True
    slurm.answers("squeue", queue_line("7", "RUNNING", name="run_phase_2", uid=4711))
    assert is_alive(owner) is False


def test_live_rows_are_those_that_slurm_has_not_ended_and_that_prove_to_be_ours(slurm: ReplayedSlurm) -> None:
    words = ("PENDING", "RUNNING", "COMPLETING", "COMPLETED", "FAILED", "NODE_FAIL", "A_STATE_TO_COME")
    lines = [queue_line(f"7_{i}", word, restarts=i) for i, word in enumerate(words)]
    slurm.answers("squeue", "".join(lines) + queue_line("8", "RUNNING", name=STRANGER))
    jobs = {"7": Proof(CLUSTER, TOKEN), "8": Proof(CLUSTER, TOKEN)}
    assert {j: row.restarts for j, row in live_rows(jobs).items()} == {"7_0": 0, "7_1": 1, "7_2": 2, "7_6": 6}
    assert live_rows({"7": Proof("beta", TOKEN), "8": Proof(None, None, "name-" + TOKEN)}) == {}
    slurm.answers("squeue", "", error="slurm_load_jobs error: Invalid job id specified\n", code=1)
    assert live_rows(jobs) == {}
    slurm.controller_is_down()
    with pytest.raises(SlurmDown):
        live_rows(jobs)


# --------------------------------------------------------------------------------------------------------------- needs
def test_what_needs_a_failed_run_is_blocked_by_it_and_so_on_down(store: StorePaths, slurm: ReplayedSlurm) -> None:
    """kill-on-invalid-dep cancels the probe; the fine-tuning then waits with the reason Dependency for ever."""
    submit(store, ("extract",), job_id="6")
    submit(store, ("probe",), job_id="7")
    submit(store, ("finetune",), job_id="8")
    attempt(store, "extract", slurm_task="6", slurm_job_id="6")
    failed(store, "extract", "data", "train.bin is damaged")
    lines = queue_line("7", "CANCELLED", "Dependency", started=ago(100)) + queue_line("8", "CANCELLED", "Dependency")
    slurm.answers("squeue", lines)
    states = look(store, "finetune", "probe", probe=("extract",), finetune=("probe",)).states
    assert list(states) == ["finetune", "probe"]
    assert [s.state for s in states.values()] == ["blocked", "blocked"]
    assert states["probe"].reason == "needs extract, which failed (data)"
    assert states["finetune"].reason == "needs probe, which is blocked: needs extract, which failed (data)"
    assert states["probe"].failure_class == "blocked"


def test_a_run_that_was_never_sent_is_blocked_by_what_failed(store: StorePaths, slurm: ReplayedSlurm) -> None:
    failed(store, "extract")
    assert look(store, "a", a=("extract",)).states["a"].state == "blocked"


def test_a_run_that_had_started_was_cancelled_itself(store: StorePaths, slurm: ReplayedSlurm) -> None:
    submit(store, ("extract",), job_id="6")
    failed(store, "extract", seconds_ago=60)
    submit(store, ("a",))
    attempt(store, "a")
    slurm.answers("squeue", queue_line("7", "CANCELLED", started=ago(300), used="1:00"))
    assert look(store, "a", a=("extract",)).states["a"].state == "cancelled"


def test_a_dependency_names_what_it_waits_for(store: StorePaths, slurm: ReplayedSlurm) -> None:
    submit(store, ("extract",), job_id="6")
    submit(store, ("a",))
    lines = queue_line("6", "RUNNING") + queue_line("7", "PENDING", "Dependency")
    slurm.answers("squeue", lines)
    found = look(store, "a", a=("extract",)).states["a"]
    assert (found.state, found.reason) == ("pending", "waits for extract, which is running")
    slurm.answers("squeue", queue_line("7", "PENDING", "DependencyNeverSatisfied"))
    slurm.answers("sacct", account_line("6", "TIMEOUT"))
    found = look(store, "a", a=("extract",)).states["a"]
    assert found.never_starts and found.reason == "waits for extract, which failed (timeout): it never starts"


# ------------------------------------------------------------------------------------------------------ SLURM is away
def test_without_the_controller_the_store_speaks(store: StorePaths, slurm: ReplayedSlurm) -> None:
    slurm.controller_is_down()
    slurm.has_no_accounting()
    for number, run_id in enumerate(("a", "b", "c")):
        submit(store, (run_id,), job_id=str(7 + number))
    completed(store, "a")
    attempt(store, "b", slurm_task="8")
    failed(store, "b")
    snapshot = look(store, "a", "b", "c")
    assert {r: s.state for r, s in snapshot.states.items()} == {"a": "done", "b": "failed", "c": "unknown"}
    assert f"unknown since {ago(3600).astimezone():%H:%M}" in snapshot.states["c"].reason
    assert snapshot.slurm_error is not None and "Unable to contact" in snapshot.slurm_error
    assert not snapshot.accounting and snapshot.commands == 2


def test_without_the_controller_the_accounting_is_believed_but_for_what_may_return(
    store: StorePaths, slurm: ReplayedSlurm
) -> None:
    slurm.controller_is_down()
    for number in range(4):
        submit(store, (f"r{number}",), job_id=str(number + 1))
    lines = (account_line("1", "RUNNING"), account_line("2", "PENDING"), account_line("3", "TIMEOUT"))
    slurm.answers("sacct", "".join((*lines, account_line("4", "NODE_FAIL", ended=ago(10)))))
    states = look(store, "r0", "r1", "r2", "r3").states
    assert [s.state for s in states.values()] == ["running", "pending", "failed", "unknown"]


# ---------------------------------------------------------------------------------------------------------------- scale
def test_a_thousand_runs_take_two_commands(store: StorePaths, slurm: ReplayedSlurm) -> None:
    words = ("RUNNING", "PENDING", "FAILED", "TIMEOUT")
    lines, accounts = [], []
    for array in range(4):
        ids = [f"run-{array}-{i}" for i in range(250)]
        submit(store, *((run_id,) for run_id in ids), job_id=str(100 + array), launch=f"launch-{array}")
        for i, run_id in enumerate(ids):
            if i % 5 == 4:
                completed(store, run_id)
                continue
            attempt(store, run_id, slurm_task=f"{100 + array}_{i}")
            lines.append(queue_line(f"{100 + array}_{i}", words[i % 5], started=ago(900), used="1:00"))
            if i % 5 == 2:
                accounts.append(account_line(f"{100 + array}_{i}", "FAILED", exit_code="1:0"))
    slurm.answers("squeue", "".join(lines))
    slurm.answers("sacct", "".join(accounts))
    run_ids = [f"run-{array}-{i}" for array in range(4) for i in range(250)]
    began = time.monotonic()
    snapshot = look(store, *run_ids)
    assert time.monotonic() - began < 2.0
    assert snapshot.commands == 3 and slurm.asked() == ["squeue", "sacct"]
    assert "-j 100,101,102,103" in slurm.calls[1] and "-j 100,101,102,103" in slurm.calls[2]
    states = [s.state for s in snapshot.states.values()]
    assert {s: states.count(s) for s in set(states)} == {
        s: 200 for s in ("running", "pending", "lost", "failed", "done")
    }


def test_every_state_that_slurm_has_stands_in_the_table() -> None:
    """As `squeue --helpstate` of 22.05 lists them."""
    listed = (
        "PENDING RUNNING SUSPENDED COMPLETED CANCELLED FAILED TIMEOUT NODE_FAIL PREEMPTED BOOT_FAIL DEADLINE "
        "OUT_OF_MEMORY COMPLETING CONFIGURING RESIZING RESV_DEL_HOLD REQUEUED REQUEUE_FED REQUEUE_HOLD REVOKED "
        "SIGNALING SPECIAL_EXIT STAGE_OUT STOPPED"
    )
    assert [word for word in listed.split() if slurm_words.meaning(word).kind == "unknown"] == []
    classes = {m.failure_class for m in slurm_words.STATES.values()} | {name for _, name, _ in slurm_words.TRACES}
    assert classes - {None} <= set(FAILURE_CLASSES)
    assert slurm_words.meaning("").kind == slurm_words.meaning("NEW").kind == "unknown"


# ------------------------------------------------------------------------------------------------------------- payloads
def test_what_a_run_needs_stands_in_the_launch_that_sent_it(
    tmp_path: Path, store: StorePaths, slurm: ReplayedSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = load_run(
        ["dataset=digits", "phase=finetune", "model=tinynet_mnist+tinynet_cifar", "cluster=local", "device=cpu"]
        + [f"store.dir={store.root}", f"cache.dir={tmp_path / 'cache'}"]
    )
    probe, finetune = request.runs.values()
    extractions = probe.extractions
    launch = job.write_payload([*extractions, probe, finetune], request.runtime).parent.name
    for number, run in enumerate((*extractions, probe, finetune)):
        submit(store, (run.run_id,), job_id=str(number), launch=launch)
    needs = needs_of(store, read_ledger(store), [probe.run_id, finetune.run_id])
    assert needs == {
        probe.run_id: tuple(extraction.run_id for extraction in extractions),
        finetune.run_id: (probe.run_id,),
    }
    slurm.answers("sacct", account_line("0", "FAILED", exit_code="1:0") + account_line("1", "COMPLETED"))
    states = look(store, finetune.run_id, extractions[1].run_id, **needs).states
    assert states[finetune.run_id].reason.startswith(
        f"needs {probe.run_id}, which is blocked: needs {extractions[0].run_id}"
    )
    assert states[extractions[1].run_id].state == "lost"
    # Another run had made its features: its job ended at once, without a record of its own.
    monkeypatch.setattr("transfergrid.phases.extract.is_done", lambda spec, runtime: spec == extractions[1])
    states = look(store, extractions[0].run_id, extractions[1].run_id).states
    assert [state.state for state in states.values()] == ["lost", "done"]
