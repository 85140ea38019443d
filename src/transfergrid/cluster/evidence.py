"""What is known of runs: what the store records, what squeue tells of their jobs, what the accounting keeps of them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from transfergrid.cluster import slurm
from transfergrid.cluster.accounting import sacct
from transfergrid.cluster.forms import time_of
from transfergrid.cluster.ledger import Ledger, Submission
from transfergrid.cluster.ownership import Here, Proof, here, proof_of_attempt
from transfergrid.cluster.slurm import JobRow
from transfergrid.errors import GridError, MachineError
from transfergrid.paths import StorePaths
from transfergrid.phases import phase_module
from transfergrid.planning import job
from transfergrid.specs import RunSpec, Runtime
from transfergrid.store import durable
from transfergrid.store.attempts import newest_attempt
from transfergrid.store.records import RECORD_FORMAT

LOG_TAIL_BYTES = 65536
FINISHED = "finished"  # in the folder of a finish job that has done all it is for: {"wandb": what came of it, in lines}


# ------------------------------------------------------------------------------------------------ what the store knows
@dataclass(frozen=True, slots=True)
class Own:
    """record: the run's, whatever attempt it is of. owner: the newest attempt. attempts: its number."""

    record: dict[str, Any] | None
    owner: dict[str, Any]
    attempts: int
    is_locked: bool

    @property
    def is_done(self) -> bool:
        return self.record is not None and self.record.get("status") == "completed"

    @property
    def started(self) -> datetime | None:
        return time_of(self.owner.get("started"))


@dataclass(frozen=True, slots=True)
class Case:
    """One run: what the store knows, and the task that was to carry it out, if any."""

    run_id: str
    own: Own
    submission: Submission | None
    index: int
    job_id: str | None

    @property
    def submitted(self) -> datetime | None:
        return self.submission.submitted if self.submission is not None else self.own.started

    @property
    def proof(self) -> Proof:
        return self.submission.proof if self.submission is not None else proof_of_attempt(self.own.owner)

    @property
    def is_finish(self) -> bool:
        return self.submission is not None and self.submission.kind == "finish"

    @property
    def began(self) -> bool:
        """Whether the newest attempt is of this task, in whatever restart of it."""
        if self.own.owner.get("slurm_task"):
            noted, proof = proof_of_attempt(self.own.owner), self.proof
            same = proof.token is None or (noted.cluster, noted.token) == (proof.cluster, proof.token)
            return bool(self.own.owner["slurm_task"] == self.job_id) and same
        started, submitted = self.own.started, self.submitted
        return self.own.owner.get("slurm_job_id") is not None and _not_before(started, submitted)

    def began_since(self, restarts: int) -> bool:
        return self.began and int(self.own.owner.get("slurm_restart_count") or 0) >= restarts

    @property
    def has_current_record(self) -> bool:
        """Whether the record is of the newest attempt, and no later submission has opened the matter again."""
        record = self.own.record
        if record is None or record.get("attempt", 0) < self.own.attempts:
            return False
        if self.submission is None or self.began:
            return True
        ended = time_of((record.get("provenance") or {}).get("ended")) or self.own.started
        return _not_before(ended, self.submission.submitted)


@dataclass(slots=True)
class Look:
    """What one take_snapshot has read and been told. here: the cluster that answers; None where none does. account: by
    cluster and job."""

    store: StorePaths
    ledger: Ledger
    now: datetime
    read: dict[str, Own] = field(default_factory=dict)
    here: Here | None = None
    queue: dict[str, JobRow] = field(default_factory=dict)
    account: dict[tuple[str, str], JobRow] = field(default_factory=dict)
    error: str | None = None
    accounting: bool = True

    def own(self, run_id: str) -> Own:
        if run_id not in self.read:
            self.read[run_id] = _read_own(self.store, run_id)
        return self.read[run_id]

    def entry(self, case: Case) -> JobRow | None:
        """The queue's row of a run's job, where it proves to be that."""
        row = self.queue.get(str(case.job_id))
        if row is None or self.here is None:
            return None
        return row if case.proof.fits(self.here.name, row.name, row.comment) else None

    def renamed(self, case: Case) -> JobRow | None:
        """A live job of a run's number and user that bears another name."""
        row, here = self.queue.get(str(case.job_id)), self.here
        if row is None or here is None or not case.proof.may_be_renamed(here.name, row):
            return None
        return None if any(s.proof.fits(here.name, row.name) for s in self.ledger.submissions) else row

    def accounted(self, case: Case) -> JobRow | None:
        """What the accounting keeps of a run's job, where it proves to be that."""
        clusters = {case.proof.cluster} if case.proof.cluster is not None else {cluster for cluster, _ in self.account}
        known = (self.account.get((str(cluster), str(case.job_id))) for cluster in clusters)
        return next((a for a in known if a is not None and case.proof.fits(a.cluster, a.name)), None)

    def elsewhere(self, case: Case) -> str | None:
        """The cluster that has a run's job, where that is another than answers here."""
        cluster = case.proof.cluster
        return cluster if self.here is not None and cluster not in (None, self.here.name) else None

    def age_s(self, moment: datetime | None) -> float:
        return float("inf") if moment is None else (self.now - moment).total_seconds()


def _read_own(store: StorePaths, run_id: str) -> Own:
    paths = store.run(run_id)
    record = read_object(paths.record)
    if record is not None and record.get("format") != RECORD_FORMAT:
        record = None
    if record is not None and record.get("status") == "completed":
        return Own(record, {}, int(record.get("attempt") or 0), False)
    number = newest_attempt(paths)
    owner = read_object(paths.attempt(number)) if number else None
    return Own(record, owner or {}, number, bool(number) and durable.is_locked(paths.lock))


def case_of(look: Look, run_id: str) -> Case:
    own, newest = look.own(run_id), look.ledger.newest(run_id)
    if newest is not None:
        return Case(run_id, own, *newest, job_id=newest[0].task_id(newest[1]))
    # A job that somebody wrote by hand stands in no ledger; its attempt names it.
    return Case(run_id, own, None, 0, own.owner.get("slurm_task") or own.owner.get("slurm_job_id"))


def finish_case(ledger: Ledger, grid: str) -> Case | None:
    """The finish job of a grid, the newest; without its submission where jobs of the grid were sent after it, or none
    was sent; None where no jobs of the grid were."""
    sent = [s for s in ledger.of_grid(grid, "runs") if s.sender != "sweep"]
    if not sent:
        return None
    name, unbegun = f"the finish job of {grid}", Own(None, {}, 0, False)
    newest = next(iter(reversed(ledger.of_grid(grid, "finish"))), None)
    if newest is None or newest.submitted < sent[-1].submitted:
        return Case(name, unbegun, None, 0, None)
    is_done = (newest.folder / FINISHED).exists()
    own = replace(unbegun, record={"status": "completed"}) if is_done else unbegun
    return Case(name, own, newest, 0, newest.job_id)


# ----------------------------------------------------------------------------------------------------- what SLURM knows
def ask_slurm(look: Look, cases: Sequence[Case], timeout_s: float) -> None:
    """Which cluster this is; one squeue for all its jobs of runs that are not done; and of those that this leaves open
    one sacct per cluster they were sent to, which is one as a rule."""
    undone = [c for c in cases if not c.own.is_done and not _ended_by_record(c)]
    with_jobs = [c for c in undone if c.job_id is not None]
    if not with_jobs and all(c.submission is None for c in undone):
        return
    try:
        look.here = here(timeout_s)
        if ids := {slurm.base_id(str(c.job_id)) for c in with_jobs if look.elsewhere(c) is None}:
            look.queue = {e.job_id: e for e in slurm.squeue(ids, timeout_s=timeout_s)}
    except MachineError as error:
        look.error = str(error)
    of_cluster: dict[str | None, list[Case]] = {}
    for case in with_jobs:
        if case.submitted is not None and not _explained(look, case):
            of_cluster.setdefault(case.proof.cluster or (look.here.name if look.here else None), []).append(case)
    for cluster, unexplained in of_cluster.items():
        ids = {slurm.base_id(str(c.job_id)) for c in unexplained}
        since = min(c.submitted for c in unexplained if c.submitted is not None)
        account = sacct(ids, since=since, cluster=cluster, timeout_s=timeout_s)
        if look.here is None or cluster == look.here.name:
            look.accounting = account is not None
        look.account |= {(a.cluster, a.job_id): a for a in account or ()}


def _ended_by_record(case: Case) -> bool:
    """A failed record of an attempt that wrote its end: no newer job can have taken the run up."""
    return case.has_current_record and case.submission is None and bool(case.own.owner.get("ended"))


def _explained(look: Look, case: Case) -> bool:
    """FAILED needs the accounting's steps: only they tell of memory, and it has the exit code."""
    entry = look.entry(case)
    return case.has_current_record or (entry is not None and entry.state != "FAILED")


def ending_of(look: Look, case: Case, entry: JobRow | None) -> JobRow | None:
    """How a job left the queue, or, of accounting that lags behind, that it is alive."""
    account = look.accounted(case)
    if account is not None and (entry is None or account.has_ended):
        return account if entry is None or account.state == "OUT_OF_MEMORY" else replace(account, state=entry.state)
    return None if entry is None else replace(entry, elapsed_s=entry.elapsed_s or 0.0)


# --------------------------------------------------------------------------------------------------------------- files
def logs_of(case: Case) -> str:
    """The ends of the job's output and errors."""
    return "" if case.submission is None else "\n".join(map(log_tail, case.submission.logs(case.index)))


def log_tail(path: Path, size: int = LOG_TAIL_BYTES) -> str:
    """The end of a log as text; nothing where there is no log."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def payload_of(launch: Path) -> Mapping[str, tuple[RunSpec, Runtime]]:
    """What a launch was to run and how, by run_id; nothing where its payload is gone: another process may be clearing
    up."""
    path = launch / "specs.json"
    try:
        return _read_payload(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, KeyError, TypeError):
        return {}


@lru_cache(maxsize=64)
def _read_payload(path: Path, changed_ns: int) -> Mapping[str, tuple[RunSpec, Runtime]]:
    payload = job.read_payload(path)
    return {run.run_id: (run, payload.runtime) for run in payload.runs}


def has_artifacts(case: Case) -> bool:
    """Whether what the run makes is there, whoever made it."""
    order = None if case.submission is None else payload_of(case.submission.launch).get(case.run_id)
    try:
        return order is not None and phase_module(order[0].phase).is_done(*order)
    except (GridError, OSError):
        return False


def last_sign(store: StorePaths, case: Case) -> datetime | None:
    """When a run was last known to be alive: its newest metrics line, its start, or its submission."""
    with contextlib.suppress(OSError):
        if case.began:
            return datetime.fromtimestamp(store.run(case.run_id).metrics.stat().st_mtime, UTC)
    return case.own.started if case.began else case.submitted


def node_of(own: Own) -> str:
    return str(own.owner.get("node") or own.owner.get("host") or "")


def read_object(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is none, or another kind of thing."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _not_before(moment: datetime | None, other: datetime | None) -> bool:
    return moment is not None and (other is None or moment >= other)
