"""The command line of jobs/sync.py: it asks about the store and a W&B project alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transfergrid.config.arguments import parse, shared
from transfergrid.config.spelling import grid_name_of, wandb_name_of
from transfergrid.paths import StorePaths
from transfergrid.specs import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncRequest:
    """None = as in the grid's last launch; grid: None = the newest of the store."""

    grid: str | None = setting(None, "a grid; left out: the one launched last in the store")
    project: str | None = setting(None, "W&B project; left out: the grid's own")
    entity: str | None = setting(None, "W&B team or user; left out: the grid's own")
    store_dir: str = shared("store.dir")
    tracking_project: str | None = shared("tracking.project", None)
    tracking_entity: str | None = shared("tracking.entity", None)
    tracking_images: bool | None = shared("tracking.images", None)

    @property
    def store(self) -> StorePaths:
        return StorePaths(Path(self.store_dir))


def parse_sync(arguments: Sequence[str]) -> SyncRequest:
    """Any grid that was launched, with or without a grid file. Raises ConfigError, in one line."""
    typed = parse(SyncRequest, arguments).values
    return replace(
        typed,
        grid=None if typed.grid is None else grid_name_of(typed.grid),
        project=wandb_name_of("project", typed.project or typed.tracking_project),
        entity=wandb_name_of("entity", typed.entity or typed.tracking_entity),
    )
