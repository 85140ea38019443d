"""Which job of SLURM's a submission became: the one that bears its token, not the one whose number sbatch printed.

A banner may hold a number, and an answer may be lost. So after every sbatch, and of every intent that a launcher left
behind, the job is found by what SLURM shows, and only then written into the ledger.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from transfergrid.cluster import accounting, slurm
from transfergrid.cluster import ledger as ledgers
from transfergrid.cluster.ledger import Ledger, Submission
from transfergrid.cluster.ownership import Here, here
from transfergrid.cluster.slurm import SETTLING_S, JobRow, SlurmDown
from transfergrid.errors import one_line
from transfergrid.store import durable

RETRY_S = 3.0
LAUNCH_AGAIN = "launch again once it does: what was sent is found, what was not is sent"
LOOKS = 3  # at what SLURM shows, before a job of which sbatch said nothing counts as never sent


def look_up(submission: Submission, deadline: float) -> Submission | None:
    """A submission with its job's id, once SLURM shows that job; None where it has answered several times without it.
    Raises SlurmDown where it does not answer until the deadline, of time.monotonic()."""
    looks = 0
    while looks < LOOKS:
        try:
            adopted = adopt([submission])
        except SlurmDown as error:
            if time.monotonic() > deadline:
                raise SlurmDown(
                    f"SLURM's controller has not answered ({one_line(error)})", remedy=LAUNCH_AGAIN
                ) from error
            looks = 0
        else:
            if adopted:
                return adopted[0]
            looks += 1
        time.sleep(RETRY_S)
    return None


def adopt(intents: Sequence[Submission]) -> list[Submission]:
    """Those intents that became jobs, recorded with their ids, their pickles in place. All are of one cluster."""
    adopted = []
    ids = _job_ids(intents)
    for intent in intents:
        if intent.name in ids:
            submission = replace(intent, job_id=ids[intent.name])
            put_pickles(submission)
            ledgers.record(submission)
            adopted.append(submission)
    return adopted


def _job_ids(intents: Sequence[Submission]) -> dict[str, str]:
    """Name of each submission that SLURM shows -> its job's id. The number that sbatch told is looked at first, then
    all that its user has in the queue, since tasks rename themselves; then the accounting, of what has ended."""
    number_of = {s.name: number for s in intents if (number := _printed_id(s)) is not None}
    id_of = _matched([s for s in intents if s.name in number_of], slurm.squeue(number_of.values()))
    missing = [s for s in intents if s.name not in id_of]
    uids = {s.uid for s in missing if s.uid is not None}
    id_of |= _matched(missing, slurm.squeue(uids=uids))
    missing = [s for s in missing if s.name not in id_of]
    if missing and uids:
        since = min(s.submitted for s in missing)
        id_of |= _matched(missing, accounting.sacct(uids=uids, since=since, cluster=missing[0].cluster) or ())
    return id_of


def _matched(submissions: Sequence[Submission], entries: Sequence[JobRow]) -> dict[str, str]:
    """Name of each submission, of one cluster, whose job is among what that cluster shows -> its job's id."""
    id_of = {}
    jobs = [e for e in entries if slurm.was_taken(e.state, e.nodes)]
    for submission in submissions:
        proof = submission.proof
        own = (e.job_id for e in jobs if proof.is_complete and proof.fits(str(proof.cluster), e.name))
        if (job_id := next(own, None)) is not None:
            id_of[submission.name] = slurm.base_id(job_id)
    return id_of


def _may_be_under_way(intent: Submission, *, alone: bool) -> bool:
    """Whether its sender may be between the intent and sbatch's answer."""
    if intent.sender == "launch":
        return not alone
    return (datetime.now(UTC) - intent.submitted).total_seconds() < SETTLING_S


def _printed_id(intent: Submission) -> str | None:
    """The number that sbatch told: the pickles' names begin with it."""
    pickle = next(iter(intent.folder.glob("[0-9]*_submitted.pkl")), None)
    return None if pickle is None else slurm.base_id(pickle.name)


def put_pickles(submission: Submission) -> None:
    """As submitit does after sbatch: each task's pickle under the task's name, where the task waits for it."""
    pickles = [p for p in submission.folder.glob("*.pkl") if not p.name.endswith("_result.pkl")]
    names = {f"{submission.task_id(index)}_submitted.pkl" for index in range(len(submission.tasks))}
    if not pickles or {p.name for p in pickles} == names:
        return
    contents = {p.read_bytes() for p in pickles}
    if len(contents) > 1:  # a sweep's: each holds its own run, and submitit puts them in their places itself
        return
    [content] = contents
    for name in names:
        durable.write_bytes(submission.folder / name, content)
    for pickle in pickles:
        if pickle.name not in names:
            pickle.unlink()


def adopt_intents(ledger: Ledger, where: Here | None = None, *, alone: bool) -> bool:
    """Before anything is sent: what became of this cluster's intents that a launcher left behind; True if it had any.

    alone: whether the caller holds the store's lock, without which no other launcher sends. Left as they are: those of
    another cluster, those that sbatch took, those that this cluster may hide, those whose sender may still be at work.
    """
    if not ledger.unsettled:
        return False
    where = where or here()
    intents = [s for s in ledger.unsettled if s.proof.is_of(where.name)]
    if not intents:
        return False
    for look in range(LOOKS):
        adopted = {s.name for s in adopt(intents)}
        intents = [s for s in intents if s.name not in adopted]
        if not intents:
            return True
        if look + 1 < LOOKS:
            time.sleep(RETRY_S)
    for intent in intents:
        if not (intent.was_accepted or where.may_hide(intent.proof) or _may_be_under_way(intent, alone=alone)):
            ledgers.forget(intent)
    return True
