"""jobs/report.py grid=NAME source=wandb: a grid's runs from a W&B server, and what the server lacks."""

from __future__ import annotations

from collections.abc import Sequence

from transfergrid.cli.console import count
from transfergrid.paths import StorePaths
from transfergrid.store.records import GridEntry

SHOWN = 20  # lines of one kind


def pull_grids(grids: Sequence[str], store: StorePaths, entity: str | None, project: str) -> bool:
    """Make the store from what the server holds; True if it lacks nothing. Raises Unreachable or ConfigError."""
    from transfergrid.tracking.account import find_account
    from transfergrid.tracking.pull import pull_grid

    where = find_account(project, entity)
    is_whole = True
    for grid in grids:
        pulled = pull_grid(where, grid, store, say=print)
        _tell("not usable as the server has it", pulled.problems)
        _tell(f"grid {grid} lacks on the server", [_named(entry) for entry in pulled.missing])
        print(f"{grid}: {count(len(pulled.run_ids), 'run')} of {where.url}/{where.path()} in {store.root}")
        is_whole = is_whole and not pulled.missing and not pulled.problems
    return is_whole


def _tell(what: str, lines: Sequence[str]) -> None:
    for line in lines[:SHOWN]:
        print(f"{what}: {line}")
    if len(lines) > SHOWN:
        print(f"{what}: and {len(lines) - SHOWN} more")


def _named(entry: GridEntry) -> str:
    seed = "" if entry.seed is None else f"seed {entry.seed}"
    parts = (entry.dataset, entry.model, entry.phase, entry.variant, seed)
    return f"{' '.join(part for part in parts if part)} ({entry.run_id})"
