"""Names that a command line gives and that reach a path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transfergrid.errors import ConfigError
from transfergrid.specs import digest, safe_name

DATASET_NAME = "{dataset}"  # in the name of a grid file that leaves the data set to the user
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


def images_of(value: str | None) -> bool | None:
    """tracking.images of a command line that is read without Hydra; None where it is not given."""
    if value is not None and value.lower() not in ("true", "false"):
        raise ConfigError(f"tracking.images={value!r}; give true or false")
    return None if value is None else value.lower() == "true"


def key_values(
    arguments: Sequence[str], *, keys: Sequence[str], takes: str, aliases: Mapping[str, str] | None = None
) -> dict[str, str]:
    """key=value of a command line that is read without Hydra; `takes` says what it takes. Raises ConfigError."""
    values: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        key = (aliases or {}).get(key, key)
        if not equals or key not in keys:
            raise ConfigError(f"{argument!r}: {takes}")
        if key in values:
            raise ConfigError(f"{key!r} is given twice; give it once")
        if not value.strip() or "\0" in value:
            raise ConfigError(f"{argument!r} names nothing; {takes}")
        values[key] = value
    return values
