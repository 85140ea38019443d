"""What produced a record: the code by its hash, the commit it came from, the machine."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import socket
import subprocess
from pathlib import Path
from typing import Any

from transfergrid.store import durable

PACKAGE = Path(__file__).parents[1]
ORIGIN = PACKAGE.parents[1] / "origin.json"  # beside a launch's snapshot of the code: the commit it was taken from


def import_path(source: Path = PACKAGE.parent) -> str:
    """PYTHONPATH of a process that imports the code in `source`, with what the user has there behind it."""
    return os.pathsep.join(filter(None, [str(source), os.environ.get("PYTHONPATH")]))


@functools.cache
def code_hash() -> str:
    """hash_of this package, as it was when first asked."""
    return hash_of(PACKAGE)


def hash_of(package: Path) -> str:
    """16 hex of sha256 over a package's Python and JSON files; hidden ones, of editors, are in no snapshot either."""
    total = hashlib.sha256()
    for path in sorted(p for p in package.rglob("*") if p.suffix in (".py", ".json")):
        name = path.relative_to(package)
        if not any(part.startswith(".") for part in name.parts):
            total.update(str(name).encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()[:16]


@functools.cache
def git_state() -> tuple[str | None, bool]:
    """(commit, dirty) of the checkout this package, or the snapshot it is, came from; (None, False) outside one."""
    with contextlib.suppress(OSError, ValueError):
        origin = durable.read_json(ORIGIN)
        return origin["git_commit"], origin["git_dirty"]

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=PACKAGE, capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, False


def provenance() -> dict[str, Any]:
    """What produced a record, as far as it is known without torch; phases add torch, CUDA and feature keys."""
    commit, dirty = git_state()
    return {
        "git_commit": commit,
        "git_dirty": dirty,
        "code_hash": code_hash(),
        "host": socket.gethostname(),
        "machine": machine_name(),
        "python": platform.python_version(),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
    }


def machine_name() -> str:
    """`AMD EPYC 7763 64-Core Processor, 128 CPUs`: what outlives a restart under another host name."""
    return f"{cpu_name()}, {os.cpu_count()} CPUs"


@functools.cache
def cpu_name() -> str:
    """The processor's own name, where the kernel tells it; else its architecture."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return " ".join(value.split())
    return platform.machine()
