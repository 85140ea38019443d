"""Runs whose jobs ended without a word get the record that they could not write: how they ended, as SLURM tells it."""

from __future__ import annotations

from collections.abc import Mapping

from transfergrid.cluster.evidence import payload_of
from transfergrid.cluster.ledger import Ledger
from transfergrid.cluster.run_state import ENDED, RunState
from transfergrid.errors import Lost
from transfergrid.paths import StorePaths
from transfergrid.planning import job
from transfergrid.store import durable
from transfergrid.store.records import record_head


def settle(states: Mapping[str, RunState], store: StorePaths, ledger: Ledger) -> list[str]:
    """Record what has ended without a record of that attempt, so that tables show its class. Returns the run_ids."""
    recorded = []
    for run_id, state in states.items():
        known = ledger.newest(run_id)
        if state.state not in ENDED or state.failure_class is None or known is None:
            continue
        head = record_head(store.run(run_id))
        if head is not None and (head.status == "completed" or head.failure_class == state.failure_class):
            continue
        order = payload_of(known[0].launch).get(run_id)
        if order is not None and not durable.is_locked(store.run(run_id).lock):
            job.record_loss(*order, Lost(state.reason, state.failure_class, state.remedy))
            recorded.append(run_id)
    return recorded
