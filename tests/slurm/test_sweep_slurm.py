"""Sweeps through hydra-submitit-launcher on a real SLURM: resources, records, and failures that SLURM sees."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import pytest
from sandbox import Sandbox
from slurm_runs import BRISK
from small_runs import DATASET, TWO_EPOCHS

pytestmark = pytest.mark.slurm

JOBS = Path(__file__).resolve().parents[2] / "jobs"
MACHINE = ["device=cpu", "cluster.num_threads=1", "tracking=disabled"]
CLUSTER = ["cluster=slurm", "hydra/launcher=slurm", "cluster.cpus=1", "cluster.mem_gb=1.5", "cluster.poll_s=0.5"]
MODELS = "model=tinynet_mnist,tinynet_cifar"


@dataclass(frozen=True)
class Place:
    """A folder, and the SLURM to send to from it."""

    folder: Path
    slurm: Sandbox

    def script(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, JOBS / name, *DATASET, *MACHINE, *TWO_EPOCHS, *arguments],
            capture_output=True,
            text=True,
            cwd=self.folder,
            timeout=600,
            env=self.slurm.env | {"OMP_NUM_THREADS": "1"},
        )

    def jobs(self) -> list[dict[str, str]]:
        """What the accounting says of the newest sweep's jobs."""
        (name,) = sorted(p.name for p in (self.folder / "results/sweeps").iterdir())[-1:]
        columns = ("JobID", "State", "ExitCode", "AllocTRES", "ReqMem", "Timelimit", "JobName")

        def ended() -> list[dict[str, str]] | None:  # a job's result is read before the accounting hears of its end
            text = self.slurm.run("sacct", "-nXP", f"--format={','.join(columns)}")
            jobs = [dict(zip(columns, line.split("|"), strict=True)) for line in text.splitlines()]
            own = [job for job in jobs if job["JobName"].startswith(f"sweep-{name}-")]
            return own if all(job["State"] not in ("PENDING", "RUNNING") for job in own) else None

        return self.slurm.wait_for(ended, 60) or []

    def record(self, model: str, phase: str) -> dict[str, Any]:
        (path,) = (self.folder / "results/runs").glob(f"digits-{model}-{phase}-*/record.json")
        found: dict[str, Any] = json.loads(path.read_text())
        return found


@pytest.fixture(scope="module")
def place(slurm: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("sweep"), slurm)


def test_each_combination_is_a_job_with_the_clusters_resources(place: Place) -> None:
    done = place.script("run_phase.py", "-m", *CLUSTER, MODELS, "phase=extract", "cluster.timeout_min=30")
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = place.jobs()
    assert [(j["State"], j["ExitCode"], j["ReqMem"], j["Timelimit"]) for j in jobs] == [
        ("COMPLETED", "0:0", "1.50G", "00:30:00")
    ] * 2
    assert all("gres/gpu=1" in j["AllocTRES"] and "cpu=1," in j["AllocTRES"] for j in jobs)
    assert {place.record(m, "extract")["status"] for m in ("tinynet_mnist", "tinynet_cifar")} == {"completed"}


def test_a_run_that_fails_makes_its_job_fail_and_leaves_the_other(place: Place) -> None:
    """Damaged features are extracted again by the job that meets them; a head that is damaged ends a fine-tuning."""
    (damaged,) = (place.folder / "cache/features/digits/train").glob("tinynet_cifar-*.h5")
    with h5py.File(damaged, "r+") as file:
        file["features"][0, 0] += 1
    done = place.script("run_phase.py", "-m", *CLUSTER, MODELS, "phase=probe")
    assert done.returncode == 0, done.stdout + done.stderr
    assert place.record("tinynet_mnist", "probe")["provenance"]["slurm_job_id"] is not None
    (weights,) = (place.folder / "results/runs").glob("digits-tinynet_cifar-probe-*/weights.pt")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    done = place.script("run_phase.py", "-m", *CLUSTER, MODELS, "phase=finetune")
    assert done.returncode == 1, done.stdout + done.stderr
    assert sorted((j["State"], j["ExitCode"]) for j in place.jobs()) == [("COMPLETED", "0:0"), ("FAILED", "1:0")]
    assert "is not the file that its record was written with" in place.record("tinynet_cifar", "finetune")["error"]
    assert "is not the file that its record was written with" in done.stdout and "Traceback" not in done.stderr
    with open(place.folder / "results/reports/adhoc/comparison.csv", newline="") as file:
        rows = {r["model"]: r["status"] for r in csv.DictReader(file) if r["phase"] == "finetune"}
    assert rows["tinynet_mnist"] == "completed" and rows["tinynet_cifar"] != "completed"


@pytest.mark.full
def test_a_job_told_to_save_goes_back_into_the_queue_and_the_sweep_waits_for_it(
    slurm_variant: Callable[..., Sandbox], tmp_path: Path
) -> None:
    slurm = slurm_variant(**BRISK)
    asked = ["model=baseline_cnn", "phase=scratch", "phase.scratch.epochs=150", "checkpoint.min_interval_s=2"]
    command = [sys.executable, str(JOBS / "run_phase.py"), "-m", *CLUSTER, *MACHINE, *asked]
    sweep = subprocess.Popen(command, cwd=tmp_path, env=slurm.env | {"OMP_NUM_THREADS": "1"})
    try:
        runs = tmp_path / "results" / "runs"
        slurm.wait_for(lambda: any(p.stat().st_size for p in runs.glob("*/metrics.jsonl")), timeout_s=240)
        slurm.run("scancel", "--signal=USR2", "-u", "root")

        def has_ended() -> bool:
            slurm.hurry()
            return sweep.poll() is not None

        slurm.wait_for(has_ended, timeout_s=400)
        assert sweep.returncode == 0
    finally:
        sweep.kill()
    attempts = [json.loads(p.read_text()) for p in sorted(runs.glob("*/attempts/*.json"))]
    assert [a["slurm_restart_count"] for a in attempts] == [0, 1]
    assert len({a["slurm_task"] for a in attempts}) == 1
    (record,) = runs.glob("*/record.json")
    assert json.loads(record.read_text())["status"] == "completed"
