"""The code of a launch, copied beside its payload, so that jobs run what was launched, not what is on disk by then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from transfergrid.cluster import ownership, slurm, slurm_words
from transfergrid.cluster.ledger import Ledger, Submission
from transfergrid.cluster.states import take_snapshot
from transfergrid.errors import MachineError
from transfergrid.paths import StorePaths
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


def copies_to_collect(store: StorePaths, ledger: Ledger) -> tuple[list[Path], list[str]]:
    """The code/ folders of launches of which no job can begin any more; and why others stay, a line each.

    A launch stays while SLURM has one of its jobs, while one of its runs may still come, and where nothing was sent
    from it: it may be about to be. Jobs of another cluster are collected there.
    """
    launches: dict[Path, list[Submission]] = {}
    for submission in ledger.submissions:
        if (submission.launch / "code").is_dir():
            launches.setdefault(submission.launch, []).append(submission)
    unsent = [path for path in store.launches.glob("*/code") if path.parent not in launches]
    reasons = [f"{path.parent.name}: nothing was sent from it yet" for path in sorted(unsent)]
    if not launches:
        return [], reasons
    try:
        cluster = ownership.here().name
        queue = slurm.squeue({slurm.base_id(s.job_id) for sent in launches.values() for s in sent if s.job_id})
    except MachineError as error:
        return [], [*reasons, *(f"{path.name}: {error}" for path in launches)]
    jobs = {slurm.base_id(entry.job_id) for entry in queue if not _is_over(entry)}
    runs = {run_id for sent in launches.values() for s in sent for task in s.tasks for run_id in task}
    states = take_snapshot(runs, store, ledger).states
    folders = []
    for launch, sent in sorted(launches.items()):
        of_it = {run_id for s in sent for task in s.tasks for run_id in task}
        if elsewhere := {s.cluster for s in sent} - {cluster, None}:
            reasons.append(f"{launch.name}: it was sent to cluster {min(map(str, elsewhere))}")
        elif any(s.job_id is None for s in sent if s.tasks) or any(states[run_id].is_live for run_id in of_it):
            reasons.append(f"{launch.name}: some of its runs may still come")
        elif jobs & {slurm.base_id(s.job_id) for s in sent if s.job_id}:
            reasons.append(f"{launch.name}: SLURM has jobs of it")
        else:
            folders.append(launch / "code")
    return folders, reasons


def _is_over(entry: slurm.JobRow) -> bool:
    of_state = slurm_words.meaning(entry.state)
    return of_state.kind == "ended" and not of_state.may_return
