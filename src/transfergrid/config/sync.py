"""The command line of jobs/sync.py, read without Hydra, for it asks about the store and a W&B project alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transfergrid.config.names import grid_name_of, images_of, key_values, wandb_name_of
from transfergrid.paths import StorePaths

KEYS = ("grid", "project", "entity", "store.dir", "tracking.images")
ALIASES = {"tracking.project": "project", "tracking.entity": "entity"}  # as a launch spells them
TAKES = "sync takes grid=NAME, project=NAME, entity=NAME, tracking.images=true|false and store.dir=DIR"


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncRequest:
    """project, entity, images: None = as in the grid's last launch. images: whether pictures and file names go, too."""

    grid: str
    store: StorePaths
    project: str | None
    entity: str | None
    images: bool | None


def parse_sync(arguments: Sequence[str]) -> SyncRequest:
    """Any grid that was launched, with or without a grid file. Raises ConfigError, in one line."""
    values = key_values(arguments, keys=KEYS, takes=TAKES, aliases=ALIASES)
    return SyncRequest(
        grid=grid_name_of(values.get("grid", "quickstart")),
        store=StorePaths(Path(values.get("store.dir", "results"))),
        project=wandb_name_of("project", values.get("project")),
        entity=wandb_name_of("entity", values.get("entity")),
        images=images_of(values.get("tracking.images")),
    )
