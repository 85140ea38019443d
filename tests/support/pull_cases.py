"""A grid in a store, and the same put on a stand-in W&B server as mirror and sync would leave it there."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from report_cases import completed, entry, failed, spec
from wandb_server import StandIn
from wandb_state import ServerRun

from transfergrid.cli import report as command
from transfergrid.cli.console import run_script
from transfergrid.paths import RunPaths, StorePaths
from transfergrid.specs import RunSpec, to_dict
from transfergrid.store import durable, records
from transfergrid.store.metrics_log import MetricsLog, read_metrics
from transfergrid.store.records import GridEntry, make_predictions, read_grid
from transfergrid.tracking.account import find_account
from transfergrid.tracking.pull import Pulled, pull_grid

PROJECT = "transfergrid"


def small_grid(store: StorePaths, name: str = "g", *, seeds: int = 2) -> list[RunSpec]:
    """Two models and their join, probed with `seeds` seeds, their extractions; the join's last seed has failed."""
    runs = [
        spec("probe", model, seed=seed) for model in ("vgg16", "resnet18", "vgg16+resnet18") for seed in range(seeds)
    ]
    for number, run in enumerate(runs[:-1]):
        completed(store, run, test_accuracy=0.9 + number / 100_000, images_per_s=1000 / 3)
        _write_predictions(store.run(run.run_id), number)
        _write_metrics(store.run(run.run_id), lines=6)
    failed(store, runs[-1], failure_class="cuda_oom", error="no memory left é\u2028")
    extractions = list(dict.fromkeys(e for run in runs for e in run.extractions))
    for extraction in extractions:
        completed(store, extraction, wall_s=7.125)
    for run in runs + extractions:
        durable.write_json(store.run(run.run_id).spec, to_dict(run))
    records.write_grid(store.grid(name), grid=name, entries=[entry(run) for run in runs])
    return runs


def _write_predictions(paths: RunPaths, number: int) -> None:
    generator = np.random.default_rng(number)
    logits_NC = generator.normal(size=(50, 10)).astype(np.float32)
    index_N, label_N = np.arange(50), generator.integers(0, 10, 50)
    records.write_predictions(paths, {"test": make_predictions(index_N, label_N, logits_NC)})


def _write_metrics(paths: RunPaths, *, lines: int) -> None:
    with MetricsLog(paths.metrics, lines_kept=0) as log:
        for step in range(1, lines):
            log.write(
                "step", epoch=1, step=step, **{"train/loss": 0.1 + 0.2 / step, "train/accuracy": 1.0, "lr/head": 3e-4}
            )
        log.write("epoch", epoch=1, step=lines - 1, **{"val/accuracy": 0.5}, images_per_s=100.0)


# ----------------------------------------------------------------------------------------------------- on the server
def put_grid(server: StandIn, store: StorePaths, name: str = "g") -> None:
    """grid.json and every run of the store."""
    entries = {e.run_id: e for e in read_grid(store.grid(name))}
    run = make_run(server, f"grid-{name}", job_type="grid", tags=[f"gridfile:{name}"])
    run.files["grid.json"] = store.grid(name).read_bytes()
    for folder in sorted(store.runs.iterdir()):
        put_run(server, store, folder.name, name, entries.get(folder.name))


def make_run(server: StandIn, run_id: str, *, job_type: str = "", tags: list[str] | None = None) -> ServerRun:
    run = server.state.make_run("local", PROJECT, run_id)
    run.job_type, run.tags = job_type, tags or []
    return run


def put_run(server: StandIn, store: StorePaths, run_id: str, grid: str, told: GridEntry | None) -> ServerRun:
    paths = store.run(run_id)
    record = records.read_record(paths)
    assert record is not None
    run = make_run(server, run_id, job_type=record.spec.phase, tags=[f"grid:{grid}"])
    config: dict[str, Any] = {"seed": record.spec.seed, "weights": record.spec.weights_label, "variant": ""}
    config |= {"model": record.spec.model, "dataset": record.spec.dataset.name, "protocol": record.spec.protocol}
    if told is not None:
        config["variant"] = told.variant
    run.config = {name: {"value": value} for name, value in config.items()}
    run.summary = {"status": record.status, "attempt": record.attempt}
    for path in (paths.record, paths.predictions):
        if path.exists():
            run.files[path.name] = path.read_bytes()
    put_history(run, [*map(as_row, read_metrics(paths.metrics)), {"confusion": {"_type": "image-file"}}])
    return run


def as_row(line: dict[str, Any]) -> dict[str, Any]:
    return {"batch" if name == "step" else name: value for name, value in line.items()}


def put_history(run: ServerRun, rows: list[dict[str, Any]]) -> None:
    """Add rows, numbered on, with what W&B itself adds to each."""
    start = run.history_lines.count
    texts = [json.dumps(row | {"_step": start + i, "_runtime": 0.5, "_timestamp": 1.7e9}) for i, row in enumerate(rows)]
    run.history_lines.put(start, texts)


@contextlib.contextmanager
def stand_in() -> Iterator[StandIn]:
    """With the environment that leads to it; W&B's own variables are afterwards as they were."""
    before = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
    try:
        with StandIn() as server:
            os.environ |= server.environment()
            yield server
    finally:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            del os.environ[name]
        os.environ |= before


# ---------------------------------------------------------------------------------------------------- and back from it
def pull_g(server: StandIn, pulled: StorePaths) -> tuple[Pulled, list[str]]:
    """The grid `g`, and what was said about it."""
    os.environ["WANDB_API_KEY"] = server.key
    said: list[str] = []
    return pull_grid(find_account(PROJECT), "g", pulled, say=said.append), said


def run_report(monkeypatch: pytest.MonkeyPatch, *arguments: str, grid: str = "g") -> int:
    """jobs/report.py in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["report.py", f"grid={grid}", "figures=false", *arguments])
    return run_script(command.report, command.HELP)
