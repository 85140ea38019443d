"""What runs on a node: which runs are a task's, what becomes of one that is told to stop, how it ends."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cluster_cases import as_job, extract_run, runtime_in, scratch_run
from replayed_slurm import TOKEN, ReplayedSlurm, queue_line

from transfergrid.cluster import local, ownership, task
from transfergrid.cluster.ownership import Requeued
from transfergrid.cluster.task import SIGNAL_EARLY_S, TaskSettings, progress_mark, run_task, time_is_up
from transfergrid.errors import MachineError, StoreFull
from transfergrid.paths import store_paths
from transfergrid.planning import job
from transfergrid.planning.plan import Plan
from transfergrid.specs import RunSpec, Runtime
from transfergrid.store import provenance
from transfergrid.store.records import RunRecord, read_record, write_record
from transfergrid.training.stopping import StopFlag

RUNS = [scratch_run(seed) for seed in range(4)]


class Node:
    """A node on which phases are not carried out: it notes what was asked of it and does as a test says.

    endings: run_id -> how it ends. on_run: called for each run before it ends. left_s: until the time limit, as SLURM
    tells it.
    """

    def __init__(self, folder: Path, slurm: ReplayedSlurm) -> None:
        self.folder = folder
        self.slurm = slurm
        self.runtime = runtime_in(folder)
        self.endings: dict[str, str] = {}
        self.on_run: Callable[[RunSpec], None] = lambda run: None
        self.left_s: float | None = 3000.0
        self.carried_out: list[str] = []
        self.runtimes: list[Runtime] = []
        self.packs: list[Plan] = []
        self.requeued = 0
        self.requeue_ends: Requeued = "back"

    def group(
        self,
        tasks: Sequence[Sequence[int]],
        runs: Sequence[RunSpec] = RUNS,
        code_hash: str | None = None,
        **settings: Any,
    ) -> str:
        """The folder of a group whose tasks hold these runs."""
        payload = job.write_payload(runs, self.runtime)
        if code_hash is not None:
            payload.write_text(payload.read_text().replace(provenance.code_hash(), code_hash))
        defaults: dict[str, Any] = {"signal_delay_s": 120, "max_requeues": 2, "stage_to": None, "asks_for_gpu": False}
        told = TaskSettings(payload=str(payload), tasks=tuple(map(tuple, tasks)), **defaults | settings)
        folder = payload.parent / "slurm" / "tg-g-1"
        told.write(folder)
        assert TaskSettings.read(folder) == told
        return str(folder)

    def ends(self, run: RunSpec) -> str:
        self.carried_out.append(run.run_id)
        self.on_run(run)
        return self.endings.get(run.run_id, "completed")

    def complete(self, *runs: RunSpec) -> None:
        for run in runs:
            record = RunRecord(run_id=run.run_id, spec=run, status="completed")
            write_record(store_paths(self.runtime).run(run.run_id), record)

    def save_checkpoint(self, run: RunSpec, step: int = 1) -> None:
        folder = store_paths(self.runtime).run(run.run_id).checkpoints
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"step-{step:09d}-line-{step:09d}-{'0' * 16}.pt").touch()

    def record(self, run: RunSpec) -> RunRecord | None:
        return read_record(store_paths(self.runtime).run(run.run_id))


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    as_job(monkeypatch, "7")
    slurm = ReplayedSlurm(tmp_path / "bin", monkeypatch)
    node = Node(tmp_path, slurm)

    def carry_out(run: RunSpec, runtime: Runtime, *, stop: StopFlag, is_alive: object) -> str:
        assert is_alive is ownership.is_alive and stop.signal is None
        node.runtimes.append(runtime)
        return node.ends(run)

    def run_plan(plan: Plan, runtime: Runtime, watcher: local.Watcher) -> None:
        node.packs.append(plan)
        for planned in plan.to_run:
            ending = node.ends(planned.run)
            if ending == "interrupted":
                raise KeyboardInterrupt
            watcher.ended(local.Ended(planned.run, ending))  # type: ignore[arg-type]

    def requeue() -> Requeued:
        node.requeued += 1
        return node.requeue_ends

    monkeypatch.setattr("transfergrid.planning.job.carry_out", carry_out)
    monkeypatch.setattr("transfergrid.cluster.local.run_plan", run_plan)
    monkeypatch.setattr(task, "requeue_this_job", requeue)
    monkeypatch.setattr(task, "seconds_left", lambda: node.left_s)
    return node


def exit_code(folder: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        run_task(folder)
    return ended.value.code


def ids(*indices: int) -> list[str]:
    return [RUNS[i].run_id for i in indices]


# ----------------------------------------------------------------------------------------------------- which, and when
def test_a_plain_job_carries_out_its_one_run(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_task(node.group([[2]])) == {RUNS[2].run_id: "completed"}
    assert node.carried_out == ids(2) and node.packs == []
    assert capsys.readouterr().out == f"{RUNS[2].run_id}: completed\n"


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_task_of_an_array_finds_its_own(node: Node, monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    as_job(monkeypatch, "7", task=index)
    run_task(node.group([[3], [0], [1]]))
    assert node.carried_out == [ids(3, 0, 1)[index]]


def test_runs_that_share_a_job_are_carried_out_in_order_by_a_pool_without_those_that_are_done(node: Node) -> None:
    node.complete(RUNS[1])
    assert run_task(node.group([[0, 1, 2]])) == dict.fromkeys(ids(0, 2), "completed")
    assert [p.run.run_id for plan in node.packs for p in plan.runs] == node.carried_out == ids(0, 2)


def test_of_a_pack_with_one_run_left_it_runs_in_this_process(node: Node) -> None:
    node.complete(RUNS[0], RUNS[2])
    run_task(node.group([[0, 1, 2]]))
    assert node.carried_out == ids(1) and node.packs == []


def test_squeue_is_told_what_the_task_does(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    as_job(monkeypatch, "7", task=1)
    run_task(node.group([[3], [0, 1, 2]]))
    assert [call for call in node.slurm.calls if " update " in call] == []  # it is not shown as this job
    node.slurm.answers("squeue", queue_line("7_1", "RUNNING"))
    run_task(node.group([[3], [0, 1, 2]]))
    assert node.slurm.calls[-1] == f"scontrol update jobid=7_1 name={RUNS[0].slug}+2-{TOKEN}"


def test_a_job_that_cannot_be_renamed_runs_all_the_same(node: Node) -> None:
    node.slurm.answers("scontrol", "", error="Invalid job id specified", code=1)
    assert run_task(node.group([[0]])) == {RUNS[0].run_id: "completed"}


def test_a_job_uses_the_gpu_it_asked_for_and_no_other_unless_a_device_was_named(node: Node) -> None:
    told = (("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("cuda", False, "cuda"))
    for device, asks, expected in told:
        node.runtime = replace(node.runtime, device=device)  # type: ignore[arg-type]
        run_task(node.group([[0]], asks_for_gpu=asks))
        assert node.runtimes[-1].device == expected


def test_image_folders_are_staged_for_the_run_and_gone_afterwards(node: Node, tmp_path: Path) -> None:
    images = tmp_path / "shared"
    images.mkdir()
    (images / "a.png").write_bytes(b"1")
    node.runtime = replace(node.runtime, data_folders={"digits": str(images)})
    found: list[bool] = []
    node.on_run = lambda run: found.append((Path(node.runtimes[-1].data_folders["digits"]) / "a.png").is_file())
    run_task(node.group([[0]], stage_to=str(tmp_path / "node")))
    assert found == [True] and node.runtimes[0].data_folders["digits"].startswith(str(tmp_path / "node"))
    assert list((tmp_path / "node").iterdir()) == []


# ------------------------------------------------------------------------------------------------------ done already
def test_a_requeued_job_that_had_finished_ends_without_torch_and_without_asking_slurm(node: Node) -> None:
    node.complete(RUNS[0], RUNS[1])
    folder = node.group([[0, 1]])
    program = (
        "import sys; from transfergrid.cluster.task import run_task; print(run_task(sys.argv[1]));"
        "print(sorted({'torch', 'torchvision', 'timm', 'sklearn', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{RUNS[0].run_id}, {RUNS[1].run_id}: completed before",
        str(dict.fromkeys(ids(0, 1), "reused")),
        "[]",
    ]
    assert node.slurm.calls == []


def test_a_job_that_had_finished_ends_well_though_the_code_is_another_by_now(node: Node) -> None:
    node.complete(RUNS[0])
    assert run_task(node.group([[0]], code_hash="f" * 16)) == {RUNS[0].run_id: "reused"}


def test_other_code_than_that_of_the_launch_is_recorded_as_a_failure_of_the_environment(node: Node) -> None:
    assert exit_code(node.group([[0, 1]], code_hash="f" * 16)) == 71
    assert node.carried_out == []
    for run in RUNS[:2]:
        record = node.record(run)
        assert record is not None and record.failure_class == "environment" and record.remedy == "launch again"


# ------------------------------------------------------------------------------------------------------- exit codes
@pytest.mark.parametrize("ending", ["failed", "superseded", "in flight"])
def test_what_waits_for_a_run_that_is_not_done_must_not_start(node: Node, ending: str) -> None:
    node.endings = {RUNS[0].run_id: ending}
    assert exit_code(node.group([[0]])) == 1
    assert node.requeued == 0 and node.record(RUNS[0]) is None


@pytest.mark.parametrize("ending", ["completed", "reused"])
def test_a_run_that_is_done_ends_the_job_well(node: Node, ending: str) -> None:
    node.endings = {RUNS[0].run_id: ending}
    assert run_task(node.group([[0]])) == {RUNS[0].run_id: ending}


def test_one_failure_in_a_pack_ends_it_badly_after_the_others_have_run(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    node.endings = {RUNS[0].run_id: "failed"}
    assert exit_code(node.group([[0, 1]])) == 1
    assert node.carried_out == ids(0, 1) and node.requeued == 0
    assert capsys.readouterr().out == f"{RUNS[0].run_id}: failed\n{RUNS[1].run_id}: completed\n"


# ---------------------------------------------------------------------------------------------------- told to stop
def interrupted_after_saving(node: Node, *runs: RunSpec) -> None:
    node.endings = {run.run_id: "interrupted" for run in runs}
    node.on_run = lambda run: node.save_checkpoint(run, 5) if run in runs else None


def test_a_run_that_was_told_to_stop_and_has_saved_goes_on_in_the_same_job_later(node: Node) -> None:
    node.left_s = 10.0
    interrupted_after_saving(node, RUNS[0])
    assert exit_code(node.group([[0]])) == 1
    assert node.requeued == 1 and node.record(RUNS[0]) is None


@pytest.mark.parametrize(("ends", "code"), [("back", 1), ("left to slurm", 1), ("cannot ask", 75)])
def test_where_python_cannot_put_the_job_back_its_exit_code_asks_the_batch_script_to(
    node: Node, ends: Requeued, code: int
) -> None:
    node.requeue_ends = ends
    interrupted_after_saving(node, RUNS[0])
    assert exit_code(node.group([[0]])) == code and node.record(RUNS[0]) is None


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 73, "disk_full: OSError: [Errno 28] No space left"),
        (StoreFull("no space left for x; free some space and launch again"), 73, "disk_full: no space left for x"),
        (MachineError("no locks and no hard links here"), 71, "environment: no locks and no hard links here"),
        (OSError(errno.ESTALE, "Stale file handle"), 71, "environment: OSError: [Errno 116] Stale file handle"),
    ],
)
def test_what_no_record_could_tell_is_one_line_and_an_exit_code(
    node: Node, capsys: pytest.CaptureFixture[str], error: Exception, code: int, said: str
) -> None:
    def fail(run: RunSpec) -> None:
        raise error

    node.on_run = fail
    assert exit_code(node.group([[0]])) == code
    printed = capsys.readouterr().err
    assert said in printed and "Traceback" not in printed
    error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        run_task(node.group([[0]]))


@pytest.mark.parametrize(("restarts", "goes_on"), [(None, True), (1, True), (2, False), (3, False)])
def test_after_so_many_restarts_it_does_not_go_on_and_its_record_says_so(
    node: Node, monkeypatch: pytest.MonkeyPatch, restarts: int | None, goes_on: bool
) -> None:
    as_job(monkeypatch, "7", restarts=restarts)
    interrupted_after_saving(node, RUNS[0])
    assert exit_code(node.group([[0]], max_requeues=2)) == 1
    assert node.requeued == (1 if goes_on else 0)
    record = node.record(RUNS[0])
    if goes_on:
        assert record is None
        return
    assert record is not None and (record.status, record.failure_class) == ("failed", "timeout")
    assert record.error == f"went on {restarts} times and is not done"
    assert record.remedy == "give cluster.timeout_min more"


@pytest.mark.parametrize(
    ("left_s", "ends"),
    [(0.0, True), (120.0 + SIGNAL_EARLY_S, True), (120.0 + SIGNAL_EARLY_S + 31, False), (3000.0, False), (None, False)],
)
def test_a_run_that_got_nowhere_within_its_time_limit_would_never_end_but_a_preempted_one_goes_on(
    node: Node, left_s: float | None, ends: bool
) -> None:
    node.save_checkpoint(RUNS[0], 3)  # of an earlier attempt: the mark has not moved
    node.left_s, node.endings = left_s, {RUNS[0].run_id: "interrupted"}
    assert exit_code(node.group([[0]])) == 1
    assert node.requeued == (0 if ends else 1)
    record = node.record(RUNS[0])
    assert (record is not None) is ends
    if record is not None:
        assert (record.failure_class, record.status) == ("timeout", "failed")
        assert record.error is not None and record.error.startswith("not one step (or split) was done within")


def test_of_a_pack_what_is_done_is_done_and_the_rest_goes_on_later(node: Node) -> None:
    node.left_s = 0.0
    interrupted_after_saving(node, RUNS[1])
    assert exit_code(node.group([[0, 1, 2]])) == 1
    assert node.carried_out == ids(0, 1)  # the third had not begun
    assert node.requeued == 1
    assert [node.record(run) for run in RUNS] == [None] * 4


def test_of_a_pack_that_got_nowhere_the_first_run_fails_and_the_others_go_on(node: Node) -> None:
    node.left_s, node.endings = 0.0, dict.fromkeys(ids(0, 1), "interrupted")
    assert exit_code(node.group([[0, 1]])) == 1
    first, second = node.record(RUNS[0]), node.record(RUNS[1])
    assert first is not None and first.failure_class == "timeout" and second is None
    assert node.requeued == 1


def test_a_signal_that_comes_before_a_pack_begins_is_not_lost(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "_rename", lambda runs: os.kill(os.getpid(), signal.SIGUSR2))
    assert exit_code(node.group([[0, 1]])) == 1
    assert node.carried_out == [] and node.requeued == 1


def test_signals_do_again_what_they_did_before_once_the_task_has_ended(node: Node) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)]
    during: list[object] = []
    node.on_run = lambda run: during.append(signal.getsignal(signal.SIGUSR2))
    run_task(node.group([[0]]))
    assert during[0] not in before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)] == before


# ------------------------------------------------------------------------------------------------------------ marks
def test_progress_is_told_by_checkpoints(node: Node) -> None:
    marks = [progress_mark(RUNS[0], node.runtime)]
    for step in (1, 2):
        node.save_checkpoint(RUNS[0], step)
        marks.append(progress_mark(RUNS[0], node.runtime))
    assert [len(mark) for mark in marks] == [0, 1, 2] and len(set(marks)) == 3
    assert progress_mark(RUNS[1], node.runtime) == ()


def test_progress_of_an_extraction_is_told_by_the_splits_it_has_written(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, written = extract_run(), {"train"}
    monkeypatch.setattr(
        "transfergrid.store.feature_store.find",
        lambda cache, key: Path("x") if key.split in written and key.backbone == run.backbones[0] else None,
    )
    assert progress_mark(run, node.runtime) == ("train",)
    written.add("test")
    assert progress_mark(run, node.runtime) == ("train", "test")


def test_time_is_up_shortly_before_the_limit_as_early_as_the_signal_may_come(node: Node) -> None:
    settings = TaskSettings.read(Path(node.group([[0]], signal_delay_s=300)))
    for left_s, expected in ((0.0, True), (389.0, True), (391.0, False), (None, False)):
        node.left_s = left_s
        assert time_is_up(settings) is expected


def test_a_task_without_slurm_around_it_asks_nobody(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    as_job(monkeypatch, None)
    with caplog.at_level(logging.INFO):
        run_task(node.group([[0]]))
    assert node.slurm.calls == []
