"""A grid of 1,000 runs is synced and published within two minutes; every run and row is there as the store has it."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_cases import entry
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
    write_lines,
)
from wandb_server import KEY

from transfergrid.paths import StorePaths
from transfergrid.store import records

pytestmark = [pytest.mark.wandb, pytest.mark.full]

ROWS, SEEDS = 200, 5
RUNS = ROWS * SEEDS
LIMIT_S = 120.0  # of sync and publishing together


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StorePaths:
    """200 learning rates with five seeds; six lines, predictions of 50 images and a record each."""
    store = StorePaths(tmp_path_factory.mktemp("many") / "results")
    runs = {(n, seed): scratch_run(seed, lr=(n + 1) / 1000) for n in range(ROWS) for seed in range(SEEDS)}
    entries = [entry(run, variant=f"lr_{n}") for (n, _), run in runs.items()]
    records.write_grid(store.grid("g"), grid="g", entries=entries)
    for run in runs.values():
        paths = spec_written(store, run)
        write_lines(paths, upto=6)
        complete(paths, run, 1)
    return store


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Of a server in a process of its own: it shares no interpreter with what is measured."""
    command = [sys.executable, str(Path(__file__).parents[1] / "support" / "wandb_server.py")]
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
    published = script("report.py", *arguments, "publish=true", "figures=false", env=env, cwd=home, patience_s=600)
    assert published.code == 0, published.out[-2000:]
    print(f"{ROWS} rows, with the report itself: {published.seconds:.0f} s")
    assert_published(store, state_of(url))
    assert first.seconds + published.seconds < LIMIT_S and again.seconds < LIMIT_S / 2


def assert_published(store: StorePaths, state: dict[str, Any]) -> None:
    """One run per row of comparison.csv, with its numbers; and a report that leaves none out."""
    with open(store.report("g") / "comparison.csv", newline="") as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    held = [run for run in state["runs"].values() if run["job_type"] == "summary"]
    assert len(rows) == len(held) == ROWS
    for run in held:
        row = rows[run["config"]["variant"]["value"]]
        for name in ("test_accuracy", "test_accuracy_std", "ci95_low", "ci95_high", "n_seeds", "wall_s"):
            assert run["summary"][name] == float(row[name]), (row["variant"], name)
    [report] = state["reports"].values()
    grids = [block["metadata"] for block in report["spec"]["blocks"] if block["type"] == "panel-grid"]
    panels = [panel for grid in grids for panel in grid["panelBankSectionConfig"]["panels"]]
    bars = [panel["config"] for panel in panels if panel["viewType"] == "Bar Chart"]
    lines = [panel["config"] for panel in panels if panel["viewType"] == "Run History Line Plot"]
    assert bars and all(bar["limit"] >= ROWS and bar["barLimit"] >= ROWS for bar in bars)
    assert lines and all(line["limit"] >= RUNS for line in lines)


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
