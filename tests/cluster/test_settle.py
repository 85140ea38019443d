"""Runs whose jobs ended without a word get the record that they could not write."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from cluster_cases import runtime_in, scratch_run

from transfergrid.cluster.ledger import Ledger, Submission, read_ledger, record
from transfergrid.cluster.run_state import RunState, State
from transfergrid.cluster.settle import settle
from transfergrid.paths import StorePaths, store_paths
from transfergrid.planning import job
from transfergrid.specs import RunSpec
from transfergrid.store import durable
from transfergrid.store.attempts import begin_attempt
from transfergrid.store.records import RunRecord, read_record, write_record

RUNS = [scratch_run(seed) for seed in range(3)]
RUN, OTHER, THIRD = RUNS


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    """A store from which all three runs were sent as one array."""
    payload = job.write_payload(RUNS, runtime_in(tmp_path))
    sent = Submission(
        name="tg-g-scratch-1",
        grid="g",
        launch=payload.parent,
        tasks=tuple((run.run_id,) for run in RUNS),
        job_id="7",
        submitted=datetime.now(UTC),
    )
    record(sent)
    return store_paths(runtime_in(tmp_path))


def ended(run: RunSpec, state: State, failure_class: str | None, reason: str = "") -> dict[str, RunState]:
    return {run.run_id: RunState(run_id=run.run_id, state=state, failure_class=failure_class, reason=reason)}


def settled(states: dict[str, RunState], store: StorePaths) -> list[str]:
    return settle(states, store, read_ledger(store))


def record_of(store: StorePaths, run: RunSpec) -> RunRecord | None:
    return read_record(store.run(run.run_id))


@pytest.mark.parametrize(
    ("state", "failure_class", "reason"),
    [
        ("failed", "host_oom", "was killed for its memory"),
        ("failed", "timeout", "ran into its time limit"),
        ("failed", "node_failure", "its node failed"),
        ("lost", "lost", "SLURM no longer knows job 7_0, and it left no record"),
        ("cancelled", "cancelled", "was cancelled by user 0"),
        ("blocked", "blocked", "needs digits-x, which failed (data)"),
    ],
)
def test_how_a_run_ended_is_recorded_with_its_class_and_reason(
    store: StorePaths, state: State, failure_class: str, reason: str
) -> None:
    assert settled(ended(RUN, state, failure_class, reason), store) == [RUN.run_id]
    found = record_of(store, RUN)
    assert found is not None
    assert (found.status, found.failure_class, found.error) == ("failed", failure_class, reason)
    assert (found.run_id, found.spec, found.attempt) == (RUN.run_id, RUN, 0)
    assert found.provenance["ended"] <= datetime.now(UTC).isoformat()
    assert record_of(store, OTHER) is None


def test_the_record_is_of_the_attempt_that_was_lost(store: StorePaths) -> None:
    for _ in range(2):
        with begin_attempt(store.run(RUN.run_id), RUN):
            pass
    settled(ended(RUN, "failed", "host_oom", "was killed"), store)
    found = record_of(store, RUN)
    assert found is not None and found.attempt == 2


@pytest.mark.parametrize("state", ["done", "running", "pending", "unknown", "not submitted"])
def test_what_has_not_ended_badly_gets_no_record(store: StorePaths, state: State) -> None:
    assert settled(ended(RUN, state, "lost"), store) == []
    assert record_of(store, RUN) is None


def test_an_ending_without_a_class_gets_no_record(store: StorePaths) -> None:
    assert settled(ended(RUN, "failed", None), store) == []
    assert record_of(store, RUN) is None


def test_a_run_that_was_never_sent_gets_no_record(store: StorePaths) -> None:
    assert settle(ended(RUN, "blocked", "blocked"), store, Ledger([])) == []
    assert record_of(store, RUN) is None


def test_a_completed_record_stands_whatever_slurm_says(store: StorePaths) -> None:
    """A job can be killed for its memory after it has published."""
    paths = store.run(RUN.run_id)
    write_record(paths, RunRecord(run_id=RUN.run_id, spec=RUN, status="completed", metrics={"test_accuracy": 0.9}))
    before = paths.record.read_bytes()
    assert settled(ended(RUN, "failed", "host_oom", "was killed"), store) == []
    assert paths.record.read_bytes() == before


def test_a_run_that_somebody_has_is_not_touched(store: StorePaths) -> None:
    paths = store.run(RUN.run_id)
    with durable.lock(paths.lock, wait=False) as held:
        assert held
        assert settled(ended(RUN, "lost", "lost", "gone"), store) == []
        assert not paths.record.exists()
    assert settled(ended(RUN, "lost", "lost", "gone"), store) == [RUN.run_id]


def test_the_same_ending_is_recorded_once_and_another_replaces_it(store: StorePaths) -> None:
    assert settled(ended(RUN, "failed", "timeout", "first"), store) == [RUN.run_id]
    before = store.run(RUN.run_id).record.read_bytes()
    assert settled(ended(RUN, "failed", "timeout", "again"), store) == []
    assert store.run(RUN.run_id).record.read_bytes() == before
    assert settled(ended(RUN, "failed", "host_oom", "another"), store) == [RUN.run_id]
    found = record_of(store, RUN)
    assert found is not None and (found.failure_class, found.error) == ("host_oom", "another")


def test_of_many_runs_exactly_those_are_recorded_that_ended_without_a_word(store: StorePaths) -> None:
    states = ended(RUN, "lost", "lost") | ended(OTHER, "running", None) | ended(THIRD, "failed", "host_oom")
    assert settled(states, store) == [RUN.run_id, THIRD.run_id]
    assert [record_of(store, run) is not None for run in RUNS] == [True, False, True]


def test_the_payload_of_another_release_is_read_without_the_fields_of_its_own(store: StorePaths) -> None:
    [path] = store.launches.glob("*/specs.json")
    durable.write_json(path, durable.read_json(path) | {"a_field_of_a_later_release": 1})
    assert job.read_payload(path).runs == tuple(RUNS)
    assert settled(ended(RUN, "lost", "lost", "SLURM no longer knows job 7_0"), store) == [RUN.run_id]
