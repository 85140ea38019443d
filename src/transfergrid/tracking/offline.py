"""Reader of W&B's offline runs: what has reached a `.wandb` file is what has been mirrored, and nothing else is.

results/wandb/
    wandb/offline-run-<time>-<run_id>/run-<run_id>.wandb    one fragment; what `wandb sync` takes
    wandb/run-<time>-<run_id>/                              the same of what was sent online
    data/ cache/ config/                                    W&B's own folders, kept off $HOME
    locks/ logs/                                            of the mirrors
    verified/<run_id>.json                                  attempt and status that the server was seen to hold

A run has one fragment per mirror that carried a part of it: same id, resume="allow", disjoint lines. W&B 0.31 offers no
reader in Python (`wandb leet inspect` starts in 0.8 s and leaves out group and job type), hence this one. The format: a
7-byte file header, then a LevelDB log of 32 KiB blocks with IEEE CRC-32 over type and content, each whole entry a
protocol buffer `Record` of the wire protocol with the server.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transfergrid.errors import DataError
from transfergrid.paths import StorePaths
from transfergrid.store import durable
from transfergrid.tracking.description import as_line

HEADER = struct.Struct("<4sHB")
ENTRY = struct.Struct("<IHB")  # crc32, length, type
BLOCK_BYTES = 32768
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass(slots=True, kw_only=True)
class OfflineRun:
    """One fragment. rows: the lines of metrics.jsonl that it holds.

    exit_code: None where the fragment has no end (its mirror was killed, or is at work).
    """

    id: str = ""
    name: str = ""
    project: str = ""
    group: str = ""
    job_type: str = ""
    tags: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None


def fragment_files(store: StorePaths, run_id: str) -> list[Path]:
    """The `.wandb` files of a run, in the order in which they were begun."""
    # Two fragments begun within one second differ by the suffix -1, -2, ...
    name = re.compile(rf"offline-run-(\d{{8}}_\d{{6}})-{re.escape(run_id)}(?:-(\d+))?")
    folder = store.wandb / "wandb"
    matches = [name.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    ordered = sorted((m[1], int(m[2] or 0), m[0]) for m in matches if m)
    return [file for *_, found in ordered if (file := folder / found / f"run-{run_id}.wandb").is_file()]


def mark_verified(store: StorePaths, run_id: str, told: tuple[int, str]) -> None:
    """The server was seen to hold all of a finished run (told: its attempt and status): its W&B folders may go."""
    durable.write_json(store.wandb / "verified" / f"{run_id}.json", list(told))
    with durable.lock(lock_file(store, run_id), wait=False) as is_mine:
        if is_mine:  # else a mirror is just ending the run
            for folder in run_folders(store, run_id):
                shutil.rmtree(folder, ignore_errors=True)


def lock_file(store: StorePaths, run_id: str) -> Path:
    """Who holds it alone writes the run's offline files."""
    return store.wandb / "locks" / f"{run_id}.lock"


def verified(store: StorePaths, run_id: str) -> tuple[int, str] | None:
    """Attempt and status of the record that the server was last seen to hold."""
    try:
        attempt, status = durable.read_json(store.wandb / "verified" / f"{run_id}.json")
    except (OSError, ValueError, TypeError):
        return None
    return attempt, status


def run_folders(store: StorePaths, run_id: str) -> list[Path]:
    """W&B's folders of a run, written offline or online."""
    name = re.compile(rf"(?:offline-)?run-\d{{8}}_\d{{6}}-{re.escape(run_id)}(?:-\d+)?")
    folder = store.wandb / "wandb"
    return sorted(path for path in folder.iterdir() if name.fullmatch(path.name)) if folder.is_dir() else []


def rows_of_run(store: StorePaths, run_id: str) -> list[dict[str, Any]]:
    """Everything that was mirrored of a run, one row per metrics line, ordered by `line`; [] where nothing was."""
    return merged_rows(read_run(path) for path in fragment_files(store, run_id))


def merged_rows(fragments: Iterable[OfflineRun]) -> list[dict[str, Any]]:
    """The rows of one run's fragments ordered by `line`; where two have the same line, the later fragment's."""
    by_line = {row["line"]: row for fragment in fragments for row in fragment.rows}
    return [by_line[line] for line in sorted(by_line)]


def read_run(path: Path) -> OfflineRun:
    """One fragment. A torn tail or a damaged block costs the rows in it. Raises DataError on any other kind of file."""
    run = OfflineRun()
    for record in _records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.id, run.name, run.project = record.run.run_id, record.run.display_name, record.run.project
            run.group, run.job_type, run.tags = record.run.run_group, record.run.job_type, tuple(record.run.tags)
            _update(run.config, record.run.config.update)
        elif kind in ("config", "summary"):
            _update(getattr(run, kind), getattr(record, kind).update)
        elif kind == "history":
            row: dict[str, Any] = {}
            _update(row, record.history.item)
            if "line" in row:  # else the row that ends a run: what is shown of its predictions
                run.rows.append(as_line(row))
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _records(path: Path) -> Iterator[Any]:
    # Here, because it loads W&B (0.7 s), and a launch that mirrors nothing should not pay for it.
    from wandb.proto import wandb_internal_pb2

    for content in _log_entries(path):
        record = wandb_internal_pb2.Record()  # type: ignore[attr-defined, unused-ignore]  # generated code
        record.ParseFromString(content)
        yield record


def _log_entries(path: Path) -> Iterator[bytes]:
    """The whole entries of the log; what does not match its checksum is left out up to the end of its block."""
    content = path.read_bytes()
    if not content:
        return  # killed before the header was flushed
    if len(content) < HEADER.size or HEADER.unpack_from(content) != (b":W&B", 0xBEE1, 0):
        raise DataError(f"{path} is not a .wandb file of a known version; delete its folder to have it written again")
    entry: bytes | None = None
    at = HEADER.size
    while at + ENTRY.size <= len(content):
        room = BLOCK_BYTES - at % BLOCK_BYTES
        if room < ENTRY.size:
            at += room
            continue
        crc, length, kind = ENTRY.unpack_from(content, at)
        part = content[at + ENTRY.size : at + ENTRY.size + length]
        if kind not in (FULL, FIRST, MIDDLE, LAST) or len(part) < length or zlib.crc32(bytes([kind]) + part) != crc:
            entry = None
            at += room
            continue
        at += ENTRY.size + length
        if kind in (FULL, FIRST):
            entry = part
        elif entry is not None:
            entry += part
        if kind in (FULL, LAST) and entry is not None:
            yield entry
            entry = None


def _update(target: dict[str, Any], items: Iterable[Any]) -> None:
    for item in items:
        *outer, last = list(item.nested_key) or [item.key]
        inner = target
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = json.loads(item.value_json)
