"""What a run cost, against SLURM's own accounting: AllocTRES x ElapsedRaw of all its attempts, on a real SLURM."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from sandbox import Sandbox
from slurm_runs import QUICK, jobs, records, submissions

from transfergrid.cluster.accounting import gpus_of
from transfergrid.paths import StorePaths
from transfergrid.store.bills import read_bill

pytestmark = pytest.mark.slurm

SCRATCH = ("grid=quickstart", "grid.variants={}", "grid.models=[baseline_cnn]", "grid.phases=[scratch]", *QUICK)
WHOLE_NODE = "cluster.sbatch={exclusive: true}"  # which has two GPUs


def billed_s(slurm: Sandbox, job_id: str) -> tuple[float, int]:
    """GPU seconds of a job over all its restarts, as sacct has them, and how many those are."""
    fields = ("sacct", "-n", "-P", "-X", "-D", "-j", job_id, "-o", "State,ElapsedRaw,AllocTRES")
    lines = [line.split("|") for line in slurm.run(*fields).splitlines()]
    return sum(float(seconds) * gpus_of(tres) for _, seconds, tres in lines), len(lines)


def rows(store: Path) -> list[dict[str, str]]:
    with open(store / "reports" / "quickstart" / "comparison.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_requeued_run_costs_what_slurm_bills_for_all_its_attempts(slurm: Sandbox, tmp_path: Path) -> None:
    asked = (*SCRATCH, WHOLE_NODE, "grid.seeds=[0]", "phase.scratch.epochs=6", "checkpoint.min_interval_s=0")
    said = jobs("launch_grid.py", *asked, "cluster=slurm", env=slurm.env, cwd=tmp_path)
    assert said.code == 0, said.text
    store = tmp_path / "results"
    (job_id,) = [s["job_id"] for s in submissions(store) if s["kind"] == "runs"]

    def has_checkpoint() -> bool:
        return any(store.glob("runs/*/checkpoints/*.pt"))

    slurm.wait_for(has_checkpoint, timeout_s=240)
    slurm.run("scontrol", "requeue", job_id)

    def is_reported() -> bool:
        slurm.hurry()  # else it waits for two minutes
        return (store / "reports/quickstart/comparison.csv").exists()

    slurm.wait_for(is_reported, timeout_s=480)
    ((run_id, record),) = records(store).items()
    assert (record["status"], record["on_gpu"]) == ("completed", False)  # the sandbox's GPUs are no torch's

    def ended() -> tuple[float, int] | None:
        jobs("report.py", "figures=false", env=slurm.env, cwd=tmp_path)  # brings the bill up to date
        bill = read_bill(StorePaths(store).run(run_id))
        return billed_s(slurm, job_id) if bill is not None and bill.is_closed else None

    gpu_s, restarts = slurm.wait_for(ended, timeout_s=120) or (0.0, 0)
    assert restarts == 2 and gpu_s > 2 * record["phase_s"]
    (row,) = rows(store)
    assert float(row["gpu_s"]) == gpu_s and float(row["wall_s"]) == gpu_s / 2
    assert float(row["phase_s"]) == record["phase_s"] and float(row["upstream_gpu_s"]) == 0.0
    assert "1 run as SLURM's accounting bills them" in (store / "reports/quickstart/comparison.md").read_text()
    # Where no SLURM answers, as on another machine or after accounting was purged, the report is the same.
    first = (store / "reports/quickstart/comparison.csv").read_bytes()
    silent = dict(slurm.env) | {"SLURM_CONF": str(tmp_path / "none")}
    assert jobs("report.py", "figures=false", env=silent, cwd=tmp_path).code == 0
    assert (store / "reports/quickstart/comparison.csv").read_bytes() == first


def test_runs_that_share_a_job_add_up_to_its_bill(slurm: Sandbox, tmp_path: Path) -> None:
    asked = (*SCRATCH, "grid.seeds=[0,1,2]", "phase.scratch.epochs=1", "cluster.runs_per_job=3", "wait=true")
    said = jobs("launch_grid.py", *asked, "cluster=slurm", env=slurm.env, cwd=tmp_path)
    assert said.code == 0, said.text
    store = tmp_path / "results"
    (job_id,) = [s["job_id"] for s in submissions(store) if s["kind"] == "runs"]
    gpu_s, restarts = billed_s(slurm, job_id)
    bills = [json.loads(path.read_text()) for path in sorted(store.glob("runs/*/bill.json"))]
    shares = [job["share"] for bill in bills for job in bill["jobs"]]
    assert (restarts, len(bills), sum(shares)) == (1, 3, pytest.approx(1.0, abs=1e-5))
    total: Any = sum(job["elapsed_s"] * job["gpus"] * job["share"] for bill in bills for job in bill["jobs"])
    assert total == pytest.approx(gpu_s, rel=1e-5)
    (row,) = rows(store)
    assert 3 * float(row["gpu_s"]) == pytest.approx(gpu_s, rel=1e-5)
