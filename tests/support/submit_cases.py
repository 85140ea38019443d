"""Runs, launches and groups that are sent to replayed SLURM commands."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cluster_cases import evaluate_run, planned, scratch_run
from replayed_slurm import CLUSTER, ReplayedSlurm

from transfergrid.cluster import adopt as adoption
from transfergrid.cluster import submit
from transfergrid.cluster.groups import Group, make_groups
from transfergrid.cluster.ledger import read_ledger
from transfergrid.cluster.submit import (
    Launch,
    Sender,
)
from transfergrid.paths import StorePaths
from transfergrid.planning.plan import PlannedRun
from transfergrid.resources import ClusterSettings, Resources

SLURM = ClusterSettings(name="slurm", kind="slurm")
TIMED_OUT = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
RUNS = [planned(scratch_run(seed)) for seed in range(3)]
CHILDREN = [planned(evaluate_run(seed), RUNS[seed].run.run_id) for seed in range(3)]


def sending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReplayedSlurm:
    """Every job that is sent becomes job 41; nothing else is in the queue; pauses take no time."""
    for name in [n for n in os.environ if n.startswith(("SLURM_", "SBATCH_"))]:
        monkeypatch.delenv(name)
    replayed = ReplayedSlurm(tmp_path / "bin", monkeypatch)
    replayed.answers("srun", "")
    replayed.takes_jobs(41)
    monkeypatch.setattr(adoption, "RETRY_S", 0.0)
    monkeypatch.setattr(submit, "GIVE_UP_S", 10.0)
    return replayed


def launch_of(store: StorePaths, settings: ClusterSettings = SLURM, **more: Any) -> Launch:
    folder = store.launches / "20261120T120000-0a1b2c3d"
    source = folder / "code" / "src"
    asked: dict[str, Any] = {"finish": Resources(), "cluster": CLUSTER} | more
    return Launch(grid="g", folder=folder, payload=folder / "specs.json", source=source, settings=settings, **asked)


def group_of(runs: Sequence[PlannedRun], settings: ClusterSettings = SLURM) -> Group:
    [group] = make_groups(runs, settings, grid="g", launch="l1", max_array_size=1001)
    return group


def sender_of(store: StorePaths, settings: ClusterSettings = SLURM) -> Sender:
    indices = {p.run.run_id: i for i, p in enumerate([*RUNS, *CHILDREN])}
    return Sender(launch_of(store, settings), read_ledger(store), indices)


def of(slurm: ReplayedSlurm, command: str) -> list[str]:
    return [call for call in slurm.calls if call.startswith(f"{command} ")]


def options(lines: Sequence[str]) -> dict[str, str | None]:
    """What is asked of sbatch; None for an option without a value."""
    given = [line.removeprefix("#SBATCH --").partition("=") for line in lines if line.startswith("#SBATCH ")]
    assert len({name for name, _, _ in given}) == len(given)
    return {name: shlex.split(value)[0] if equals else None for name, equals, value in given}
