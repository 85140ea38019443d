"""States of runs that need others, of a thousand runs, and where SLURM does not answer. SLURM is replayed."""

from __future__ import annotations

import time
from pathlib import Path

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
from state_cases import a_slurm, a_store, look

from transfergrid.cluster import slurm_words
from transfergrid.cluster.ledger import read_ledger
from transfergrid.cluster.run_state import needs_of
from transfergrid.config import load_run
from transfergrid.errors import FAILURE_CLASSES
from transfergrid.paths import StorePaths
from transfergrid.planning import job

store, slurm = a_store, a_slurm


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
    assert not snapshot.accounting and len(slurm.calls) == 2


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
    assert len(slurm.calls) == 3 and slurm.asked() == ["squeue", "sacct"]
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
    needs = needs_of(read_ledger(store), [probe.run_id, finetune.run_id])
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
