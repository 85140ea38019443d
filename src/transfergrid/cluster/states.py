"""The true state of runs: what the store records, then what SLURM has in its queue, then what its accounting keeps.

An own record that is current ends every doubt. squeue and sacct are each asked once for any number of runs; what
neither explains is `unknown` while it may still appear, and `lost` afterwards, never success and never failure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from transfergrid.cluster import slurm, slurm_words
from transfergrid.cluster.evidence import (
    Case,
    Ending,
    Look,
    ask_slurm,
    case_of,
    ending_of,
    has_artifacts,
    last_sign,
    logs_of,
    node_of,
    payload_runs,
    trace_of,
)
from transfergrid.cluster.ledger import Ledger, Submission
from transfergrid.errors import MachineError
from transfergrid.paths import StorePaths
from transfergrid.records import phase_seconds
from transfergrid.specs import RunSpec

State = Literal["done", "failed", "running", "pending", "blocked", "cancelled", "lost", "unknown", "not submitted"]

SETTLING_S = 150.0  # a requeue makes a job vanish or look ended for up to two minutes
RECORD_DELAY_S = 60.0  # until a file that a node has written is seen on a slow shared file system

_STATE_OF_CLASS: dict[str, State] = {"blocked": "blocked", "cancelled": "cancelled", "lost": "lost"}
_STANDS_IN_THE_WAY = ("failed", "blocked", "cancelled", "lost")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """reason: one line for people: why it waits, how it ended. failure_class: of failed, blocked, cancelled and lost.

    job_id: 123 or 123_4; None for a run of a local launcher. never_starts: pending, and SLURM will never start it.
    """

    run_id: str
    state: State
    reason: str = ""
    failure_class: str | None = None
    job_id: str | None = None
    node: str = ""
    attempts: int = 0
    elapsed_s: float | None = None
    left_s: float | None = None
    starts: datetime | None = None
    never_starts: bool = False

    @property
    def is_live(self) -> bool:
        """Whether something may still come of it without a new launch."""
        return self.state in ("pending", "running", "unknown")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """slurm_error: what squeue said where it did not answer. accounting: False where sacct was asked and did not.

    commands: how many commands of SLURM's were run, at most two.
    """

    states: Mapping[str, RunState]
    slurm_error: str | None
    accounting: bool
    commands: int


def take_snapshot(
    run_ids: Iterable[str],
    store: StorePaths,
    ledger: Ledger,
    *,
    needs: Mapping[str, Sequence[str]] | None = None,
    timeout_s: float = slurm.TIMEOUT_S,
) -> Snapshot:
    """The state of each of these runs. needs: of each run, the runs it is made from; see needs_of()."""
    needs = needs or {}
    asked = list(dict.fromkeys(run_ids))
    look = Look(store=store, ledger=ledger, now=datetime.now(UTC))
    cases = {run_id: case_of(look, run_id) for run_id in _with_ancestors(asked, needs)}
    ask_slurm(look, list(cases.values()), timeout_s)
    states = {run_id: _with_artifacts(case, _judge(look, case)) for run_id, case in cases.items()}
    for run_id in asked:
        _follow_needs(run_id, states, cases, needs)
    return Snapshot({run_id: states[run_id] for run_id in asked}, look.error, look.accounting, look.commands)


def live_jobs(job_ids: Iterable[str]) -> dict[str, int] | None:
    """Of these jobs (`123`, which covers an array's tasks, or `123_4`) those that SLURM has alive: id -> restart count.

    A job that is ending is alive. None where SLURM does not answer.
    """
    try:
        entries = slurm.squeue(job_ids)
    except MachineError:
        return None
    return {e.job_id: e.restarts for e in entries if slurm_words.meaning(e.state).kind != "ended"}


def needs_of(store: StorePaths, ledger: Ledger, run_ids: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """What each run is made from, extractions included, as the launches that sent it say; unknown runs are left out."""
    return {run_id: needs_of_spec(spec) for run_id, spec in specs_of(ledger, run_ids).items()}


def needs_of_spec(spec: RunSpec) -> tuple[str, ...]:
    return tuple(extraction.run_id for extraction in spec.extractions) + spec.needs


def specs_of(ledger: Ledger, run_ids: Iterable[str]) -> dict[str, RunSpec]:
    """The specs of those of these runs that were sent to SLURM by launches still on file."""
    wanted = set(run_ids)
    launches = {s.launch: None for s in reversed(ledger.submissions) if any(wanted.intersection(t) for t in s.tasks)}
    found: dict[str, RunSpec] = {}
    for launch in launches:
        found = {run_id: spec for run_id, spec in payload_runs(launch).items() if run_id in wanted} | found
        if len(found) == len(wanted):
            break
    return found


def _with_ancestors(run_ids: Sequence[str], needs: Mapping[str, Sequence[str]]) -> list[str]:
    found = dict.fromkeys(run_ids)
    frontier = list(found)
    while frontier:
        frontier = [n for n in dict.fromkeys(n for r in frontier for n in needs.get(r, ())) if n not in found]
        found |= dict.fromkeys(frontier)
    return list(found)


# ------------------------------------------------------------------------------------------------------------ judgement
def _judge(look: Look, case: Case) -> RunState:
    own = case.own
    if own.is_done:
        assert own.record is not None
        return RunState(run_id=case.run_id, state="done", attempts=own.attempts, elapsed_s=phase_seconds(own.record))
    if own.is_locked and not own.owner.get("slurm_job_id"):
        return _held(look, case)
    entry = look.queue.get(case.job_id) if case.job_id is not None else None
    if entry is not None and slurm_words.meaning(entry.state).kind != "ended":
        if case.has_current_record and case.began_since(entry.restarts):
            return _recorded(case)
        return _queued(look, case, entry)
    if case.has_current_record:  # before the lock, which is held for a moment by whoever corrects a record
        return _recorded(case)
    if own.is_locked:
        return _held(look, case)
    if case.job_id is None:
        return _unsent(look, case)
    ending = ending_of(look, case, entry)
    if ending is not None:
        return _ended(look, case, ending)
    return _absent(look, case)


def _with_artifacts(case: Case, state: RunState) -> RunState:
    """A job that found its work done by another leaves no record; whether it is done, what it makes tells."""
    if state.state == "lost" and case.own.record is None and has_artifacts(case):
        return RunState(run_id=case.run_id, state="done", attempts=case.own.attempts, reason="made by another run")
    return state


def _recorded(case: Case) -> RunState:
    record = case.own.record
    assert record is not None
    name, reason = record.get("failure_class") or "lost", str(record.get("error") or "")
    if name == "lost" and case.began and "SIGKILL" in reason:
        # Of runs that share a job one was killed, and recorded as such; why, SLURM writes when the job has ended.
        trace = trace_of(case)
        name, reason = trace if trace is not None and trace[0] == "host_oom" else (name, reason)
    return RunState(
        run_id=case.run_id,
        state=_STATE_OF_CLASS.get(name, "failed"),
        failure_class=name,
        reason=reason,
        job_id=case.job_id if case.began else None,
        node=node_of(case.own),
        attempts=case.own.attempts,
        elapsed_s=phase_seconds(record),
    )


def _queued(look: Look, case: Case, entry: slurm.QueueEntry) -> RunState:
    """Of a job that SLURM has alive."""
    found = slurm_words.meaning(entry.state)
    state = RunState(
        run_id=case.run_id,
        state="pending" if found.kind == "waits" else "running" if found.kind == "runs" else "unknown",
        reason=found.words,
        job_id=entry.job_id,
        node=entry.nodes,
        attempts=case.own.attempts,
        elapsed_s=entry.elapsed_s,
        left_s=entry.left_s,
    )
    if found.kind == "unknown":
        return replace(state, reason=f"SLURM says {entry.state}")
    if found.kind == "waits":
        wait = slurm_words.wait(entry.reason)
        reason = "; ".join(filter(None, (found.words, wait.words)))
        starts = entry.starts if look.age_s(entry.starts) < 0 else None
        return replace(state, reason=reason, never_starts=wait.never, starts=starts, elapsed_s=None)
    if case.submission is not None and _at_work(look, case.submission, case.index, entry) != case.run_id:
        is_ending = entry.state == "COMPLETING"
        turn = f"its job {entry.job_id} is ending" if is_ending else f"waits for its turn in job {entry.job_id}"
        return replace(state, state="pending", reason=turn, elapsed_s=None)
    if not case.began_since(entry.restarts) and not found.words:
        return replace(state, reason="is starting")
    return state


def _at_work(look: Look, submission: Submission, index: int, entry: slurm.QueueEntry) -> str:
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
    return RunState(
        run_id=case.run_id,
        state="running",
        reason=reason,
        job_id=job_id,
        node=node_of(own),
        attempts=own.attempts,
        elapsed_s=elapsed_s,
    )


def _unsent(look: Look, case: Case) -> RunState:
    if case.submission is not None:  # only the intent of it
        if look.age_s(case.submitted) < SETTLING_S:
            told = "is being submitted"
            return RunState(run_id=case.run_id, state="unknown", reason=told, attempts=case.own.attempts)
        told = "its launcher died while it submitted; launch again"
        return RunState(run_id=case.run_id, state="not submitted", reason=told, attempts=case.own.attempts)
    told = "its last attempt was interrupted" if case.own.attempts else ""
    return RunState(run_id=case.run_id, state="not submitted", reason=told, attempts=case.own.attempts)


def _ended(look: Look, case: Case, ending: Ending) -> RunState:
    found = slurm_words.meaning(ending.state)
    state = RunState(
        run_id=case.run_id,
        state="unknown",
        job_id=case.job_id,
        node=ending.node,
        attempts=case.own.attempts,
        elapsed_s=ending.elapsed_s,
    )
    if found.kind in ("waits", "runs", "unknown"):
        return _only_in_accounting(look, case, state, ending.state)
    if found.may_return and look.age_s(ending.ended) < SETTLING_S:
        return replace(state, reason=f"{found.words}; SLURM may start it again")
    if found.failure_class is not None:
        memory = f" ({ending.memory})" if ending.memory and found.failure_class == "host_oom" else ""
        return _with_class(state, found.failure_class, found.words + memory)
    if ending.state == "COMPLETED":
        if look.age_s(ending.ended) < RECORD_DELAY_S:
            return replace(state, reason="has ended; its record is not to be seen yet")
        return _with_class(state, "lost", f"job {case.job_id} ended without a record")
    told = slurm_words.exit_words(ending.code, ending.signal, logs_of(case)) if ending.is_known_code else "a failure"
    trace = trace_of(case)
    if trace is not None and trace[0] != "cancelled":
        return _with_class(state, *trace)
    if ending.code in (126, 127) and ending.signal == 0:
        return _with_class(state, "environment", f"ended with {told}: the node could not start python or the script")
    return _with_class(state, "lost", f"ended with {told} and without a record; its log may say why")


def _only_in_accounting(look: Look, case: Case, state: RunState, word: str) -> RunState:
    kind = slurm_words.meaning(word).kind
    if look.error is not None and kind != "unknown":
        told = "as the accounting says; SLURM's controller does not answer"
        shares = case.submission is not None and len(case.submission.tasks[case.index]) > 1
        if kind == "runs" and shares and not case.began:
            return replace(
                state, state="pending", reason=f"waits for its turn in job {case.job_id}, {told}", elapsed_s=None
            )
        if kind == "runs" or (case.began and not case.own.owner.get("ended")):  # the accounting hears of it later
            return replace(state, state="running", reason=told)
        return replace(state, state="pending", reason=told, elapsed_s=None)
    if kind == "unknown" or look.age_s(case.submitted) < SETTLING_S:
        return replace(state, reason=f"SLURM's accounting says {word}")
    return _with_class(state, "lost", f"SLURM has no live job {case.job_id}, and it left no record")


def _absent(look: Look, case: Case) -> RunState:
    """Neither squeue nor sacct knows the job."""
    own, job_id = case.own, str(case.job_id)
    state = RunState(run_id=case.run_id, state="unknown", job_id=job_id, node=node_of(own), attempts=own.attempts)
    if look.error is not None:
        since = last_sign(look.store, case)
        told = "" if since is None else f" since {since.astimezone():%H:%M}"
        return replace(state, reason=f"unknown{told}: SLURM does not answer")
    trace = trace_of(case) if case.began else None
    if trace is not None:
        return _with_class(state, *trace)
    if own.record is not None and not case.began:
        return replace(_recorded(case), reason=f"{own.record.get('error') or ''} (of job {job_id} nothing is known)")
    if not case.began and _knows_siblings(look, job_id):
        # A waiting task of an array that is cancelled leaves the queue without a trace, in the accounting too.
        return _with_class(state, "cancelled", "was cancelled before it started")
    if look.age_s(case.submitted) < SETTLING_S:
        if case.began:
            return replace(state, reason="SLURM does not show its job")
        return replace(state, state="pending", reason="just submitted")
    return _with_class(state, "lost", f"SLURM no longer knows job {job_id}, and it left no record")


def _knows_siblings(look: Look, job_id: str) -> bool:
    base, _, task = job_id.partition("_")
    return bool(task) and any(slurm.base_id(known) == base for known in (*look.queue, *look.account))


def _with_class(state: RunState, failure_class: str, reason: str) -> RunState:
    return replace(
        state,
        state=_STATE_OF_CLASS.get(failure_class, "failed"),
        failure_class=failure_class,
        reason=reason,
    )


# --------------------------------------------------------------------------------------------------------------- needs
def _follow_needs(
    run_id: str, states: dict[str, RunState], cases: Mapping[str, Case], needs: Mapping[str, Sequence[str]]
) -> None:
    """Say of a run what it waits for, or what blocks it; needed ones first. Each run is settled once."""
    pending: list[tuple[str, bool]] = [(run_id, False)]
    while pending:
        each, needs_settled = pending.pop()
        if not needs_settled:
            pending.append((each, True))
            pending.extend((n, False) for n in needs.get(each, ()) if _may_depend(states[n]))
        elif _may_depend(states[each]):
            states[each] = _depending(states[each], cases[each], [states[n] for n in needs.get(each, ())])


def _may_depend(state: RunState) -> bool:
    return state.state in ("not submitted", "cancelled", "lost", "blocked") or "ependency" in state.reason


def _depending(state: RunState, case: Case, needed: Sequence[RunState]) -> RunState:
    bad = next((n for n in needed if n.state in _STANDS_IN_THE_WAY), None)
    if state.state == "pending":
        other = bad or next((n for n in needed if n.state != "done"), None)
        if other is None:
            return state
        never = bad is not None and state.never_starts
        return replace(state, reason=f"waits for {_named(other)}" + (": it never starts" if never else ""))
    has_started = state.state in ("lost", "cancelled") and (case.began or bool(state.elapsed_s))
    if bad is None or has_started:
        return state
    return replace(state, state="blocked", failure_class="blocked", reason=f"needs {_named(bad)}")


def _named(other: RunState) -> str:
    """`R, which failed (data)`; of one that is itself blocked, what blocks it stands in its own reason."""
    if other.state == "blocked":
        return f"{other.run_id}, which is blocked: {other.reason}" if len(other.reason) < 200 else other.run_id
    if other.state in ("failed", "lost", "cancelled"):
        how = {"failed": "failed", "lost": "was lost", "cancelled": "was cancelled"}[other.state]
        return f"{other.run_id}, which {how}" + (f" ({other.failure_class})" if other.state == "failed" else "")
    return f"{other.run_id}, which is {other.state}"
