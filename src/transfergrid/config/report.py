"""The command line of jobs/report.py, read without Hydra, for it asks about the store alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transfergrid.config.names import grid_name_of
from transfergrid.errors import ConfigError
from transfergrid.paths import StorePaths

KEYS = ("grid", "compare", "figures", "store.dir")
TAKES = "report takes grid=NAME or compare=[A,B], figures=true|false and store.dir=DIR"
LONGEST_NAME = 200  # of the folder of a report of several grids


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRequest:
    """grids: one, or several that are set side by side."""

    grids: tuple[str, ...]
    store: StorePaths
    figures: bool


def parse_report(arguments: Sequence[str]) -> ReportRequest:
    """Any grid that was launched, with or without a grid file. Raises ConfigError, in one line."""
    values: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in KEYS:
            raise ConfigError(f"{argument!r}: {TAKES}")
        if key in values:
            raise ConfigError(f"{key!r} is given twice; give it once")
        if not value.strip() or "\0" in value:
            raise ConfigError(f"{argument!r} names nothing; {TAKES}")
        values[key] = value
    if "grid" in values and "compare" in values:
        raise ConfigError("grid= and compare= are both given; give one")
    figures = values.get("figures", "true").lower()
    if figures not in ("true", "false"):
        raise ConfigError(f"figures={values['figures']!r}; give true or false")
    grids = _compared(values["compare"]) if "compare" in values else (grid_name_of(values.get("grid", "quickstart")),)
    return ReportRequest(
        grids=grids, store=StorePaths(Path(values.get("store.dir", "results"))), figures=figures == "true"
    )


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
