"""How values are spelled on the command line, so that what is printed can be typed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transfergrid.config.folders import find
from transfergrid.errors import ConfigError
from transfergrid.paths import StorePaths, typed
from transfergrid.specs import digest, safe_name

DATASET_NAME = "{dataset}"  # in the name of a grid file that leaves the data set to the user
ADHOC = "adhoc"  # of runs by hand that name no grid
LONGEST_GRID_NAME = 64
_NO_TEXT = ("true", "false", "null", "nan", "inf")  # for Hydra
OF_HYDRA = ("launch_grid.py", "run_phase.py", "doctor.py")  # whose values are read by its grammar


def hydra_value(value: Any) -> str:
    """A value as the command line takes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return "[" + ",".join(hydra_value(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{hydra_value(v)}" for name, v in value.items()) + "}"
    if not isinstance(value, str):
        return repr(value)
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./+-]*", value) and value.lower() not in _NO_TEXT:
        return value
    # Hydra takes backslashes as they are, but before a quote, where each is to be doubled.
    quoted = re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), value)
    return f"'{quoted}'"


def folder_value(value: str) -> str:
    """The name of a folder as the command line of a launch takes it: as it is where no letter of it has a meaning."""
    return value if re.fullmatch(r"[A-Za-z0-9_./+-]*/[A-Za-z0-9_./+-]*", value) else hydra_value(value)


# ------------------------------------------------------------------------------------------------------ whole commands
def command(script: str, *arguments: str) -> str:
    """`python jobs/report.py grid=g ...`, to be pasted into a shell: every command that is printed is made here."""
    return shlex.join([*typed(script).split(), *arguments])


def command_of_grid(script: str, grid: str, store: StorePaths, *more: str) -> str:
    """The command for a grid's results; with store.dir= where that is not the default."""
    is_default = store.root.absolute() == Path("results").absolute()
    folder = folder_value(str(store.root)) if script in OF_HYDRA else str(store.root)
    where = [] if is_default else [f"store.dir={folder}"]
    return command(script, f"grid={grid}", *where, *more)


def launch_again(grid: str, store: StorePaths) -> str:
    """What makes the rows of a grid that are missing: its file's command; in words where no file is named so."""
    if find("grid", grid) is not None:
        return command_of_grid("launch_grid.py", grid, store)
    return f"a launch as it was made before, with grid_name={grid}"


def launched_grids(store: StorePaths) -> list[str]:
    """The grids of a store, the one that was launched last at the end."""
    files = store.grids.glob("*.json")
    return [path.stem for path in sorted(files, key=lambda path: path.stat().st_mtime)]


def newest_grid(store: StorePaths) -> str:
    """The grid that was launched last. Raises ConfigError, with what to do, where none was."""
    grids = launched_grids(store)
    if not grids:
        launch = command("launch_grid.py")
        raise ConfigError(
            f"nothing was launched in {store.root}; {launch} runs the quickstart, store.dir= names another store"
        )
    return grids[-1]


def never_launched(grid: str, store: StorePaths) -> ConfigError:
    known = ", ".join(sorted(launched_grids(store))) or "none"
    return ConfigError(f"grid {grid!r} was never launched in {store.root}; launched there: {known}")


def where_runs_are(store: StorePaths) -> str:
    """Where a person finds the ids of runs: the table of a grid shows rows, not ids."""
    if not launched_grids(store):
        return f"nothing was launched in {store.root}"
    return f"the folders in {store.runs} are called by the ids of the runs"


# ------------------------------------------------------------------------------------------- names that reach a path
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
