"""How a job that has saved goes back into the queue: what it asks SLURM, and what it does with the answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from cluster_cases import as_job
from replayed_slurm import ReplayedSlurm, queue_line

from transfergrid.cluster import requeue
from transfergrid.cluster.requeue import requeue_this_job, seconds_left

REQUEUE = "scontrol requeue 7_3"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReplayedSlurm:
    """A SLURM in which this process is task 3 of job 7, and runs."""
    as_job(monkeypatch, "7", task=3)
    replayed = ReplayedSlurm(tmp_path / "bin", monkeypatch)
    replayed.answers("scontrol", "")
    replayed.answers("squeue", queue_line("7_3", "RUNNING", left="1:30"))
    return replayed


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What happens during each pause, in order; nothing happens in further ones. None is waited for."""
    events: list[Callable[[], None]] = []
    taken: list[float] = []

    def sleep(seconds: float) -> None:
        taken.append(seconds)
        assert len(taken) <= requeue.TRIES
        if events:
            events.pop(0)()

    monkeypatch.setattr(requeue, "time", SimpleNamespace(sleep=sleep))
    return events


def of(slurm: ReplayedSlurm, command: str) -> list[str]:
    return [call for call in slurm.calls if call.startswith(command)]


def test_a_running_job_is_put_back_by_one_command(
    slurm: ReplayedSlurm, pauses: list[Callable[[], None]], capfd: pytest.CaptureFixture[str]
) -> None:
    assert requeue_this_job() is True
    assert of(slurm, "scontrol") == [REQUEUE]
    assert [call.split(" -O")[0] for call in of(slurm, "squeue")] == ["squeue -h -r -t all -j 7_3"]
    assert capfd.readouterr().out == "job 7_3 has saved, and is back in the queue\n"


@pytest.mark.parametrize("state", ["COMPLETING", "PREEMPTED", "TIMEOUT", "CANCELLED", "PENDING"])
def test_a_job_that_slurm_is_ending_itself_is_left_to_it(
    slurm: ReplayedSlurm, pauses: list[Callable[[], None]], capfd: pytest.CaptureFixture[str], state: str
) -> None:
    """After scancel the user does not want it back; after a preemption SLURM requeues it itself."""
    slurm.answers("squeue", queue_line("7_3", state))
    assert requeue_this_job() is False
    assert of(slurm, "scontrol") == []
    assert capfd.readouterr().out == f"job 7_3 is {state}: SLURM is ending it itself\n"


@pytest.mark.parametrize("siblings", ["", queue_line("7_2", "RUNNING") + queue_line("7_30", "RUNNING")])
def test_a_job_that_is_not_in_the_queue_is_not_put_back(
    slurm: ReplayedSlurm, pauses: list[Callable[[], None]], capfd: pytest.CaptureFixture[str], siblings: str
) -> None:
    slurm.answers("squeue", siblings)
    assert requeue_this_job() is False
    assert of(slurm, "scontrol") == []
    assert "job 7_3 is not in the queue" in capfd.readouterr().out


def test_it_is_asked_again_while_the_controller_is_away(
    slurm: ReplayedSlurm, pauses: list[Callable[[], None]], capfd: pytest.CaptureFixture[str]
) -> None:
    slurm.controller_is_down()
    pauses += [lambda: None, lambda: slurm.answers("squeue", queue_line("7_3", "RUNNING"))]
    assert requeue_this_job() is True
    assert len(of(slurm, "squeue")) == 3 and of(slurm, "scontrol") == [REQUEUE]
    *waiting, last = capfd.readouterr().out.splitlines()
    assert len(waiting) == 2 and all(line.startswith("requeue of job 7_3: squeue: ") for line in waiting)
    assert last == "job 7_3 has saved, and is back in the queue"


def test_a_controller_that_goes_away_between_question_and_command_is_asked_both_again(
    slurm: ReplayedSlurm, pauses: list[Callable[[], None]]
) -> None:
    said = "slurm_requeue error: Unable to contact slurm controller (connect failure)\n"
    slurm.answers("scontrol", "", error=said, code=1)
    pauses += [lambda: slurm.answers("scontrol", "")]
    assert requeue_this_job() is True
    assert of(slurm, "scontrol") == [REQUEUE] * 2 and len(of(slurm, "squeue")) == 2


def test_a_job_that_slurm_ends_while_the_controller_was_away_is_left_to_it(
    slurm: ReplayedSlurm, pauses: list[Callable[[], None]]
) -> None:
    slurm.controller_is_down()
    pauses += [lambda: slurm.answers("squeue", queue_line("7_3", "COMPLETING"))]
    assert requeue_this_job() is False
    assert of(slurm, "scontrol") == []


def test_a_controller_that_stays_away_is_given_up_after_minutes(
    slurm: ReplayedSlurm, pauses: list[Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert requeue.RETRY_S * requeue.TRIES == 300
    monkeypatch.setattr(requeue, "TRIES", 4)
    slurm.controller_is_down()
    assert requeue_this_job() is False
    assert len(of(slurm, "squeue")) == 4 and of(slurm, "scontrol") == []


def test_a_plain_job_is_named_by_its_own_id(
    slurm: ReplayedSlurm, pauses: list[Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_job(monkeypatch, "8", restarts=2)
    slurm.answers("squeue", queue_line("8", "RUNNING"))
    assert requeue_this_job() is True
    assert of(slurm, "scontrol") == ["scontrol requeue 8"]


def test_outside_slurm_nobody_is_asked(
    slurm: ReplayedSlurm, pauses: list[Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_job(monkeypatch, None)
    assert requeue_this_job() is False and seconds_left() is None
    assert slurm.calls == []


def test_the_time_that_is_left_is_what_slurm_says_or_unknown(slurm: ReplayedSlurm) -> None:
    assert seconds_left() == 90
    slurm.answers("squeue", queue_line("7_3", "RUNNING", left="1-00:00:10") + queue_line("7_4", "RUNNING", left="0:05"))
    assert seconds_left() == 86_410
    for text in (queue_line("7_3", "RUNNING", left="UNLIMITED"), queue_line("7_4", "RUNNING"), ""):
        slurm.answers("squeue", text)
        assert seconds_left() is None
    slurm.controller_is_down()
    assert seconds_left() is None
