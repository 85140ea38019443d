"""The command line of jobs/report.py, read without Hydra, for it asks about the store alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from transfergrid.config.names import grid_name_of, images_of, key_values, wandb_name_of
from transfergrid.errors import ConfigError
from transfergrid.paths import CachePaths, StorePaths
from transfergrid.specs import SelectBy

OF_WANDB = ("entity", "project")  # belong to source=wandb or publish=true
KEYS = (
    "grid",
    "compare",
    "figures",
    "store.dir",
    "source",
    "publish",
    *OF_WANDB,
    "cache.dir",
    "select_by",
    "tracking.images",
)
TAKES = (
    "report takes grid=NAME or compare=[A,B], figures=true|false|keep, store.dir=DIR, publish=true|false, "
    "source=store|wandb, entity=NAME, project=NAME, tracking.images=true, cache.dir=DIR, "
    "select_by=accuracy|balanced_accuracy|macro_f1"
)
CHOICES: dict[str, dict[str, bool | None]] = {
    "figures": {"true": True, "false": False, "keep": None},
    "publish": {"true": True, "false": False},
}
LONGEST_NAME = 200  # of the folder of a report of several grids


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRequest:
    """grids: one, or several that are set side by side.

    figures: None keeps the report's files as they are while they are newer than every record.
    wandb: where to read the runs from, entity and project, if not from a store; `store` is then where they are kept.
    publish: entity and project to publish in, if it is asked for; None for one: as the grid's last launch has it.
    images: whether pictures and names of files are published, too; None: as the grid's last launch has it.
    select_by: the score on val that choices between rows are by; None as each grid was launched.
    """

    grids: tuple[str, ...]
    store: StorePaths
    figures: bool | None
    wandb: tuple[str | None, str] | None = None
    publish: tuple[str | None, str | None] | None = None
    images: bool | None = None
    select_by: SelectBy | None = None


def parse_report(arguments: Sequence[str]) -> ReportRequest:
    """Any grid that was launched, with or without a grid file. Raises ConfigError, in one line."""
    values = key_values(arguments, keys=KEYS, takes=TAKES)
    if "grid" in values and "compare" in values:
        raise ConfigError("grid= and compare= are both given; give one")
    grids = _compared(values["compare"]) if "compare" in values else (grid_name_of(values.get("grid", "quickstart")),)
    wandb = _wandb(values)
    store = StorePaths(Path(values.get("store.dir", "results")))
    if wandb is not None:
        store = CachePaths(Path(values.get("cache.dir", "cache"))).pulled(*wandb)
    publish = wandb or _place(values) if _choice("publish", values.get("publish", "false")) else None
    figures = _choice("figures", values.get("figures", "true"))
    return ReportRequest(
        grids=grids,
        store=store,
        figures=figures,
        wandb=wandb,
        publish=publish,
        images=images_of(values.get("tracking.images")),
        select_by=_select_by(values.get("select_by")),
    )


def _select_by(value: str | None) -> SelectBy | None:
    known: dict[str, SelectBy] = {name: name for name in get_args(SelectBy)}
    if value is not None and value not in known:
        raise ConfigError(f"select_by={value!r} is not one of {', '.join(known)}")
    return None if value is None else known[value]


def _choice(key: str, value: str) -> bool | None:
    if value.lower() not in CHOICES[key]:
        *others, last = CHOICES[key]
        raise ConfigError(f"{key}={value!r}; give {', '.join(others)} or {last}")
    return CHOICES[key][value.lower()]


def _wandb(values: Mapping[str, str]) -> tuple[str | None, str] | None:
    """Entity and project of source=wandb."""
    source = values.get("source", "store")
    if source not in ("store", "wandb"):
        raise ConfigError(f"source={source!r}; give store or wandb")
    if source == "store":
        if "cache.dir" in values:
            raise ConfigError("cache.dir= belongs to source=wandb, which is not given")
        if (not_asked := [key for key in OF_WANDB if key in values]) and values.get("publish", "").lower() != "true":
            raise ConfigError(f"{not_asked[0]}= belongs to source=wandb or publish=true, none of which is given")
        return None
    if "store.dir" in values:
        raise ConfigError(
            "source=wandb reads no store; leave store.dir= out, or give cache.dir= for where it keeps files"
        )
    entity, project = _place(values)
    return entity, project or "transfergrid"


def _place(values: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Entity and project as they are given."""
    entity, project = (wandb_name_of(key, values.get(key)) for key in OF_WANDB)
    return entity, project


def _compared(value: str) -> tuple[str, ...]:
    if not (value.startswith("[") and value.endswith("]")):
        raise ConfigError(f"compare={value!r} is not a list of grids; a list is written compare=[a,b]")
    names = tuple(name.strip() for name in value[1:-1].split(","))
    if len(names) < 2 or not all(names):
        raise ConfigError(f"compare={value} names fewer than two grids; give at least two, as compare=[a,b]")
    if len(set(names)) < len(names):
        raise ConfigError(f"compare={value} holds a grid twice; give each once")
    if len("-vs-".join(names)) > LONGEST_NAME:
        raise ConfigError(f"compare={value[:60]}... names more than one folder's name can hold; give fewer grids")
    return tuple(grid_name_of(name) for name in names)
