"""True states: every ending seen on real clusters, and what must be said of it. squeue and sacct are replayed."""

from __future__ import annotations

import signal

import pytest
from replayed_slurm import (
    ReplayedSlurm,
    account_line,
    ago,
    attempt,
    completed,
    failed,
    queue_line,
    submit,
)
from state_cases import a_slurm, a_store, look, state_of

from transfergrid.cluster.run_state import RunState
from transfergrid.errors import FAILURE_CLASSES
from transfergrid.paths import StorePaths
from transfergrid.store import durable

store, slurm = a_store, a_slurm


# ---------------------------------------------------------------------------------------------------------- own record
def test_a_completed_record_is_done_and_asks_nobody(store: StorePaths, slurm: ReplayedSlurm) -> None:
    submit(store, ("a",))
    completed(store, "a", attempt=3)
    snapshot = look(store, "a")
    assert snapshot.states["a"] == RunState(run_id="a", state="done", attempts=3, elapsed_s=12.5)
    assert slurm.calls == []


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
    assert states["a"].starts is not None and abs((states["a"].starts - ago(-600)).total_seconds()) < 5
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
