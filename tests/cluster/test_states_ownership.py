"""Whose job it is, what two clusters and blind queues do to a state, and who takes a run over. SLURM is replayed."""

from __future__ import annotations

import os

import pytest
from replayed_slurm import (
    CLUSTER,
    TOKEN,
    ReplayedSlurm,
    account_line,
    queue_line,
    submit,
)
from state_cases import a_slurm, a_store, look, state_of

from transfergrid.cluster.ownership import Proof, is_alive, live_rows
from transfergrid.cluster.slurm import SlurmDown
from transfergrid.paths import StorePaths

store, slurm = a_store, a_slurm


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
