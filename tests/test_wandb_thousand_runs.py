"""A grid of 1,000 runs is synced in a minute or two, and every run of it is on the server as it is in the store."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tracked_runs import (
    PATIENCE_S,
    complete,
    environment,
    expected_lines,
    scratch_run,
    script,
    spec_written,
    verified,
    without_times,
    write_grid,
    write_lines,
)
from wandb_server import KEY

from transfergrid import records
from transfergrid.paths import StorePaths

pytestmark = [pytest.mark.wandb, pytest.mark.full]

RUNS = 1_000
LIMIT_S = 120.0  # 86 s on two cores that had as much else to do


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StorePaths:
    """Six lines, predictions of 50 images and a record each."""
    store = StorePaths(tmp_path_factory.mktemp("many") / "results")
    runs = [scratch_run(seed) for seed in range(RUNS)]
    write_grid(store, runs)
    for run in runs:
        paths = spec_written(store, run)
        write_lines(paths, upto=6)
        complete(paths, run, 1)
    return store


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Of a server in a process of its own: it shares no interpreter with what is measured."""
    command = [sys.executable, str(Path(__file__).parent / "wandb_server.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.terminate()


def state_of(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/_state") as answer:
        content: dict[str, Any] = json.load(answer)
    return content


def test_a_thousand_runs_are_synced_in_time_and_every_one_is_right(store: StorePaths, url: str) -> None:
    home = store.root.parent / "home"
    env = environment(None, home, WANDB_BASE_URL=url, WANDB_API_KEY=KEY)
    arguments = ["grid=g", f"store.dir={store.root}"]
    first = script("sync.py", *arguments, env=env, cwd=home, patience_s=5 * PATIENCE_S)
    assert (first.code, first.lines[-1]) == (0, verified(RUNS, sent=RUNS)), first.out[-2000:]
    again = script("sync.py", *arguments, env=env, cwd=home, patience_s=5 * PATIENCE_S)
    assert (again.code, again.lines[-1]) == (0, verified(RUNS, sent=0)), again.out[-2000:]
    print(f"{RUNS} runs: {first.seconds:.0f} s, and once more {again.seconds:.0f} s")
    state = state_of(url)
    assert state["errors"] == [] and len(state["runs"]) == RUNS + 1
    for path in store.runs.iterdir():
        assert_right(store, state["runs"][f"local/transfergrid/{path.name}"])
    assert first.seconds < LIMIT_S and again.seconds < LIMIT_S / 2


def assert_right(store: StorePaths, held: dict[str, Any]) -> None:
    paths = store.run(held["id"])
    record = records.read_record(paths)
    assert record is not None and held["state"] == "finished"
    rows = [
        without_times({("step" if k == "batch" else k): v for k, v in row.items() if not k.startswith("_")})
        for row in held["history"]
        if "line" in row
    ]
    assert rows == expected_lines(paths)
    assert held["summary"]["test_accuracy"] == record.metrics["test_accuracy"]
    assert held["config"]["seed"]["value"] == record.spec.seed
    sizes = {name: (paths.root / name).stat().st_size for name in ("record.json", "predictions.npz")}
    assert {name: held["files"].get(name) for name in sizes} == sizes
