"""What becomes of a submission that sbatch refuses, or to which nobody answers."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import submitit
from cluster_cases import executable, names_in
from replayed_slurm import CLUSTER, ReplayedSlurm, queue_line
from replayed_slurm import submit as submitted
from submit_cases import CHILDREN, RUNS, TIMED_OUT, group_of, of, options, sender_of, sending

from transfergrid.cluster import adopt as adoption
from transfergrid.cluster import submit
from transfergrid.cluster.adopt import adopt_intents
from transfergrid.cluster.ledger import read_ledger, record
from transfergrid.cluster.slurm import SlurmDown, SlurmRefused
from transfergrid.cluster.task import run_task
from transfergrid.errors import MachineError
from transfergrid.paths import StorePaths


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return StorePaths(tmp_path / "results")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReplayedSlurm:
    return sending(tmp_path, monkeypatch)


# ------------------------------------------------------------------------------------------------ refusals and silence
REFUSALS = {
    "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified": 1,
    "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates policy": 1,
    "sbatch: error: lua: no project\nsbatch: error: Batch job submission failed: Unspecified error": adoption.LOOKS,
    "": adoption.LOOKS,
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_refusal_leaves_neither_folder_nor_intent_once_slurm_shows_no_such_job(
    slurm: ReplayedSlurm, store: StorePaths, capfd: pytest.CaptureFixture[str], refusal: str
) -> None:
    sender, group = sender_of(store), group_of(RUNS)
    slurm.answers("sbatch", "", error=f"{refusal}\n", code=1)
    with pytest.raises(SlurmRefused, match=f"^sbatch refused {group.name}: ") as refused:
        sender.send(group)
    assert str(refused.value).endswith(" ".join(refusal.split())) and "\n" not in str(refused.value)
    assert names_in(sender.launch.folder / "slurm") == ["submissions.jsonl"]
    ledger = read_ledger(store)
    assert (ledger.unsettled, ledger.newest(RUNS[0].run.run_id), sender.sent) == ([], None, [])
    assert (len(of(slurm, "sbatch")), len(of(slurm, "squeue"))) == (1, REFUSALS[refusal])
    assert capfd.readouterr().err == ""  # it is told once, by the error


@pytest.mark.parametrize("refusal", REFUSALS)
def test_while_slurm_does_not_show_its_queue_nothing_that_reads_like_a_refusal_is_forgotten(
    slurm: ReplayedSlurm, store: StorePaths, monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    monkeypatch.setattr(submit, "GIVE_UP_S", 0.0)
    slurm.takes_jobs(77, "no word of it", code=1)
    taking = slurm.folder / "sbatch"
    taking.write_text(taking.read_text().replace("echo 'no word of it'", f"echo {shlex.quote(refusal)}"))
    slurm.controller_is_down()
    with pytest.raises(MachineError, match="looks again|launch again once it does"):
        sender_of(store).send(group_of(RUNS))
    [intent] = read_ledger(store).unsettled
    assert intent.folder.is_dir()
    comes_to_light(slurm)
    assert adopt_intents(read_ledger(store), alone=True) is True
    assert [s.job_id for s in read_ledger(store).submissions] == ["77"] and len(of(slurm, "sbatch")) == 1


LOST = (
    *("Unexpected message received", "Zero Bytes were transmitted or received", "Message receive failure"),
    *("Header lengths are longer than data received", "Connection reset by peer", "Unspecified error"),
    *(
        "Slurm backup controller in standby mode",
        "Wartung im M\xe4rz",
        "Invalid account or account/partition combination",
    ),
)


@pytest.mark.parametrize("words", LOST)
def test_whatever_sbatch_says_of_a_job_that_was_taken_it_is_found_and_sent_once(
    slurm: ReplayedSlurm, store: StorePaths, words: str
) -> None:
    slurm.takes_jobs(77, f"sbatch: error: Batch job submission failed: {words}", code=1)
    script = slurm.folder / "sbatch"
    script.write_bytes(script.read_text().replace("[ 1 = 0 ] && cp", "cp").encode("latin-1"))
    sent = sender_of(store).send(group_of(RUNS))
    assert (sent.job_id, len(of(slurm, "sbatch"))) == ("77", 1)
    assert [n for n in names_in(sent.folder) if n.endswith(".pkl")] == [f"77_{i}_submitted.pkl" for i in range(3)]


def test_what_sbatch_says_in_latin_1_is_told_in_one_line(slurm: ReplayedSlurm, store: StorePaths) -> None:
    (slurm.folder / "sbatch").write_bytes(b"#!/bin/sh\nprintf 'Invalid account f\\374r M\\344rz\\n' >&2; exit 1\n")
    with pytest.raises(SlurmRefused, match="Invalid account f\ufffdr M\ufffdrz$"):
        sender_of(store).send(group_of(RUNS))


def queues_and_times_out(slurm: ReplayedSlurm) -> None:
    """sbatch: the job comes into being, its answer does not arrive."""
    slurm.takes_jobs(77, TIMED_OUT, code=1)


def comes_to_light(slurm: ReplayedSlurm) -> None:
    slurm.is_cluster(CLUSTER)
    slurm.answers("squeue", (slurm.folder / "squeue.taken").read_text())


BANNERS = (
    "the maintenance of Monday is job 7 of the series\nSubmitted batch job {number}",
    "job 7 waits\n{number}",
    "Submitted batch job 7\n{number};here",
    "M\xe4rz\nSubmitted batch job {number} on cluster here",
)


@pytest.mark.parametrize("banner", BANNERS)
@pytest.mark.parametrize("tasks", [1, 3])
def test_no_line_that_sbatch_prints_beside_its_answer_supplies_the_id(
    slurm: ReplayedSlurm, store: StorePaths, tasks: int, banner: str
) -> None:
    """Job 7 is a stranger's, and alive; what was sent is found by the token in its name."""
    slurm.takes_jobs(41, banner)
    (slurm.folder / "squeue.taken").write_text(queue_line("7", "RUNNING", name="train-their-net"))
    sent = sender_of(store).send(group_of(RUNS[:tasks]))
    assert sent.job_id == "41" == read_ledger(store).submissions[0].job_id
    ids = [f"41_{i}" for i in range(tasks)] if tasks > 1 else ["41"]
    assert [n for n in names_in(sent.folder) if n.endswith(".pkl")] == [f"{i}_submitted.pkl" for i in ids]
    assert len(of(slurm, "sbatch")) == 1


def test_a_job_of_which_slurm_shows_no_trace_though_sbatch_took_it_is_never_sent_again(
    slurm: ReplayedSlurm, store: StorePaths
) -> None:
    """As where a plugin of the site renames jobs: 41 is there, and nothing proves it to be ours."""
    slurm.takes_jobs(41)
    script = slurm.folder / "sbatch"
    script.write_text(script.read_text().replace('"$name" "(null)"', '"renamed" "(null)"'))
    with pytest.raises(MachineError, match="sbatch took tg-g-scratch-.*, and SLURM shows no job of that name"):
        sender_of(store).send(group_of(RUNS))
    [intent] = read_ledger(store).unsettled
    assert adopt_intents(read_ledger(store), alone=True) is True
    assert read_ledger(store).unsettled == [intent] and len(of(slurm, "sbatch")) == 1


@pytest.mark.parametrize("tasks", [1, 3])
def test_a_job_whose_sbatch_timed_out_is_adopted_and_never_sent_again(
    slurm: ReplayedSlurm, store: StorePaths, tasks: int
) -> None:
    sender, group = sender_of(store), group_of(RUNS[:tasks])
    queues_and_times_out(slurm)
    script = slurm.folder / "sbatch"
    script.write_text(script.read_text().replace("[ 1 = 0 ] && cp", "cp"))
    sent = sender.send(group)
    assert sent.job_id == "77" and len(of(slurm, "sbatch")) == 1
    assert [call.split(" -O")[0] for call in of(slurm, "squeue")] == [f"squeue -a -h -r -t all -u {os.getuid()}"]
    ids = [f"77_{i}" for i in range(tasks)] if tasks > 1 else ["77"]
    assert [n for n in names_in(sent.folder) if n.endswith(".pkl")] == [f"{i}_submitted.pkl" for i in ids]
    for each in ids:
        call = submitit.core.utils.DelayedSubmission.load(sent.folder / f"{each}_submitted.pkl")
        assert (call.function, call.args) == (run_task, (str(sent.folder),))
    ledger = read_ledger(store)
    assert ledger.unsettled == [] and [s.job_id for s in ledger.submissions] == ["77"]
    slurm.takes_jobs(78)
    child = sender.send(group_of(CHILDREN[:1]))
    parent = "77_0" if tasks > 1 else "77"
    assert options((child.folder / "78_submission.sh").read_text().splitlines())["dependency"] == f"afterok:{parent}"


def test_a_job_that_slurm_does_not_have_after_several_looks_is_sent_again(
    slurm: ReplayedSlurm, store: StorePaths
) -> None:
    (slurm.folder / "sbatch").rename(slurm.folder / "taking")
    executable(
        slurm.folder / "sbatch",
        f'echo "sbatch $*" >> {slurm.folder}/calls',
        f'[ -e {slurm.folder}/tried ] && exec {slurm.folder}/taking "$@"',
        f"touch {slurm.folder}/tried; echo '{TIMED_OUT}' >&2; exit 1",
    )
    sent = sender_of(store).send(group_of(RUNS))
    assert sent.job_id == "41"
    assert slurm.asked() == ["sbatch", *["squeue", "sacct"] * adoption.LOOKS, "sbatch", "sbatch", "squeue"]
    assert [n for n in names_in(sent.folder) if n.endswith(".pkl")] == [f"41_{i}_submitted.pkl" for i in range(3)]


def test_a_sbatch_that_never_gets_an_answer_is_given_up_and_found_by_the_next_launch(
    slurm: ReplayedSlurm, store: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "GIVE_UP_S", 0.0)
    slurm.answers("sbatch", "", error=TIMED_OUT, code=1)
    group = group_of(RUNS)
    with pytest.raises(SlurmDown, match="sbatch has got no answer for 0 minutes .*Socket timed out"):
        sender_of(store).send(group)
    assert len(of(slurm, "sbatch")) == 1 and len(of(slurm, "squeue")) == adoption.LOOKS
    assert [s.name for s in read_ledger(store).unsettled] == [group.name]


def test_a_controller_that_stays_away_leaves_an_intent_which_the_next_launch_adopts(
    slurm: ReplayedSlurm, store: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "GIVE_UP_S", 0.0)
    group = group_of(RUNS)
    queues_and_times_out(slurm)
    slurm.controller_is_down()
    with pytest.raises(SlurmDown, match="controller has not answered .* what was sent is found"):
        sender_of(store).send(group)
    [intent] = read_ledger(store).unsettled
    assert intent.name == group.name
    comes_to_light(slurm)
    assert adopt_intents(read_ledger(store), alone=True) is True
    ledger = read_ledger(store)
    assert ledger.unsettled == [] and ledger.newest(RUNS[2].run.run_id) == (replace(intent, job_id="77"), 2)
    assert [n for n in names_in(intent.folder) if n.endswith(".pkl")] == [f"77_{i}_submitted.pkl" for i in range(3)]
    assert adopt_intents(read_ledger(store), alone=True) is False  # once


def test_a_controller_that_is_away_for_a_while_is_waited_for(
    slurm: ReplayedSlurm, store: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = group_of(RUNS)
    queues_and_times_out(slurm)
    slurm.controller_is_down()
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 5:
            comes_to_light(slurm)

    clock = SimpleNamespace(sleep=sleep, monotonic=lambda: float(len(pauses)))
    monkeypatch.setattr(submit, "time", clock)
    monkeypatch.setattr(adoption, "time", clock)
    assert sender_of(store).send(group).job_id == "77"
    assert len(pauses) == 5 and len(of(slurm, "sbatch")) == 1


def test_a_launcher_that_died_between_sbatch_and_its_answer_is_followed_by_its_pickles(
    slurm: ReplayedSlurm, store: StorePaths
) -> None:
    """submitit had begun to put them in place, under names with the job's id, which SLURM still shows as ours."""
    sent = sender_of(store).send(group_of(RUNS))
    ledger_file = sent.launch / "slurm" / "submissions.jsonl"
    ledger_file.write_text(ledger_file.read_text().splitlines()[0] + "\n")
    for i in (1, 2):
        (sent.folder / f"41_{i}_submitted.pkl").rename(sent.folder / f"{i}{i}{i}.pkl")
    assert adopt_intents(read_ledger(store), alone=True) is True
    assert read_ledger(store).submissions == [replace(sent, submitted=sent.submitted.replace(microsecond=0))]
    assert [n for n in names_in(sent.folder) if n.endswith(".pkl")] == [f"41_{i}_submitted.pkl" for i in range(3)]
    assert of(slurm, "squeue")[-1].split(" -O")[0].endswith("-j 41")


@pytest.mark.parametrize("shown", ["", queue_line("41_0", "RUNNING", name="train-their-net")])
def test_an_intent_that_sbatch_took_and_slurm_does_not_show_is_neither_adopted_nor_forgotten(
    slurm: ReplayedSlurm, store: StorePaths, shown: str
) -> None:
    sent = sender_of(store).send(group_of(RUNS))
    ledger_file = sent.launch / "slurm" / "submissions.jsonl"
    ledger_file.write_text(ledger_file.read_text().splitlines()[0] + "\n")
    slurm.answers("squeue", shown)
    assert adopt_intents(read_ledger(store), alone=True) is True
    assert [s.name for s in read_ledger(store).unsettled] == [sent.name]
    assert read_ledger(store).newest(RUNS[0].run.run_id) is not None


@pytest.mark.parametrize(
    "changed",
    [{"cluster": "elsewhere"}, {"cluster": None, "token": None, "uid": None}],
    ids=["of another cluster", "of an older release"],
)
def test_an_intent_that_is_not_this_clusters_is_left_as_it_is(
    slurm: ReplayedSlurm, store: StorePaths, changed: dict[str, Any]
) -> None:
    sender = sender_of(store)
    intent = sender._intend(group_of(RUNS))
    record(replace(intent, **changed))
    slurm.answers("squeue", queue_line("41_0", "PENDING", name=intent.job_name))
    assert adopt_intents(read_ledger(store), alone=True) is False
    assert [s.job_id for s in read_ledger(store).unsettled] == [None] and of(slurm, "squeue") == []


def test_where_others_jobs_are_hidden_anothers_intent_is_not_forgotten(
    slurm: ReplayedSlurm, store: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.is_cluster(CLUSTER, PrivateData="accounts,jobs")
    sender = sender_of(store)
    sender._intend(group_of(RUNS[:1]))
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    assert adopt_intents(read_ledger(store), alone=True) is True
    assert len(read_ledger(store).unsettled) == 1


@pytest.mark.parametrize(
    ("sender", "alone", "seconds_ago", "is_kept"),
    [
        ("launch", True, 1, False),  # its launcher died: it held the lock that this one holds now
        ("launch", False, 1e6, True),
        ("sweep", True, 60, True),
        ("sweep", False, 200, False),
        ("submit.sh", True, 60, True),
        ("submit.sh", True, 200, False),
    ],
)
def test_an_intent_whose_sender_may_still_be_at_work_is_not_forgotten(
    slurm: ReplayedSlurm, store: StorePaths, sender: Any, alone: bool, seconds_ago: float, is_kept: bool
) -> None:
    intent = submitted(store, (RUNS[0].run.run_id,), job_id=None, seconds_ago=seconds_ago)
    record(replace(intent, sender=sender))
    assert adopt_intents(read_ledger(store), alone=alone) is True
    assert len(read_ledger(store).unsettled) == is_kept


def test_an_intent_that_never_became_a_job_is_forgotten_after_several_looks(
    slurm: ReplayedSlurm, store: StorePaths
) -> None:
    sender = sender_of(store)
    sender._intend(group_of(RUNS))
    assert adopt_intents(read_ledger(store), alone=True) is True
    assert len(of(slurm, "squeue")) == adoption.LOOKS
    ledger = read_ledger(store)
    assert ledger.unsettled == [] and ledger.newest(RUNS[0].run.run_id) is None
