"""The true state of runs: what the store records, then what SLURM has in its queue, then what its accounting keeps.

An own record that is current ends every doubt. squeue and sacct are each asked once for any number of runs, and a row
of theirs counts only where cluster and token prove it (ownership.py). What neither explains is `unknown` while it may
still appear, and `lost` afterwards, never success and never failure. Where SLURM contradicts itself, or cannot show the
job, it stays `unknown`: such a run is never sent again but on the user's word.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from transfergrid.cluster import slurm, slurm_words
from transfergrid.cluster.causes import Cause, cause_of
from transfergrid.cluster.evidence import (
    Case,
    Look,
    ask_slurm,
    case_of,
    ending_of,
    finish_case,
    has_artifacts,
    last_sign,
    logs_of,
    node_of,
)
from transfergrid.cluster.ledger import Ledger, Submission
from transfergrid.cluster.ownership import UNMARKED
from transfergrid.cluster.run_state import RunState, State, follow_needs, with_ancestors
from transfergrid.cluster.slurm import JobRow
from transfergrid.paths import StorePaths
from transfergrid.store.records import phase_seconds

RECORD_DELAY_S = 60.0  # until a file that a node has written is seen on a slow shared file system

_STATE_OF_CLASS: dict[str, State] = {"blocked": "blocked", "cancelled": "cancelled", "lost": "lost"}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """slurm_error: what squeue said where it did not answer. accounting: False where sacct was asked and did not.

    cluster: SLURM's name of the one that answers here; None where nobody was asked, or none does. finish: of the grid's
    finish job; None where no job of the grid was sent.
    """

    states: Mapping[str, RunState]
    slurm_error: str | None
    accounting: bool
    cluster: str | None = None
    finish: RunState | None = None

    @property
    def elsewhere(self) -> list[str]:
        """A line for each other cluster that has jobs of these runs."""
        held = Counter(state.cluster for state in self.states.values() if state.cluster is not None)
        return [
            f"cluster {name} has the jobs of {count} of these runs; this is cluster {self.cluster}, which leaves them"
            f" alone: give the command there, or with SLURM_CLUSTERS={name} before it"
            for name, count in held.items()
        ]


def take_snapshot(
    run_ids: Iterable[str],
    store: StorePaths,
    ledger: Ledger,
    *,
    needs: Mapping[str, Sequence[str]] | None = None,
    grid: str | None = None,
    timeout_s: float = slurm.TIMEOUT_S,
) -> Snapshot:
    """The state of each of these runs, and of the finish job of `grid`. needs: of each run, the runs it is made from;
    see needs_of()."""
    needs = needs or {}
    own_ids = list(dict.fromkeys(run_ids))
    look = Look(store=store, ledger=ledger, now=datetime.now(UTC))
    cases = {run_id: case_of(look, run_id) for run_id in with_ancestors(own_ids, needs)}
    finishing = None if grid is None else finish_case(ledger, grid)
    ask_slurm(look, [*cases.values(), *([finishing] if finishing is not None else [])], timeout_s)
    states = {run_id: _with_artifacts(case, _judge(look, case)) for run_id, case in cases.items()}
    follow_needs(states, cases, needs)
    cluster = look.here.name if look.here is not None else None
    finish = None if finishing is None else _judge_finish(look, finishing)
    return Snapshot({r: states[r] for r in own_ids}, look.error, look.accounting, cluster, finish)


# ------------------------------------------------------------------------------------------------------------ judgement
def _judge(look: Look, case: Case) -> RunState:
    own = case.own
    if own.is_done:
        assert own.record is not None
        return RunState(run_id=case.run_id, state="done", attempts=own.attempts, elapsed_s=phase_seconds(own.record))
    if own.is_locked and not own.owner.get("slurm_job_id"):
        return _held(look, case)
    entry = look.entry(case)
    if entry is not None and not entry.has_ended:
        if case.has_current_record and case.began_since(entry.restarts):
            return _recorded(case)
        return _queued(look, case, entry)
    if case.has_current_record:  # before the lock, which is held for a moment by whoever corrects a record
        return _recorded(case)
    if own.is_locked:
        return _held(look, case)
    if case.job_id is None:
        return _unsent(look, case)
    if look.elsewhere(case) is not None:
        return _elsewhere(look, case)
    ending = ending_of(look, case, entry)
    renamed = look.renamed(case)
    if renamed is not None and (ending is None or not ending.has_ended):
        return _under_another_name(case, renamed)
    if ending is not None:
        return _ended(look, case, ending)
    return _absent(look, case)


def _judge_finish(look: Look, case: Case) -> RunState:
    if case.submission is None:
        return RunState(run_id=case.run_id, state="not submitted", reason="it was not sent")
    if case.own.is_done:
        return RunState(run_id=case.run_id, state="done", job_id=case.job_id)
    state = _judge(look, case)
    if state.state == "not submitted":  # an intent that its launcher left behind
        return replace(state, reason="it was not sent")
    report = look.store.report(case.submission.grid) / "comparison.csv"
    made_since = report.exists() and report.stat().st_mtime > case.submission.submitted.timestamp()
    if state.state == "lost" and made_since and state.failure_class == "lost":
        return replace(state, state="done", reason="", failure_class=None)  # an older release's says nothing itself
    return state


def _with_artifacts(case: Case, state: RunState) -> RunState:
    """A job that found its work done by another leaves no record; whether it is done, what it makes tells."""
    if (state.state == "lost" or state.undecided) and case.own.record is None and has_artifacts(case):
        return RunState(run_id=case.run_id, state="done", attempts=case.own.attempts, reason="made by another run")
    return state


def _unknown(case: Case, *, node: str | None = None) -> RunState:
    """What is known of a run whatever SLURM says: a beginning for what is."""
    node = node_of(case.own) if node is None else node
    return RunState(run_id=case.run_id, state="unknown", job_id=case.job_id, node=node, attempts=case.own.attempts)


def _recorded(case: Case) -> RunState:
    record = case.own.record
    assert record is not None
    name, reason = record.get("failure_class") or "lost", str(record.get("error") or "")
    if name == "lost" and case.began and (record.get("details") or {}).get("signal") == signal.SIGKILL:
        # Of runs that share a job one was killed, and recorded as such; why, SLURM writes when the job has ended.
        trace = slurm_words.trace(logs_of(case))
        name, reason = trace if trace is not None and trace[0] == "host_oom" else (name, reason)
    state = replace(_unknown(case), job_id=case.job_id if case.began else None, elapsed_s=phase_seconds(record))
    return _with_class(state, name, reason, record.get("remedy"))


def _queued(look: Look, case: Case, entry: JobRow) -> RunState:
    """Of a job that SLURM has alive."""
    meaning = slurm_words.meaning(entry.state)
    state = replace(
        _unknown(case, node=entry.nodes),
        state="pending" if meaning.kind == "waits" else "running" if meaning.kind == "runs" else "unknown",
        reason=meaning.words,
        job_id=entry.job_id,
        elapsed_s=entry.elapsed_s,
        left_s=entry.left_s,
    )
    if meaning.kind == "unknown":
        return replace(state, reason=f"SLURM says {entry.state}")
    if meaning.kind == "waits":
        wait = slurm_words.wait(entry.reason)
        reason = "; ".join(filter(None, (meaning.words, wait.words)))
        starts = entry.started if look.age_s(entry.started) < 0 else None
        state = replace(state, never_starts=wait.never, waits_for_needs=wait.for_needs)
        return replace(state, reason=reason, starts=starts, elapsed_s=None)
    if case.is_finish:
        return state
    if case.submission is not None and _at_work(look, case.submission, case.index, entry) != case.run_id:
        is_ending = entry.state == "COMPLETING"
        turn = f"its job {entry.job_id} is ending" if is_ending else f"waits for its turn in job {entry.job_id}"
        return replace(state, state="pending", reason=turn, elapsed_s=None)
    if not case.began_since(entry.restarts) and not meaning.words:
        return replace(state, reason="is starting")
    return state


def _at_work(look: Look, submission: Submission, index: int, entry: JobRow) -> str:
    """Of the runs that share a task, the one that was started last; before the first, the first that is to come."""
    pack = submission.tasks[index]
    cases = [Case(r, look.own(r), submission, index, entry.job_id) for r in pack]
    begun = [c for c in cases if not c.own.is_done and c.began_since(entry.restarts)]
    if begun:
        return max(begun, key=lambda c: c.own.started or datetime.min.replace(tzinfo=UTC)).run_id
    return next((c.run_id for c in cases if not c.own.is_done), pack[0])


def _held(look: Look, case: Case) -> RunState:
    """A live process holds the run's lock: one of a local launcher, or of a job of which SLURM does not tell."""
    own = case.own
    job_id = own.owner.get("slurm_task") or own.owner.get("slurm_job_id")
    reason = "" if job_id is None or look.error else f"its process goes on, though SLURM has no live job {job_id}"
    elapsed_s = None if own.started is None else max(0.0, look.age_s(own.started))
    return replace(_unknown(case), state="running", reason=reason, job_id=job_id, elapsed_s=elapsed_s)


def _unsent(look: Look, case: Case) -> RunState:
    sent, state = case.submission, RunState(run_id=case.run_id, state="not submitted", attempts=case.own.attempts)
    if sent is None:
        return replace(state, reason="its last attempt was interrupted" if case.own.attempts else "")
    if look.age_s(case.submitted) < slurm.SETTLING_S:  # there is only the intent of it
        may_hide = look.here is not None and look.here.may_hide(sent.proof)
        undecided = sent.was_accepted or may_hide or look.elsewhere(case) is not None
        return replace(state, state="unknown", undecided=undecided, reason="is being submitted")
    reason = f"its launcher died while it submitted {sent.job_name}"
    if not sent.proof.is_complete:
        return replace(state, state="unknown", undecided=True, reason=f"{reason}; {UNMARKED}")
    if look.here is None:
        return replace(state, state="unknown", reason=f"{reason}, and SLURM does not answer")
    if (cluster := look.elsewhere(case)) is not None:
        return replace(state, state="unknown", undecided=True, cluster=cluster, reason=f"{reason} to cluster {cluster}")
    if sent.was_accepted or look.here.may_hide(sent.proof):
        reason += "; SLURM shows no job of that name" + (", though sbatch took it" if sent.was_accepted else "")
        return replace(state, state="unknown", undecided=True, reason=reason)
    return replace(state, reason=f"{reason}; launch again")


def _under_another_name(case: Case, entry: JobRow) -> RunState:
    fact = f"job {entry.job_id} of the same user is {entry.state}, and its name is {entry.name}, not what was sent"
    return replace(_unknown(case, node=entry.nodes), reason=f"{fact}; was it renamed?", undecided=True)


def _elsewhere(look: Look, case: Case) -> RunState:
    """Of a job of another cluster: how it ended, where accounts that both clusters share prove that."""
    cluster, account = look.elsewhere(case), look.accounted(case)
    ending = ending_of(look, case, None)
    if ending is not None and ending.has_ended:
        state = _ended(look, case, ending)
        return replace(state, cluster=cluster if state.is_live else None, undecided=state.is_live)
    more = f"; its accounting says {account.state}" if account is not None else ""
    reason = f"its job {case.job_id} is on cluster {cluster}{more}"
    return replace(_unknown(case), reason=reason, undecided=True, cluster=cluster)


def _ended(look: Look, case: Case, ending: JobRow) -> RunState:
    meaning = slurm_words.meaning(ending.state)
    state = replace(_unknown(case, node=ending.nodes), elapsed_s=ending.elapsed_s)
    if meaning.kind in ("waits", "runs", "unknown"):
        return _only_in_accounting(look, case, state, ending.state)
    if meaning.may_return and look.age_s(ending.ended) < slurm.SETTLING_S:
        return replace(state, reason=f"{meaning.words}; SLURM may start it again")
    if meaning.failure_class is not None:
        memory = f" ({ending.memory})" if ending.memory and meaning.failure_class == "host_oom" else ""
        return _with_class(state, meaning.failure_class, meaning.words + memory)
    if ending.state == "COMPLETED":
        if case.is_finish:
            return replace(state, state="done")
        if look.age_s(ending.ended) < RECORD_DELAY_S:
            return replace(state, reason="has ended; its record is not to be seen yet")
        return _with_class(state, "lost", f"job {case.job_id} ended without a record")
    cause = _cause_of(case, ending)
    return _with_class(state, cause.failure_class, cause.words, cause.remedy)


def _cause_of(case: Case, ending: JobRow) -> Cause:
    """Of a job of which SLURM says no more than that it failed."""
    if ending.exit_code is None:
        trace = slurm_words.trace(logs_of(case))
        if trace is not None and trace[0] != "cancelled":
            return Cause(*trace)
        return Cause("lost", "ended with a failure and without a record; its log may say why")
    folder = "" if case.submission is None else str(case.submission.folder.absolute())
    return cause_of(ending.exit_code, ending.signal, logs_of(case), folder=folder)


def _only_in_accounting(look: Look, case: Case, state: RunState, word: str) -> RunState:
    kind = slurm_words.meaning(word).kind
    if look.error is not None and kind != "unknown":
        reason = "as the accounting says; SLURM's controller does not answer"
        shares = case.submission is not None and len(case.submission.tasks[case.index]) > 1
        if kind == "runs" and shares and not case.began:
            reason = f"waits for its turn in job {case.job_id}, {reason}"
        elif kind == "runs" or (case.began and not case.own.owner.get("ended")):  # the accounting hears of it later
            return replace(state, state="running", reason=reason)
        return replace(state, state="pending", reason=reason, elapsed_s=None)
    late = look.age_s(case.submitted) >= slurm.SETTLING_S
    more = f", its queue does not show job {case.job_id}" if late else ""
    return replace(state, reason=f"SLURM's accounting says {word}{more}", undecided=late)


def _absent(look: Look, case: Case) -> RunState:
    """Neither squeue nor sacct knows the job."""
    own, job_id, state = case.own, str(case.job_id), _unknown(case)
    if look.error is not None:
        since = last_sign(look.store, case)
        more = "" if since is None else f" since {since.astimezone():%H:%M}"
        return replace(state, reason=f"unknown{more}: SLURM does not answer")
    trace = slurm_words.trace(logs_of(case)) if case.began else None
    if trace is not None:
        return _with_class(state, *trace)
    if own.record is not None and not case.began:
        return replace(_recorded(case), reason=f"{own.record.get('error') or ''} (of job {job_id} nothing is known)")
    if not case.began and _knows_siblings(look, case):
        # A waiting task of an array that is cancelled leaves the queue without a trace, in the accounting too.
        return _with_class(state, "cancelled", "was cancelled before it started")
    if look.age_s(case.submitted) < slurm.SETTLING_S:
        if case.began:
            return replace(state, reason="SLURM does not show its job")
        return replace(state, state="pending", reason="just submitted")
    if not case.proof.is_complete:
        return replace(state, undecided=True, reason=f"SLURM shows no job {job_id} of its name: {UNMARKED}")
    if look.here is not None and look.here.may_hide(case.proof):
        reason = f"SLURM does not show job {job_id}, which another user sent: it hides others' jobs here (PrivateData)"
        return replace(state, undecided=True, reason=reason)
    return _with_class(state, "lost", f"SLURM no longer knows job {job_id}, and it left no record")


def _knows_siblings(look: Look, case: Case) -> bool:
    """Whether SLURM knows other tasks of the same array."""
    base, _, task = str(case.job_id).partition("_")
    names = [(look.here.name, e.name, j) for j, e in look.queue.items()] if look.here is not None else []
    names += [(a.cluster, a.name, j) for (_, j), a in look.account.items()]
    of_base = ((cluster, name) for cluster, name, job_id in names if slurm.base_id(job_id) == base)
    return bool(task) and any(case.proof.fits(cluster, name) for cluster, name in of_base)


def _with_class(state: RunState, failure_class: str, reason: str, remedy: str | None = None) -> RunState:
    ended = _STATE_OF_CLASS.get(failure_class, "failed")
    return replace(state, state=ended, failure_class=failure_class, reason=reason, remedy=remedy)
