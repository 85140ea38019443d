"""The code of a launch, copied beside its payload, so that jobs run what was launched, not what is on disk by then."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from transfergrid.cluster import ownership, slurm, slurm_words
from transfergrid.cluster.ledger import Ledger, Submission
from transfergrid.cluster.run_state import RunState
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

    Of launches in several waves the first has the code of all: it stays while one of its grid that has none is needed.
    """
    copies = [path for path in sorted(store.launches.glob("*/code")) if path.is_dir() and not path.is_symlink()]
    grids = {s.grid for s in ledger.submissions if s.launch / "code" in copies}
    launches: dict[Path, list[Submission]] = {}
    for submission in ledger.submissions:
        if submission.grid in grids:
            launches.setdefault(submission.launch, []).append(submission)
    reasons = [f"{path.parent.name}: nothing was sent from it yet" for path in copies if path.parent not in launches]
    copies = [path for path in copies if path.parent in launches]
    if not copies:
        return [], reasons
    try:
        where = ownership.here()
        queue = slurm.squeue({slurm.base_id(s.job_id) for sent in launches.values() for s in sent if s.job_id})
    except MachineError as error:
        return [], [*reasons, *(f"{path.parent.name}: {error}" for path in copies)]
    jobs = {slurm.base_id(entry.job_id) for entry in queue if not _is_over(entry)}
    runs = {run_id for sent in launches.values() for s in sent for task in s.tasks for run_id in task}
    states = take_snapshot(runs, store, ledger).states
    needed_for = {launch: _why_needed(launch, sent, where, jobs, states) for launch, sent in launches.items()}
    folders = []
    for path in copies:
        grid, reason = launches[path.parent][0].grid, needed_for[path.parent]
        of_grid = (launch for launch, sent in launches.items() if sent[0].grid == grid)
        borrower = next((b for b in of_grid if needed_for[b] is not None and b / "code" not in copies), None)
        if reason is None and borrower is not None:
            reason = f"launch {borrower.name} of the same grid has no code of its own"
        if reason is None:
            folders.append(path)
        else:
            reasons.append(f"{path.parent.name}: {reason}")
    return folders, reasons


def _why_needed(
    launch: Path, sent: list[Submission], where: ownership.Here, jobs: set[str], states: Mapping[str, RunState]
) -> str | None:
    """Why a job of a launch may still begin; None where none can. jobs: that SLURM has, of whatever launch."""
    if elsewhere := {s.cluster for s in sent} - {where.name, None}:
        return f"it was sent to cluster {min(map(str, elsewhere))}"
    live = any(states[run_id].is_live for s in sent for task in s.tasks for run_id in task)
    if live or any(s.job_id is None for s in sent if s.tasks):
        return "some of its runs may still come"
    if jobs & {slurm.base_id(s.job_id) for s in sent if s.job_id}:
        return "SLURM has jobs of it"
    if any(where.may_hide(s.proof) for s in sent if s.tasks):
        return "another user sent it, and SLURM hides others' jobs here (PrivateData)"
    known = {s.folder for s in sent if s.tasks}
    orders = [path for name in ("tasks.json", "finish.json") for path in launch.glob(f"slurm/*/{name}")]
    if any(path.parent not in known for path in orders):  # by a submit.sh that has not come to its end
        return "some of its jobs were not sent yet"
    return None


def _is_over(entry: slurm.JobRow) -> bool:
    of_state = slurm_words.meaning(entry.state)
    return of_state.kind == "ended" and not of_state.may_return
