"""Where configuration files lie: the user's own folders first, then the one that comes with the package."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from transfergrid import data
from transfergrid.errors import ConfigError, one_line
from transfergrid.specs import PHASES
from transfergrid.store.provenance import PACKAGE

VARIABLE = "TRANSFERGRID_CONF_DIR"


def conf_dir() -> Path:
    """That of the package: inside it where it is installed, beside src/ in a checkout."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parents[1] / "conf"


def conf_dirs() -> tuple[Path, ...]:
    """All that are read, first come first served: ./conf, $TRANSFERGRID_CONF_DIR, the user's own, the package's.

    Raises ConfigError where the variable names no folder.
    """
    users_own = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "transfergrid"
    extra = os.environ.get(VARIABLE)
    if extra and not Path(extra).expanduser().is_dir():
        raise ConfigError(f"{VARIABLE}={extra} is no folder; wanted one with grid/, dataset/ or cluster/, or unset it")
    places = (Path("conf"), *((Path(extra).expanduser(),) if extra else ()), users_own, conf_dir())
    return tuple(dict.fromkeys(place.resolve() for place in places if place.is_dir()))


def find(group: str, name: str) -> Path | None:
    """The first file of this name."""
    files = (folder / group / f"{name}.yaml" for folder in conf_dirs())
    return next((file for file in files if file.is_file()), None)


def choices(group: str) -> tuple[str, ...]:
    """The names of a group's files, and those that need none."""
    files = {path.stem for place in conf_dirs() for path in (place / group).glob("*.yaml")}
    return tuple(sorted(files.union(without_file(group))))


def without_file(group: str) -> dict[str, dict[str, str]]:
    """Name -> content of the choices that need no file: phases and published data sets. A file of the name wins."""
    if group == "phase":
        return {phase: {"name": phase} for phase in PHASES}
    kinds = [kind for kind in data.kinds() if kind != "image_folder"] if group == "dataset" else []
    return {kind: {"name": kind, "kind": kind} for kind in kinds}


def content_of(group: str, name: str, *, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a choice sets: its file, over the files that its `defaults` name. Raises ConfigError that names the file."""
    file = find(group, name)
    if file is None:
        return dict(without_file(group).get(name, {}))
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} cannot be read: {one_line(error)[:80]}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds no keys with values")
    values: dict[str, Any] = {}
    for other in content.pop("defaults", None) or ():
        if isinstance(other, str) and other not in (*above, name, "_self_"):
            values |= content_of(group, other, above=(*above, name))
    return values | content
