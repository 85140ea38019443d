"""The finish job and full queues on a real SLURM that enforces its limits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sandbox import Sandbox
from slurm_runs import LIMITED, QUICK, jobs, records, submissions

pytestmark = pytest.mark.slurm

SMALL = (
    *("grid=quickstart", "grid.models=[baseline_cnn]", "grid.phases=[scratch]", "grid.variants={}"),
    *("phase.scratch.epochs=1", "cluster=slurm", *QUICK),
)


@pytest.fixture(scope="module")
def enforcing(slurm_variant: Callable[..., Sandbox]) -> Sandbox:
    """Partition `gpuonly` starts no job without a GPU, `three` takes three jobs of a user; nobody reads that limit."""
    slurm = slurm_variant(**LIMITED)
    for name, limit in (("gpuonly", "MinTRESPerJob=gres/gpu=1"), ("three", "MaxSubmitJobsPerUser=3")):
        slurm.run("sacctmgr", "-i", "add", "qos", name)
        slurm.run("sacctmgr", "-i", "modify", "qos", name, "set", limit)
    slurm.run("sacctmgr", "-i", "modify", "user", "root", "set", "QOS+=gpuonly,three")

    def made() -> bool:  # the controller hears of a new QOS some seconds later
        for name in ("gpuonly", "three"):
            if f"PartitionName={name}" not in slurm.run("scontrol", "-a", "show", "partition"):
                slurm.run("scontrol", "create", f"PartitionName={name}", "Nodes=ALL", "MaxTime=60", f"QOS={name}")
        return True

    def try_made() -> bool:
        try:
            return made()
        except Exception:
            return False

    assert slurm.wait_for(try_made, timeout_s=30)
    return slurm


def test_a_finish_job_that_its_partition_does_not_start_goes_to_another(enforcing: Sandbox, tmp_path: Path) -> None:
    asked = (*SMALL, "grid.seeds=[0]", "cluster.partition=gpuonly")
    said = jobs("launch_grid.py", *asked, "wait=true", env=enforcing.env, cwd=tmp_path)
    assert said.code == 0, said.text
    assert "the finish job goes to partition " in said.text and "gpuonly starts no job without a GPU" in said.text
    assert (tmp_path / "results/reports/quickstart/comparison.md").exists()
    again = jobs("launch_grid.py", *asked, env=enforcing.env, cwd=tmp_path)
    assert again.code == 0 and "nothing to submit" in again.text and len(submissions(tmp_path / "results")) == 2


def test_a_finish_job_that_was_cancelled_is_told_and_sent_again(enforcing: Sandbox, tmp_path: Path) -> None:
    asked = (*SMALL, "grid.seeds=[0]", "cluster.sbatch={hold: true}")
    said = jobs("launch_grid.py", *asked, env=enforcing.env, cwd=tmp_path)
    assert said.code == 0, said.text
    runs, finish = submissions(tmp_path / "results")
    assert finish["kind"] == "finish"
    reasons = enforcing.run("squeue", "-h", "-o", "%i %r").splitlines()
    assert f"{runs['job_id']} JobHeldUser" in reasons and f"{finish['job_id']} Dependency" in reasons
    enforcing.run("scancel", finish["job_id"])
    enforcing.run("scontrol", "release", runs["job_id"])
    store = tmp_path / "results"
    assert enforcing.wait_for(lambda: len(records(store)) == 1, timeout_s=90)
    status = jobs("status.py", "grid=quickstart", env=enforcing.env, cwd=tmp_path)
    assert f"finish job {finish['job_id']}: cancelled" in status.text and "launch again sends it" in status.text
    again = jobs("launch_grid.py", *asked, "wait=true", env=enforcing.env, cwd=tmp_path)
    assert again.code == 0, again.text
    assert "it is sent again" in again.text and "submitted the finish job" in again.text
    assert (store / "reports/quickstart/comparison.md").exists()


def test_a_limit_that_nobody_could_read_is_waited_for(enforcing: Sandbox, tmp_path: Path) -> None:
    asked = (*SMALL, "grid.seeds=[0,1,2,3]", "cluster.partition=three")
    said = jobs("launch_grid.py", *asked, env=enforcing.env, cwd=tmp_path)
    assert said.code == 1, said.text
    assert "SLURM's queue had no place for " in said.text and ": launch again, or use wait=true" in said.text
    again = jobs("launch_grid.py", *asked, "wait=true", env=enforcing.env, cwd=tmp_path)
    assert again.code == 0, again.text
    assert [r["status"] for r in records(tmp_path / "results").values()] == ["completed"] * 4
    assert (tmp_path / "results/reports/quickstart/comparison.md").exists()
    sent = [run for s in submissions(tmp_path / "results") for task in s["tasks"] for run in task]
    assert len(sent) == len(set(sent)) == 4
