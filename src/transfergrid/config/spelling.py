"""How values are spelled on the command line, so that what is printed can be typed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transfergrid.config.folders import find
from transfergrid.paths import StorePaths, typed

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
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./+-]*", value) and value.lower() not in (
        "true",
        "false",
        "null",
        "nan",
        "inf",
    ):
        return value
    # Hydra takes backslashes as they are, but before a quote, where each is to be doubled.
    quoted = re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
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


def who_lists_runs(store: StorePaths) -> str:
    """`python jobs/status.py grid=g lists its runs`, of the grid that was launched last in this store."""
    grids = sorted(store.grid("x").parent.glob("*.json"), key=lambda path: path.stat().st_mtime)
    if not grids:
        return f"nothing was launched in {store.root}"
    return f"{command_of_grid('status.py', grids[-1].stem, store)} lists runs"
