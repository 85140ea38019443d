"""jobs/store.py: keeping house. What takes the space, what is damaged, what can go."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transfergrid.cli.console import FAILED, OK, amount, count, make_console, progress_line, run_script, say
from transfergrid.config.arguments import own_keys, takes
from transfergrid.config.help import Help
from transfergrid.config.spelling import command, launch_again
from transfergrid.config.store import StoreKeys, parse_store
from transfergrid.errors import ConfigError, DataError, MachineError
from transfergrid.paths import CachePaths, StorePaths
from transfergrid.store import durable

if TYPE_CHECKING:
    from rich.console import Console

    from transfergrid.cluster.ledger import Ledger
    from transfergrid.store.damage import Damage

MOST_NAMED = 20  # files or folders of one kind that are listed; the others are counted


HELP = Help(
    script="store.py",
    purpose="Keeping house. size: what takes the space, and what of it no grid refers to. check: reads every file that"
    " has a checksum, and names the damaged ones with what makes them again. repair: sets the damaged ones aside, so"
    " that the next launch makes them again. gc: removes code copies of ended launches, checkpoints of completed runs"
    " and files that were set aside.",
    examples=(
        " # what takes the space",
        "action=check",
        "action=repair  # what it would do",
        "action=repair dry_run=false",
        "action=gc runs=true  # what would go",
    ),
    keys=takes(StoreKeys),
    first=own_keys(StoreKeys),
)


def main() -> int:
    return run_script(keep_house, HELP)


def keep_house(arguments: Sequence[str]) -> int:
    """Exit code 1 where something is damaged (and, for repair, stays so), or could not be removed."""
    keys, console = parse_store(arguments), make_console()
    store, cache = StorePaths(Path(keys.store_dir)), CachePaths(Path(keys.cache_dir))
    if not store.root.is_dir() and not cache.root.is_dir():
        raise ConfigError(f"neither {store.root} nor {cache.root} is there; store.dir= and cache.dir= name others")
    if keys.action == "size":
        return _show_size(console, store, cache)
    if keys.action == "gc":
        return _collect(console, store, cache, keys, _done_by(arguments))
    return _check(console, store, cache, keys, _done_by(arguments))


def _done_by(arguments: Sequence[str]) -> str:
    """The command that does what a dry run tells."""
    return command("store.py", *(a for a in arguments if not a.startswith("dry_run=")), "dry_run=false")


# ---------------------------------------------------------------------------------------------------------------- size
def _show_size(console: Console, store: StorePaths, cache: CachePaths) -> int:
    from transfergrid.cluster.ledger import read_ledger
    from transfergrid.store.inventory import Space, space_by_part, space_of, unreferenced

    parts = space_by_part(store, cache)
    rows = [*parts.items(), ("all", sum(parts.values(), Space()))]
    width = max(len(name) for name, _ in rows)
    for name, space in rows:
        say(console, f"{name:<{width}}  {amount(space.bytes):>10}  {space.files:>7,} files")
    try:
        unused = unreferenced(store, cache, sent=_sent(read_ledger(store)))
    except DataError as error:
        say(console, f"what no grid refers to is not known: {error}")
        return OK
    for noun, paths in (("run", unused.runs), ("feature file", unused.features)):
        if paths:
            space = sum(map(space_of, paths), Space())
            say(console, f"no grid of {store.root} refers to {count(len(paths), noun)}: {amount(space.bytes)}")
    return OK


def _sent(ledger: Ledger) -> set[str]:
    return {run_id for submission in ledger.submissions for task in submission.tasks for run_id in task}


# -------------------------------------------------------------------------------------------------------------- damage
def _check(console: Console, store: StorePaths, cache: CachePaths, keys: StoreKeys, done_by: str) -> int:
    from transfergrid.store.damage import find_damage, set_aside

    weights_dir = Path(keys.weights_dir) if keys.weights_dir is not None else cache.weights
    began_s = time.time()
    damages = find_damage(store, cache, weights_dir, show=progress_line("checking", noun="files"))
    for damage in damages:
        say(console, damage.reason, style="red")
    if not damages:
        say(console, "nothing is damaged")
        return OK
    remedies = dict.fromkeys(_remade_by(damage, store) for damage in damages)
    if keys.action == "repair" and not keys.dry_run:
        num_aside = sum([set_aside(damage, since_s=began_s) for damage in damages])
        say(console, f"{count(num_aside, 'file')} set aside, under names that end in .damaged. Made again by")
    else:
        repair = done_by if keys.action == "repair" else command("store.py", *_places(keys), "action=repair")
        say(console, f"{count(len(damages), 'damaged file')}. To set them aside: {repair}. Then they are made again by")
    for remedy in remedies:
        say(console, f"  {remedy}")
    return OK if keys.action == "repair" and not keys.dry_run else FAILED


def _places(keys: StoreKeys) -> list[str]:
    named = {"store.dir": keys.store_dir, "cache.dir": keys.cache_dir, "weights_dir": keys.weights_dir}
    default = StoreKeys()
    usual = {default.store_dir, default.cache_dir, default.weights_dir}
    return [f"{key}={value}" for key, value in named.items() if value is not None and value not in usual]


def _remade_by(damage: Damage, store: StorePaths) -> str:
    """The command that makes a file again once it is set aside, or who does."""
    if damage.kind == "features":
        return "the next launch that reads these features"
    if damage.kind == "weights":
        return "the next launch that uses this network, by a download"
    if damage.kind == "grid":
        return launch_again(damage.path.stem, store)
    assert damage.run_id is not None
    grid = next((name for name, runs in _runs_by_grid(store).items() if damage.run_id in runs), None)
    if grid is not None:
        return launch_again(grid, store)
    return f"the next launch that needs {damage.run_id}; no grid refers to it now"


def _runs_by_grid(store: StorePaths) -> dict[str, set[str]]:
    from transfergrid.store.attempts import read_spec
    from transfergrid.store.records import read_grid

    grids: dict[str, set[str]] = {}
    for path in store.grid("x").parent.glob("*.json"):
        with contextlib.suppress(DataError):
            runs = {entry.run_id for entry in read_grid(path)}
            specs = (read_spec(store.run(run_id)) for run_id in runs)
            grids[path.stem] = runs | {need for spec in specs if spec is not None for need in spec.needs}
    return grids


# ------------------------------------------------------------------------------------------------------------- collect
def _collect(console: Console, store: StorePaths, cache: CachePaths, keys: StoreKeys, done_by: str) -> int:
    with contextlib.ExitStack() as locks:
        needed = [store.submitting] + [store.collecting] * (keys.runs or keys.features)
        if not all([locks.enter_context(durable.lock(path, wait=False)) for path in needed]):
            raise MachineError(f"a launch is sending jobs from {store.root}", remedy="try again when it has ended")
        if (keys.runs or keys.features) and any(map(durable.is_locked, store.all_launching)):
            what = f"a launch is at work in {store.root}, and may count on what no grid lists yet"
            raise MachineError(what, remedy="leave runs= and features= out, or try again when it has ended")
        return _collect_alone(console, store, cache, keys, done_by)


def _collect_alone(console: Console, store: StorePaths, cache: CachePaths, keys: StoreKeys, done_by: str) -> int:
    from transfergrid.store.inventory import Space, space_of

    total, failures = Space(), list[str]()
    # All are found first: what is removed changes what is referred to.
    for what, paths in list(_collectable(console, store, cache, keys)):
        spaces = [space_of(path) for path in paths]
        for path, space in list(zip(paths, spaces, strict=True))[:MOST_NAMED]:
            say(console, f"{amount(space.bytes):>10}  {path}")
        say(console, f"{amount(sum(spaces, Space()).bytes):>10}  all {len(paths)} {what}")
        total += sum(spaces, Space())
        if not keys.dry_run:
            failures += filter(None, (_remove(path) for path in paths))
    for failure in failures:
        say(console, failure, style="red")
    if keys.dry_run:
        say(console, f"{amount(total.bytes)} would be freed; to do it: {done_by}" if total.files else "nothing can go")
    else:
        say(console, f"{amount(total.bytes)} freed" if not failures else f"{count(len(failures), 'file')} could not go")
    return FAILED if failures else OK


def _collectable(
    console: Console, store: StorePaths, cache: CachePaths, keys: StoreKeys
) -> Iterator[tuple[str, Sequence[Path]]]:
    """(what they are, files and folders) that can go, kind after kind."""
    from transfergrid.cluster.ledger import read_ledger
    from transfergrid.cluster.snapshot import copies_to_collect
    from transfergrid.store.inventory import leftovers, old_checkpoints, unreferenced

    ledger = read_ledger(store)
    copies, reasons = copies_to_collect(store, ledger)
    for reason in reasons:
        say(console, f"stays: the code of {reason}")
    kinds: list[tuple[str, Callable[[], Sequence[Path]]]] = [
        ("code copies of ended launches", lambda: copies),
        ("folders of checkpoints of completed runs", lambda: old_checkpoints(store)),
        ("files that were set aside, or left by ended processes", lambda: leftovers(store, cache)),
    ]
    if keys.runs or keys.features:
        unused = unreferenced(store, cache, sent=_sent(ledger))
        kinds += [("runs that no grid refers to", lambda: unused.runs)] * keys.runs
        kinds += [("feature files that no grid of this store needs", lambda: unused.features)] * keys.features
    for what, look in kinds:
        if paths := look():
            yield what, paths


def _remove(path: Path) -> str | None:
    """Why a file or folder could not go; None where it has. Of a run the record goes first: a part is no result."""
    try:
        if path.is_dir():
            (path / "record.json").unlink(missing_ok=True)
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        return f"{path}: {error.strerror}"
    return None
