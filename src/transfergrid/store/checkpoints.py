"""What a run goes on from: checkpoints/step-<steps>-line-<lines>-<sha256[:16]>.pt, the newest two."""

from __future__ import annotations

import contextlib
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from transfergrid.paths import RunPaths
from transfergrid.store import durable
from transfergrid.store.attempts import Attempt
from transfergrid.store.records import record_head


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """A checkpoint as its name tells: steps done, metrics lines it covers, first 16 hex of the content's sha256."""

    path: Path
    step: int
    lines: int
    sha256_16: str


def checkpoint_files(paths: RunPaths) -> list[CheckpointFile]:
    """Newest first, without reading them."""
    files = []
    for path in paths.checkpoints.glob("step-*.pt"):
        if match := re.fullmatch(r"step-(\d+)-line-(\d+)-([0-9a-f]{16})\.pt", path.name):
            files.append(CheckpointFile(path, int(match[1]), int(match[2]), match[3]))
    return sorted(files, key=lambda c: c.step, reverse=True)


def write_checkpoint(attempt: Attempt, content: bytes, *, step: int, lines: int, keep: int = 2) -> None:
    """Publish a checkpoint and drop all but the newest `keep`. The metrics lines it covers must be fsynced before."""
    attempt.assert_newest()
    name = f"step-{step:09d}-line-{lines:09d}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
    durable.write_bytes(attempt.paths.checkpoints / name, content)
    for old in checkpoint_files(attempt.paths)[keep:]:
        old.path.unlink(missing_ok=True)


def read_newest_checkpoint(paths: RunPaths) -> tuple[CheckpointFile, bytes] | None:
    """The newest checkpoint whose content matches its checksum; damaged ones are removed; None if there is none."""
    for file in checkpoint_files(paths):
        content = file.path.read_bytes()
        if hashlib.sha256(content).hexdigest()[:16] == file.sha256_16:
            return file, content
        file.path.unlink(missing_ok=True)
    return None


def remove_checkpoints(paths: RunPaths) -> None:
    for file in checkpoint_files(paths):
        file.path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        paths.checkpoints.rmdir()


def lines_covered(paths: RunPaths) -> int | None:
    """How many metrics lines can no longer be taken back; None means all (the run has its record)."""
    head = record_head(paths)
    if head is not None and head.status == "completed":
        return None
    return max((c.lines for c in checkpoint_files(paths)), default=0)
