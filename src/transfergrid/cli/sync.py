"""jobs/sync.py: bring W&B up to date with the store, and verify."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transfergrid.cli.console import FAILED, OK, count, make_console, progress_line, run_script, say
from transfergrid.config.arguments import own_keys, takes
from transfergrid.config.help import Help
from transfergrid.config.report import SyncRequest, parse_sync
from transfergrid.config.spelling import command_of_grid, never_launched, newest_grid
from transfergrid.paths import StorePaths, store_paths
from transfergrid.specs import Runtime
from transfergrid.store import records
from transfergrid.store.provenance import import_path
from transfergrid.tracking.account import Account, Unreachable, find_account, why_silent

if TYPE_CHECKING:
    from rich.console import Console

    from transfergrid.tracking.sync import Synced

HELP = Help(
    script="sync.py",
    purpose="Bring W&B to what the store holds of a grid, then read all of it back and say what differs. It may run"
    " again at any time, also while jobs are running. The key comes from WANDB_API_KEY or `wandb login`.",
    examples=(
        " # the grid that was launched last",
        "grid=quickstart project=transfergrid entity=my-team store.dir=results",
    ),
    keys=takes(SyncRequest),
    first=own_keys(SyncRequest),
)
SHOWN = 20  # problems that are told one by one
LONGEST_S = 1800.0  # of what the finish job does for W&B, each of both


def main() -> int:
    return run_script(sync, HELP)


def sync(arguments: Sequence[str]) -> int:
    """Exit code 0 when the server holds all that the store has, 1 when something differs or could not be sent."""
    from transfergrid.tracking.sync import sync_grid  # training's modules have no part in it, but images' have

    request, console = parse_sync(arguments), make_console()
    grid = request.grid or newest_grid(request.store)
    if request.grid is None:
        say(console, f"grid={grid}, the one launched last in {request.store.root}")
    account, images = destination(
        [grid], request.store, project=request.project, entity=request.entity, images=request.tracking_images
    )
    tick = progress_line("syncing", noun="runs")
    synced = sync_grid(grid, request.store, account, images=images, tick=tick)
    show(console, synced)
    return FAILED if synced.problems else OK


def destination(
    grids: Sequence[str], store: StorePaths, *, project: str | None, entity: str | None, images: bool | None
) -> tuple[Account, bool]:
    """Where grids go, and whether pictures go, too: as asked, else where the first was last launched to, and with
    pictures if all of them were. Raises Unreachable without a key."""
    launches = [launched_with(grid, store) for grid in grids]
    first = launches[0]
    project = project or (first.wandb_project if first else "transfergrid")
    entity = entity or (first.wandb_entity if first else None)
    if images is None:
        images = all(launched is not None and launched.wandb_images for launched in launches)
    return find_account(project, entity), images


def launched_with(grid: str, store: StorePaths) -> Runtime | None:
    """How the grid was last launched. Raises ConfigError where it never was."""
    try:
        return records.launched_with(store.grid(grid))
    except FileNotFoundError:
        raise never_launched(grid, store) from None


def show(console: Console, synced: Synced) -> None:
    wrong = len({problem.partition(":")[0] for problem in synced.problems} - {"grid.json"})  # which is no run
    parts = [f"{count(synced.runs, 'run')} in the store", f"{synced.sent} brought up to date"]
    parts += [f"{synced.runs - synced.elsewhere - wrong} read back and equal"]
    parts += [f"{wrong} not"] if wrong else []
    parts += [f"{synced.unfinished} unfinished yet"] if synced.unfinished else []
    parts += [f"{synced.elsewhere} being sent by another process"] if synced.elsewhere else []
    for problem in synced.problems[:SHOWN]:
        say(console, problem)
    if len(synced.problems) > SHOWN:
        say(console, f"... and {len(synced.problems) - SHOWN} more")
    say(console, f"W&B: {', '.join(parts)}")


def sync_and_report(console: Console, runtime: Runtime, grid: str) -> None:
    """What the finish job does for W&B with tracking=online: never an error, whatever W&B does.

    In processes of their own: one that hangs ends in time, and one that dies takes nothing with it.
    """
    if runtime.tracking != "online":
        return
    by_hand = f"`{command_of_grid('sync.py', grid, store_paths(runtime))}` sends what the server lacks"
    try:
        url = find_account(runtime.wandb_project, runtime.wandb_entity).url
        if reason := why_silent(url):
            raise Unreachable(f"{url} does not answer ({reason})")
    except Unreachable as error:
        say(console, f"W&B: {error}; {by_hand}")
        return
    where = [f"grid={grid}", f"store.dir={Path(runtime.store_dir)}", f"project={runtime.wandb_project}"]
    where += [f"entity={runtime.wandb_entity}"] if runtime.wandb_entity else []
    if not _tell(console, "transfergrid.cli.sync", where):
        say(console, f"W&B: {by_hand}")
    _tell(console, "transfergrid.cli.report", [*where, "publish=true", "figures=keep"])  # whatever sync found


def _tell(console: Console, module: str, arguments: Sequence[str]) -> bool:
    """Run one of our own commands and print what it says last; whether it ended well."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=os.environ | {"PYTHONPATH": import_path()},
            timeout=LONGEST_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        say(console, f"W&B: {error}")
        return False
    said = (done.stdout.strip() or done.stderr.strip()).splitlines()
    for line in said[-3:]:
        say(console, line)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
