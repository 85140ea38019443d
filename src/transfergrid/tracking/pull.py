"""A store made from what a W&B server holds of a grid, for the report of a machine that has not the grid's own store.

    <cache.dir>/wandb/<entity>/<project>/    a store like any other, and
        runs/<run_id>/pulled.json    which versions of the server's files and history were read
        incoming/                            while files arrive; nothing is published before it has been checked

What comes from a server is not trusted: names of runs become paths only if a run of this package could bear them, files
have a largest size, records are read before they are kept.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transfergrid.errors import ConfigError, DataError, one_line
from transfergrid.names import some
from transfergrid.paths import RunPaths, StorePaths, typed
from transfergrid.specs import PHASES, SelectBy, safe_name, to_dict
from transfergrid.store import durable, records
from transfergrid.store.records import GridEntry, RunRecord
from transfergrid.tracking.account import Account
from transfergrid.tracking.client import wandb_session
from transfergrid.tracking.description import as_line, grid_tag
from transfergrid.tracking.remote import Remote, RemoteFile, RemoteRun

Say = Callable[[str], None]

THREADS = 16  # of 1,000 runs on a server 100 ms away: 75 s, with 8 107 s
LONGEST_NAME = 200
GRID, RECORD, PREDICTIONS, HISTORY = "grid.json", "record.json", "predictions.npz", "history"
LARGEST_BYTES = {GRID: 64_000_000, RECORD: 16_000_000, PREDICTIONS: 1_000_000_000}


@dataclass(frozen=True, slots=True)
class Pulled:
    """run_ids: all runs that now lie in the store. missing: configurations of which the server has no run or no record.

    problems: what the server has but what cannot be used as it is, a line each.
    """

    run_ids: tuple[str, ...]
    missing: tuple[GridEntry, ...]
    problems: tuple[str, ...]


def pull_grid(account: Account, grid: str, store: StorePaths, *, say: Say) -> Pulled:
    """Bring `store` to what the server holds of the grid; what has not changed since the last time is not read again.

    `say` gets a line for whatever limits what the report can show. Raises Unreachable, or ConfigError where the server
    has no such project or grid.
    """
    store = StorePaths(store.root.resolve())  # W&B's own process need not have the same working folder
    incoming = store.root / "incoming"
    with wandb_session(store, account.url), durable.lock(store.root / ".pull.lock", wait=True):
        remote = Remote(account)
        shutil.rmtree(incoming, ignore_errors=True)  # of a pull that was killed
        try:
            return _pull(remote, grid, store, incoming, say)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)


def _pull(remote: Remote, grid: str, store: StorePaths, incoming: Path, say: Say) -> Pulled:
    entries, select_by, problems = _entries(remote, grid, incoming, say)
    records.write_grid(store.grid(grid), grid=grid, entries=entries, select_by=select_by)
    found: dict[str, RunRecord] = {}
    wanted = list(dict.fromkeys(e.run_id for e in entries))
    asked = set(wanted)
    unusable: set[str] = set()
    while wanted:  # and then what these are made from, which a grid need not list
        there = remote.runs_named(wanted)
        for run, record, told in _pull_runs(remote, [there[i] for i in wanted if i in there], store, incoming):
            problems += [_printable(f"{run.id}: {line}") for line in told]
            if record is not None:
                found[run.id] = record
            elif told:
                unusable.add(run.id)
        for run_id in wanted:
            if run_id not in found:
                _forget(store.run(run_id))
        wanted = sorted({i for r in found.values() for i in _made_from(r) if _is_safe(i)} - asked)
        asked |= set(wanted)
    lacking = asked - set(found) - unusable
    missing = tuple(e for e in dict.fromkeys(entries) if e.run_id in lacking)
    if absent := sorted(lacking - {e.run_id for e in missing}):
        say(f"used by runs of the grid, but not on the server, so its cost is not shown: {some(absent, 3)}")
    return Pulled(tuple(sorted(found)), missing, tuple(problems))


def _made_from(record: RunRecord) -> Iterable[str]:
    return (*record.spec.needs, *(run.run_id for run in record.spec.extractions))


# --------------------------------------------------------------------------------------------------------------- grid
def _entries(remote: Remote, grid: str, incoming: Path, say: Say) -> tuple[list[GridEntry], SelectBy, list[str]]:
    """What the grid consists of and what it chooses by, by its own list or else by the runs' tags; and what of that is
    none."""
    select_by: SelectBy = "accuracy"
    grid_id = f"grid-{safe_name(grid)}"
    run = remote.runs_named([grid_id]).get(grid_id)
    try:
        path = None if run is None else _list_file(remote, run, incoming / grid_id)
        listed = None if path is None else records.read_grid(path)
        select_by = select_by if path is None else records.selected_by(path)
        reason = f"grid {grid!r} has no grid.json on the server"
    except (DataError, RecursionError) as error:
        listed, reason = None, f"grid.json of grid {grid!r} is damaged ({one_line(error.__cause__ or error)})"
    if listed is None:
        listed = _tagged(remote, grid)
        if not listed and run is None:
            raise ConfigError(_unknown(remote, grid))
        say(f"{_printable(reason)}; its rows are those of the {len(listed)} runs that carry its tag")
    entries = [e for e in listed if _is_entry(e)]
    problems = [f"{_printable(str(e.run_id))!r} is no run that a grid can hold" for e in listed if not _is_entry(e)]
    return entries, select_by, problems


def _list_file(remote: Remote, run: RemoteRun, folder: Path) -> Path | None:
    file = remote.files(run, [GRID]).get(GRID)
    if file is None:
        return None
    durable.make_folder(folder)
    return remote.download(file, folder, largest_bytes=LARGEST_BYTES[GRID])


def _tagged(remote: Remote, grid: str) -> list[GridEntry]:
    """From the runs' own words, in the order in which they were made."""
    return [_entry(run) for run in remote.tagged(grid_tag(grid)).values() if run.job_type in PHASES]


def _entry(run: RemoteRun) -> GridEntry:
    names = ("dataset", "model", "variant", "weights", "protocol")
    told = {name: run.config.get(name) or "" for name in names}
    return GridEntry(run_id=run.id, phase=run.job_type, seed=run.config.get("seed"), **told)


def _is_entry(entry: GridEntry) -> bool:
    texts = [getattr(entry, f.name) for f in fields(entry) if f.name != "seed"]
    fit = all(isinstance(text, str) and len(text) <= LONGEST_NAME and text.isprintable() for text in texts)
    return fit and _is_safe(entry.run_id) and (entry.seed is None or type(entry.seed) is int)


def _is_safe(run_id: str) -> bool:
    """Whether it is the name of a run, and so one folder's name and no way out of it."""
    return 0 < len(run_id) <= LONGEST_NAME and safe_name(run_id) == run_id


def _unknown(remote: Remote, grid: str) -> str:
    known = sorted(run.id.removeprefix("grid-") for run in remote.runs({"jobType": "grid"}).values())
    shown = ", ".join(map(_printable, known)) or "none"
    return f"no grid {grid!r} is in {remote.entity}/{remote.project}; grids there: {shown}"


# --------------------------------------------------------------------------------------------------------------- runs
def _pull_runs(
    remote: Remote, runs: Sequence[RemoteRun], store: StorePaths, incoming: Path
) -> Iterator[tuple[RemoteRun, RunRecord | None, list[str]]]:
    """Each run with its record, None where the server has none or none that is one, and what is wrong with the run.

    What is wrong with the server is raised.
    """

    def pull(run: RemoteRun) -> tuple[RemoteRun, RunRecord | None, list[str]]:
        told: list[str] = []
        try:
            return run, _pull_run(remote, run, store.run(run.id), incoming / run.id, told), told
        except DataError as error:
            return run, None, [*told, one_line(error)]

    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(pull, runs)


def _pull_run(remote: Remote, run: RemoteRun, paths: RunPaths, folder: Path, problems: list[str]) -> RunRecord | None:
    """The run's record, if the server has one. Raises DataError where it is none; what else is wrong is a problem."""
    if paths.root.is_symlink():
        raise DataError(f"{paths.root} is a link, which no pull makes; remove it")
    files = remote.files(run, (RECORD, PREDICTIONS))
    if RECORD not in files:
        return None
    had = _versions(paths)
    have = {name: list(file.version) for name, file in files.items()} | {HISTORY: [run.identity, str(run.rows)]}
    durable.make_folder(folder)
    if had.get(RECORD) != have[RECORD] or not paths.record.exists():
        remote.download(files[RECORD], folder, largest_bytes=LARGEST_BYTES[RECORD])
        _publish_record(RunPaths(folder), paths)
    steps: dict[str, Callable[[], None]] = {
        PREDICTIONS: lambda: _pull_predictions(remote, files.get(PREDICTIONS), paths, folder),
        HISTORY: lambda: _write_metrics(paths.metrics, remote.history(run), rows_listed=run.rows),
    }
    for name, pull in steps.items():
        try:
            if had.get(name) != have.get(name):
                pull()
        except DataError as error:
            problems.append(one_line(error))
            have.pop(name, None)  # so that it is tried, and told, again
    durable.write_json(paths.pulled, have)
    shutil.rmtree(folder)
    return records.read_record(paths)


def _versions(paths: RunPaths) -> dict[str, Any]:
    """What of the run was read at the last time, in which version."""
    try:
        found = durable.read_json(paths.pulled)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _publish_record(arrived: RunPaths, paths: RunPaths) -> None:
    try:
        record = records.read_record(arrived)
        assert record is not None
        made_from = tuple(_made_from(record))
        if not all(isinstance(i, str) for i in made_from):
            raise ValueError(f"it is made from {made_from!r}")
    except Exception as error:  # whatever a file from elsewhere makes a reader stumble over
        cause = error.__cause__ or error
        raise DataError(f"record.json is no record of this version ({one_line(cause)})") from error
    if record.run_id != paths.root.name:
        raise DataError(f"record.json is that of another run ({record.run_id})")
    durable.make_folder(paths.root)
    durable.write_json(paths.spec, to_dict(record.spec))
    durable.publish(arrived.record, paths.record)


def _pull_predictions(remote: Remote, file: RemoteFile | None, paths: RunPaths, folder: Path) -> None:
    paths.predictions.unlink(missing_ok=True)
    if file is None:
        return
    arrived = remote.download(file, folder, largest_bytes=LARGEST_BYTES[PREDICTIONS])
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(arrived) as archive:  # the report names a damaged one
        size = sum(member.file_size for member in archive.infolist())
        if size > LARGEST_BYTES[PREDICTIONS]:
            raise DataError(f"{PREDICTIONS} unpacks to {size} bytes, larger than any of its kind; not kept")
    durable.publish(arrived, paths.predictions)


def _forget(paths: RunPaths) -> None:
    """What an earlier pull left of a run that the server no longer has."""
    if not paths.root.is_symlink():
        for path in (paths.pulled, paths.record, paths.spec, paths.metrics, paths.predictions):
            path.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------ history
def _write_metrics(path: Path, rows: Sequence[Mapping[str, Any]], *, rows_listed: int) -> None:
    """metrics.jsonl of what the server has, and then DataError where that is not all of it."""
    lines = metrics_lines(rows)
    content = b"".join(json.dumps(line, allow_nan=False).encode() + b"\n" for line in lines.values())
    durable.write_bytes(path, content)
    if len(rows) < rows_listed:
        raise DataError(f"{len(rows)} rows of its history could be read, the server lists {rows_listed}")
    if lines and len(lines) != max(lines):
        raise DataError(f"its history has {len(lines)} lines of {max(lines)}; next: {typed('sync.py')}")


def metrics_lines(rows: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    """The lines of metrics.jsonl by their numbers, from rows as the server has them.

    W&B's own keys are left out, and rows without a line (media); of two with one number the later counts; `batch` is
    called `step` again. Numbers are equal, but 1.0 comes back as 1. Raises DataError where a row is none of a run's.
    """
    found = {}
    for row in rows:
        # A row read from an exported file has every column of the file, empty where nothing was logged.
        line = {key: value for key, value in sorted(as_line(row).items()) if value is not None}
        number = line.pop("line", None)
        if number is None:
            continue
        if (
            type(number) not in (int, float)
            or number != int(number)
            or number < 1
            or not isinstance(line.get("kind"), str)
        ):
            raise DataError(
                f"its history has a row that is no line of a run: line {number!r}, kind {line.get('kind')!r}"
            )
        found[int(number)] = {"line": int(number), "kind": line.pop("kind"), **line}
    return {number: found[number] for number in sorted(found)}


def _printable(text: str) -> str:
    """Text from elsewhere for a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text[:400])
