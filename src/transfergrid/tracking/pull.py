"""A store made from what a W&B server holds of a grid, for the report of a machine that has not the grid's own store.

    <cache.dir>/wandb/<entity>/<project>/    a store like any other, and
        runs/<run_id>/pulled.json    which versions of the server's files and history were read

What comes from a server is not trusted: names of runs become paths only if a run of this package could bear them, files
have a largest size, and nothing is kept before it has been read.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    problems: what the server has but what cannot be used as it is, a line each."""

    run_ids: tuple[str, ...]
    missing: tuple[GridEntry, ...]
    problems: tuple[str, ...]


def pull_grid(account: Account, grid: str, store: StorePaths, *, say: Say) -> Pulled:
    """Bring `store` to what the server holds of the grid; what has not changed since the last time is not read again.
    `say` gets a line for whatever limits what the report can show. Raises Unreachable, or ConfigError where the server
    has no such project or grid."""
    store = StorePaths(store.root.resolve())  # W&B's own process need not have the same working folder
    with wandb_session(store, account.url) as folder, durable.lock(store.root / ".pull.lock", wait=True):
        return _pull(Remote(account), grid, store, folder / "incoming", say)


def _pull(remote: Remote, grid: str, store: StorePaths, incoming: Path, say: Say) -> Pulled:
    entries, select_by, problems = _entries(remote, grid, incoming, say)
    records.write_grid(store.grid(grid), grid=grid, entries=entries, select_by=select_by)
    record_by_id: dict[str, RunRecord] = {}
    unusable: set[str] = set()
    ids = list(dict.fromkeys(e.run_id for e in entries))
    known = set(ids)

    def pull(run: RemoteRun) -> tuple[RemoteRun, RunRecord | None, list[str]]:
        """With what is wrong with the run. What is wrong with the server is raised."""
        lines: list[str] = []
        try:
            return run, _pull_run(remote, run, store.run(run.id), incoming / run.id, lines), lines
        except DataError as error:
            return run, None, [*lines, one_line(error)]

    while ids:  # and then what these are made from, which a grid need not list
        run_by_id = remote.runs_named(ids)
        with ThreadPoolExecutor(THREADS) as pool:
            for run, record, lines in pool.map(pull, [run_by_id[i] for i in ids if i in run_by_id]):
                problems += [_printable(f"{run.id}: {line}") for line in lines]
                if record is not None:
                    record_by_id[run.id] = record
                elif lines:
                    unusable.add(run.id)
        for run_id in ids:
            if run_id not in record_by_id:
                _forget(store.run(run_id))
        ids = sorted({i for r in record_by_id.values() for i in _made_from(r) if _is_safe(i)} - known)
        known |= set(ids)
    lacking = known - set(record_by_id) - unusable
    missing = tuple(e for e in dict.fromkeys(entries) if e.run_id in lacking)
    if absent := sorted(lacking - {e.run_id for e in missing}):
        say(f"used by runs of the grid, but not on the server, so its cost is not shown: {some(absent, 3)}")
    return Pulled(tuple(sorted(record_by_id)), missing, tuple(problems))


def _made_from(record: RunRecord) -> Iterable[str]:
    return (*record.spec.needs, *(run.run_id for run in record.spec.extractions))


# --------------------------------------------------------------------------------------------------------------- grid
def _entries(remote: Remote, grid: str, incoming: Path, say: Say) -> tuple[list[GridEntry], SelectBy, list[str]]:
    """What the grid consists of and what it chooses by, by its own list or else by the runs' tags; and what of that is
    none."""
    select_by: SelectBy = "accuracy"
    grid_id = f"grid-{safe_name(grid)}"
    run = remote.runs_named([grid_id]).get(grid_id)
    listed, reason = None, f"grid {grid!r} has no grid.json on the server"
    try:
        file = None if run is None else remote.files(run, [GRID]).get(GRID)
        if file is not None:
            path = remote.download(file, incoming / grid_id, largest_bytes=LARGEST_BYTES[GRID])
            listed, select_by = records.read_grid(path), records.selected_by(path)
    except (DataError, RecursionError) as error:
        listed, reason = None, f"grid.json of grid {grid!r} is damaged ({one_line(error.__cause__ or error)})"
    if listed is None:
        listed = _tagged(remote, grid)
        if not listed and run is None:
            grids = sorted(run.id.removeprefix("grid-") for run in remote.runs({"jobType": "grid"}).values())
            raise ConfigError(
                f"no grid {grid!r} is in {remote.entity}/{remote.project}; grids there: "
                f"{', '.join(map(_printable, grids)) or 'none'}"
            )
        say(f"{_printable(reason)}; its rows are those of the {len(listed)} runs that carry its tag")
    entries = [e for e in listed if _is_entry(e)]
    problems = [f"{_printable(str(e.run_id))!r} is no run that a grid can hold" for e in listed if not _is_entry(e)]
    return entries, select_by, problems


def _tagged(remote: Remote, grid: str) -> list[GridEntry]:
    """From the runs' own words, in the order in which they were made."""
    names, entries = ("dataset", "model", "variant", "weights", "protocol"), []
    for run in remote.tagged(grid_tag(grid)).values():
        if run.job_type in PHASES:
            texts = {name: run.config.get(name) or "" for name in names}
            entries.append(GridEntry(run_id=run.id, phase=run.job_type, seed=run.config.get("seed"), **texts))
    return entries


def _is_entry(entry: GridEntry) -> bool:
    texts = [getattr(entry, f.name) for f in fields(entry) if f.name != "seed"]
    fit = all(isinstance(text, str) and len(text) <= LONGEST_NAME and text.isprintable() for text in texts)
    return fit and _is_safe(entry.run_id) and (entry.seed is None or type(entry.seed) is int)


def _is_safe(run_id: str) -> bool:
    """Whether it is the name of a run, and so one folder's name and no way out of it."""
    return 0 < len(run_id) <= LONGEST_NAME and safe_name(run_id) == run_id


# --------------------------------------------------------------------------------------------------------------- runs
def _pull_run(remote: Remote, run: RemoteRun, paths: RunPaths, folder: Path, problems: list[str]) -> RunRecord | None:
    """The run's record, if the server has one. Raises DataError where it is none; what else is wrong is a problem."""
    if paths.root.is_symlink():
        raise DataError(f"{paths.root} is a link, which no pull makes; remove it")
    files = remote.files(run, (RECORD, PREDICTIONS))
    if RECORD not in files:
        return None
    former = _versions(paths)
    current = {name: list(file.version) for name, file in files.items()} | {HISTORY: [run.identity, str(run.rows)]}
    if former.get(RECORD) != current[RECORD] or not paths.record.exists():
        remote.download(files[RECORD], folder, largest_bytes=LARGEST_BYTES[RECORD])
        _publish_record(RunPaths(folder), paths)
    steps: dict[str, Callable[[], None]] = {
        PREDICTIONS: lambda: _pull_predictions(remote, files.get(PREDICTIONS), paths, folder),
        HISTORY: lambda: _write_metrics(paths.metrics, remote.history(run), rows_listed=run.rows),
    }
    for name, pull in steps.items():
        try:
            if former.get(name) != current.get(name):
                pull()
        except DataError as error:
            problems.append(one_line(error))
            current.pop(name, None)  # so that it is tried, and told, again
    durable.write_json(paths.pulled, current)
    shutil.rmtree(folder, ignore_errors=True)
    return records.read_record(paths)


def _versions(paths: RunPaths) -> dict[str, Any]:
    """What of the run was read at the last time, in which version."""
    with contextlib.suppress(OSError, ValueError):
        if isinstance(versions := durable.read_json(paths.pulled), dict):
            return versions
    return {}


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
    """The lines of metrics.jsonl by their numbers, from rows as the server has them. W&B's own keys are left out, and
    rows without a line (media); of two with one number the later counts; `batch` is called `step` again. Numbers are
    equal, but 1.0 comes back as 1. Raises DataError where a row is none of a run's."""
    lines = {}
    for row in rows:
        # A row read from an exported file has every column of the file, empty where nothing was logged.
        line = {key: value for key, value in sorted(as_line(row).items()) if value is not None}
        number, kind = line.pop("line", None), line.pop("kind", None)
        if number is None:
            continue
        if type(number) not in (int, float) or number != int(number) or number < 1 or not isinstance(kind, str):
            raise DataError(f"its history has a row that is no line of a run: line {number!r}, kind {kind!r}")
        lines[int(number)] = {"line": int(number), "kind": kind, **line}
    return dict(sorted(lines.items()))


def _printable(text: str) -> str:
    """Text from elsewhere for a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text[:400])
