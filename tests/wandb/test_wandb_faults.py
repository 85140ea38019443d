"""What goes wrong at W&B, at every moment of a run: training notices nothing, and a later sync completes it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tracked_runs import (
    Ended,
    assert_holds,
    carry_out,
    checkpoint,
    complete,
    processes_at,
    scratch_run,
    start_mirror,
    sync,
    verified,
    wait_until,
    write_grid,
    write_lines,
)
from wandb_faults import AfterThen, BlackHole, Delay, Fault, Garbage, Reset
from wandb_server import StandIn

from transfergrid import tracking
from transfergrid.cli.launch import MIRROR_WAIT_S
from transfergrid.paths import StorePaths
from transfergrid.specs import RunSpec
from transfergrid.store import attempts
from transfergrid.tracking.mirror import END_S

pytestmark = pytest.mark.wandb

AT_ONCE = 10
SYNC_LIMIT_S = 100.0  # 35 s at most on a machine with nothing else to do
WRITING_LIMIT_S = 5.0  # of what takes some 0.1 s on a machine with nothing else to do
KILLED = "wandb-core"
LOST = AfterThen(Reset())


@dataclass(frozen=True)
class Case:
    """what: which requests fail, as StandIn.fail takes it; KILLED: W&B's own process is killed instead."""

    moment: str  # start, middle, end: of training; sync: nothing was sent before
    how: Fault | None
    what: str = "*"
    times: int | None = None

    def __str__(self) -> str:
        how = "" if self.how is None else self.how if isinstance(self.how, int) else type(self.how).__name__
        return "-".join(filter(None, (self.moment, self.what.replace("*", ""), str(how))))


IN_TRAINING = [
    *(Case("start", how) for how in (401, 403, 429, 500, BlackHole(), Reset(), Garbage(), Delay(0.5))),
    *(Case("middle", how) for how in (401, 404, 500, BlackHole(), Reset(), Delay(0.5))),
    Case("middle", LOST, "file_stream", times=2),
    Case("middle", None, KILLED),
    *(Case("end", how) for how in (401, 429, BlackHole())),
    Case("end", 403, "storage"),
    Case("end", LOST, "CreateRunFiles", times=1),
    Case("end", None, KILLED),
]
# With what a sync during the fault says; None: it gets over it by itself.
IN_SYNC: dict[Case, str | None] = {
    Case("sync", 401): "injected 401",
    Case("sync", 404): "injected 404",
    Case("sync", 500): "fails or is silent when asked whose key this is",
    Case("sync", BlackHole()): "fails or is silent when asked whose key this is",
    Case("sync", Reset()): "fails or is silent when asked whose key this is",
    Case("sync", Garbage()): "invalid character '<'",
    Case("sync", Delay(0.5)): None,
    Case("sync", 400, "file_stream"): "12 of 12 lines are missing or other ones: 1, 2, 3 and 9 more",
    Case("sync", 403, "storage"): "file record.json is missing",
    Case("sync", 500, "HistoryPage"): "did not answer in time",
    Case("sync", BlackHole(), "HistoryPage"): "did not answer in time",
    Case("sync", LOST, "file_stream", times=2): None,
    Case("sync", None, KILLED): None,
}


@dataclass
class Told:
    """What was seen of a case. faulty: the sync during the fault; repaired: the one after it."""

    server: StandIn
    store: StorePaths
    run: RunSpec
    writing_s: float = 0.0
    waiting_s: float = 0.0
    left_over: list[int] = field(default_factory=list)
    faulty: Ended | None = None
    repaired: Ended | None = None


def let_fail(told: Told, case: Case) -> None:
    if case.what == KILLED:
        wait_until(lambda: told.server.runs and processes_at(told.store, "wandb-core"))
        for pid in processes_at(told.store, "wandb-core"):
            os.kill(pid, signal.SIGKILL)
    else:
        assert case.how is not None
        told.server.fail(case.what, case.how, times=case.times)


def train(told: Told, case: Case) -> None:
    """A run of 18 lines with a checkpoint at 12; the mirror follows, training looks at its own files alone."""
    paths = told.store.run(told.run.run_id)
    if case.moment == "start":
        let_fail(told, case)
    mirror = start_mirror(told.server, told.store, [told.run])
    began = time.monotonic()
    with attempts.begin_attempt(paths, told.run) as attempt:
        write_lines(paths, upto=12)
        checkpoint(attempt, lines=12)
        told.writing_s = time.monotonic() - began
        if case.moment != "start":
            wait_until(lambda: told.server.runs)
        if case.moment == "middle":
            let_fail(told, case)
        began = time.monotonic()
        write_lines(paths, kept=12, upto=18)
        checkpoint(attempt, lines=18)
        told.writing_s += time.monotonic() - began
        if case.moment == "end":
            wait_until(lambda: told.server.run(told.run.run_id).history)
            let_fail(told, case)
        began = time.monotonic()
        complete(paths, told.run, attempt.number)
        told.writing_s += time.monotonic() - began
    began = time.monotonic()
    tracking.wait_for_mirror(mirror, MIRROR_WAIT_S)
    told.waiting_s = time.monotonic() - began


def sync_during(told: Told, case: Case) -> None:
    carry_out(told.store, told.run)
    if case.what != KILLED:
        let_fail(told, case)
        told.faulty = sync(told.server, told.store)
        return
    with ThreadPoolExecutor(1) as pool:
        syncing = pool.submit(sync, told.server, told.store)
        let_fail(told, case)
        told.faulty = syncing.result()


def go_through(case: Case, folder: Path) -> Told:
    told = Told(StandIn().start(), StorePaths(folder / "results"), scratch_run())
    write_grid(told.store, [told.run])
    if case.moment == "sync":
        sync_during(told, case)
    else:
        train(told, case)
    told.left_over = processes_at(told.store)
    told.server.clear_faults()
    told.repaired = sync(told.server, told.store)
    return told


@pytest.fixture(scope="module")
def gone_through(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Case, Future[Told]]]:
    """All cases, several at once: most of their time goes by with waiting."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        # The longest first.
        cases = sorted((*IN_TRAINING, *IN_SYNC), key=lambda case: case.how not in (429, 500, BlackHole()))
        told = {case: pool.submit(go_through, case, tmp_path_factory.mktemp(case.moment)) for case in cases}
        yield told
    for one in told.values():
        if one.exception() is None:
            one.result().server.stop()


@pytest.mark.parametrize("case", IN_TRAINING, ids=str)
def test_training_never_waits_and_a_later_sync_completes_the_run(
    gone_through: dict[Case, Future[Told]], case: Case
) -> None:
    told = gone_through[case].result()
    assert told.writing_s < WRITING_LIMIT_S
    assert told.waiting_s < END_S + 15
    assert_repaired(told)


@pytest.mark.parametrize("case", IN_SYNC, ids=str)
def test_sync_says_what_is_wrong_and_the_next_completes_the_run(
    gone_through: dict[Case, Future[Told]], case: Case
) -> None:
    told = gone_through[case].result()
    assert told.faulty is not None
    assert told.faulty.seconds < SYNC_LIMIT_S
    wanted = IN_SYNC[case]
    if wanted is None:
        assert (told.faulty.code, told.faulty.lines) == (0, [verified(1, sent=1)])
    else:
        assert told.faulty.code == 1
        (line,) = [line for line in told.faulty.lines if wanted in line]
        assert line.startswith((f"error: {told.server.url}", f"{told.run.run_id}: "))
        assert len(told.faulty.lines) <= 5  # each problem in one line, and no traceback
    assert_repaired(told)


def assert_repaired(told: Told) -> None:
    """Nothing was left at work, and one sync without the fault made all good."""
    assert told.left_over == []
    assert told.repaired is not None
    assert (told.repaired.code, len(told.repaired.lines)) == (0, 1), told.repaired.out
    assert told.repaired.lines[0] in (verified(1, sent=0), verified(1, sent=1))
    assert_holds(told.server, told.store, told.run.run_id)
    assert told.server.errors == []
