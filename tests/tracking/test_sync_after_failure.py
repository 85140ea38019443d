"""jobs/sync.py where a failed record is an earlier attempt's: how that one ended is not what the server is to hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tracked_runs import (
    assert_holds,
    checkpoint,
    complete,
    expected_lines,
    fail,
    lines_on,
    scratch_run,
    sync,
    write_grid,
    write_lines,
)
from wandb_server import StandIn

from transfergrid.paths import StorePaths
from transfergrid.store import attempts

pytestmark = pytest.mark.wandb

UNFINISHED = "W&B: 1 run in the store, {sent} brought up to date, 1 read back and equal, 1 unfinished yet"


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as started:
        yield started


def test_a_run_that_is_retried_after_a_failure_is_unfinished_and_then_complete(server: StandIn, tmp_path: Path) -> None:
    store, run = StorePaths(tmp_path / "results"), scratch_run()
    paths = store.run(run.run_id)
    write_grid(store, [run])
    with attempts.begin_attempt(paths, run) as first:
        write_lines(paths, upto=8)
        checkpoint(first, lines=6)
        fail(paths, run, first.number)
    with attempts.begin_attempt(paths, run):  # nobody has synced in between
        training = sync(server, store)
        assert (training.code, training.lines) == (0, [UNFINISHED.format(sent=1)])
        assert lines_on(server.run(run.run_id)) == expected_lines(paths, 6)
        write_lines(paths, kept=6, upto=12)
    killed = sync(server, store)  # the second attempt has left no record
    assert (killed.code, killed.lines) == (0, [UNFINISHED.format(sent=0)])
    with attempts.begin_attempt(paths, run) as third:
        complete(paths, run, third.number)
    assert sync(server, store).code == 0
    assert_holds(server, store, run.run_id)
