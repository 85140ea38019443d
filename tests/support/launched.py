"""Scripts of jobs/ as a user runs them, in processes of their own; results read from the store."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]


def run_script(folder: Path, script: str, *arguments: str, timeout_s: float = 1500.0) -> str:
    """A script of jobs/ with its store and cache in `folder`; returns what it printed. Fails unless it exits with 0."""
    places = [f"store.dir={folder / 'store'}"]
    if script != "report.py":
        places += [f"cache.dir={folder / 'cache'}", "cluster=local", "device=cpu"]
    if "PYTEST_XDIST_WORKER" in os.environ and script in ("launch_grid.py", "run_phase.py"):
        # There is a worker for each core. Measured on baseline_cnn in bfloat16 beside other work: a step of two threads
        # costs 0.25 to 0.33 s of CPU, waiting for each other included, one of a single thread 0.09 s.
        places.append("cluster.num_threads=1")
    done = subprocess.run(
        [sys.executable, CHECKOUT / "jobs" / script, *places, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=folder,
        env=os.environ | {"COLUMNS": "100"},
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def table(folder: Path, grid: str) -> list[dict[str, str]]:
    with open(folder / "store" / "reports" / grid / "comparison.csv", newline="") as file:
        return list(csv.DictReader(file))


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(p.read_text()) for p in sorted((folder / "store" / "runs").glob("*/record.json"))]
