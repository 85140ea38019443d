"""jobs/status.py cancel=true and retry=: which jobs they touch, and what they say. squeue and sacct are replayed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from replayed_slurm import (
    ReplayedSlurm,
    account_line,
    attempt,
    completed,
    failed,
    make_grid,
    queue_line,
    submit,
)
from state_cases import a_store_here, printed

from transfergrid.cli import status_actions
from transfergrid.cli.status import status
from transfergrid.errors import MachineError
from transfergrid.paths import StorePaths
from transfergrid.store import durable

CHECKOUT = Path(__file__).resolve().parents[2]


store = a_store_here


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReplayedSlurm:
    monkeypatch.setattr(status_actions, "VERIFY_S", 0.3)
    monkeypatch.setattr(status_actions, "VERIFY_POLL_S", 0.05)
    return ReplayedSlurm(tmp_path / "bin", monkeypatch)


# --------------------------------------------------------------------------------------------------------------- cancel
def test_cancel_ends_the_grids_live_jobs_and_looks_whether_they_are_gone(
    store: StorePaths, slurm: ReplayedSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    make_grid(store, "a", "b", "c", "shared")
    submit(store, ("a",), ("b",), ("c",))
    submit(store, ("shared",), job_id="9", grid="another")
    completed(store, "a")
    live = queue_line("7_1", "RUNNING") + queue_line("7_2", "PENDING", "Priority") + queue_line("9", "RUNNING")
    slurm.answers("squeue", live)
    slurm.answers("scancel", "")
    gone = "".join(queue_line(j, "COMPLETING") for j in ("7_1", "7_2"))
    script = slurm.folder / "scancel"
    (slurm.folder / "after").write_text(gone)
    script.write_text(
        script.read_text().replace("exit 0", f"cp {slurm.folder}/after {slurm.folder}/squeue.out; exit 1")
    )
    assert status(["grid=g", "cancel=true"]) == 0
    text = printed(capsys)
    assert "left alone: shared: belongs to job 9 of another grid" in text
    assert text.endswith("cancelled 2 jobs of 2 runs"), "though scancel itself said no"
    assert [call for call in slurm.calls if call.startswith("scancel")] == ["scancel 7"], "one order for the array"


@pytest.mark.parametrize("shown", ["RUNNING", "PENDING"])
def test_cancel_touches_no_job_that_is_not_shown_as_ours_at_that_moment(
    store: StorePaths, slurm: ReplayedSlurm, capsys: pytest.CaptureFixture[str], shown: str
) -> None:
    """Between the look and the order the number has become a stranger's."""
    make_grid(store, "a")
    submit(store, ("a",))
    ours, theirs = queue_line("7", shown), queue_line("7", shown, name="train-their-net")
    slurm.answers("squeue", ours)
    script = slurm.folder / "squeue"
    (slurm.folder / "later").write_text(theirs)
    script.write_text(
        script.read_text().replace("exit 0", f"cp {slurm.folder}/later {slurm.folder}/squeue.out; exit 0")
    )
    assert status(["grid=g", "cancel=true"]) == 0
    assert "nothing to cancel" in printed(capsys)
    assert not [call for call in slurm.calls if call.startswith("scancel")]


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ({"cluster": "beta"}, "cancel it there, or with SLURM_CLUSTERS=beta before this command"),
        ({"cluster": None, "token": None, "name": "name-0123456789ab"}, "if `scontrol show job 7` shows it as yours"),
    ],
    ids=["another cluster's", "an older release's"],
)
def test_cancel_leaves_alone_what_is_not_proven_ours_here_and_says_where_to_cancel(
    store: StorePaths,
    slurm: ReplayedSlurm,
    capsys: pytest.CaptureFixture[str],
    sent: dict[str, Any],
    told: str,
) -> None:
    make_grid(store, "a")
    submit(store, ("a",), **sent)
    slurm.answers("squeue", queue_line("7", "RUNNING"))
    status(["grid=g", "cancel=true"])
    text = printed(capsys)
    assert "left alone: a: " in text and told in text
    assert not [call for call in slurm.calls if call.startswith("scancel")]


def test_cancel_never_takes_the_number_that_an_attempt_noted_for_that_of_the_runs_job(
    store: StorePaths, slurm: ReplayedSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process holds the run's lock; its attempt names job 5, the ledger job 7, of which SLURM shows nothing."""
    make_grid(store, "a")
    submit(store, ("a",))
    attempt(store, "a", slurm_task="5", slurm_job_id="5")
    slurm.answers("squeue", queue_line("5", "RUNNING"))
    with durable.lock(store.run("a").lock, wait=False):
        status(["grid=g", "cancel=true"])
    assert "left alone: a: belongs to job 5" in printed(capsys)
    assert not [call for call in slurm.calls if call.startswith("scancel")]


def test_cancel_says_what_is_still_there(
    store: StorePaths, slurm: ReplayedSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    make_grid(store, "a", "b")
    submit(store, ("a",), ("b",))
    slurm.answers("squeue", queue_line("7_0", "RUNNING") + queue_line("7_1", "RUNNING"))
    assert status(["grid=g", "run=b", "cancel=true"]) == 1
    assert "cancelled 0 jobs of 1 run still there after" in printed(capsys)
    assert [call for call in slurm.calls if call.startswith("scancel")] == ["scancel 7_1"]


def test_cancel_and_retry_do_nothing_while_slurm_does_not_answer(store: StorePaths, slurm: ReplayedSlurm) -> None:
    make_grid(store, "a")
    submit(store, ("a",))
    slurm.controller_is_down()
    for action in ("cancel=true", "retry=failed"):
        with pytest.raises(MachineError, match="SLURM does not answer"):
            status(["grid=g", action])
    assert not [call for call in slurm.calls if call.startswith("scancel")]


# ---------------------------------------------------------------------------------------------------------------- retry
def test_retry_sends_exactly_the_runs_of_its_class(
    store: StorePaths, slurm: ReplayedSlurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_grid(store, "a", "b", "c", "d", "e")
    for run_id, failure_class in (("a", "code"), ("b", "host_oom"), ("c", "cuda_oom"), ("d", "lost")):
        failed(store, run_id, failure_class)
    completed(store, "e")
    sent: list[tuple[str, list[str], tuple[str, ...], list[bool]]] = []

    def relaunch(
        grid: str, store: StorePaths, run_ids: list[str], overrides: tuple[str, ...], *, though_unknown: bool
    ) -> int:
        assert not though_unknown
        sent.append((grid, run_ids, overrides, [store.run(r).record.exists() for r in run_ids]))
        if run_ids == ["a"]:
            submit(store, ("a",), seconds_ago=-600)  # now, whatever the clock of these tests says
        return 0

    monkeypatch.setattr("transfergrid.cli.status_actions.relaunch", relaunch, raising=False)
    assert status(["grid=g", "retry=oom", "cluster.mem_gb=64"]) == 0
    assert status(["grid=g", "retry=code"]) == 0
    assert status(["run=d", "retry=failed"]) == 0
    assert sent == [
        ("g", ["b", "c"], ("cluster.mem_gb=64",), [True, True]),
        ("g", ["a"], (), [False]),  # what failed by code is not tried again while its record stands
        ("g", ["d"], (), [True]),
    ]
    assert sorted(os.listdir(store.run("a").root)) == []
    assert status(["grid=g", "retry=timeout"]) == 0
    assert "nothing to retry: no run of that class; there is cuda_oom, host_oom, lost" in printed(capsys)


def test_what_is_unknown_is_sent_again_on_the_users_word_alone_with_its_evidence_shown(
    store: StorePaths, slurm: ReplayedSlurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_grid(store, "blind", "late", "lost")
    submit(store, ("blind",))
    submit(store, ("late",), job_id="8", seconds_ago=20)
    submit(store, ("lost",), job_id="9")
    slurm.answers("sacct", account_line("7", "RUNNING") + account_line("8", "PENDING"))
    sent: list[tuple[list[str], bool]] = []

    def relaunch(
        grid: str, store: StorePaths, run_ids: list[str], overrides: tuple[str, ...], *, though_unknown: bool
    ) -> int:
        sent.append((run_ids, though_unknown))
        return 0

    monkeypatch.setattr("transfergrid.cli.status_actions.relaunch", relaunch)
    assert status(["grid=g"]) == 1
    text = printed(capsys)
    assert "1 x unknown: never sent again by itself; if you know that it is gone:" in text
    assert "python jobs/status.py grid=g retry=unknown" in text
    assert status(["grid=g", "retry=failed"]) == 0
    assert status(["grid=g", "retry=unknown"]) == 0
    assert sent == [(["lost"], False), (["blind"], True)]
    assert "unknown: blind: SLURM's accounting says RUNNING, its queue does not show job 7" in printed(capsys)


def test_a_retry_that_sent_nothing_leaves_the_records_as_they_were(
    store: StorePaths, slurm: ReplayedSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_grid(store, "a")
    failed(store, "a", "code")
    monkeypatch.setattr("transfergrid.cli.status_actions.relaunch", lambda *arguments, **more: 0)
    assert status(["grid=g", "retry=failed"]) == 0
    assert os.listdir(store.run("a").root) == ["record.json"]


def test_a_retry_that_cannot_be_sent_leaves_the_records_as_they_were(
    store: StorePaths, slurm: ReplayedSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_grid(store, "a")
    failed(store, "a", "code")

    def relaunch(*arguments: object, **more: object) -> int:
        raise MachineError("sbatch said no")

    monkeypatch.setattr("transfergrid.cli.status_actions.relaunch", relaunch, raising=False)
    with pytest.raises(MachineError):
        status(["grid=g", "retry=failed"])
    assert os.listdir(store.run("a").root) == ["record.json"]
