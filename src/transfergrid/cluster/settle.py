"""What SLURM tells of jobs that have ended, into the store: records that runs could not write, and bills.

A bill is AllocTRES x elapsed of all attempts of a run, from one sacct for any number of jobs, with the duplicates that
requeues leave. Runs that share a job are billed by their own time in it. Without accounting no bill is written, and
reports count what the attempts themselves say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from transfergrid.cluster import slurm
from transfergrid.cluster.accounting import sacct
from transfergrid.cluster.evidence import payload_of
from transfergrid.cluster.forms import time_of
from transfergrid.cluster.ledger import Ledger, Submission
from transfergrid.cluster.run_state import ENDED, RunState
from transfergrid.cluster.slurm import JobRow
from transfergrid.errors import Lost, MachineError
from transfergrid.paths import StorePaths
from transfergrid.planning import job
from transfergrid.store import durable
from transfergrid.store.attempts import AttemptTime, attempt_times
from transfergrid.store.bills import Bill, BilledJob, joined, read_bill, write_bill
from transfergrid.store.records import record_head

TIMEOUT_S = 15.0
SLACK_S = 5.0  # between the clocks of a node and of the accounting, which counts whole seconds
SENT_SLACK_S = 600.0  # an sbatch that hung, before its job was entered
Job = tuple[str | None, str]  # cluster, None where an older release did not note it, and number


def settle(states: Mapping[str, RunState], store: StorePaths, ledger: Ledger) -> list[str]:
    """Record what has ended without a record of that attempt, so that tables show its class. Returns the run_ids."""
    recorded = []
    for run_id, state in states.items():
        known = ledger.newest(run_id)
        if state.state not in ENDED or state.failure_class is None or known is None:
            continue
        head = record_head(store.run(run_id))
        if head is not None and (head.status == "completed" or head.failure_class == state.failure_class):
            continue
        order = payload_of(known[0].launch).get(run_id)
        if order is not None and not durable.is_locked(store.run(run_id).lock):
            job.record_loss(*order, Lost(state.reason, state.failure_class, state.remedy))
            recorded.append(run_id)
    return recorded


# --------------------------------------------------------------------------------------------------------------- bills
@dataclass(frozen=True, slots=True)
class Claim:
    """What the store knows of one job: the submission that sent it, None where somebody wrote it by hand, and by run
    when its attempts began and how long they took."""

    submission: Submission | None
    attempts: Mapping[str, tuple[AttemptTime, ...]]

    @property
    def began(self) -> list[datetime]:
        moments = [time_of(a.started) for times in self.attempts.values() for a in times]
        return [moment for moment in moments if moment is not None]

    @property
    def sent(self) -> datetime | None:
        return None if self.submission is None else self.submission.submitted


@dataclass(frozen=True, slots=True)
class Settled:
    """changed: whether a bill was written. is_final: no bill is to change any more, or nobody can tell."""

    changed: bool
    is_final: bool


def settle_bills(store: StorePaths, ledger: Ledger, run_ids: Iterable[str]) -> Settled:
    """Bring bill.json of these runs, and of those that share a job with them, up to date. A store that cannot be
    written, and a SLURM that does not answer, change nothing."""
    claims = _claims(store, ledger, [r for r in dict.fromkeys(run_ids) if not _is_settled(store, r)])
    entries = _ask(claims)
    billed: dict[str, list[BilledJob]] = {}
    begun: set[str] = set()
    for (cluster, job_id), claim in claims.items():
        if cluster not in entries:
            continue
        begun |= {run_id for run_id, times in claim.attempts.items() if times}
        for entry in _ours(claim, entries[cluster].get(job_id, [])):
            for run_id, share in _shares(claim, entry).items():
                billed.setdefault(run_id, []).append(_billed(entry, share))
    try:
        changed = [_write(store, run_id, jobs) for run_id, jobs in billed.items()]
    except (MachineError, OSError):
        return Settled(changed=False, is_final=True)
    return Settled(changed=any(changed), is_final=all(_is_settled(store, run_id) for run_id in begun))


def _ask(claims: Mapping[Job, Claim]) -> dict[str | None, dict[str, list[JobRow]]]:
    """By cluster and job what its accounting keeps of jobs that have started, in one call for each cluster; nothing of
    a cluster whose accounting does not answer."""
    moments = [moment for claim in claims.values() for moment in (*claim.began, claim.sent) if moment is not None]
    since = min(moments, default=datetime.now(UTC))
    by_cluster: dict[str | None, dict[str, list[JobRow]]] = {}
    for cluster in dict.fromkeys(cluster for cluster, _ in claims):
        ids = {slurm.base_id(job_id) for of, job_id in claims if of == cluster}
        entries = sacct(ids, since=since, cluster=cluster, each_start=True, timeout_s=TIMEOUT_S)
        if entries is not None:
            by_job = by_cluster.setdefault(cluster, {})
            for entry in entries:
                if entry.started is not None:
                    by_job.setdefault(entry.job_id, []).append(entry)
    return by_cluster


def _ours(claim: Claim, entries: Sequence[JobRow]) -> Sequence[JobRow]:
    """Those, of one job's number, that are of the job which the store means: by cluster and token, or by times where an
    older release sent it or somebody wrote the job by hand."""
    if claim.submission is not None and claim.submission.proof.is_complete:
        proof = claim.submission.proof
        return [e for e in entries if proof.fits(e.cluster, e.name)]
    known = {a.cluster for times in claim.attempts.values() for a in times if a.cluster is not None}
    there = [e for e in entries if not known or e.cluster in known]
    return [e for e in there if _began_or_was_sent_then(claim, [o for o in there if o.cluster == e.cluster])]


def _began_or_was_sent_then(claim: Claim, entries: Sequence[JobRow]) -> bool:
    """Whether an attempt of ours began within one of them, or they were entered just after we sent ours: a number is
    given again, by another cluster or after years."""
    if any(_within(moment, entry) for entry in entries for moment in claim.began):
        return True
    entered = [entry.submitted for entry in entries if entry.submitted is not None]
    sent = claim.sent
    return sent is not None and any(-SLACK_S <= (e - sent).total_seconds() <= SENT_SLACK_S for e in entered)


# ------------------------------------------------------------------------------------------------- what the store knows
def _is_settled(store: StorePaths, run_id: str) -> bool:
    bill = read_bill(store.run(run_id))
    if bill is None or not bill.is_closed:
        return False
    return bill.attempt >= max((a.number for a in attempt_times(store.run(run_id))), default=0)


def _claims(store: StorePaths, ledger: Ledger, run_ids: Sequence[str]) -> dict[Job, Claim]:
    """By job: these runs' jobs, with every run that shares one of them. An attempt that noted no cluster belongs to the
    job of its number that the ledger has."""
    sent: dict[Job, Submission] = {}
    packs: dict[Job, set[str]] = {}
    own_runs = set(run_ids)
    for submission in ledger.submissions:
        for index, task in enumerate(submission.tasks):
            job_id = submission.task_id(index)
            if job_id is not None and own_runs.intersection(task):
                job = (submission.cluster, job_id)
                sent[job] = submission
                packs.setdefault(job, set()).update(task)
    times = {r: attempt_times(store.run(r)) for r in own_runs.union(*packs.values())}
    began: dict[tuple[Job, str], list[AttemptTime]] = {}
    for run_id, attempts in times.items():
        for attempt in attempts:
            if attempt.task is not None:
                job = _job_of(attempt, sent)
                began.setdefault((job, run_id), []).append(attempt)
                if run_id in own_runs:
                    packs.setdefault(job, set()).add(run_id)
    return {
        job: Claim(sent.get(job), {r: tuple(began.get((job, r), ())) for r in sorted(pack)})
        for job, pack in packs.items()
    }


def _job_of(attempt: AttemptTime, sent: Iterable[Job]) -> Job:
    """The job an attempt was part of; what an older release sent stands in the ledger without its cluster."""
    number = str(attempt.task)
    known = [cluster for cluster, job_id in sent if job_id == number]
    if attempt.cluster in known or (attempt.cluster is not None and None not in known):
        return attempt.cluster, number
    return (None if None in known or not known else known[0]), number


def _shares(claim: Claim, entry: JobRow) -> dict[str, float]:
    """Of one start of a job, by run: its own time there; equal parts where no run got as far as beginning."""
    own_s = {run_id: 0.0 for run_id in claim.attempts}
    for run_id, times in claim.attempts.items():
        for attempt in times:
            began = time_of(attempt.started)
            if began is not None and _within(began, entry):
                end = entry.ended or datetime.now(UTC)
                own_s[run_id] += max(attempt.wall_s or (end - began).total_seconds(), 0.001)
    total_s = sum(own_s.values())
    if not total_s:
        return {run_id: 1 / len(own_s) for run_id in own_s}
    return {run_id: seconds / total_s for run_id, seconds in own_s.items() if seconds}


def _billed(entry: JobRow, share: float) -> BilledJob:
    return BilledJob(
        job=entry.job_id,
        cluster=entry.cluster,
        start="" if entry.started is None else entry.started.isoformat(),
        elapsed_s=entry.elapsed_s or 0.0,
        gpus=entry.gpus,
        share=round(share, 6),
        has_ended=entry.ended is not None,
    )


def _write(store: StorePaths, run_id: str, billed: Sequence[BilledJob]) -> bool:
    """Whether there was anything new to write."""
    paths = store.run(run_id)
    former, times = read_bill(paths), attempt_times(paths)
    jobs = joined(former, billed)
    known = {(cluster, job.job) for job in jobs for cluster in (None, job.cluster)}
    is_closed = all(j.has_ended for j in jobs) and all(a.task is None or (a.cluster, a.task) in known for a in times)
    bill = Bill(jobs=jobs, attempt=max((a.number for a in times), default=0), is_closed=is_closed)
    if bill == former or not paths.root.is_dir():  # a run that never began has no folder, and is given none
        return False
    write_bill(paths, bill)
    return True


def _within(moment: datetime, entry: JobRow) -> bool:
    if entry.started is None:
        return False
    slack = timedelta(seconds=SLACK_S)
    return entry.started - slack <= moment and (entry.ended is None or moment <= entry.ended + slack)
