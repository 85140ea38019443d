"""results/grids/<grid>.json as launches write it: what a launch would take out of a grid is asked about, and kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from rich.console import Console

from transfergrid.cli.console import count, say
from transfergrid.cluster.ledger import Ledger, read_ledger
from transfergrid.config import Request
from transfergrid.config.spelling import ADHOC, LONGEST_GRID_NAME
from transfergrid.errors import ConfigError
from transfergrid.paths import StorePaths
from transfergrid.planning.wall import Expected
from transfergrid.specs import Runtime, to_dict
from transfergrid.store import durable
from transfergrid.store.attempts import newest_attempt, read_spec
from transfergrid.store.records import GridEntry, launched_with, read_grid, record_head, selected_by, write_grid


def assert_keeps_rows(console: Console, request: Request) -> None:
    """Raises ConfigError where a launch would take rows out of its grid and nobody has said that it may; a dry run says
    it, and goes on."""
    if not request.replaces_grid or request.replace:
        return
    before, after = _before(request), request.entries()
    dropped = _dropped(before, after)
    ledger = read_ledger(request.store)
    if not any(_has_come_to_something(request.store, entry.run_id, ledger) for entry in dropped):
        return
    text = (
        f"grid {request.grid!r} exists: {_loss(before, after, dropped)}; give grid_name=NAME for a grid of its"
        " own, or replace=true (the former grid and its report are kept under another name)"
    )
    if not request.dry_run:
        raise ConfigError(text)
    say(console, f"it would not be launched: {text}", style="yellow")


def write_grid_of(console: Console, request: Request, expected: Expected | None = None) -> None:
    """A launch defines its grid anew; a run by hand joins it, in place of what its row held under other settings.

    What is taken out stays, with the report, as a grid of its own, and that is said. expected: how long the launch is
    to take here, which status reads."""
    path, entries = request.store.grid(request.grid), request.entries()
    with durable.lock(path.with_name(f".{path.stem}.lock"), wait=True):  # runs by hand are started side by side
        before = _before(request)
        if not request.replaces_grid:
            entries = [e for e in before if all(_stand_together(e, new, request) for new in entries)] + entries
        if _dropped(before, entries):
            former = _set_aside(request.store, request.grid)
            say(console, f"the former grid {request.grid!r} and its report are kept as grid={former}")
        chosen_by = request.select_by or (
            selected_by(path) if path.exists() and not request.replaces_grid else "accuracy"
        )
        write_grid(
            path,
            grid=request.grid,
            entries=entries,
            runtime=_runtime(request),
            select_by=chosen_by,
            expected=None if expected is None else to_dict(expected),
        )


def _runtime(request: Request) -> Runtime:
    """Of a launch its own. A run that joins leaves the grid's, and adds its folders and files: sync and report send a
    grid where its last launch said. Runs by hand that name no grid have no launch."""
    path, own = request.store.grid(request.grid), request.runtime
    joins = not request.replaces_grid and request.grid != ADHOC and path.exists()
    before = launched_with(path) if joins else None
    if before is None:
        return own
    return replace(
        before,
        data_folders={**before.data_folders, **own.data_folders},
        data_tables={**before.data_tables, **own.data_tables},
        weights_files={**before.weights_files, **own.weights_files},
    )


def _before(request: Request) -> list[GridEntry]:
    path = request.store.grid(request.grid)
    return read_grid(path) if path.exists() else []


def _dropped(before: Sequence[GridEntry], after: Sequence[GridEntry]) -> list[GridEntry]:
    """What a launch takes out of its grid."""
    run_ids = {entry.run_id for entry in after}
    return [entry for entry in before if entry.run_id not in run_ids]


def _loss(before: Sequence[GridEntry], after: Sequence[GridEntry], dropped: Sequence[GridEntry]) -> str:
    """How many rows are gone, and how many have other runs than before."""
    rows, rows_after = set(map(_row, dropped)), set(map(_row, after))
    parts = []
    if gone := len(rows - rows_after):
        parts.append(f"leave out {gone}")
    if changed := len(rows & rows_after):
        parts.append(f"change the runs of {changed} (other settings, seeds or data, or another release)")
    return f"it has {count(len(set(map(_row, before))), 'row')}, of which this launch would {' and '.join(parts)}"


def _row(entry: GridEntry) -> GridEntry:
    return replace(entry, run_id="", seed=None)


def _has_come_to_something(store: StorePaths, run_id: str, ledger: Ledger) -> bool:
    """Whether a run has a result, or was begun or sent to SLURM and has not failed: a failure is nothing to keep."""
    head = record_head(store.run(run_id))
    if head is None:
        return ledger.newest(run_id) is not None or newest_attempt(store.run(run_id)) > 0
    return head.status == "completed"


def _set_aside(store: StorePaths, grid: str) -> str:
    """The name under which the grid's list and its report, as they are now, can be had from here on."""
    stamp = datetime.now(UTC).strftime("%Y%m%dt%H%M%S")
    former, number = f"{grid[: LONGEST_GRID_NAME - len(stamp) - 4]}-{stamp}", 1
    while store.grid(former).exists() or store.report(former).exists():
        number += 1
        former = f"{former.partition(stamp)[0]}{stamp}-{number}"
    durable.write_bytes(store.grid(former), store.grid(grid).read_bytes())
    if store.report(grid).is_dir():
        os.rename(store.report(grid), store.report(former))
    return former


def _stand_together(old: GridEntry, new: GridEntry, request: Request) -> bool:
    """Whether two runs may stand in one grid: in different rows, or as two seeds of one."""
    if replace(old, run_id="", seed=0) != replace(new, run_id="", seed=0):
        return True
    old_spec = read_spec(request.store.run(old.run_id))
    if old_spec is None:
        return False
    new_spec = next(c.run for c in request.configurations if c.run.run_id == new.run_id)
    return old_spec.seed != new_spec.seed and replace(old_spec, seed=new_spec.seed, needs=new_spec.needs) == new_spec
