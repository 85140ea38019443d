"""Names that a command line gives and that reach a path."""

from __future__ import annotations

from transfergrid.errors import ConfigError
from transfergrid.specs import safe_name


def grid_name_of(name: str) -> str:
    if safe_name(name) != name or len(name) > 64:
        raise ConfigError(f"grid name {name!r} may hold only a-z 0-9 . _ + - and at most 64 characters")
    return name


def wandb_name_of(key: str, name: str | None) -> str | None:
    """An entity or a project of W&B's, None where it is not given."""
    if name is not None and (len(name) > 128 or set(name) & set("/\\#?%:")):
        raise ConfigError(f"{key}={name!r} is not a name W&B takes; give at most 128 characters, none of / \\ # ? % :")
    return name
