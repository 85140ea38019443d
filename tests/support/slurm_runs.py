"""Launches on the sandbox, as a user types them, and what is found of them afterwards."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Sandboxes that several files share (see slurm_variant): nodes that fall silent and jobs that go back into the queue
# are not waited for as long as on a real cluster; or limits of jobs and arrays are enforced.
BRISK: dict[str, Any] = {"slurmd_timeout_s": 10, "requeue_wait_s": 5}
LIMITED: dict[str, Any] = {"max_submit_jobs": 100, "max_array_size": 4, "cpus": 8}
# One thread: a sum over threads depends on how many there are. The sandbox's GPUs are device nodes without a driver.
QUICK = (
    *("device=cpu", "cluster.num_threads=1", "cluster.cpus=1", "cluster.mem_gb=1.5", "cluster.timeout_min=10"),
    *("cluster.poll_s=1", "tracking=disabled", "report.figures=false"),
)


@dataclass(frozen=True)
class Said:
    code: int
    text: str


def jobs(script: str, *arguments: str, env: Mapping[str, str], cwd: Path, timeout_s: float = 600) -> Said:
    """`python jobs/<script> <arguments>` in a folder of its own; output and errors together."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / script), *arguments],
        env=dict(env) | {"OMP_NUM_THREADS": "1"},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
    )
    return Said(done.returncode, done.stdout)


def records(store: Path) -> dict[str, dict[str, Any]]:
    """run_id -> record.json."""
    return {p.parent.name: json.loads(p.read_text()) for p in store.glob("runs/*/record.json")}


def numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal between two runs of one spec: everything but times and machines."""
    kept = {k: record[k] for k in ("run_id", "status", "metrics", "parameters", "size_mb", "epochs", "n_train")}
    return kept


def predictions(store: Path, run_id: str) -> bytes:
    """The logits as stored, bit for bit."""
    import numpy as np

    path = store / "runs" / run_id / "predictions.npz"
    if not path.exists():
        return b""
    with np.load(path) as archive:
        return b"".join(name.encode() + archive[name].tobytes() for name in sorted(archive.files))


def assert_same_numbers(one: Path, other: Path) -> None:
    """Two stores hold the same runs with the same numbers, bit for bit."""
    first, second = records(one), records(other)
    assert sorted(first) == sorted(second)
    for run_id in first:
        assert numbers(first[run_id]) == numbers(second[run_id])
        assert predictions(one, run_id) == predictions(other, run_id)


def submissions(store: Path) -> list[dict[str, Any]]:
    """The ledger's last word on each submission, in the order they were sent."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(store.glob("launches/*/slurm/submissions.jsonl")):
        for line in path.read_text().splitlines():
            content = json.loads(line)
            found[content["name"]] = content
    return [s for s in found.values() if s["tasks"]]


def sent_jobs(text: str) -> int:
    """From `submitted 4 jobs in ...`; 0 where nothing was."""
    match = re.search(r"submitted (\d+) jobs?", text)
    return int(match[1]) if match else 0


def without_slurm() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
