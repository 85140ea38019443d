"""The code of a launch, copied beside its payload, so that jobs run what was launched, not what is on disk by then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from transfergrid.errors import MachineError
from transfergrid.store import durable
from transfergrid.store.provenance import PACKAGE, code_hash, git_state, hash_of

IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


def take_snapshot_of_code(launch: Path) -> Path:
    """launch/code/src/transfergrid: the package as it is imported now, uncommitted changes included.

    Returns launch/code/src, which goes in front of the node's PYTHONPATH. Beside src/, origin.json says which commit
    it was and the hash of what was copied. Raises MachineError where the code has changed since this process began.
    """
    root = launch / "code"
    durable.make_folder(root / "src")
    durable.copy_tree(PACKAGE, root / "src" / PACKAGE.name, ignore=IGNORED)
    conf = PACKAGE.parents[1] / "conf"
    if conf.is_dir():
        durable.copy_tree(conf, root / "conf", ignore=IGNORED)
    if hash_of(root / "src" / PACKAGE.name) != code_hash():
        raise MachineError(
            f"{PACKAGE} was edited while this launch was being made", remedy="nothing was sent, launch again"
        )
    commit, dirty = git_state()
    origin = {"git_commit": commit, "git_dirty": dirty, "code_hash": code_hash()}
    durable.write_bytes(root / "origin.json", json.dumps(origin, indent=2).encode())
    return root / "src"
