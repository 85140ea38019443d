"""jobs/sync.py where W&B's own process is alive and silent, as in a deadlock: the client would wait for it for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tracked_runs import (
    PATIENCE_S,
    assert_holds,
    carry_out,
    environment,
    processes_at,
    scratch_run,
    verified,
    wait_until,
    write_grid,
)
from wandb_faults import Delay
from wandb_server import StandIn

from transfergrid.paths import StorePaths

pytestmark = pytest.mark.wandb

IMPATIENT = """
import sys
from transfergrid.cli import sync as command
from transfergrid.tracking import sync
sync.HUNG_S = 4.0
sys.exit(command.main())
"""


def test_a_process_of_wandb_that_hangs_is_ended_and_all_is_sent(tmp_path: Path) -> None:
    store, runs = StorePaths(tmp_path / "results"), [scratch_run(seed) for seed in range(3)]
    write_grid(store, runs)
    for run in runs:
        carry_out(store, run)
    with StandIn() as server:
        server.fail("file_stream", Delay(2.0), times=3)  # so that it is stopped while all runs are open
        process = subprocess.Popen(
            [sys.executable, "-c", IMPATIENT, "grid=g", f"store.dir={store.root}"],
            env=environment(server, tmp_path / "home"),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        wait_until(lambda: server.counts()["file_stream"])
        for pid in processes_at(store, "wandb-core"):
            os.kill(pid, signal.SIGSTOP)
        said, _ = process.communicate(timeout=PATIENCE_S)
        assert said.splitlines()[-1] == verified(3, sent=3)
        for run in runs:
            assert_holds(server, store, run.run_id, once=False)  # what it sent before it hung may be sent again
    assert processes_at(store, "wandb-core") == []
