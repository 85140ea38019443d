"""jobs/sync.py: bring W&B up to date with the store, and verify."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from transfergrid.cli.console import FAILED, OK, count, make_console, progress_line, run_script, say, say_first
from transfergrid.config.arguments import own_keys, takes
from transfergrid.config.help import Help
from transfergrid.config.report import SyncRequest, parse_sync
from transfergrid.config.spelling import never_launched, newest_grid
from transfergrid.paths import StorePaths, store_paths
from transfergrid.specs import Runtime
from transfergrid.store import records
from transfergrid.tracking.account import Account, find_account

if TYPE_CHECKING:
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


def sync_as_launched(grid: str, runtime: Runtime) -> Synced:
    """The finish job's part of it, for a child process."""
    from transfergrid.tracking.sync import sync_grid

    store, project, entity = store_paths(runtime), runtime.wandb_project, runtime.wandb_entity
    account, images = destination([grid], store, project=project, entity=entity, images=None)
    return sync_grid(grid, store, account, images=images)


def show(console: Console, synced: Synced) -> None:
    say_first(console, synced.problems)
    say(console, summary(synced))


def summary(synced: Synced) -> str:
    parts = [f"{count(synced.runs, 'run')} in the store", f"{synced.sent} brought up to date"]
    parts += [f"{synced.runs - synced.elsewhere - synced.different} read back and equal"]
    parts += [f"{synced.different} not"] if synced.different else []
    parts += [f"{synced.unfinished} unfinished yet"] if synced.unfinished else []
    parts += [f"{synced.elsewhere} being sent by another process"] if synced.elsewhere else []
    return f"W&B: {', '.join(parts)}"
