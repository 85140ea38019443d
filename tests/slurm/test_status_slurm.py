"""True states on a real SLURM: jobs made by hand, a line of the ledger for each, and what is said of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from replayed_slurm import TOKEN, attempt, completed, make_grid, submit
from sandbox import Sandbox

from transfergrid.cli.status import status
from transfergrid.cluster.ledger import Submission, read_ledger
from transfergrid.cluster.ownership import live_rows
from transfergrid.cluster.run_state import RunState
from transfergrid.cluster.states import Snapshot, take_snapshot
from transfergrid.paths import StorePaths

pytestmark = pytest.mark.slurm


@pytest.fixture
def store(tmp_path: Path, slurm: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[StorePaths]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    yield StorePaths(tmp_path / "results")
    slurm.run("scancel", "-u", "root")


def sbatch(sandbox: Sandbox, store: StorePaths, *options: str, tasks: tuple[str, ...], command: str) -> Submission:
    """A job of one task, or an array, and its line in the ledger; its logs lie where submitit would have them."""
    folder = store.launches / "20261120T120000-aaaaaaaa" / "slurm" / f"sub-{tasks[0]}"
    folder.mkdir(parents=True)
    array = (f"--array=0-{len(tasks) - 1}",) if len(tasks) > 1 and not any("--array" in o for o in options) else ()
    name = "%A_%a" if len(tasks) > 1 else "%j"
    logs = (f"--output={folder}/{name}_0_log.out", f"--error={folder}/{name}_0_log.err")
    called = f"--job-name=by-hand-{TOKEN}"
    job_id = sandbox.run("sbatch", "--parsable", called, *logs, *array, *options, f"--wrap={command}").strip()
    sent = {"job_id": job_id, "name": f"sub-{tasks[0]}", "cluster": "sandbox"}
    return submit(store, *((run_id,) for run_id in tasks), seconds_ago=0, **sent)  # type: ignore[arg-type]


def look(store: StorePaths, *run_ids: str) -> Snapshot:
    return take_snapshot(run_ids, store, read_ledger(store), timeout_s=5)


def wait_for(store: StorePaths, run_id: str, state: str, timeout_s: float = 60.0) -> RunState:
    deadline = time.monotonic() + timeout_s
    while True:
        found = look(store, run_id).states[run_id]
        if found.state == state:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.2)


def test_pending_running_failed_and_cancelled_are_told_apart(slurm: Sandbox, store: StorePaths) -> None:
    sbatch(slurm, store, "--array=0-3%1", tasks=("r0", "r1", "r2", "r3"), command="sleep 600")
    sbatch(slurm, store, "-p", "short", "-t", "10:00:00", tasks=("too-long",), command="true")
    sbatch(slurm, store, tasks=("exit-7",), command="exit 7")
    sbatch(slurm, store, tasks=("killed",), command="kill -9 $$")
    sbatch(slurm, store, tasks=("no-torch",), command="echo 'ImportError: No module named torch' >&2; exit 1")
    sbatch(slurm, store, tasks=("not-found",), command="there-is-no-such-program")
    running = wait_for(store, "r0", "running")
    assert running.node in ("n1", "n2") and running.job_id is not None and running.job_id.endswith("_0")
    # Reasons come with the scheduler's next look at the queue.
    slurm.wait_for(lambda: "JobArrayTaskLimit" in look(store, "r1").states["r1"].reason, 60)
    waiting = look(store, "r1").states["r1"]
    assert (waiting.state, waiting.never_starts) == ("pending", False)
    slurm.wait_for(lambda: "PartitionTimeLimit" in look(store, "too-long").states["too-long"].reason, 60)
    never = look(store, "too-long").states["too-long"]
    assert (never.state, never.never_starts) == ("pending", True)

    assert "exit code 7" in wait_for(store, "exit-7", "lost").reason
    assert "SIGKILL" in wait_for(store, "killed", "lost").reason
    assert wait_for(store, "no-torch", "failed").failure_class == "environment"
    assert wait_for(store, "not-found", "failed").failure_class == "environment"

    base = running.job_id.partition("_")[0]
    slurm.run("scancel", f"{base}_2")
    gone = wait_for(store, "r2", "cancelled")
    assert gone.failure_class == "cancelled" and "before it started" in gone.reason
    array = read_ledger(store).newest("r0")
    assert array is not None and set(live_rows({base: array[0].proof})) == {f"{base}_0", f"{base}_1", f"{base}_3"}
    slurm.run("scancel", base)
    for run_id in ("r0", "r1", "r3"):
        assert wait_for(store, run_id, "cancelled").failure_class == "cancelled"


def test_a_child_of_a_failed_job_is_blocked_by_it(slurm: Sandbox, store: StorePaths) -> None:
    parent = sbatch(slurm, store, tasks=("parent",), command="exit 1")
    wanted = (f"--dependency=afterok:{parent.job_id}", "--kill-on-invalid-dep=yes")
    sbatch(slurm, store, *wanted, tasks=("child",), command="true")
    wait_for(store, "parent", "lost")
    deadline = time.monotonic() + 60
    while True:
        snapshot = take_snapshot(["child"], store, read_ledger(store), needs={"child": ("parent",)})
        if not snapshot.states["child"].is_live or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    assert snapshot.states["child"].state == "blocked" and "needs parent" in snapshot.states["child"].reason


def test_a_completed_job_without_a_record_is_not_done(slurm: Sandbox, store: StorePaths) -> None:
    sbatch(slurm, store, tasks=("a",), command="true")
    found = wait_for(store, "a", "unknown")
    assert "its record is not to be seen yet" in found.reason
    completed(store, "a")
    assert look(store, "a").states["a"].state == "done"


def test_a_requeued_job_is_alive_all_the_time(slurm: Sandbox, store: StorePaths) -> None:
    job = sbatch(slurm, store, tasks=("a",), command="sleep 600")
    wait_for(store, "a", "running")
    attempt(store, "a", slurm_job_id=job.job_id, slurm_task=job.job_id, slurm_cluster="sandbox")
    assert job.job_id is not None
    slurm.run("scontrol", "requeue", job.job_id)
    for _ in range(10):
        assert look(store, "a").states["a"].state in ("running", "pending")
        time.sleep(0.1)
    wait_for(store, "a", "pending")

    def is_back() -> bool:
        slurm.hurry()
        return look(store, "a").states["a"].state == "running"

    slurm.wait_for(is_back, 60)
    assert {j: row.restarts for j, row in live_rows({job.job_id: job.proof}).items()} == {job.job_id: 1}


def test_cancel_ends_running_and_pending_jobs(
    slurm: Sandbox, store: StorePaths, capsys: pytest.CaptureFixture[str]
) -> None:
    make_grid(store, "r0", "r1", "r2", "plain")
    sbatch(slurm, store, "--array=0-2%1", tasks=("r0", "r1", "r2"), command="sleep 600")
    sbatch(slurm, store, tasks=("plain",), command="sleep 600")
    wait_for(store, "r0", "running")
    assert status(["grid=g", "run=r1", "cancel=true"]) == 0
    assert "cancelled 1 job of 1 run" in capsys.readouterr().out
    assert status(["grid=g", "cancel=true"]) == 0
    assert "cancelled 3 jobs of 3 runs" in capsys.readouterr().out
    for run_id in ("r0", "r1", "r2", "plain"):
        wait_for(store, run_id, "cancelled")
    assert status(["grid=g", "cancel=true"]) == 0
    assert "nothing to cancel" in capsys.readouterr().out


def test_while_the_controller_is_away_the_store_and_the_accounting_speak(
    slurm: Sandbox, store: StorePaths, capsys: pytest.CaptureFixture[str]
) -> None:
    make_grid(store, "a", "b")
    sbatch(slurm, store, tasks=("a",), command="sleep 600")
    completed(store, "b")
    wait_for(store, "a", "running")
    job_id = str(look(store, "a").states["a"].job_id)
    slurm.wait_for(lambda: "RUNNING" in slurm.run("sacct", "-n", "-X", "-o", "State", "-j", job_id), 60)
    slurm.wait_until_saved()
    slurm.kill_daemon("slurmctld")
    try:
        began = time.monotonic()
        assert status(["grid=g"]) == 0
        took_s = time.monotonic() - began
        shown = " ".join(capsys.readouterr().out.split())
        found = look(store, "a").states["a"]
    finally:
        slurm.start_daemon("slurmctld")
    assert "SLURM does not answer" in shown and "1 done, 1 running" in shown and took_s < 25
    assert found.state == "running" and "as the accounting says" in found.reason
    wait_for(store, "a", "running")


def test_without_accounting_the_queue_is_enough(
    slurm_variant: Callable[..., Sandbox], store: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = slurm_variant(accounting=False, nodes=1, gpus=0)
    monkeypatch.setenv("SLURM_CONF", str(sandbox.conf))
    sbatch(sandbox, store, tasks=("running",), command="sleep 600")
    sbatch(sandbox, store, tasks=("exit-7",), command="exit 7")
    sbatch(sandbox, store, tasks=("cancelled",), command="sleep 600")
    wait_for(store, "cancelled", "running")
    job_id = look(store, "cancelled").states["cancelled"].job_id
    assert job_id is not None
    sandbox.run("scancel", job_id)
    assert "exit code 7" in wait_for(store, "exit-7", "lost").reason
    wait_for(store, "cancelled", "cancelled")
    snapshot = look(store, "running", "exit-7", "cancelled")
    assert snapshot.states["running"].state == "running"
    assert (snapshot.accounting, snapshot.slurm_error) == (False, None)
    sandbox.run("scancel", "-u", "root")


def test_out_of_memory_is_named_with_and_without_accounting(
    slurm_variant: Callable[..., Sandbox], store: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = slurm_variant(cgroup_memory=True, nodes=1, gpus=0)
    monkeypatch.setenv("SLURM_CONF", str(sandbox.conf))
    eat = "python3 -c 'x = bytearray(300_000_000); print(sum(x))'"
    # Under srun the job says only FAILED; its step knows.
    sbatch(sandbox, store, "--mem=100M", tasks=("a",), command=f"srun {eat}")
    found = wait_for(store, "a", "failed")
    assert found.failure_class == "host_oom"
    sandbox.kill_daemon("slurmdbd")
    snapshot = look(store, "a")
    assert snapshot.states["a"].failure_class == "host_oom" and not snapshot.accounting
