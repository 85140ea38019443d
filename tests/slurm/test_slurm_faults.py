"""What SLURM and its nodes can do to a grid, done to real launches on a real SLURM.

Each time the numbers at the end equal those of an undisturbed run bit for bit, and what is said of every run on the way
is right within a minute.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_runs import CHAIN, HELD, LONG, PAIR, THREE, TOLD_WITHIN_S, Grid, frozen, is_alive, with_sbatch
from sandbox import Sandbox
from slurm_runs import BRISK, ROOT, jobs, submissions, without_slurm

from transfergrid.store.provenance import hash_of

pytestmark = pytest.mark.slurm

Begin = Callable[..., Grid]
Variant = Callable[..., Sandbox]


# ----------------------------------------------------------------------------------------------------- what all share
def undisturbed(folder: Path, *asked: str) -> Path:
    said = jobs("launch_grid.py", *asked, "cluster=local", env=without_slurm(), cwd=folder)
    assert said.code == 0, said.text
    return folder / "results"


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return undisturbed(tmp_path_factory.mktemp("long"), *LONG)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return undisturbed(tmp_path_factory.mktemp("chain"), *CHAIN)


@pytest.fixture(scope="module")
def three_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return undisturbed(tmp_path_factory.mktemp("three"), *THREE)


@pytest.fixture(scope="module")
def brisk(slurm_variant: Variant) -> Sandbox:
    """Two nodes, a database; a silent node is given up after 10 s, a requeued job waits for 5 s."""
    return slurm_variant(**BRISK)


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """`begin(sandbox, *settings)`: a grid in the test's folder. Afterwards the sandbox is whole and empty again."""
    used: list[Sandbox] = []

    def make(sandbox: Sandbox, *asked: str, folder: Path = tmp_path, env: dict[str, str] | None = None) -> Grid:
        monkeypatch.setenv("SLURM_CONF", str(sandbox.conf))
        used.append(sandbox)
        return Grid(sandbox, folder, asked, env or {})

    yield make
    for sandbox in used:
        sandbox.restore()
        sandbox.run("scancel", "-u", "root")
        sandbox.wait_for(lambda s=sandbox: not s.run("squeue", "-h", "-o", "%i"), 120)  # type: ignore[misc]
        sandbox.wait_for(lambda s=sandbox: set(s.node_states().values()) == {"idle"}, 180)  # type: ignore[misc]


def resumed(grid: Grid, *, attempt: int = 2) -> None:
    """The run was completed by this attempt, which went on where an earlier one had got to."""
    record = grid.record()
    assert record["attempt"] == attempt
    assert record["details"]["first_step"] > 1


# ------------------------------------------------------------------------------------------- requeue, signals, limits
def test_a_job_told_to_save_goes_back_into_the_queue_by_itself_and_continues(
    brisk: Sandbox, begin: Begin, long_run: Path
) -> None:
    grid = begin(brisk, *LONG)
    grid.launch()
    grid.working()
    brisk.run("scancel", "--signal=USR2", grid.job_id())
    grid.completes(long_run)
    resumed(grid)
    second = grid.attempt(2)
    assert second is not None and second["slurm_restart_count"] == 1
    assert second["slurm_job_id"] == grid.job_id()


@pytest.mark.full
def test_a_requeued_job_continues_from_its_checkpoint(brisk: Sandbox, begin: Begin, long_run: Path) -> None:
    grid = begin(brisk, *LONG)
    grid.launch()
    grid.working()
    brisk.run("scontrol", "requeue", grid.job_id())
    grid.completes(long_run)
    resumed(grid)


@pytest.mark.full
def test_a_job_requeued_after_it_has_finished_ends_within_seconds(
    brisk: Sandbox, begin: Begin, three_runs: Path
) -> None:
    grid = begin(brisk, *THREE)
    grid.launch()
    grid.completes(three_runs)
    record = (grid.run_folder(seed=1) / "record.json").read_bytes()
    task = f"{grid.job_id()}_1"

    def state() -> str:
        return brisk.run("squeue", "-h", "-r", "-t", "all", "-j", task, "-o", "%T %M").strip()

    grid.wait(lambda: state().startswith("COMPLETED"))
    brisk.run("scontrol", "requeue", task)
    assert grid.state(seed=1).state == "done"
    grid.wait(lambda: "completed before" in grid.log())
    ended = grid.wait(lambda: s if (s := state()).startswith("COMPLETED") else None)
    minutes, seconds = ended.split()[1].split(":")
    assert (int(minutes), int(seconds)) <= (1, 0)  # seconds, where nobody else uses the machine
    assert (grid.run_folder(seed=1) / "record.json").read_bytes() == record
    grid.completes(three_runs)


@pytest.mark.full
def test_at_its_time_limit_a_job_continues_until_it_has_done_so_too_often(
    brisk: Sandbox, begin: Begin, long_run: Path
) -> None:
    """The shortest limit that a launch may ask for is minutes: the running job's is set to one. Meanwhile the process
    is stopped, as slow as it takes to get there; SLURM wakes it with its signal."""
    grid = begin(brisk, *LONG)
    grid.launch("cluster.timeout_min=3", "cluster.signal_delay_s=10", "cluster.max_requeues=1")
    for number in (1, 2):
        owner = grid.working(number)
        assert owner["slurm_restart_count"] == number - 1
        os.kill(owner["pid"], signal.SIGSTOP)
        brisk.run("scontrol", "update", f"jobid={grid.job_id()}", "TimeLimit=1")
        grid.wait(lambda n=number: grid.log().count("stopped by signal 12") == n, 180)  # type: ignore[misc]
    found = grid.told("failed")
    assert found.failure_class == "timeout" and "went on 1 times" in found.reason
    assert "timeout" in grid.status()
    grid.status("retry=timeout", "cluster.timeout_min=10")
    grid.completes(long_run)
    resumed(grid, attempt=3)


SLOW_IMPORT = """import os, pathlib, sys, time
class Slow:
    def find_spec(self, name, path=None, target=None):
        while name == "torch" and not pathlib.Path('{ready}').exists():
            time.sleep(0.1)
if "SLURM_JOB_ID" in os.environ:
    sys.meta_path.insert(0, Slow())
"""


@pytest.mark.full
def test_a_run_without_progress_within_its_time_limit_ends_as_timeout(
    brisk: Sandbox, begin: Begin, long_run: Path, tmp_path: Path
) -> None:
    """A node on which python takes longer to import torch than the job may last."""
    ready = tmp_path / "ready"
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(SLOW_IMPORT.format(ready=ready))
    path = os.pathsep.join(filter(None, [str(tmp_path / "slow"), os.environ.get("PYTHONPATH")]))
    grid = begin(brisk, *LONG, env={"PYTHONPATH": path})
    grid.launch("cluster.timeout_min=3", "cluster.signal_delay_s=10")
    grid.wait(lambda: "attempt 1 begins" in grid.log())
    brisk.run("scontrol", "update", f"jobid={grid.job_id()}", "TimeLimit=1")
    grid.wait(lambda: "SIGCONT" in grid.log(), 180)  # which SLURM sends with its signal
    ready.touch()
    found = grid.told("failed")
    assert found.failure_class == "timeout" and "not one step" in found.reason
    grid.wait(lambda: "PENDING" not in brisk.run("squeue", "-h", "-j", grid.job_id(), "-o", "%T"), 30)
    assert grid.attempt(2) is None
    grid.launch()
    grid.completes(long_run)


# ---------------------------------------------------------------------------------------------------------- preemption
@pytest.fixture(scope="module")
def preempting(slurm_variant: Variant) -> Sandbox:
    return slurm_variant(preempt="signal", nodes=1, requeue_wait_s=10)


@pytest.fixture(scope="module")
def without_accounting(slurm_variant: Variant) -> Sandbox:
    """No database; and preemption without a signal that a job could act on for long."""
    return slurm_variant(preempt="no-signal", accounting=False, nodes=1, requeue_wait_s=10)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["preempting", "without_accounting"])
def test_a_preempted_job_continues_when_the_other_has_ended(
    kind: str, request: pytest.FixtureRequest, begin: Begin, long_run: Path
) -> None:
    sandbox: Sandbox = request.getfixturevalue(kind)
    grid = begin(sandbox, *LONG, "cluster.partition=low")
    grid.launch("cluster.cpus=4")
    grid.working()
    other = sandbox.run(
        "sbatch", "--parsable", "-p", "high", "-c", "4", "--mem=1G", "-o", "/dev/null", "--wrap=sleep 8"
    )
    sandbox.wait_for(lambda: "RUNNING" in sandbox.run("squeue", "-h", "-j", other.strip(), "-o", "%T"), 120)
    assert grid.told("pending").failure_class is None
    grid.completes(long_run)
    resumed(grid)


# ------------------------------------------------------------------------------------------------------------ the nodes
def test_of_two_live_copies_of_a_job_only_the_newer_one_gives_a_result(
    brisk: Sandbox, begin: Begin, long_run: Path
) -> None:
    """A node falls silent while its job goes on; SLURM starts the job again elsewhere; then the first one wakes up."""
    grid = begin(brisk, *LONG)
    grid.launch()
    first = grid.working()
    with frozen(first["pid"]):
        brisk.kill_daemon(f"slurmd-{first['node']}")
        second = grid.working(2)
        assert is_alive(first["pid"])
    assert second["node"] != first["node"]
    assert (second["slurm_job_id"], second["slurm_restart_count"]) == (first["slurm_job_id"], 1)
    grid.wait(lambda: not is_alive(first["pid"]), TOLD_WITHIN_S)
    assert "attempt 1 is superseded by attempt 2" in grid.log()
    grid.completes(long_run)
    resumed(grid)
    assert grid.attempt(3) is None


@pytest.mark.full
def test_a_node_that_dies_loses_no_more_than_the_last_checkpoint(brisk: Sandbox, begin: Begin, long_run: Path) -> None:
    grid = begin(brisk, *LONG)
    grid.launch()
    first = grid.working(steps=40)
    brisk.kill_node(first["node"])
    reached = grid.steps()
    second = grid.working(2)
    assert second["node"] != first["node"]
    grid.completes(long_run)
    resumed(grid)
    assert grid.record()["details"]["first_step"] == reached + 1


# ----------------------------------------------------------------------------------- what is cancelled, what is blocked
@pytest.mark.full
def test_what_needs_a_cancelled_run_is_blocked_by_it_and_one_retry_starts_all(
    brisk: Sandbox, begin: Begin, chain: Path
) -> None:
    grid = begin(brisk, *CHAIN)
    grid.launch(HELD)
    brisk.run("scancel", grid.job_id("extract"))
    assert grid.told("cancelled", "extract").failure_class == "cancelled"
    for phase in ("probe", "finetune"):
        found = grid.told("blocked", phase)
        assert found.failure_class == "blocked"
        assert grid.run_id("extract") in found.reason
    assert "2 blocked" in grid.status()
    said = grid.status("retry=failed", "cluster.sbatch={}")
    assert "submitted 3 jobs" in said
    grid.completes(chain)


@pytest.mark.full
def test_of_an_array_the_cancelled_members_alone_are_sent_again(brisk: Sandbox, begin: Begin, three_runs: Path) -> None:
    grid = begin(brisk, *THREE)
    grid.launch("cluster.array_parallelism=1")
    job_id = grid.job_id()
    brisk.run("scancel", f"{job_id}_2")
    assert "before it started" in grid.told("cancelled", seed=2).reason
    # Until then SIGTERM is not heard, and a run of a second may be done before SLURM kills it.
    grid.wait(lambda: (grid.run_folder(seed=0) / "attempts" / "001.json").exists())
    brisk.run("scancel", f"{job_id}_0")
    assert grid.told("cancelled", seed=0).failure_class == "cancelled"
    grid.wait(lambda: grid.state(seed=1).state == "done")
    assert "submitted 2 jobs" in grid.launch().text
    grid.completes(three_runs)


@pytest.mark.full
def test_a_running_job_that_is_cancelled_continues_with_the_next_launch(
    brisk: Sandbox, begin: Begin, long_run: Path
) -> None:
    grid = begin(brisk, *LONG)
    grid.launch()
    grid.working()
    brisk.run("scancel", grid.job_id())
    assert grid.told("cancelled").failure_class == "cancelled"
    assert "continues from its checkpoint" in grid.launch().text
    grid.completes(long_run)
    resumed(grid)


@pytest.mark.full
def test_children_of_a_failed_run_are_blocked_by_it_and_one_retry_starts_all(
    brisk: Sandbox, begin: Begin, chain: Path
) -> None:
    """A weights file is damaged between submission and start, in the copy that the jobs use."""
    grid = begin(brisk, *CHAIN)
    grid.launch(HELD)
    for path in grid.store.glob("launches/*/code/**/tinynet_mnist.pt"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    brisk.run("scontrol", "release", grid.job_id("extract"))
    found = grid.told("failed", "extract")
    assert found.failure_class == "data" and "tinynet_mnist" in found.reason
    for phase in ("probe", "finetune"):
        assert f"{grid.run_id('extract')}, which failed (data)" in grid.told("blocked", phase).reason
    said = grid.status()
    assert "data" in said and "2 blocked" in said
    assert "submitted 3 jobs" in grid.status("retry=failed", "cluster.sbatch={}")
    grid.completes(chain)


# --------------------------------------------------------------------------------------------------------------- memory
@pytest.fixture(scope="module")
def memory_limited(slurm_variant: Variant) -> Sandbox:
    return slurm_variant(cgroup_memory=True, nodes=1, requeue_wait_s=10)


@pytest.mark.full
def test_too_little_memory_is_named_and_a_retry_with_more_completes(
    memory_limited: Sandbox, begin: Begin, three_runs: Path
) -> None:
    grid = begin(memory_limited, *THREE)
    grid.launch("cluster.mem_gb=0.2")
    for seed in (0, 1, 2):
        assert grid.told("failed", seed=seed).failure_class == "host_oom"
    said = grid.status()
    assert "host_oom" in said and "cluster.mem_gb" in said
    assert "submitted 3 jobs" in grid.status("retry=oom", "cluster.mem_gb=1.5")
    grid.completes(three_runs)


@pytest.mark.full
def test_of_two_runs_in_one_job_the_one_that_took_too_much_memory_is_named(
    memory_limited: Sandbox, begin: Begin, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A child process is killed, and the job lives on."""
    grid = begin(memory_limited, *PAIR, "cluster.runs_per_job=2")
    grid.launch("cluster.mem_gb=1")
    grid.wait(lambda: not grid.is_live())
    expected = [("done", None), ("failed", "host_oom")]

    def is_named() -> bool:  # SLURM tells of the kill when the job ends, which is after the run's own record
        return sorted((s.state, s.failure_class) for s in grid.look().states.values()) == expected

    grid.wait(is_named, TOLD_WITHIN_S)
    assert "submitted 1 job" in grid.status("retry=oom", "cluster.mem_gb=2.5")
    grid.completes(undisturbed(tmp_path_factory.mktemp("pair"), *PAIR))


# ----------------------------------------------------------------------------------------- the controller, the database
@pytest.mark.full
def test_a_controller_that_hangs_during_submission_gets_every_configuration_once(
    brisk: Sandbox, begin: Begin, three_runs: Path, tmp_path: Path
) -> None:
    controller = brisk.process("slurmctld")
    assert controller is not None
    env = with_sbatch(tmp_path, before=f"kill -STOP {controller.pid}")
    grid = begin(brisk, *THREE, env=env)
    _while_it_submits(brisk, tmp_path, after_s=30)
    grid.launch()
    grid.assert_sent_once()
    grid.completes(three_runs)
    grid.assert_sent_once()


@pytest.mark.full
def test_a_controller_that_dies_during_submission_gets_every_configuration_once(
    brisk: Sandbox, begin: Begin, three_runs: Path, tmp_path: Path
) -> None:
    controller = brisk.process("slurmctld")
    assert controller is not None
    brisk.wait_until_saved()
    env = with_sbatch(tmp_path, before=f"kill -KILL {controller.pid}; sleep 1")
    grid = begin(brisk, *THREE, env=env)
    _while_it_submits(brisk, tmp_path, after_s=20)
    grid.launch()
    grid.assert_sent_once()
    grid.completes(three_runs)
    grid.assert_sent_once()


def _while_it_submits(slurm: Sandbox, folder: Path, *, after_s: float) -> None:
    """In the background: so long after the first sbatch the controller is well again."""

    def watch() -> None:
        slurm.wait_for(lambda: (folder / "bin" / "called").exists(), 120)
        time.sleep(after_s)
        slurm.restore()

    threading.Thread(target=watch, daemon=True).start()


@pytest.mark.full
def test_a_job_told_to_save_while_the_controller_is_away_is_not_lost(
    brisk: Sandbox, begin: Begin, long_run: Path
) -> None:
    grid = begin(brisk, *LONG)
    grid.launch()
    owner = grid.working()
    with frozen(owner["pid"]):
        brisk.wait_until_saved()
        brisk.kill_daemon("slurmctld")
        os.kill(owner["pid"], signal.SIGUSR2)
    grid.wait(lambda: "requeue of job" in grid.log(), TOLD_WITHIN_S)
    assert grid.state().state == "running"
    time.sleep(10)
    brisk.start_daemon("slurmctld")
    grid.completes(long_run)
    resumed(grid)


@pytest.mark.full
def test_without_its_database_a_launch_that_waits_ends_with_the_right_states(
    brisk: Sandbox, begin: Begin, chain: Path
) -> None:
    grid = begin(brisk, *CHAIN)
    brisk.kill_daemon("slurmdbd")
    said = grid.launch("wait=true")
    assert "[3/3] done" in said.text
    grid.completes(chain)


@pytest.mark.full
def test_without_any_accounting_a_launch_that_waits_ends_with_the_right_states(
    without_accounting: Sandbox, begin: Begin, three_runs: Path
) -> None:
    grid = begin(without_accounting, *THREE)
    said = grid.launch("wait=true", "cluster.setup=['test x$SLURM_ARRAY_TASK_ID != x1']", check=False)
    assert said.code == 1
    states = {seed: grid.state(seed=seed) for seed in (0, 1, 2)}
    assert [s.state for s in states.values()] == ["done", "failed", "done"]
    assert states[1].failure_class == "environment" and "cluster.setup failed on the node" in states[1].reason
    assert "[3/3] done" in grid.launch("wait=true").text
    grid.completes(three_runs)


# --------------------------------------------------------------------------------------------------------- the launcher
@pytest.mark.full
def test_jobs_run_the_code_that_was_launched_whatever_is_edited_while_they_wait(
    brisk: Sandbox, begin: Begin, chain: Path, tmp_path: Path
) -> None:
    checkout = tmp_path / "checkout"
    for name in ("src", "conf", "jobs"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    package = checkout / "src" / "transfergrid"
    launched = hash_of(package)
    grid = begin(brisk, *CHAIN)
    subprocess.run(
        [sys.executable, str(checkout / "jobs" / "launch_grid.py"), *grid.command_line(HELD)],
        env=brisk.env | {"PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        timeout=300,
        check=True,
        capture_output=True,
    )
    for path in (package / "training/loop.py", package / "planning/job.py", package / "cluster" / "task.py"):
        path.write_text("raise RuntimeError('edited after the launch')\n")
    brisk.run("scontrol", "release", *(str(s["job_id"]) for s in submissions(grid.store)))
    grid.completes(chain)
    assert {grid.record(phase)["provenance"]["code_hash"] for phase in ("probe", "finetune")} == {launched}
    table = grid.store / "reports" / "quickstart" / "comparison.md"
    grid.wait(table.exists)  # the finish job, too


@pytest.mark.full
@pytest.mark.parametrize("asked", [THREE, LONG], ids=["an array", "one job"])
def test_a_launcher_killed_right_after_sbatch_leaves_a_job_that_the_next_one_adopts(
    brisk: Sandbox, begin: Begin, request: pytest.FixtureRequest, tmp_path: Path, asked: tuple[str, ...]
) -> None:
    env = with_sbatch(tmp_path, after="kill -KILL $PPID")
    grid = begin(brisk, *asked, env=env)
    assert grid.launch(check=False).code == -signal.SIGKILL
    assert [s["job_id"] for s in submissions(grid.store)] == [None]
    [sent] = brisk.run("squeue", "-h", "-o", "%F %j").splitlines()[:1]
    grid.launch()
    assert grid.job_id() == sent.split()[0]
    grid.assert_sent_once()
    grid.completes(request.getfixturevalue("three_runs" if asked is THREE else "long_run"))
    grid.assert_sent_once()
