"""What is true of runs, asked of replayed SLURM commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from replayed_slurm import ReplayedSlurm

from transfergrid.cluster.ledger import read_ledger
from transfergrid.cluster.run_state import RunState
from transfergrid.cluster.states import Snapshot, take_snapshot
from transfergrid.paths import StorePaths


# Fixtures; a file of tests takes them as `store, slurm = a_store, a_slurm`, as no argument may hide an import.
@pytest.fixture
def a_store(tmp_path: Path) -> StorePaths:
    return StorePaths(tmp_path / "results")


@pytest.fixture
def a_store_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StorePaths:
    """The store of commands that name none."""
    monkeypatch.chdir(tmp_path)
    return StorePaths(tmp_path / "results")


@pytest.fixture
def a_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReplayedSlurm:
    return ReplayedSlurm(tmp_path / "bin", monkeypatch)


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    """What a command printed, however its lines were broken."""
    return " ".join(capsys.readouterr().out.split())


def look(store: StorePaths, *run_ids: str, **needs: tuple[str, ...]) -> Snapshot:
    return take_snapshot(run_ids, store, read_ledger(store), needs=needs)


def state_of(store: StorePaths, run_id: str = "a") -> RunState:
    return look(store, run_id).states[run_id]
