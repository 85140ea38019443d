"""What is true of runs, asked of replayed SLURM commands."""

from __future__ import annotations

from transfergrid.cluster.ledger import read_ledger
from transfergrid.cluster.run_state import RunState
from transfergrid.cluster.states import Snapshot, take_snapshot
from transfergrid.paths import StorePaths


def look(store: StorePaths, *run_ids: str, **needs: tuple[str, ...]) -> Snapshot:
    return take_snapshot(run_ids, store, read_ledger(store), needs=needs)


def state_of(store: StorePaths, run_id: str = "a") -> RunState:
    return look(store, run_id).states[run_id]
