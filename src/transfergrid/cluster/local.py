"""A plan on this machine: a bounded pool of children of a forkserver that has imported torch once.

One run at a time per GPU, one on a machine without. A failed run does not stop the others; what needs it is blocked.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Literal

from transfergrid.cluster.causes import cause_of
from transfergrid.cluster.child import context, gpus_for
from transfergrid.cluster.ownership import is_alive
from transfergrid.cluster.run_state import Failure
from transfergrid.errors import OF_ULIMIT, GridError, Lost, MachineError, StoreFull, classify, next_step, one_line
from transfergrid.paths import store_paths
from transfergrid.phases import extract
from transfergrid.planning import job
from transfergrid.planning.plan import Plan, PlannedRun
from transfergrid.specs import RunSpec, Runtime
from transfergrid.store import durable
from transfergrid.store.attempts import slurm_task
from transfergrid.store.records import record_head
from transfergrid.training.stopping import StopFlag

POLL_S = 0.1
ELSEWHERE_POLL_S = 1.0
NOT_MEASURED = "it has completed, and using its network was not measured; the end of its log.txt says why"
GRACE_S = 60.0  # for a child to reach its next step boundary and save, after Ctrl-C

Ending = Literal[
    "completed", "reused", "failed", "interrupted", "in flight", "superseded", "blocked", "lost", "not measured"
]


@dataclass(frozen=True, slots=True)
class Ended:
    """How one planned run ended here; `reason` is one line, empty where it completed."""

    run: RunSpec
    ending: Ending
    reason: str = ""
    failure_class: str | None = None
    remedy: str | None = None

    @property
    def failure(self) -> Failure | None:
        if self.ending in ("completed", "reused"):
            return None
        kind = self.failure_class or self.ending
        step = self.remedy or "" if self.failure_class is None else next_step(kind, self.remedy)
        return Failure(self.run.run_id, kind, self.reason, step)


class Watcher:
    """What a person is shown. The pool calls these; a terminal and a log draw them differently."""

    def started(self, planned: PlannedRun) -> None: ...
    def running(self, planned: Iterable[PlannedRun]) -> None: ...
    def waiting(self, planned: PlannedRun) -> None: ...
    def again(self, planned: PlannedRun) -> None: ...
    def ended(self, ended: Ended) -> None: ...


@dataclass(slots=True)
class _Child:
    planned: PlannedRun
    process: ForkServerProcess
    slot: int


@dataclass(slots=True)
class _Pool:
    """The state of one run_plan: what waits, what runs, how things ended.

    elsewhere: runs that another process holds -> when to look again. Once it lets go they are found done, or are run.
    places: of each run in the payload, extractions that may have to be done again included.
    robbed: runs that found their features damaged or gone, once; a second time they fail.
    """

    waiting: list[PlannedRun]
    places: Mapping[str, int]
    robbed: set[str] = field(default_factory=set)
    children: list[_Child] = field(default_factory=list)
    endings: dict[str, Ended] = field(default_factory=dict)
    elsewhere: dict[str, float] = field(default_factory=dict)

    @property
    def pending(self) -> set[str]:
        """Runs that wait or run."""
        return {p.run.run_id for p in (*self.waiting, *(c.planned for c in self.children))}


def run_plan(plan: Plan, runtime: Runtime, watcher: Watcher) -> list[Ended]:
    """Carry out what the plan says is to be run. Raises KeyboardInterrupt after Ctrl-C or SIGTERM, once children have
    saved."""
    todo = plan.to_run
    if not todo:
        return []
    runs = {p.run.run_id: p.run for p in todo}
    runs |= {e.run_id: e for p in todo for e in p.run.extractions if e.run_id not in runs}
    payload = job.write_payload(list(runs.values()), runtime)
    slots = slots_for(runtime)
    pool = _Pool(waiting=list(todo), places={run_id: place for place, run_id in enumerate(runs)})
    try:
        with _terminated_as_interrupted() as heard:
            while (pool.waiting or pool.children) and not heard:
                _drop_blocked(pool, watcher)
                _start_ready(pool, payload, slots, runtime, watcher)
                watcher.running([c.planned for c in pool.children])
                time.sleep(POLL_S)
                _collect(pool, runtime, watcher)
            if heard:  # its exception was raised where Python drops one, as in the clearing up of an object
                raise KeyboardInterrupt(heard[0])
    except KeyboardInterrupt:
        _stop(pool)
        raise
    finally:
        payload.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            payload.parent.rmdir()
    return list(pool.endings.values())


def slots_for(runtime: Runtime) -> tuple[str | None, ...]:
    """One for each run at a time, on a GPU each: what CUDA_VISIBLE_DEVICES is to hold; (None,) on a machine without."""
    return gpus_for(runtime).visible or (None,)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[list[int]]:
    """Inside, SIGTERM and SIGUSR2 are Ctrl-C: runs whose launcher just ended would go on unseen. Yields what was heard:
    the children hear Ctrl-C themselves, and a launcher that missed it would call their runs failed."""
    heard: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        heard.append(number)
        raise KeyboardInterrupt(number)

    if threading.current_thread() is not threading.main_thread():
        yield heard
        return
    caught = [signal.SIGTERM, signal.SIGUSR2]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        caught.append(signal.SIGINT)
    before = {s: signal.signal(s, interrupt) for s in caught}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start_ready(pool: _Pool, payload: Path, slots: Sequence[str | None], runtime: Runtime, watcher: Watcher) -> None:
    free = sorted(set(range(len(slots))) - {c.slot for c in pool.children})
    pending = pool.pending
    for planned in list(pool.waiting):
        if not free:
            return
        if any(need in pending for need in planned.needs) or _is_elsewhere(pool, planned.run, runtime):
            continue
        pool.waiting.remove(planned)
        slot, run_id = free.pop(0), planned.run.run_id
        on_lost = "fail" if run_id in pool.robbed else "tell"
        process = context().Process(target=_child, args=(str(payload), pool.places[run_id], slots[slot], on_lost))
        process.start()
        pool.children.append(_Child(planned, process, slot))
        watcher.started(planned)


def _is_elsewhere(pool: _Pool, run: RunSpec, runtime: Runtime) -> bool:
    """Whether another process still holds a run that was found held; asked once a second."""
    look_again = pool.elsewhere.get(run.run_id)
    if look_again is None:
        return False
    if time.monotonic() >= look_again:
        pool.elsewhere[run.run_id] = time.monotonic() + ELSEWHERE_POLL_S
        return durable.is_locked(store_paths(runtime).run(run.run_id).lock)
    return True


def _drop_blocked(pool: _Pool, watcher: Watcher) -> None:
    """Whatever needs a run that did not complete here cannot run either."""
    for planned in list(pool.waiting):
        bad = next((e for n in planned.needs if (e := pool.endings.get(n)) and e.failure is not None), None)
        if bad is not None:
            pool.waiting.remove(planned)
            reason = f"needs {bad.run.run_id}, which {bad.ending}"
            _end(pool, watcher, Ended(planned.run, "blocked", reason, "blocked"))


def _collect(pool: _Pool, runtime: Runtime, watcher: Watcher) -> None:
    for child in list(pool.children):
        if child.process.is_alive():
            continue
        child.process.join()
        pool.children.remove(child)
        if child.process.exitcode == _EXIT["lost features"]:
            _extract_again(pool, child, runtime, watcher)
            continue
        ended = _judge(child, runtime)
        if ended.ending != "in flight":
            _end(pool, watcher, ended)
            continue
        pool.waiting.append(child.planned)
        pool.elsewhere[child.planned.run.run_id] = time.monotonic() + ELSEWHERE_POLL_S
        watcher.waiting(child.planned)


def _extract_again(pool: _Pool, child: _Child, runtime: Runtime, watcher: Watcher) -> None:
    """A run found its features damaged or gone: their extraction stands before it, and before all that need it too."""
    pool.robbed.add(child.planned.run.run_id)
    pool.waiting.insert(0, child.planned)
    pending = pool.pending
    for extraction in child.planned.run.extractions:
        if extract.is_done(extraction, runtime) or extraction.run_id in pending:
            continue
        why = extract.damaged(extraction, runtime) or f"features of {extraction.model} are gone"
        again = PlannedRun(extraction, "run", f"{why}: extracted again")
        pool.endings.pop(extraction.run_id, None)
        pool.waiting = [again, *(_after(planned, extraction.run_id) for planned in pool.waiting)]
        watcher.again(again)


def _after(planned: PlannedRun, extraction: str) -> PlannedRun:
    """What reads these features waits for them."""
    reads = any(e.run_id == extraction for e in planned.run.extractions)
    return replace(planned, needs=(*planned.needs, extraction)) if reads else planned


def _judge(child: _Child, runtime: Runtime) -> Ended:
    """The record decides; the exit code only where there is none."""
    run, code = child.planned.run, child.process.exitcode
    if code == _EXIT["failed"]:
        head = record_head(store_paths(runtime).run(run.run_id))
        if head is not None and head.failure_class is not None:
            return Ended(run, "failed", head.error or "", head.failure_class, head.remedy)
    for ended in (
        Ended(run, "completed"),
        Ended(run, "reused"),
        Ended(run, "interrupted", "it was told to stop", remedy="launch again to continue"),
        Ended(run, "in flight"),
        Ended(run, "superseded", "a newer attempt has taken over"),
        Ended(run, "not measured", NOT_MEASURED, remedy="launch again with profile=true"),
    ):
        if code == _EXIT[ended.ending]:
            return ended
    loss = _loss(run, code or 0)
    with contextlib.suppress(MachineError):  # then it is told here, and nowhere else
        job.record_loss(run, runtime, loss)
    ending: Ending = "lost" if loss.failure_class == "lost" else "failed"
    return Ended(run, ending, loss.fact, loss.failure_class, loss.remedy or None)


def _loss(run: RunSpec, code: int) -> GridError:
    """Of a process that ended without a record, by its exit code; a signal as less than 0."""
    if code == _EXIT["disk full"]:
        return StoreFull(f"no space left for the record of {run.run_id}")
    if code == _EXIT["machine"]:
        return Lost("this machine cannot do it; the last line of its log.txt says what", "environment")
    cause = cause_of(max(code, 0), max(-code, 0), "")
    if cause.failure_class != "lost":
        of_a_node = slurm_task() is None and cause.remedy != OF_ULIMIT  # what helps there is no setting here
        return Lost(f"its process {cause.words}", cause.failure_class, None if of_a_node else cause.remedy)
    cpu_s = resource.getrlimit(resource.RLIMIT_CPU)[0]
    if code == -signal.SIGKILL and cpu_s != resource.RLIM_INFINITY:
        words = f"its process was killed, as one is that has used more CPU time than ulimit -t, which is {cpu_s} here"
        return Lost(words, "environment", OF_ULIMIT)
    ending = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    words = f"its process ended with {ending}; the end of its log.txt may say why"
    return Lost(words, signal=-code if code < 0 else None)


def _end(pool: _Pool, watcher: Watcher, ended: Ended) -> None:
    pool.endings[ended.run.run_id] = ended
    watcher.ended(ended)


def _stop(pool: _Pool) -> None:
    """Ask every child to save and end at its next step boundary; what does not end in time is killed."""
    for child in pool.children:
        child.process.terminate()
    deadline = time.monotonic() + GRACE_S
    for child in pool.children:
        child.process.join(max(0.0, deadline - time.monotonic()))
        if child.process.is_alive():
            child.process.kill()
            child.process.join()


# ------------------------------------------------------------------------------------------------- inside the children
_EXIT: dict[str, int] = {
    "completed": 0,
    "failed": 10,
    "reused": 11,
    "interrupted": 12,
    "in flight": 13,
    "superseded": 14,
    "disk full": 15,
    "lost features": 16,
    "machine": 17,
    "not measured": 18,
}


def _child(payload: str, index: int, gpu: str | None, on_lost: job.OnLost) -> None:
    """One run in a process of its own; its output goes to the run's log, its outcome into the exit code."""
    stop = StopFlag()
    with stop.installed():
        sys.exit(_EXIT[_outcome(payload, index, gpu, stop, on_lost)])


def _outcome(payload: str, index: int, gpu: str | None, stop: StopFlag, on_lost: job.OnLost) -> str:
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # torch looks when it first uses a GPU, which this process has not yet
    orders = job.read_payload(Path(payload))
    run, runtime = orders.runs[index], orders.runtime
    log = store_paths(runtime).run(run.run_id).log
    with contextlib.suppress(OSError):
        log.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o664)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)
    try:
        return job.carry_out(run, runtime, stop=stop, is_alive=is_alive, on_lost=on_lost)
    except Exception as error:
        failure_class = classify(error)
        if failure_class not in ("disk_full", "environment"):
            raise
        with contextlib.suppress(OSError):
            print(f"{failure_class}: {one_line(error)}", flush=True)
        # So full that not even the failure could be recorded; or without locks of any kind, or unreadable.
        return "disk full" if failure_class == "disk_full" else "machine"
