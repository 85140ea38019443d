"""The finish job: when all has ended, the report is made, what was lost is recorded, and somebody is told, once."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from cluster_cases import as_job, console, evaluate_run, runtime_in, said, scratch_run
from replayed_slurm import CLUSTER, TOKEN, ReplayedSlurm, ago, queue_line

from transfergrid.cli import finish as finishing
from transfergrid.cli.finish import _notify, finish, runs_of
from transfergrid.cluster.ledger import Submission, read_ledger, record
from transfergrid.cluster.run_state import RunState
from transfergrid.errors import NEXT_STEP
from transfergrid.paths import StorePaths, store_paths
from transfergrid.planning import job
from transfergrid.specs import RunSpec
from transfergrid.store.records import GridEntry, RunRecord, read_record, write_grid, write_record

RUNS = [scratch_run(seed) for seed in range(2)]
DONE, LOST = RUNS
NOTE = 'cat > "$OUT"; env | grep ^TRANSFERGRID_ | sort >> "$OUT"; echo x >> "$OUT.times"'


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReplayedSlurm:
    """This process is the finish job 9. Of the array 7 the second task was killed for its memory."""
    as_job(monkeypatch, "9")
    monkeypatch.delenv("TRANSFERGRID_DATA_DIR", raising=False)
    monkeypatch.setenv("OUT", str(tmp_path / "told"))
    monkeypatch.setattr(finishing, "SETTLE_S", 10.0)
    replayed = ReplayedSlurm(tmp_path / "bin", monkeypatch)
    ended = "".join(queue_line(f"7_{i}", s, started=ago(600)) for i, s in enumerate(("COMPLETED", "OUT_OF_MEMORY")))
    replayed.answers("squeue", ended)
    return replayed


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return store_paths(runtime_in(tmp_path))


def entry(run: RunSpec) -> GridEntry:
    return GridEntry(
        run_id=run.run_id,
        dataset=run.dataset.name,
        model=run.model,
        phase=run.phase,
        variant="",
        weights="",
        protocol="fair",
        seed=run.seed,
    )


def sent(store: StorePaths, runs: list[RunSpec], notify: str | None = NOTE, rows: list[RunSpec] | None = None) -> str:
    """The folder of the finish job of a launch that sent these runs as array 7; rows: of the grid, all unless given."""
    payload = job.write_payload(runs, runtime_in(store.root.parent))
    tasks = tuple((run.run_id,) for run in runs)
    record(
        Submission(
            name="tg-g-1",
            grid="g",
            launch=payload.parent,
            tasks=tasks,
            job_id="7",
            submitted=datetime.now(UTC),
            cluster=CLUSTER,
            token=TOKEN,
        )
    )
    write_grid(store.grid("g"), grid="g", entries=[entry(run) for run in (runs if rows is None else rows)])
    folder = payload.parent / "slurm" / "tg-g-finish"
    folder.mkdir(parents=True)
    (folder / "finish.json").write_text(json.dumps({"grid": "g", "payload": str(payload), "notify": notify}))
    return str(folder)


def complete(store: StorePaths, run: RunSpec) -> None:
    provenance = {"ended": ago(300).isoformat(), "code_hash": "c0de"}
    metrics = {"test_accuracy": 0.875, "val_accuracy": 0.9, "train_accuracy": 0.95, "test_loss": 0.4}
    metrics |= {"test_macro_precision": 0.8, "test_macro_recall": 0.8, "test_macro_f1": 0.8}
    write_record(
        store.run(run.run_id),
        RunRecord(
            run_id=run.run_id,
            spec=run,
            status="completed",
            metrics=metrics,
            phase_s=12.5,
            n_train=90,
            provenance=provenance,
        ),
    )


# ----------------------------------------------------------------------------------------------------- the whole job
def test_the_report_is_made_what_was_lost_is_recorded_and_somebody_is_told(
    slurm: ReplayedSlurm, store: StorePaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    complete(store, DONE)
    folder = sent(store, RUNS)
    assert finish(folder) == {"done": 1, "failed": 1}
    lost = read_record(store.run(LOST.run_id))
    assert lost is not None and (lost.status, lost.failure_class) == ("failed", "host_oom")
    assert "memory" in (lost.error or "")
    table = (store.report("g") / "comparison.csv").read_text()
    assert "0.875" in table and "host_oom" in table
    shown = capsys.readouterr().out
    line = f"host_oom: {LOST.run_id}: {lost.error}; {NEXT_STEP['host_oom']}"
    assert f"{line}\n" in shown
    assert (tmp_path / "told").read_text().splitlines() == [
        "grid g: 1 of 2 runs done, 1 not",
        line,
        f"report: {store.report('g') / 'comparison.md'}",
        "TRANSFERGRID_DONE=1",
        "TRANSFERGRID_FAILED=1",
        "TRANSFERGRID_GRID=g",
        f"TRANSFERGRID_JOB_TOKEN={TOKEN}",
        f"TRANSFERGRID_REPORT={store.report('g')}",
    ]


def test_requeued_it_makes_the_report_again_and_tells_nobody_twice(
    slurm: ReplayedSlurm, store: StorePaths, tmp_path: Path
) -> None:
    complete(store, DONE)
    folder = sent(store, RUNS)
    finish(folder)
    before = read_record(store.run(LOST.run_id))
    (store.report("g") / "comparison.csv").unlink()
    assert finish(folder) == {"done": 1, "failed": 1}
    assert (store.report("g") / "comparison.csv").is_file()
    assert read_record(store.run(LOST.run_id)) == before
    assert (tmp_path / "told.times").read_text() == "x\n"


def test_without_a_command_nobody_is_told(slurm: ReplayedSlurm, store: StorePaths, tmp_path: Path) -> None:
    complete(store, DONE)
    folder = sent(store, RUNS, notify=None)
    assert finish(folder) == {"done": 1, "failed": 1}
    assert not (tmp_path / "told").exists() and not (Path(folder) / "notified").exists()


def test_a_report_that_fails_is_an_error_but_somebody_is_told_first(
    slurm: ReplayedSlurm, store: StorePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(finishing, "show_report", broken)
    complete(store, DONE)
    with pytest.raises(ZeroDivisionError):
        finish(sent(store, RUNS))
    assert (tmp_path / "told").read_text().startswith("grid g: 1 of 2 runs done, 1 not\n")


def test_it_waits_until_slurm_has_told_how_the_last_jobs_ended(
    slurm: ReplayedSlurm, store: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = (slurm.folder / "squeue.out").read_text()
    complete(store, DONE)
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            slurm.answers("squeue", ended)

    clock = SimpleNamespace(sleep=sleep, monotonic=lambda: float(len(pauses)))
    monkeypatch.setattr(finishing, "time", clock)
    monkeypatch.setattr("transfergrid.cluster.slurm.SETTLING_S", 1e6)
    slurm.answers("squeue", ended.replace("OUT_OF_MEMORY", f"{'NODE_FAIL':<13}"))  # SLURM may start it again
    assert finish(sent(store, RUNS)) == {"done": 1, "failed": 1}
    assert pauses == [finishing.POLL_S] * 2


def test_what_stays_undecided_is_not_waited_for_for_ever(
    slurm: ReplayedSlurm, store: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.controller_is_down()
    slurm.has_no_accounting()
    complete(store, DONE)
    pauses: list[float] = []
    clock = SimpleNamespace(sleep=pauses.append, monotonic=lambda: 3.0 * len(pauses))
    monkeypatch.setattr(finishing, "time", clock)
    assert finish(sent(store, RUNS)) == {"done": 1, "unknown": 1}
    assert len(pauses) == 4  # 12 s of at most 10
    assert read_record(store.run(LOST.run_id)) is None


# --------------------------------------------------------------------------------------------------------- which runs
def test_a_grids_runs_are_its_rows_and_what_was_sent_for_them(store: StorePaths) -> None:
    child = evaluate_run(0, DONE.run_id)
    never_sent = scratch_run(9)
    sent(store, [DONE, LOST, child], rows=[child, never_sent])
    assert runs_of("g", store, read_ledger(store)) == [DONE.run_id, child.run_id, never_sent.run_id]


# ------------------------------------------------------------------------------------------------------------- notify
STATES = {
    "a": RunState(run_id="a", state="done"),
    "b": RunState(run_id="b", state="failed", failure_class="host_oom", reason="was killed"),
    "c": RunState(run_id="c", state="running"),
}


def notify(folder: Path, command: str, states: dict[str, RunState] = STATES) -> list[str]:
    printed = console()
    _notify(printed, command, folder, "g", StorePaths(Path("results")), states)
    return said(printed)


def test_the_command_runs_once_however_often_it_is_asked_for(slurm: ReplayedSlurm, tmp_path: Path) -> None:
    for _ in range(3):
        assert notify(tmp_path, NOTE) == []
    assert (tmp_path / "told.times").read_text() == "x\n"
    assert (tmp_path / "told").read_text().splitlines()[:3] == [
        "grid g: 1 of 3 runs done, 1 not",
        f"host_oom: b: was killed; {NEXT_STEP['host_oom']}",
        "report: results/reports/g/comparison.md",
    ]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("exit 3", "returned non-zero exit status 3."),
        ("no-such-program", "exit status 127."),
        ("exec sleep 60", "timed out"),
    ],
)
def test_a_command_that_fails_is_told_in_one_line_and_not_tried_again(
    slurm: ReplayedSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, told: str
) -> None:
    monkeypatch.setattr(finishing, "NOTIFY_TIMEOUT_S", 0.2 if "sleep" in command else 30.0)
    [line] = notify(tmp_path, command)
    assert line.startswith("notify.command failed: ") and told in line and command in line
    assert notify(tmp_path, NOTE) == []
    assert not (tmp_path / "told").exists()


def test_a_command_that_does_not_listen_is_no_failure(slurm: ReplayedSlurm, tmp_path: Path) -> None:
    many = {str(i): RunState(run_id=str(i), state="lost", reason="x" * 100_000) for i in range(5)}
    assert notify(tmp_path, "exec true", many) == []


def test_of_many_failures_the_first_twenty_are_named(slurm: ReplayedSlurm, tmp_path: Path) -> None:
    many = {f"r{i:02d}": RunState(run_id=f"r{i:02d}", state="blocked", reason="needs a") for i in range(25)}
    notify(tmp_path, NOTE, many)
    lines = [line for line in (tmp_path / "told").read_text().splitlines() if not line.startswith("TRANSFERGRID")]
    assert lines[0] == "grid g: 0 of 25 runs done, 25 not"
    assert lines[1:-1] == [f"blocked: r{i:02d}: needs a; {NEXT_STEP['blocked']}" for i in range(20)]
