"""Image folders on a node's own disk: a shared file system reads thousands of small files slowly, epoch after epoch."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from transfergrid.errors import MachineError
from transfergrid.specs import Runtime, safe_name
from transfergrid.store import durable
from transfergrid.store.attempts import slurm_task

logger = logging.getLogger(__name__)


@contextmanager
def staged(runtime: Runtime, datasets: Sequence[str], scratch_dir: str | None) -> Iterator[Runtime]:
    """Inside the block, these data sets' folders lie in a folder of this job's own below scratch_dir.

    scratch_dir may hold the node's environment variables, as $TMPDIR. What is read is checked against the data set's
    identity as ever. Where there is no room, the run reads what it would have read without. None stages nothing.
    """
    folders = {name: Path(f) for name, f in runtime.data_folders.items() if name in datasets}
    if scratch_dir is None or not folders:
        yield runtime
        return
    root = os.path.expandvars(scratch_dir)
    if "$" in root:
        logger.warning("%s: that variable is not set on this node; nothing is staged", root)
        yield runtime
        return
    scratch = Path(root) / f"transfergrid-{os.getuid()}-{slurm_task() or os.getpid()}"
    try:
        copies = {}
        for name, folder in folders.items():
            copies[name] = str(_copy(folder, scratch / safe_name(name)))
    except (OSError, MachineError) as error:
        logger.warning("%s: not staged (%s), reading the shared folder", scratch, error)
        shutil.rmtree(scratch, ignore_errors=True)
        copies = {}
    try:
        yield replace(runtime, data_folders=runtime.data_folders | copies)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _copy(source: Path, target: Path) -> Path:
    """Raises OSError where there is no room."""
    began = time.monotonic()
    needed = sum(f.stat().st_size for f in source.rglob("*") if f.is_file())
    shutil.rmtree(target, ignore_errors=True)  # of an attempt that was killed
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    free = shutil.disk_usage(target.parent).free
    if needed > 0.9 * free:
        raise OSError(f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
    durable.copy_tree(source, target)
    logger.info("staged %s to %s: %.0f MB in %.1f s", source, target, needed / 1e6, time.monotonic() - began)
    return target
