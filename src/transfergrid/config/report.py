"""The command lines of jobs/report.py and jobs/sync.py: they ask about a store, and about a W&B project."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from transfergrid.config.arguments import parse, shared
from transfergrid.config.spelling import grid_name_of, wandb_name_of
from transfergrid.errors import ConfigError
from transfergrid.paths import CachePaths, StorePaths
from transfergrid.specs import SelectBy, setting

LONGEST_NAME = 200  # of the folder of a report of several grids


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportKeys:
    grid: str | None = setting(None, "a grid; left out: the one launched last in the store")
    compare: list[str] = setting([], "grids side by side, as [a,b]; in place of grid=")
    figures: Literal["true", "false", "keep"] = setting("true", "keep = those made since the last record")
    select_by: SelectBy | None = setting(None, "the score on val that chooses; left out: as launched")
    output: str | None = setting(None, "folder for the report; left out: in the store")
    report_within: float | None = shared("report.within", None)
    publish: bool = setting(False, "send the report to W&B")
    source: Literal["store", "wandb"] = setting("store", "wandb = read the runs from a server")
    project: str | None = setting(None, "W&B project; left out: the grid's own")
    entity: str | None = setting(None, "W&B team or user; left out: the grid's own")
    store_dir: str = shared("store.dir")
    cache_dir: str = shared("cache.dir")
    tracking_project: str | None = shared("tracking.project", None)
    tracking_entity: str | None = shared("tracking.entity", None)
    tracking_images: bool | None = shared("tracking.images", None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRequest:
    """grids: one, or several that are set side by side; none = the newest of the store.

    figures: None keeps the report's files as they are while they are newer than every record.
    wandb: where to read the runs from, entity and project, if not from a store; `store` is then where they are kept.
    publish: entity and project to publish in, if it is asked for; None for one: as the grid's last launch has it.
    images: whether pictures and names of files are published, too; None: as the grid's last launch has it.
    select_by: the score on val that choices between rows are by; None as each grid was launched, as for within_points.
    output: where the report is written; None: its folder in the store.
    """

    grids: tuple[str, ...]
    store: StorePaths
    figures: bool | None
    wandb: tuple[str | None, str] | None = None
    publish: tuple[str | None, str | None] | None = None
    images: bool | None = None
    select_by: SelectBy | None = None
    output: Path | None = None
    within_points: float | None = None


def parse_report(arguments: Sequence[str]) -> ReportRequest:
    """Any grid that was launched, with or without a grid file. Raises ConfigError, in one line."""
    parsed = parse(ReportKeys, arguments)
    keys, from_wandb = parsed.values, parsed.values.source == "wandb"
    if keys.grid is not None and keys.compare:
        raise ConfigError("grid= and compare= are both given; give one")
    of_wandb = sorted(parsed.keys & {"entity", "project"})
    if of_wandb and not (from_wandb or keys.publish):
        raise ConfigError(f"{of_wandb[0]}= belongs to source=wandb or publish=true, none of which is given")
    if from_wandb and "store.dir" in parsed.keys:
        raise ConfigError("source=wandb reads from the server into cache.dir; leave store.dir= out")
    if from_wandb and keys.grid is None and not keys.compare:
        raise ConfigError("source=wandb needs the grid's name: grid=NAME")
    grids = () if keys.grid is None else (grid_name_of(keys.grid),)
    entity = wandb_name_of("entity", keys.entity or keys.tracking_entity)
    project = wandb_name_of("project", keys.project or keys.tracking_project)
    wandb = (entity, project or "transfergrid") if from_wandb else None
    return ReportRequest(
        grids=_compared(keys.compare) if keys.compare else grids,
        store=StorePaths(Path(keys.store_dir)) if wandb is None else CachePaths(Path(keys.cache_dir)).pulled(*wandb),
        figures={"true": True, "false": False, "keep": None}[keys.figures],
        wandb=wandb,
        publish=(wandb or (entity, project)) if keys.publish else None,
        images=keys.tracking_images,
        select_by=keys.select_by,
        output=None if keys.output is None else Path(keys.output),
        within_points=keys.report_within,
    )


def _compared(names: Sequence[str]) -> tuple[str, ...]:
    argument = f"compare=[{','.join(names)}]"
    if len(names) < 2 or not all(names):
        raise ConfigError(f"{argument} names fewer than two grids; give at least two, as compare=[a,b]")
    if len(set(names)) < len(names):
        raise ConfigError(f"{argument} holds a grid twice; give each once")
    if len("-vs-".join(names)) > LONGEST_NAME:
        raise ConfigError(f"{argument[:60]}... is more than one folder's name can hold; give fewer grids")
    return tuple(grid_name_of(name) for name in names)


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
    request = parse(SyncRequest, arguments).values
    return replace(
        request,
        grid=None if request.grid is None else grid_name_of(request.grid),
        project=wandb_name_of("project", request.project or request.tracking_project),
        entity=wandb_name_of("entity", request.entity or request.tracking_entity),
    )
