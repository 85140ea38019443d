"""What a run leaves behind, and who may write it."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from small_runs import carry_out, final_run, paths_of, record_of, request

from transfergrid.errors import AlreadyRunning, DataError, Superseded
from transfergrid.paths import RunPaths
from transfergrid.phases import phase_module
from transfergrid.planning import job
from transfergrid.specs import RunSpec
from transfergrid.store.attempts import Attempt, begin_attempt, newest_attempt
from transfergrid.store.checkpoints import (
    checkpoint_files,
    lines_covered,
    read_newest_checkpoint,
    remove_checkpoints,
    write_checkpoint,
)
from transfergrid.store.records import (
    RunRecord,
    make_predictions,
    read_predictions,
    read_record,
    record_head,
    write_predictions,
    write_record,
)
from transfergrid.training.results import save_predictions, save_weights


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    return final_run(request(tmp_path_factory.mktemp("spec"), "model=tinynet", "phase=scratch"))


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path / "runs" / "one")


@contextmanager
def two_attempts(paths: RunPaths, spec: RunSpec) -> Iterator[tuple[Attempt, Attempt]]:
    """As after a node failure: the older believes that it still has the run, the lock of another node is not seen."""
    with ExitStack() as stack:
        older = stack.enter_context(begin_attempt(paths, spec))
        paths.lock.unlink()
        yield older, stack.enter_context(begin_attempt(paths, spec))


# ----------------------------------------------------------------------------------------------------------- attempts
def test_attempts_are_numbered_and_the_run_is_claimed_while_one_lasts(paths: RunPaths, spec: RunSpec) -> None:
    assert newest_attempt(paths) == 0
    for number in (1, 2, 3):
        with begin_attempt(paths, spec) as attempt:
            assert attempt.number == number == newest_attempt(paths)
            attempt.assert_newest()
            with pytest.raises(AlreadyRunning, match=f"attempt {number}, process {os.getpid()} on "):
                with begin_attempt(paths, spec):
                    pass
    assert newest_attempt(paths) == 3  # a refused claim takes no number


def test_a_killed_owner_is_taken_over(paths: RunPaths, spec: RunSpec) -> None:
    def begin_and_die() -> None:
        with begin_attempt(paths, spec):
            os.kill(os.getpid(), signal.SIGKILL)

    child = multiprocessing.get_context("fork").Process(target=begin_and_die)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    with begin_attempt(paths, spec) as attempt:
        assert attempt.number == 2


def test_an_older_attempt_can_publish_nothing(paths: RunPaths, spec: RunSpec) -> None:
    with two_attempts(paths, spec) as (older, newer):
        assert (older.number, newer.number) == (1, 2)
        for publish in (
            older.assert_newest,
            lambda: write_checkpoint(older, b"state", step=1, lines=1),
            lambda: save_weights(older, {}),
            lambda: save_predictions(older, {}),
        ):
            with pytest.raises(Superseded, match="attempt 1 is superseded by attempt 2"):
                publish()
        assert sorted(p.name for p in paths.root.iterdir()) == [".lock", "attempts", "spec.json"]
        newer.assert_newest()


def test_a_phase_that_lost_its_run_meanwhile_leaves_the_newer_attempts_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(tmp_path, "model=tinynet", "phase=scratch", "dataset.max_images=40")
    run = final_run(asked)
    paths = paths_of(run, asked.runtime)
    real_run = phase_module("scratch").run

    def overtaken(context: object) -> RunRecord:
        record = real_run(context)  # type: ignore[arg-type]
        paths.lock.unlink()
        with begin_attempt(paths, run):
            pass
        return record

    monkeypatch.setattr(phase_module("scratch"), "run", overtaken)
    assert job.carry_out(run, asked.runtime) == "superseded"
    assert read_record(paths) is None


def test_a_finished_run_has_at_most_twelve_files_however_often_it_was_begun(tmp_path: Path) -> None:
    asked = request(tmp_path, "model=tinynet", "phase=scratch", "dataset.max_images=40", "checkpoint.min_interval_s=0")
    paths = paths_of(final_run(asked), asked.runtime)
    for _ in range(20):
        with begin_attempt(paths, final_run(asked)):
            pass
    assert carry_out(asked) == "completed"
    files = sorted(str(p.relative_to(paths.root)) for p in paths.root.rglob("*") if p.is_file())
    assert {"record.json", "weights.pt", "predictions.npz", "metrics.jsonl", "log.txt", "spec.json"} < set(files)
    assert "attempts/021.json" in files and len(files) <= 12
    assert not paths.checkpoints.exists()


# --------------------------------------------------------------------------------------------------------- checkpoints
def test_at_most_two_checkpoints_are_kept_and_the_newest_is_read(paths: RunPaths, spec: RunSpec) -> None:
    assert read_newest_checkpoint(paths) is None
    with begin_attempt(paths, spec) as attempt:
        for step in range(1, 6):
            write_checkpoint(attempt, b"state %d" % step, step=step, lines=10 * step)
            assert len(checkpoint_files(paths)) == min(step, 2) == len(list(paths.checkpoints.iterdir()))
    found = read_newest_checkpoint(paths)
    assert found is not None and found[1] == b"state 5"
    assert (found[0].step, found[0].lines, lines_covered(paths)) == (5, 50, 50)
    assert found[0].sha256_16 == hashlib.sha256(b"state 5").hexdigest()[:16]


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_and_goes(
    paths: RunPaths, spec: RunSpec, damage: str
) -> None:
    with begin_attempt(paths, spec) as attempt:
        for step in (1, 2):
            write_checkpoint(attempt, b"state %d" % step * 100, step=step, lines=step)
    newest = checkpoint_files(paths)[0].path
    content = newest.read_bytes()
    damaged = {"flip": bytes([content[0] ^ 1]) + content[1:], "truncate": content[:-1], "empty": b""}[damage]
    newest.write_bytes(damaged)
    found = read_newest_checkpoint(paths)
    assert found is not None and found[0].step == 1 and found[1] == b"state 1" * 100
    assert not newest.exists() and len(checkpoint_files(paths)) == 1
    checkpoint_files(paths)[0].path.write_bytes(damaged)
    assert read_newest_checkpoint(paths) is None and checkpoint_files(paths) == []


def test_checkpoints_go_when_the_run_is_done(paths: RunPaths, spec: RunSpec) -> None:
    with begin_attempt(paths, spec) as attempt:
        write_checkpoint(attempt, b"state", step=1, lines=1)
        write_record(paths, RunRecord(run_id=spec.run_id, spec=spec, status="completed"))
        remove_checkpoints(paths)
    assert not paths.checkpoints.exists() and lines_covered(paths) is None


# --------------------------------------------------------------------------------------------------------- predictions
def some_logits(num_rows: int, num_classes: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return (np.random.default_rng(0).normal(size=(num_rows, num_classes)) * 5).astype(np.float32)


def test_predictions_of_up_to_100_classes_come_back_whole(paths: RunPaths) -> None:
    logits_NC = some_logits(50, 100)
    logits_NC[0, 7] = 1e6  # beyond float16
    index_N, label_N = np.arange(50) * 3, np.arange(50) % 100
    write_predictions(paths, {name: make_predictions(index_N, label_N, logits_NC) for name in ("gate", "test")})
    found = read_predictions(paths)
    assert sorted(found) == ["gate", "test"]
    test = found["test"]
    assert np.array_equal(test.index_N, index_N) and np.array_equal(test.label_N, label_N)
    assert test.logits_NC.dtype == np.float16 and test.classes_NC is None and test.logsumexp_N is None
    assert test.logits_NC[0, 7] == 65504
    np.testing.assert_allclose(test.logits_NC[1:], logits_NC[1:], rtol=2**-11, atol=2**-24)
    assert np.array_equal(test.predicted_N, logits_NC.argmax(1))


def test_above_100_classes_the_20_largest_logits_and_the_log_sum_exp_are_kept(paths: RunPaths) -> None:
    logits_NC = some_logits(50, 1000)
    write_predictions(paths, {"test": make_predictions(np.arange(50), np.arange(50), logits_NC)})
    test = read_predictions(paths)["test"]
    assert test.classes_NC is not None and test.logsumexp_N is not None
    assert test.logits_NC.shape == test.classes_NC.shape == (50, 20)
    largest_N20 = np.sort(logits_NC, axis=1)[:, ::-1][:, :20]
    np.testing.assert_allclose(test.logits_NC, largest_N20, rtol=2**-11)
    assert np.array_equal(np.take_along_axis(logits_NC, test.classes_NC, 1), largest_N20)
    np.testing.assert_allclose(test.logsumexp_N, np.log(np.exp(logits_NC.astype(np.float64)).sum(1)), rtol=1e-5)
    assert np.array_equal(test.predicted_N, logits_NC.argmax(1))


def test_rounding_to_float16_turns_no_prediction_over() -> None:
    generator = np.random.default_rng(0)
    logits_NC = generator.normal(size=(20_000, 10)).astype(np.float32) + 10  # float16 knows steps of 1/128 here
    index_N = np.arange(20_000)
    assert (logits_NC.astype(np.float16).argmax(1) != logits_NC.argmax(1)).sum() > 10
    made = make_predictions(index_N, index_N % 10, logits_NC)
    assert np.array_equal(made.predicted_N, logits_NC.argmax(1))
    np.testing.assert_allclose(made.logits_NC, logits_NC, rtol=1.5 * 2**-10)
    nearest = make_predictions(index_N, index_N % 10, logits_NC, keep_predicted=False)
    assert np.array_equal(nearest.logits_NC, logits_NC.astype(np.float16))


def test_of_logits_beyond_float16_the_largest_stays_the_largest_and_all_stay_finite() -> None:
    logits_NC = np.array([[1e5, 2e5, 0.0], [7.0, 7.0, 7.0], [-1e5, -1e5, -1e5]], dtype=np.float32)
    made = make_predictions(np.arange(3), np.zeros(3), logits_NC)
    assert made.logits_NC.tolist() == [[65472, 65504, 0], [7, 7, 7], [-65504, -65504, -65504]]
    assert made.predicted_N.tolist() == [1, 0, 0]


def test_a_damaged_predictions_file_is_said_in_one_line(paths: RunPaths) -> None:
    write_predictions(paths, {"test": make_predictions(np.arange(50), np.arange(50), some_logits(50, 10))})
    content = paths.predictions.read_bytes()
    with pytest.raises(DataError, match="and launch again"):
        read_predictions(RunPaths(paths.root / "absent"))
    for length in np.linspace(0, len(content) - 1, 40).astype(int):
        paths.predictions.write_bytes(content[:length])
        with pytest.raises(DataError, match="predictions.npz cannot be read .*; delete .*record.json and launch again"):
            read_predictions(paths)
    rng = np.random.default_rng(0)
    for bit in rng.integers(0, 8 * len(content), 200):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << (bit % 8)
        paths.predictions.write_bytes(flipped)
        try:
            found = read_predictions(paths)
        except DataError:
            continue
        assert list(found) != ["test"] or np.array_equal(
            found["test"].logits_NC, some_logits(50, 10).astype(np.float16)
        )


# -------------------------------------------------------------------------------------------------------------- record
def test_a_record_comes_back_as_it_was_written(paths: RunPaths, spec: RunSpec) -> None:
    record = RunRecord(
        run_id=spec.run_id,
        spec=spec,
        status="failed",
        failure_class="data",
        error="one line",
        metrics={"test_accuracy": 0.125},
        details={"chosen": {"lr": 1e-3}},
        parameters=7,
        phase_s=1.5,
        attempt=3,
        provenance={"code_hash": "abc"},
    )
    assert read_record(paths) is None and record_head(paths) is None
    write_record(paths, record)
    assert read_record(paths) == record
    head = record_head(paths)
    assert head is not None
    assert (head.status, head.failure_class, head.error, head.code_hash) == ("failed", "data", "one line", "abc")


def test_a_damaged_record_is_no_record_to_a_plan_and_an_error_to_a_reader(paths: RunPaths, spec: RunSpec) -> None:
    write_record(paths, RunRecord(run_id=spec.run_id, spec=spec, status="completed"))
    content = paths.record.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"{}", b"[]", content.replace(b'"format": 1', b'"format": 99')):
        paths.record.write_bytes(damaged)
        assert record_head(paths) is None
        if b"99" not in damaged:
            with pytest.raises(DataError, match="launch again"):
                read_record(paths)


def test_a_completed_run_is_reused_and_its_record_states_its_attempt(tmp_path: Path) -> None:
    asked = request(tmp_path, "model=tinynet", "phase=scratch", "dataset.max_images=40")
    assert [carry_out(asked), carry_out(asked)] == ["completed", "reused"]
    record = record_of(final_run(asked), asked.runtime)
    assert (record.status, record.attempt, record.n_train) == ("completed", 1, 36)
