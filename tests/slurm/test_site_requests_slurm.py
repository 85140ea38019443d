"""What sites want to be asked: a real sbatch takes it, and the plan says what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox import Sandbox
from slurm_runs import jobs

pytestmark = pytest.mark.slurm
TINY = (
    *("grid.models=[baseline_cnn]", "grid.phases=[scratch]", "grid.seeds=[0]", "device=cpu", "tracking=disabled"),
    *("cluster=slurm", "report.figures=false"),
)


@pytest.fixture
def hidden(slurm: Sandbox) -> Iterator[Sandbox]:
    """`short`, of one hour, is shown to nobody who does not ask for it."""
    slurm.run("scontrol", "update", "partitionname=short", "hidden=yes", "maxtime=60")
    yield slurm
    slurm.run("scontrol", "update", "partitionname=short", "hidden=no")


def test_defaults_yield_to_a_hidden_partition_of_an_hour_and_the_comment_is_the_users(
    hidden: Sandbox, tmp_path: Path
) -> None:
    held = ("cluster.partition=short", "cluster.sbatch={hold: true, comment: lab1}")
    said = jobs("launch_grid.py", *TINY, *held, env=hidden.env, cwd=tmp_path)
    assert said.code == 0, said.text
    assert "jobs ask for cluster.mem_gb=7.8125 (default 16), cluster.timeout_min=60 (default 240)" in said.text
    rows = hidden.run("squeue", "-a", "-h", "-o", "%j|%P|%l|%m|%k").splitlines()
    [row] = [r for r in rows if "scratch" in r]
    assert row.split("|")[1:] == ["short", "1:00:00", "8000M", "lab1"]
    jobs("status.py", "grid=quickstart", "cancel=true", env=hidden.env, cwd=tmp_path)
    asked = (*TINY, "cluster.partition=short", "cluster.timeout_min=4:00:00", "dry_run=true")
    refused = jobs("launch_grid.py", *asked, env=hidden.env, cwd=tmp_path)
    assert refused.code == 2 and "cluster.timeout_min=240 is more than partition short ever gives" in refused.text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["cluster.mem_gb=null"], "SLURM expects scratch jobs to start at"),
        (["cluster.mem_gb=0"], "SLURM expects scratch jobs to start at"),
        (["cluster.mem_per_cpu_gb=1", "cluster.gpu_request=gpus"], "SLURM expects scratch jobs to start at"),
        (["cluster.mem_per_gpu_gb=2", "cluster.gpu_request=gres"], "SLURM expects scratch jobs to start at"),
        (["cluster.timeout_min=UNLIMITED", "cluster.mem_gb=1"], "SLURM expects scratch jobs to start at"),
        (["cluster.sbatch={nosuch: 3}", "cluster.mem_gb=1"], "SLURM refuses cluster.sbatch: sbatch --help lists"),
        (["cluster.sbatch={begin: 'nine'}", "cluster.mem_gb=1"], "SLURM refuses cluster.sbatch: sbatch --help lists"),
        (["cluster.sbatch={gres: 'lscratch:1'}", "cluster.mem_gb=1"], "SLURM refuses the GPUs or gres asked for"),
    ],
)
def test_a_dry_run_shows_what_a_real_sbatch_says(
    slurm: Sandbox, tmp_path: Path, arguments: list[str], told: str
) -> None:
    said = jobs("launch_grid.py", *TINY, *arguments, "dry_run=true", env=slurm.env, cwd=tmp_path)
    assert told in said.text
    assert said.code == (0 if "expects" in told else 2)
