"""The command line of jobs/sync.py: it asks about the store and a W&B project alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transfergrid.config.arguments import parse, shared
from transfergrid.config.names import grid_name_of, wandb_name_of
from transfergrid.paths import StorePaths
from transfergrid.specs import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncKeys:
    grid: str | None = setting(None, "a grid; left out: the one launched last in the store")
    project: str | None = setting(None, "W&B project; left out: the grid's own")
    entity: str | None = setting(None, "W&B team or user; left out: the grid's own")
    store_dir: str = shared("store.dir")
    tracking_project: str | None = shared("tracking.project")
    tracking_entity: str | None = shared("tracking.entity")


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncRequest:
    """grid: None = the newest of the store. project, entity: None = those of the grid's last launch."""

    grid: str | None
    store: StorePaths
    project: str | None
    entity: str | None


def parse_sync(arguments: Sequence[str]) -> SyncRequest:
    """Any grid that was launched, with or without a grid file. Raises ConfigError, in one line."""
    keys = parse(SyncKeys, arguments).values
    return SyncRequest(
        grid=None if keys.grid is None else grid_name_of(keys.grid),
        store=StorePaths(Path(keys.store_dir)),
        project=wandb_name_of("project", keys.project or keys.tracking_project),
        entity=wandb_name_of("entity", keys.entity or keys.tracking_entity),
    )
