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
    """Partition `gpuonly` starts no job without a GPU, `three` takes three jobs of a user; nobody reads that limit.

    QOS `few` gives a user one GPU, and a job two CPUs.
    """
    slurm = slurm_variant(**LIMITED)
    for name, *limits in (
        ("gpuonly", "MinTRESPerJob=gres/gpu=1"),
        ("three", "MaxSubmitJobsPerUser=3"),
        ("few", "MaxTRESPerUser=gres/gpu=1", "MaxTRESPerJob=cpu=2"),
    ):
        slurm.run("sacctmgr", "-i", "add", "qos", name)
        slurm.run("sacctmgr", "-i", "modify", "qos", name, "set", *limits)
    slurm.run("sacctmgr", "-i", "modify", "user", "root", "set", "QOS+=gpuonly,three,few")

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

    assert slurm.wait_for(try_made, timeout_s=90)
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
    told = {f"{runs['job_id']} JobHeldUser", f"{finish['job_id']} Dependency"}
    assert enforcing.wait_for(lambda: told <= set(enforcing.run("squeue", "-h", "-o", "%i %r").splitlines()), 60)
    enforcing.run("scancel", finish["job_id"])
    enforcing.run("scontrol", "release", runs["job_id"])
    store = tmp_path / "results"
    assert enforcing.wait_for(lambda: len(records(store)) == 1, timeout_s=240)
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


def test_what_a_qos_never_lets_start_is_refused_and_a_default_of_ours_yields_to_it(
    enforcing: Sandbox, tmp_path: Path
) -> None:
    """SLURM itself takes such jobs and lets them wait for good."""
    args = ("--qos=few", "--gres=gpu:2", "--cpus-per-task=1", "--time=5", "--parsable", "--wrap=true")
    endless = enforcing.run("sbatch", *args).strip()

    def waits_for_the_qos() -> bool:
        return enforcing.run("squeue", "-h", "-j", endless, "-o", "%T %r").strip() == "PENDING QOSMaxGRESPerUser"

    assert enforcing.wait_for(waits_for_the_qos, timeout_s=60)
    enforcing.run("scancel", endless)
    small = [a for a in SMALL if not a.startswith("cluster.cpus=")]
    asked = (*small, "grid.seeds=[0]", "cluster.qos=few", "cluster.sbatch={hold: true}")
    for key, most in (("cpus=3", "cpus=2"),):
        said = jobs("launch_grid.py", *asked, f"cluster.{key}", env=enforcing.env, cwd=tmp_path)
        [line] = [text for text in said.text.splitlines() if text.startswith("error: ")]
        told = f"cluster.{key} is more than QOS few ever gives; give cluster.{most} or less"
        assert said.code == 2 and line.endswith(told), said.text
        assert not (tmp_path / "results").exists()
    said = jobs("launch_grid.py", *asked, env=enforcing.env, cwd=tmp_path)
    assert said.code == 0 and "jobs ask for cluster.cpus=2 (default " in said.text, said.text
    assert "all that partition main has and your QOS or account allows" in said.text
    run, finish = submissions(tmp_path / "results")
    assert enforcing.run("squeue", "-h", "-j", run["job_id"], "-o", "%q %C").strip() == "few 2"
    enforcing.run("scancel", run["job_id"], finish["job_id"])
