"""status retry=...: runs that were sent to SLURM before are sent again, as they were launched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transfergrid.cli.console import make_console
from transfergrid.cli.on_slurm import carry_out
from transfergrid.cluster.ledger import read_ledger
from transfergrid.config import load_retry
from transfergrid.errors import ConfigError
from transfergrid.paths import StorePaths, typed
from transfergrid.planning import job
from transfergrid.specs import Runtime
from transfergrid.store.records import read_grid


def relaunch(
    grid: str, store: StorePaths, run_ids: Sequence[str], overrides: Sequence[str], *, though_unknown: bool = False
) -> int:
    """Submit these runs of a grid again, and what needs them; `overrides`: of cluster.*, on top of the last launch's.
    though_unknown: also those that SLURM may still have.

    Raises ConfigError where one of them was never sent to SLURM from this store.
    """
    launches = dict.fromkeys(s.launch for s in read_ledger(store).submissions if s.grid == grid)
    payloads = [job.read_payload(launch / "specs.json") for launch in launches]
    runs = {run.run_id: run for payload in payloads for run in payload.runs}
    unknown = [run_id for run_id in run_ids if run_id not in runs]
    if unknown or not payloads:
        instead = typed("launch_grid.py")
        raise ConfigError(f"{(unknown or [grid])[0]} was not sent to SLURM from {store.root}", remedy=f"use {instead}")
    wanted = set(run_ids)
    for run in runs.values():  # needed ones come first in every payload
        if wanted.intersection((*run.needs, *(e.run_id for e in run.extractions))):
            wanted.add(run.run_id)
    found = (payload.configuration(run) for payload in payloads for run in payload.runs if run.run_id in wanted)
    # What needs a run may be of an earlier launch, whose rows have been replaced since.
    rows = {entry.run_id for entry in read_grid(store.grid(grid))} | set(run_ids)
    configurations = list({c.run.run_id: c for c in found if c is not None and c.run.run_id in rows}.values())
    if not configurations:
        raise ConfigError(
            f"{run_ids[0]} is needed by no configuration of grid {grid} that was sent", remedy="launch it again"
        )
    request = load_retry(
        configurations,
        list(runs.values()),
        _runtime_of_all(payloads),
        cluster_config=payloads[-1].cluster,
        notify=payloads[-1].notify,
        overrides=overrides,
    )
    if though_unknown:
        request = replace(request, again=frozenset(run_ids))
    return carry_out(make_console(), request)


def _runtime_of_all(payloads: Sequence[job.Payload]) -> Runtime:
    """The last launch's, with the folders and weights files of all: runs by hand each know their own."""
    return replace(
        payloads[-1].runtime,
        data_folders={name: folder for p in payloads for name, folder in p.runtime.data_folders.items()},
        weights_files={name: file for p in payloads for name, file in p.runtime.weights_files.items()},
    )
