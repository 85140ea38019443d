"""jobs/doctor.py on a real SLURM: fit as it is, and unfit in ways that no fake would show."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from sandbox import Sandbox

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slurm


def environment(slurm: Sandbox) -> dict[str, str]:
    """torchvision takes 8 s to compile and 2 s to import: the second doctor finds what the first has compiled."""
    kept = {name: value for name, value in slurm.env.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": str(slurm.dir / "compiled")}


def doctor(slurm: Sandbox, folder: Path, *arguments: str) -> tuple[int, dict[str, str]]:
    """(exit code, the text of each line by its name, mark first)."""
    places = [f"store.dir={folder}/results", f"cache.dir={folder}/cache"]
    command = [sys.executable, "jobs/doctor.py", "cluster=slurm", "cluster.mem_gb=2", *places, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment(slurm), capture_output=True, text=True, timeout=480)
    assert done.stderr == ""
    return done.returncode, lines_of(done.stdout)


def lines_of(printed: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in printed.splitlines():
        if match := re.match(r"(ok|FAILED|--) +", line):
            name = line[8:24].strip()
            found[name] = f"{match[1]} {line[25:]}"
        elif "-> " in line:
            found[name] += f" {line.strip()}"
    return found


def test_a_healthy_cluster_is_fit(slurm: Sandbox, tmp_path: Path) -> None:
    code, lines = doctor(slurm, tmp_path, "device=cpu")
    assert code == 0
    not_ok = {name: line for name, line in lines.items() if not line.startswith("ok")}
    assert not_ok == {"gpu": "-- not looked at: device=cpu"}
    assert re.match(r"ok job \d+ ran on n[12]$", lines["probe job"])
    assert re.match(r"ok locks and claims hold \((n1 and n2|n2 and n1)\)$", lines["two nodes"])
    for name in ("store shared", "cache shared"):
        assert lines[name].endswith(" s, locks and claims hold (this machine and the node)")
    assert slurm.run("squeue", "-h", "-n", "tg-doctor", "-t", "PENDING,RUNNING") == ""
    assert list((tmp_path / "results").rglob("*")) == list((tmp_path / "cache").rglob("*")) == []


def test_a_gpu_that_torch_cannot_use_is_not_fit(slurm: Sandbox, tmp_path: Path) -> None:
    code, lines = doctor(slurm, tmp_path, "cluster.gpu_type=fake")
    assert code == 1
    assert [name for name, line in lines.items() if line.startswith("FAILED")] == ["gpu"]
    assert "torch cannot use the GPU of the job: " in lines["gpu"] and "device=cpu" in lines["gpu"]


def test_an_unknown_partition_and_a_time_no_partition_gives_are_named(slurm: Sandbox, tmp_path: Path) -> None:
    code, lines = doctor(slurm, tmp_path, "cluster.partition=shrot")
    assert code == 1
    assert lines["partition"].endswith("cluster.partition='shrot' is unknown here -> did you mean 'short'?")
    code, lines = doctor(slurm, tmp_path, "cluster.partition=short", "cluster.timeout_min=61")
    assert code == 1 and lines["partition"].endswith("-> give cluster.timeout_min=60 or less")


def test_a_full_queue_leaves_what_nodes_answer_unknown(slurm: Sandbox, tmp_path: Path) -> None:
    job = slurm.run(
        "sbatch", "--parsable", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 600"
    ).strip()
    slurm.wait_for(lambda: slurm.run("squeue", "-h", "-j", job, "-o", "%T").strip() == "RUNNING", 90)
    try:
        code, lines = doctor(slurm, tmp_path, "device=cpu", "wait_s=2")
    finally:
        slurm.run("scancel", job)
    assert code == 0
    assert lines["probe job"].startswith("-- could not be checked: the probe job did not start in 2 s (SLURM says: ")
    assert lines["two nodes"].startswith("-- could not be checked: the probe job did not start")
    assert slurm.run("squeue", "-h", "-n", "tg-doctor", "-t", "PENDING,RUNNING") == ""


def test_a_store_that_nodes_do_not_see_is_not_fit(slurm: Sandbox, tmp_path: Path) -> None:
    """This process alone sees what lies in a file system that it mounts for itself."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("no right to mount anything here")
    (tmp_path / "private").mkdir()
    script = (
        "import sys; from transfergrid.cli import doctor; doctor.VISIBLE_S = 2.0;"
        f" sys.exit(doctor.doctor(['cluster=slurm', 'device=cpu', 'cluster.mem_gb=2', 'cache.dir={tmp_path}/cache',"
        f" 'store.dir={tmp_path}/private/results']))"
    )
    mounted = f'mount -t tmpfs none {tmp_path}/private && exec "$0" -c "$1"'
    command = ["unshare", "--mount", "sh", "-c", mounted, sys.executable, script]
    done = subprocess.run(command, cwd=ROOT, env=environment(slurm), capture_output=True, text=True, timeout=240)
    lines = lines_of(done.stdout)
    assert done.returncode == 1, done.stderr
    assert "its output does not show in" in lines["probe job"]
    assert "-> it must be a folder that every node sees" in lines["probe job"]
    assert lines["store folder"].startswith("ok")
