"""Real runs, small enough for tests: composed as the command line composes them, carried out in this process."""

from __future__ import annotations

import contextlib
import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transfergrid.config import Request, load_run
from transfergrid.paths import RunPaths, store_paths
from transfergrid.planning import job
from transfergrid.specs import RunSpec, Runtime
from transfergrid.store.metrics_log import TIMING_FIELDS, read_metrics
from transfergrid.store.records import RunRecord, read_record

DATASET = ["dataset=digits", "dataset.max_images=100", "dataset.image_size_px=32"]
MACHINE = ["device=cpu", "cluster.num_threads=1", "tracking=disabled"]
TWO_EPOCHS = [
    *(f"phase.{phase}.epochs=2" for phase in ("probe", "finetune", "scratch")),
    *(f"phase.{phase}.batch_size=32" for phase in ("probe", "finetune", "scratch")),
    *(f"phase.{phase}.precision=fp32" for phase in ("probe", "finetune", "scratch")),
    "phase.probe.solver=sgd",
    "phase.probe.lbfgs=false",
]


class StopAfter:
    """A StopFlag that a signal sets while optimizer step `steps` of this attempt is under way."""

    def __init__(self, steps: int) -> None:
        self._remaining = steps

    @property
    def signal(self) -> int | None:
        self._remaining -= 1
        return 15 if self._remaining <= 0 else None

    def installed(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def request(folder: Path, *arguments: str, cache: Path | None = None) -> Request:
    """A run by hand on 100 digits; `arguments` win. Its store is in `folder`, and its cache unless one is given."""
    places = [f"store.dir={folder / 'store'}", f"cache.dir={cache or folder / 'cache'}"]
    given = {a.split("=", 1)[0] for a in arguments}
    defaults = [a for a in (*DATASET, *MACHINE, *TWO_EPOCHS, *places) if a.split("=", 1)[0] not in given]
    return load_run([*defaults, *arguments])


def final_run(asked: Request) -> RunSpec:
    return asked.configurations[0].run


def carry_out(asked: Request) -> str:
    """The runs a request needs, extractions included, then the run itself; returns how that ended."""
    for run in asked.runs.values():
        for extraction in run.extractions:
            assert job.carry_out(extraction, asked.runtime) in ("completed", "reused")
        outcome = job.carry_out(run, asked.runtime)
        if run.run_id != final_run(asked).run_id:
            assert outcome in ("completed", "reused"), record_of(run, asked.runtime).error
    return outcome


def paths_of(run: RunSpec, runtime: Runtime) -> RunPaths:
    return store_paths(runtime).run(run.run_id)


def record_of(run: RunSpec, runtime: Runtime) -> RunRecord:
    record = read_record(paths_of(run, runtime))
    assert record is not None
    return record


def evaluate(folder: Path, *arguments: str) -> Request:
    """An evaluation that has completed."""
    asked = request(folder, "phase=evaluate", *arguments)
    assert carry_out(asked) in ("completed", "reused"), record_of(final_run(asked), asked.runtime).error
    return asked


def rows_of_csv(asked: Request) -> list[dict[str, str]]:
    """Of an evaluation's predictions.csv."""
    with open(paths_of(final_run(asked), asked.runtime).predictions_csv, newline="") as file:
        return list(csv.DictReader(file))


def metrics_without_times(paths: RunPaths) -> list[dict[str, Any]]:
    """Every metrics line, but for what can never be equal between two runs."""
    return [{k: v for k, v in line.items() if k not in TIMING_FIELDS} for line in read_metrics(paths.metrics)]


def assert_same_result(run: RunSpec, first: Runtime, second: Runtime) -> None:
    """Weights bit for bit, stored logits, metrics lines and scores are those of the other store."""
    import torch

    one, other = paths_of(run, first), paths_of(run, second)
    weights = [torch.load(p.weights, weights_only=True) for p in (one, other)]
    assert list(weights[0]) == list(weights[1])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert metrics_without_times(one) == metrics_without_times(other)
    assert [line["line"] for line in read_metrics(one.metrics)] == list(range(1, len(read_metrics(one.metrics)) + 1))
    assert record_of(run, first).metrics == record_of(run, second).metrics
    with np.load(one.predictions) as a, np.load(other.predictions) as b:
        assert sorted(a.files) == sorted(b.files) and all(np.array_equal(a[n], b[n]) for n in a.files)


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    monkeypatch.setattr(job, "StopFlag", lambda: StopAfter(steps))
