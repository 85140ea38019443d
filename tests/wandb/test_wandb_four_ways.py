"""A grid of real runs reaches W&B by four ways: at last the server holds the same, and it is what the store holds.

Live; offline and synced; with a server that dies on the way; with runs that are killed and launched again.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from small_runs import metrics_without_times
from tracked_runs import (
    PATIENCE_S,
    ROOT,
    Ended,
    assert_holds,
    environment,
    processes_at,
    script,
    sync,
    verified,
    wait_until,
)
from wandb_server import StandIn

from transfergrid.paths import StorePaths
from transfergrid.store import attempts, durable, records
from transfergrid.store.metrics_log import read_metrics

pytestmark = pytest.mark.wandb

GRID = [
    *("grid=quickstart", "grid.models=[tinynet_mnist]", "grid.phases=[probe,finetune]", "grid.seeds=[0,1]"),
    *(
        "grid.variants={}",
        "dataset.max_images=200",
        "tracking.images=true",
        "phase.probe.solver=sgd",
        "phase.probe.epochs=2",
    ),
    *("phase.finetune.epochs=1", "cluster=local", "cluster.num_threads=1", "device=cpu"),
]
RUNS = 5  # an extraction, two probes, two finetunings
LAUNCH_S = 120.0
WAYS = ("live", "offline", "server dies", "runs killed")


@dataclass
class Way:
    """One grid on its way to one server. synced: how the last sync ended."""

    server: StandIn
    store: StorePaths
    synced: Ended | None = None

    @property
    def home(self) -> Path:
        return self.store.root.parent / "home"

    @property
    def said(self) -> Path:
        """What the last launch has said."""
        return self.store.root.parent / "said.txt"

    def launch(self, tracking: str) -> subprocess.Popen[bytes]:
        """In a process group of its own, with all that it starts but the mirror."""
        places = [f"store.dir={self.store.root}", f"cache.dir={self.store.root.parent / 'cache'}"]
        with open(self.said, "wb") as said:
            return subprocess.Popen(
                [sys.executable, str(ROOT / "jobs" / "launch_grid.py"), *GRID, f"tracking={tracking}", *places],
                env=environment(self.server, self.home),
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=said,
                start_new_session=True,
            )

    def launch_whole(self, tracking: str) -> None:
        assert self.launch(tracking).wait(LAUNCH_S) == 0

    def begun(self, pattern: str) -> list[str]:
        """Ids of runs that are being carried out at this moment."""
        found = [self.store.run(path.name) for path in self.store.runs.glob(pattern)]
        return [run.root.name for run in found if durable.is_locked(run.lock) and attempts.newest_attempt(run)]

    @property
    def run_ids(self) -> list[str]:
        return sorted(run.name for run in self.store.runs.iterdir())


# ------------------------------------------------------------------------------------------------------- the four ways
def live(way: Way) -> None:
    way.launch_whole("online")


def offline(way: Way) -> None:
    way.launch_whole("offline")
    assert way.server.requests == [] and not way.store.wandb.exists()


def server_dies(way: Way) -> None:
    """As soon as it has heard of a run, while others are being trained; it comes back when all has ended."""
    launch = way.launch("online")
    wait_until(lambda: way.server.runs or launch.poll() is not None, LAUNCH_S)
    way.server.stop()
    assert launch.wait(LAUNCH_S) == 0
    assert len(way.server.runs) < RUNS
    way.server.start()


def begun_or_ended(way: Way, pattern: str, launch: subprocess.Popen[bytes]) -> bool:
    return bool(way.begun(pattern)) or launch.poll() is not None


def runs_killed(way: Way) -> None:
    """The extraction, a probe and a finetuning, each with its launcher; the last one with the mirror, too."""
    for pattern in ("*-extract-*", "*-probe-s0-*", "*-finetune-s1-*"):
        launch = way.launch("online")
        wait_until(partial(begun_or_ended, way, pattern, launch), LAUNCH_S)
        if "finetune" in pattern:
            for pid in processes_at(way.store, "transfergrid.tracking.mirror"):
                os.kill(pid, signal.SIGKILL)
        os.killpg(launch.pid, signal.SIGKILL)
        launch.wait()
    way.launch_whole("online")


CARRY_OUT: dict[str, Callable[[Way], None]] = dict(zip(WAYS, (live, offline, server_dies, runs_killed), strict=True))


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Way]]:
    made = {name: Way(StandIn().start(), StorePaths(tmp_path_factory.mktemp("way") / "results")) for name in WAYS}

    def go(name: str) -> None:
        CARRY_OUT[name](made[name])
        made[name].synced = sync(made[name].server, made[name].store, grid="quickstart")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(go, ("runs killed", "server dies", "live", "offline")))
    yield made
    for way in made.values():
        way.server.stop()


# ------------------------------------------------------------------------------------------------------ what must hold
@pytest.mark.parametrize("name", WAYS)
def test_the_server_holds_every_run_and_every_line_exactly_once(ways: dict[str, Way], name: str) -> None:
    way = ways[name]
    assert len(way.run_ids) == RUNS
    assert {run.id for run in way.server.runs.values()} == {*way.run_ids, "grid-quickstart"}
    for run_id in way.run_ids:
        assert_holds(way.server, way.store, run_id)
        lines = len(read_metrics(way.store.run(run_id).metrics))
        assert (lines == 0) == ("-extract-" in run_id)
    assert way.server.errors == [] and not way.server.unknown_operations


@pytest.mark.parametrize("name", WAYS)
def test_sync_says_that_all_runs_were_read_back_and_are_equal(ways: dict[str, Way], name: str) -> None:
    ended = ways[name].synced
    assert ended is not None and ended.code == 0, ended
    if name == "live":
        assert ended.lines == [verified(RUNS, sent=0)]
    elif name == "offline":
        assert ended.lines == [verified(RUNS, sent=RUNS)]
    else:
        assert ended.lines[0].endswith(f"{RUNS} read back and equal") and len(ended.lines) == 1
    assert not list(ways[name].store.wandb.rglob("*run-*-digits-*"))
    assert processes_at(ways[name].store) == []


def test_three_runs_were_killed_indeed_and_all_four_ways_lead_to_the_same_numbers(ways: dict[str, Way]) -> None:
    killed = ways["runs killed"]
    second = [run_id for run_id in killed.run_ids if attempts.newest_attempt(killed.store.run(run_id)) > 1]
    assert len(second) == 3 and {run_id.split("-")[2] for run_id in second} == {"extract", "probe", "finetune"}
    first = ways["live"]
    for way in ways.values():
        assert way.run_ids == first.run_ids
        for run_id in way.run_ids:
            one, other = first.store.run(run_id), way.store.run(run_id)
            assert metrics_without_times(one) == metrics_without_times(other)
            assert numbers_of(way.store, run_id) == numbers_of(first.store, run_id)


def numbers_of(store: StorePaths, run_id: str) -> dict[str, Any]:
    """What of a record no clock decides."""
    record = records.read_record(store.run(run_id))
    assert record is not None
    told = dataclasses.asdict(record)
    return {name: told[name] for name in ("status", "metrics", "parameters", "size_mb", "epochs", "n_train")}


@pytest.mark.parametrize("name", WAYS)
def test_what_was_got_wrong_can_be_looked_at_in_wandb(ways: dict[str, Way], name: str) -> None:
    """Digits are inside a package, so the images are always at hand."""
    for run_id in ways[name].run_ids:
        files = ways[name].server.run(run_id).files
        pictures = [file for file in files if file.startswith("media/images/misclassified")]
        assert (len(pictures) > 0) == ("-extract-" not in run_id), run_id


@pytest.mark.parametrize("name", WAYS)
def test_the_comparison_from_the_server_alone_is_that_of_the_store(
    ways: dict[str, Way], name: str, tmp_path: Path
) -> None:
    own = rows_of(ways[name].store.report("quickstart"))
    assert len(own) == 2 and own == comparison_from_server(ways[name].server, tmp_path)


def comparison_from_server(server: StandIn, folder: Path) -> list[dict[str, str]]:
    """comparison.csv as another machine makes it, which has no store."""
    arguments = ["grid=quickstart", "source=wandb", "figures=false", f"cache.dir={folder}"]
    ended = script("report.py", *arguments, env=environment(server, folder), cwd=folder, patience_s=PATIENCE_S)
    assert ended.code == 0, ended.out
    (report,) = folder.glob("wandb/*/*/reports/quickstart")
    return rows_of(report)


def rows_of(report: Path) -> list[dict[str, str]]:
    with open(report / "comparison.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_launch_whose_runs_are_in_wandb_tells_how_the_table_gets_there(ways: dict[str, Way]) -> None:
    command = f"with figures: python jobs/report.py grid=quickstart store.dir={ways['live'].store.root}"
    assert f"in W&B, {command} publish=true\n" in ways["live"].said.read_text()
    later = ways["offline"].said.read_text()
    assert "in W&B" not in later
    sync_line = f"python jobs/sync.py grid=quickstart store.dir={ways['offline'].store.root}"
    assert f"to send the numbers to W&B: {sync_line}\n" in later
