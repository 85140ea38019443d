"""How a job that has saved goes back into the queue: what it asks SLURM, and what it does with the answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from cluster_cases import as_job, executable
from replayed_slurm import CLUSTER, ReplayedSlurm, queue_line

from transfergrid.cluster import ownership
from transfergrid.cluster.ownership import rename_this_job, requeue_this_job, seconds_left

REQUEUE = "scontrol requeue 7_3"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReplayedSlurm:
    """A SLURM in which this process is task 3 of job 7, and runs."""
    as_job(monkeypatch, "7", task=3)
    replayed = ReplayedSlurm(tmp_path / "bin", monkeypatch)
    replayed.answers("squeue", queue_line("7_3", "RUNNING", left="1:30"))
    return replayed


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What happens during each pause, in order; nothing happens in further ones. None is waited for."""
    events: list[Callable[[], None]] = []
    taken: list[float] = []

    def sleep(seconds: float) -> None:
        taken.append(seconds)
        assert len(taken) <= ownership.TRIES
        if events:
            events.pop(0)()

    monkeypatch.setattr(ownership, "time", SimpleNamespace(sleep=sleep))
    return events


def of(slurm: ReplayedSlurm, command: str) -> list[str]:
    """Its calls, but for the question which cluster this is."""
    return [call for call in slurm.calls if call.startswith(command) and call != "scontrol -a show config"]


def well_again(slurm: ReplayedSlurm, state: str = "RUNNING") -> None:
    slurm.is_cluster(CLUSTER)
    slurm.answers("squeue", queue_line("7_3", state))


def test_a_running_job_is_put_back_by_one_command(
    slurm: ReplayedSlurm, pauses: list[Callable[[], None]], capfd: pytest.CaptureFixture[str]
) -> None:
    assert requeue_this_job() == "back"
    assert of(slurm, "scontrol") == [REQUEUE]
    assert [call.split(" -O")[0] for call in of(slurm, "squeue")] == ["squeue -a -h -r -t all -j 7_3"]
    assert capfd.readouterr().out == "job 7_3 has saved, and is back in the queue\n"


@pytest.mark.parametrize("state", ["COMPLETING", "PREEMPTED", "TIMEOUT", "CANCELLED", "PENDING"])
def test_a_job_that_slurm_is_ending_itself_is_left_to_it(
    slurm: ReplayedSlurm, pauses: list[Callable[[], None]], capfd: pytest.CaptureFixture[str], state: str
) -> None:
    """After scancel the user does not want it back; after a preemption SLURM requeues it itself."""
    slurm.answers("squeue", queue_line("7_3", state))
    assert requeue_this_job() == "left to slurm"
    assert of(slurm, "scontrol") == []
    assert capfd.readouterr().out == f"job 7_3 is {state}: SLURM is ending it itself\n"


NOT_THIS_JOB = {
    "nothing": "",
    "siblings": queue_line("7_2", "RUNNING") + queue_line("7_30", "RUNNING"),
    "a stranger's of the same number": queue_line("7_3", "RUNNING", name="train-their-net"),
    "a newer copy of it": queue_line("7_3", "RUNNING", restarts=1),
}


@pytest.mark.parametrize("shown", NOT_THIS_JOB.values(), ids=NOT_THIS_JOB)
def test_a_job_that_the_queue_does_not_show_as_this_one_is_not_put_back(
    slurm: ReplayedSlurm, pauses: list[Callable[[], None]], capfd: pytest.CaptureFixture[str], shown: str
) -> None:
    slurm.answers("squeue", shown)
    assert requeue_this_job() == "left to slurm"
    assert of(slurm, "scontrol") == [] and len(of(slurm, "squeue")) == ownership.BLIND_LOOKS
    assert "job 7_3 is not in the queue as this one" in capfd.readouterr().out


def test_on_another_cluster_that_answers_here_nothing_is_put_back(
    slurm: ReplayedSlurm, pauses: list[Callable[[], None]]
) -> None:
    """It has a job of that number and even of that name."""
    slurm.is_cluster("elsewhere")
    assert requeue_this_job() == "left to slurm" and of(slurm, "scontrol") == [] == of(slurm, "squeue")


def test_what_the_users_shell_sets_for_slurms_commands_does_not_hide_the_job(
    slurm: ReplayedSlurm, pauses: list[Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQUEUE_PARTITION", "cpu")
    executable(slurm.folder / "squeue", f'[ -z "$SQUEUE_PARTITION" ] && cat {slurm.folder}/squeue.out; exit 0')
    assert requeue_this_job() == "back" and of(slurm, "scontrol") == [REQUEUE]


def test_its_name_is_changed_where_it_is_shown_as_this_one(slurm: ReplayedSlurm) -> None:
    rename_this_job("digits-cnn-0123456789ab")
    assert of(slurm, "scontrol") == ["scontrol update jobid=7_3 name=digits-cnn-0123456789ab"]
    slurm.answers("squeue", queue_line("7_3", "RUNNING", name="train-their-net"))
    rename_this_job("digits-cnn-0123456789ab")
    assert len(of(slurm, "scontrol")) == 1


def test_it_is_asked_again_while_the_controller_is_away(
    slurm: ReplayedSlurm, pauses: list[Callable[[], None]], capfd: pytest.CaptureFixture[str]
) -> None:
    slurm.controller_is_down()
    pauses += [lambda: None, lambda: well_again(slurm)]
    assert requeue_this_job() == "back"
    assert len(of(slurm, "squeue")) == 1 and of(slurm, "scontrol") == [REQUEUE]
    *waiting, last = capfd.readouterr().out.splitlines()
    assert len(waiting) == 2 and all(line.startswith("requeue of job 7_3: scontrol: ") for line in waiting)
    assert last == "job 7_3 has saved, and is back in the queue"


def test_a_controller_that_goes_away_between_question_and_command_is_asked_both_again(
    slurm: ReplayedSlurm, pauses: list[Callable[[], None]]
) -> None:
    said = "slurm_requeue error: Unable to contact slurm controller (connect failure)"
    folder = slurm.folder
    told = f'echo "scontrol $*" >> {folder}/calls; [ "$1" = -a ] && exec cat {folder}/scontrol.out'
    executable(folder / "scontrol", told, f"echo '{said}' >&2; exit 1")
    pauses += [lambda: slurm.is_cluster(CLUSTER)]
    assert requeue_this_job() == "back"
    assert of(slurm, "scontrol") == [REQUEUE] * 2 and len(of(slurm, "squeue")) == 2


def test_a_job_that_slurm_ends_while_the_controller_was_away_is_left_to_it(
    slurm: ReplayedSlurm, pauses: list[Callable[[], None]]
) -> None:
    slurm.controller_is_down()
    pauses += [lambda: well_again(slurm, "COMPLETING")]
    assert requeue_this_job() == "left to slurm"
    assert of(slurm, "scontrol") == []


def test_a_controller_that_stays_away_is_given_up_after_minutes(
    slurm: ReplayedSlurm, pauses: list[Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ownership.RETRY_S * ownership.TRIES == 300
    monkeypatch.setattr(ownership, "TRIES", 4)
    slurm.controller_is_down()
    assert requeue_this_job() == "cannot ask"
    assert len(slurm.calls) == 4 and of(slurm, "scontrol") == []


@pytest.mark.parametrize("missing", ["scontrol", "squeue"])
def test_without_slurms_commands_as_in_a_container_nobody_is_asked_twice(
    slurm: ReplayedSlurm,
    pauses: list[Callable[[], None]],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
) -> None:
    (slurm.folder / missing).unlink()
    for tool in ("sh", "cat", "sleep"):
        (slurm.folder / tool).symlink_to(f"/bin/{tool}")
    monkeypatch.setenv("PATH", str(slurm.folder))
    pauses += [lambda: pytest.fail("it waits for a command that will not come")]
    assert requeue_this_job() == "cannot ask"
    assert capfd.readouterr().out.count(f"{missing} is not on the PATH") == 1


def test_a_site_that_forbids_it_is_asked_once(slurm: ReplayedSlurm, pauses: list[Callable[[], None]]) -> None:
    folder, said = slurm.folder, "Requested operation is presently disabled for job 7"
    told = f'echo "scontrol $*" >> {folder}/calls; [ "$1" = -a ] && exec cat {folder}/scontrol.out'
    executable(folder / "scontrol", told, f"echo '{said}' >&2; exit 1")
    pauses += [lambda: pytest.fail("it waits for another answer")]
    assert requeue_this_job() == "cannot ask" and of(slurm, "scontrol") == [REQUEUE]


def test_in_a_container_the_time_that_is_left_is_what_slurm_has_set(
    slurm: ReplayedSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "time", SimpleNamespace(time=lambda: 1_000_000.0))
    (slurm.folder / "scontrol").unlink()
    assert seconds_left() is None
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1000090")
    assert seconds_left() == 90


def test_a_plain_job_is_named_by_its_own_id(
    slurm: ReplayedSlurm, pauses: list[Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_job(monkeypatch, "8", restarts=2)
    slurm.answers("squeue", queue_line("8", "RUNNING", restarts=2))
    assert requeue_this_job() == "back"
    assert of(slurm, "scontrol") == ["scontrol requeue 8"]


def test_outside_slurm_nobody_is_asked(
    slurm: ReplayedSlurm, pauses: list[Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_job(monkeypatch, None)
    assert requeue_this_job() == "left to slurm" and seconds_left() is None
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
