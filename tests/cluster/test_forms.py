"""What SLURM's commands print is read by form: a site's own lines and bytes that are no UTF-8 change nothing.

Rows as slurm 22.05 to 25.05 document them stand in tables here: job ids, states, TRES, states of nodes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm, a_fake, noisy
from replayed_slurm import CLUSTER, ReplayedSlurm, account_line, ago, queue_line

from transfergrid.cluster import accounting, forms, slurm
from transfergrid.cluster.accounting import gpus_of
from transfergrid.cluster.limits import read_limits, takes_jobs
from transfergrid.cluster.ownership import here
from transfergrid.cluster.slurm_words import meaning
from transfergrid.doctor import checks


@pytest.fixture(autouse=True)
def nothing_was_said() -> Iterator[None]:
    forms._commands_noted.clear()
    yield
    forms._commands_noted.clear()


fake = a_fake


@pytest.fixture
def replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReplayedSlurm:
    return ReplayedSlurm(tmp_path / "replayed", monkeypatch)


def wrap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, real: Path) -> None:
    monkeypatch.setenv("PATH", f"{noisy(tmp_path / 'site', real)}{os.pathsep}{os.environ['PATH']}")


# --------------------------------------------------------------------------------------------------- a site's wrappers
def test_a_site_whose_wrappers_print_notes_has_the_limits_it_has_and_is_told_once_of_each(
    fake: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fake.say("squeue -u", "71\n72_0\n72_1\n")
    undisturbed, room = read_limits(), checks.check_queue(read_limits())
    assert capfd.readouterr().err == "" and slurm.count_own_jobs() == 3
    wrap(monkeypatch, tmp_path, fake.folder)
    for _ in range(2):
        assert read_limits() == undisturbed
        assert slurm.count_own_jobs() == 3 and checks.check_queue(undisturbed) == room
        assert here().name == "fake"
    told = capfd.readouterr().err.splitlines()
    assert sorted(line.split()[1] for line in told) == ["sacctmgr", "scontrol", "sinfo", "squeue"]
    assert "is passed over: Wartung im M\ufffdrz: job 7 of 13" in told[0]


def test_rows_of_jobs_are_those_of_the_commands_alone(
    replayed: ReplayedSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = queue_line("7_1", "RUNNING", started=ago(60), used="1:00", node="n1") + queue_line("7_2", "PENDING")
    replayed.answers("squeue", "CLUSTER: here\n" + queue)
    replayed.answers("sacct", account_line("7_1", "RUNNING") + account_line("7_2", "CANCELLED by 1000"))
    found, account = slurm.squeue(["7"]), accounting.sacct(["7"], since=ago(60))
    assert [e.job_id for e in found] == ["7_1", "7_2"]
    wrap(monkeypatch, tmp_path, replayed.folder)
    assert slurm.squeue(["7"]) == found and accounting.sacct(["7"], since=ago(60)) == account


def test_a_name_in_latin_1_leaves_the_other_columns_in_their_places(replayed: ReplayedSlurm) -> None:
    row = queue_line("7", "RUNNING", node="n1", name="m\xe4rz", comment="lab1").encode("latin-1")
    replayed.answers("squeue", "")
    (replayed.folder / "squeue.out").write_bytes(row)
    [entry] = slurm.squeue(["7"])
    assert (entry.name, entry.comment, entry.nodes, entry.exit_code) == ("m\ufffdrz", "lab1", "n1", 0)


@pytest.mark.parametrize("name", ["squeue", "sinfo", "scontrol", "sacct", "sacctmgr", "sbatch", "scancel", "srun"])
def test_an_error_in_latin_1_is_an_error_of_one_line(replayed: ReplayedSlurm, name: str) -> None:
    script = replayed.folder / name
    script.write_bytes(b"#!/bin/sh\nprintf 'error: Zugriff verweigert f\\374r\\nM\\344rz\\n' >&2; exit 1\n")
    script.chmod(0o755)
    with pytest.raises(slurm.SlurmRefused, match="Zugriff verweigert f\ufffdr M\ufffdrz$"):
        slurm.run([name])
    if name == "sbatch":
        with pytest.raises(slurm.SlurmRefused, match="^Zugriff verweigert f\ufffdr; M\ufffdrz$"):
            slurm.test_only(["--time=1"])


# -------------------------------------------------------------------------------------- slurm 22.05 to 25.05 replayed
@pytest.mark.parametrize(
    ("word", "kind", "failure_class"),
    [
        ("CANCELLED by 1000", "ended", "cancelled"),
        ("CANCELLED+", "ended", "cancelled"),
        ("NODE_FAIL", "ended", "node_failure"),
        ("PREEMPTED", "ended", "preempted"),
        ("OUT_OF_MEMORY", "ended", "host_oom"),
        ("BOOT_FAIL", "ended", "node_failure"),
        ("DEADLINE", "ended", "timeout"),
        ("REVOKED", "ended", "cancelled"),
        ("LAUNCH_FAILED", "ended", "node_failure"),
        ("RECONFIG_FAIL", "ended", "node_failure"),
        ("COMPLETING", "runs", None),
        ("STOPPED", "runs", None),
        ("SPECIAL_EXIT", "waits", None),
        ("RESV_DEL_HOLD", "waits", None),
        ("REQUEUE_HOLD", "waits", None),
        ("EXPEDITING", "waits", None),
        ("POWER_UP_NODE", "waits", None),
        ("", "unknown", None),
    ],
)
def test_states_with_their_additions(replayed: ReplayedSlurm, word: str, kind: str, failure_class: str | None) -> None:
    replayed.answers("squeue", queue_line("7", word.split()[0] if word else ""))
    replayed.answers("sacct", account_line("7", word))
    [entry], [account] = slurm.squeue(["7"]), accounting.sacct(["7"], since=ago(60)) or []
    for state in (entry.state, account.state):
        assert (meaning(state).kind, meaning(state).failure_class) == (kind, failure_class)


@pytest.mark.parametrize(
    ("job_id", "in_queue", "in_accounts"),
    [
        ("123", True, True),
        ("123_4", True, True),
        ("123+0", True, True),  # of a joint (heterogeneous) job
        ("67108869", True, True),  # federated: the cluster's number is its upper bits
        ("123_[4-9%2]", False, False),  # tasks that wait: squeue -r tells of each
        ("123.batch", False, False),
        ("123_4.extern", False, False),
        ("123.0", False, False),
        ("123 jobs are yours", False, False),
        ("JOBID", False, False),
    ],
)
def test_job_ids(replayed: ReplayedSlurm, job_id: str, in_queue: bool, in_accounts: bool) -> None:
    replayed.answers("squeue", queue_line(job_id, "PENDING"))
    replayed.answers("sacct", account_line(job_id, "COMPLETED"))
    assert [e.job_id for e in slurm.squeue(["123"])] == ([job_id] if in_queue else [])
    assert [a.job_id for a in accounting.sacct(["123"], since=ago(60)) or ()] == ([job_id] if in_accounts else [])


def test_the_memory_of_steps_is_that_of_their_job_and_a_name_may_hold_what_separates(replayed: ReplayedSlurm) -> None:
    lines = [
        account_line("123_4", "FAILED", exit_code="1:0", name="a|b"),
        account_line("123_4.batch", "FAILED", max_rss="2048K"),
        account_line("123_4.extern", "COMPLETED", max_rss=""),
        account_line("123_4.interactive", "COMPLETED", max_rss="1024K"),
        account_line("123_4.0", "OUT_OF_MEMORY", exit_code="0:125", max_rss="4096K"),
    ]
    replayed.answers("sacct", "".join(lines))
    [account] = accounting.sacct(["123"], since=ago(60)) or []
    assert (account.state, account.name, account.max_rss_mib, account.exit_code) == ("OUT_OF_MEMORY", "a|b", 4.0, 1)


@pytest.mark.parametrize(
    ("tres", "gpus"),
    [
        ("billing=4,cpu=4,gres/gpu:h100=1,gres/gpu=1,gres/gpumem=0,gres/gpuutil=0,mem=16G,node=1", 1),
        ("cpu=4,gres/gpu:h100=2,gres/gpumem=80G,mem=16G,node=1", 2),
        ("cpu=4,gres/shard=1,mem=16G,node=1", 0),
        ("cpu=4,gres/gpu=,mem=16G", 0),
        ("cpu=4,gres/gpu:1g.10gb=1,license/x=2", 1),
        ("", 0),
    ],
)
def test_gpus_of_what_was_allocated(replayed: ReplayedSlurm, tres: str, gpus: int) -> None:
    assert gpus_of(tres) == gpus
    start, end = (moment.strftime("%Y-%m-%dT%H:%M:%S") for moment in (ago(90), ago(30)))
    rest = f"{start}|{start}|{end}|60|{tres}|1G||{CLUSTER}|name"
    noise = "note|with|many|bars|in|it|a|b|c|d|e|f|g\n7|NODE_FAIL|0:0|n1|x|y|z|a minute||1G||c|name\n"
    replayed.answers("sacct", f"{noise}7|CANCELLED by 1000|0:0|n1|{rest}\n")
    [allocation] = accounting.sacct(["7"], since=ago(60), each_start=True) or []
    assert (allocation.gpus, allocation.elapsed_s) == (gpus, 60.0)
    assert allocation.ended is not None and allocation.started == allocation.ended - timedelta(seconds=60)


NODE_STATES = {
    True: ("idle", "idle~", "idle#", "mixed", "mixed-", "mixed+", "allocated", "planned", "completing", "powered_down"),
    False: ("down", "down*", "drained*", "draining", "idle*", "idle$", "fail", "maint", "inval", "drained~", "unknown"),
}


def test_node_states_with_their_suffixes(fake: FakeSlurm) -> None:
    assert {word: takes_jobs(word) for words in NODE_STATES.values() for word in words} == {
        word: usable for usable, words in NODE_STATES.items() for word in words
    }
    for usable, words in NODE_STATES.items():
        fake.say("sinfo", "".join(f"gpu|{word}|2|32|256000|gpu:h100:4(S:0-1),shard:8\n" for word in words))
        gpu = read_limits().partitions["gpu"]
        assert (gpu.nodes, gpu.usable_nodes) == (2 * len(words), 2 * len(words) * usable)
        assert gpu.gpus_by_type == {"h100": 4}


@pytest.mark.parametrize(
    ("said", "job_id"),
    [
        ("Submitted batch job 41", "41"),
        ("Submitted batch job 41 on cluster alpha", "41"),
        ("41", "41"),
        ("41;alpha", "41"),
        (
            "the maintenance is job 7 of the series\nSubmitted batch job 41\nSubmitted batch job 7 of yours is near\n",
            "41",
        ),
        ("job 7 waits", None),
    ],
)
def test_the_id_that_sbatch_tells(replayed: ReplayedSlurm, said: str, job_id: str | None) -> None:
    replayed.answers("sbatch", f"{said}\n")
    assert slurm.sbatch(["job.sh"]) == job_id
