"""Names that a command line gives and that reach a path."""

from __future__ import annotations

from collections.abc import Sequence

from transfergrid.errors import ConfigError
from transfergrid.specs import digest, safe_name

DATASET_NAME = "{dataset}"  # in the name of a grid file that leaves the data set to the user
ADHOC = "adhoc"  # of runs by hand that name no grid
LONGEST_GRID_NAME = 64


def named_by_datasets(template: str, datasets: Sequence[str]) -> str:
    """`compare-{dataset}` with the names put in, `compare-mnist+pets`; cut, but no other's, where it is too long."""
    name = safe_name(template.replace(DATASET_NAME, "+".join(datasets)))
    return name if len(name) <= LONGEST_GRID_NAME else f"{name[: LONGEST_GRID_NAME - 13]}-{digest(name, 12)}"


def grid_name_of(name: str) -> str:
    if safe_name(name) != name or len(name) > LONGEST_GRID_NAME:
        raise ConfigError(f"grid name {name!r} may hold only a-z 0-9 . _ + - and at most 64 characters")
    return name


def wandb_name_of(key: str, name: str | None) -> str | None:
    """An entity or a project of W&B's, None where it is not given."""
    if name is not None and (len(name) > 128 or set(name) & set("/\\#?%:")):
        raise ConfigError(f"{key}={name!r} is not a name W&B takes; give at most 128 characters, none of / \\ # ? % :")
    return name
