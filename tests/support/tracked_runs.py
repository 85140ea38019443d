"""Runs by hand for tests of mirror and sync against the stand-in W&B server, and what that must hold of them at last.

What is compared here is compared without the code under test: rows, summaries and files as the server received them.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_cases import entry, spec
from wandb_server import StandIn
from wandb_state import ServerRun

from transfergrid import tracking
from transfergrid.paths import RunPaths, StorePaths
from transfergrid.specs import Configuration, RunSpec, Runtime, to_dict
from transfergrid.store import attempts, checkpoints, durable, records
from transfergrid.store.metrics_log import TIMING_FIELDS, MetricsLog, read_metrics
from transfergrid.store.records import RunRecord, make_predictions

ROOT = Path(__file__).resolve().parents[2]
CLASS_NAMES = [f"class {n}" for n in range(10)]
PATIENCE_S = 120.0
_environment_lock = threading.Lock()


# ------------------------------------------------------------------------------------------------------------- writing
def scratch_run(seed: int = 0, **changes: Any) -> RunSpec:
    """Needs no other run. No machine has a data set of its fingerprint, so there are no images to show."""
    return spec("scratch", "baseline_cnn", dataset="digits", seed=seed, **changes)


def runtime_of(store: StorePaths, **changes: Any) -> Runtime:
    return replace(Runtime(store_dir=str(store.root), cache_dir="c", data_dir="d", weights_dir="w"), **changes)


def write_grid(store: StorePaths, runs: Iterable[RunSpec], *, name: str = "g") -> None:
    """As a launch leaves it."""
    entries = [entry(run) for run in runs]
    records.write_grid(store.grid(name), grid=name, entries=entries, runtime=runtime_of(store))


def write_lines(paths: RunPaths, *, kept: int = 0, upto: int, scale: float = 1.0) -> None:
    """Five step lines, then an epoch line, and so on; `scale` tells one writing of the same lines from another."""
    with MetricsLog(paths.metrics, lines_kept=kept) as log:
        for n in range(kept + 1, upto + 1):
            epoch = 1 + (n - 1) // 6
            told: dict[str, float | None]
            if n % 6:
                told = {"train/loss": scale / n, "train/accuracy": 1 - scale / n, "lr/head": 3e-4, "lr/stem": 0.0}
                log.write("step", epoch=epoch, step=n, **told)
            else:
                told = {"val/accuracy": n / (n + scale), "test/accuracy": None, "images_per_s": 1000.0 / n}
                log.write("epoch", epoch=epoch, step=n, **told)


def checkpoint(attempt: attempts.Attempt, *, lines: int) -> None:
    checkpoints.write_checkpoint(attempt, b"state", step=lines, lines=lines)


def complete(paths: RunPaths, run: RunSpec, attempt: int, **changes: Any) -> None:
    """Predictions of 50 test images, then the record."""
    random = np.random.default_rng(run.seed)
    logits_NC = random.normal(size=(50, 10)).astype(np.float32)
    label_N = np.arange(50) % 10
    records.write_predictions(paths, {"test": make_predictions(np.arange(50), label_N, logits_NC)})
    accuracy = float((logits_NC.argmax(axis=1) == label_N).mean())
    record = RunRecord(
        run_id=run.run_id,
        spec=run,
        status="completed",
        metrics={"test_accuracy": accuracy, "test_loss": 0.1 + 0.2},
        details={"n_test": 50, "class_names": CLASS_NAMES},
        parameters=242_474,
        phase_s=2.5,
        epochs=2,
        n_train=1293,
        attempt=attempt,
    )
    records.write_record(paths, replace(record, **changes))


def fail(
    paths: RunPaths, run: RunSpec, attempt: int, *, error: str = "no memory left", failure_class: str = "cuda_oom"
) -> None:
    record = RunRecord(
        run_id=run.run_id,
        spec=run,
        status="failed",
        failure_class=failure_class,
        error=error,
        attempt=attempt,
    )
    records.write_record(paths, record)


def carry_out(store: StorePaths, run: RunSpec, *, lines: int = 12, **changes: Any) -> None:
    """A whole run, from the claim to the record."""
    paths = store.run(run.run_id)
    with attempts.begin_attempt(paths, run) as attempt:
        write_lines(paths, upto=lines)
        complete(paths, run, attempt.number, **changes)


# ------------------------------------------------------------------------------------------------------------- sending
def environment(server: StandIn | None, home: Path, **more: str) -> dict[str, str]:
    """Of a process of ours that may use this server; nothing of W&B's or the user's own settings gets in."""
    durable.make_folder(home)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "TRANSFERGRID_"))}
    kept |= {"HOME": str(home), "OMP_NUM_THREADS": "1"}
    if server is not None:
        kept |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": server.key}
    return kept | more


@dataclass(frozen=True)
class Ended:
    """How a script of ours ended. out: what it printed, errors too."""

    code: int
    out: str
    seconds: float

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


def script(name: str, *arguments: str, env: dict[str, str], cwd: Path, patience_s: float = PATIENCE_S) -> Ended:
    """jobs/<name> with these arguments, to its end."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / name), *arguments],
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=patience_s,
    )
    return Ended(done.returncode, done.stdout, time.monotonic() - began)


def sync(
    server: StandIn | None, store: StorePaths, *, grid: str = "g", arguments: Sequence[str] = (), **more: str
) -> Ended:
    """jobs/sync.py; `more`: of its environment."""
    home = store.root.parent / "home"
    env = environment(server, home, **more)
    return script("sync.py", f"grid={grid}", f"store.dir={store.root}", *arguments, env=env, cwd=home)


def start_mirror(
    server: StandIn, store: StorePaths, runs: Sequence[RunSpec], *, grid: str = "g", images: bool = False
) -> subprocess.Popen[bytes]:
    """As a launch does. From several threads one after the other: what the mirror inherits is this very environment."""
    wanted = environment(server, store.root.parent / "home")
    with _environment_lock, pytest.MonkeyPatch.context() as patch:
        for name in set(os.environ) - set(wanted):
            patch.delenv(name)
        for name, value in wanted.items():
            patch.setenv(name, value)
        configurations = [Configuration(grid=grid, variant="", run=run) for run in runs]
        process = tracking.start_mirror(runtime_of(store, tracking="online", wandb_images=images), configurations)
    assert process is not None
    return process


def wait_until(condition: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def processes_at(store: StorePaths, *names: str) -> list[int]:
    """Process ids of wandb-cores, mirrors and syncs that are at work on this store; `names`: of these only."""
    found = []
    wanted = [name.encode() for name in names or ("wandb-core", "transfergrid.tracking", "sync.py")]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_bytes().split(b"\0")
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        place = f"WANDB_DIR={store.wandb}/".encode()
        at_store = any(variable.startswith(place) for variable in variables) or str(store.root).encode() in command
        if at_store and any(name in command for name in wanted):
            found.append(int(process.name))
    return found


# ----------------------------------------------------------------------------------------------------------- comparing
def without_times(line: dict[str, Any]) -> dict[str, Any]:
    """What is left of a line when W&B had it: no value that is None, nothing that a clock measured."""
    return {name: value for name, value in line.items() if name not in TIMING_FIELDS and value is not None}


def lines_on(run: ServerRun) -> list[dict[str, Any]]:
    """The rows that are lines of metrics.jsonl, in the order in which the server has them, under the store's names."""
    rows = [row for row in run.history if "line" in row]
    shown = [{("step" if k == "batch" else k): v for k, v in row.items() if not k.startswith("_")} for row in rows]
    return [without_times(row) for row in shown]


def expected_lines(paths: RunPaths, covered: int | None = None) -> list[dict[str, Any]]:
    return [without_times(line) for line in read_metrics(paths.metrics)[:covered]]


def assert_holds(server: StandIn, store: StorePaths, run_id: str, *, once: bool = True) -> None:
    """The server holds what the run's own files do: each line once, summary, state, both files byte for byte."""
    paths, held = store.run(run_id), server.run(run_id)
    record = records.read_record(paths)
    assert record is not None
    rows, lines = lines_on(held), expected_lines(paths, None if record.status == "completed" else 0)
    if record.status == "completed":
        if once:
            assert [row["line"] for row in rows] == list(range(1, len(lines) + 1))
            assert rows == lines
        else:
            assert list({row["line"]: row for row in rows}.values()) == lines
    assert (held.state, held.exit_code) == (("finished", 0) if record.status == "completed" else ("failed", 1))
    scalars = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    scalars = {n: v for n, v in scalars.items() if isinstance(v, (str, int, float))} | dict(record.metrics)
    assert {name: held.summary.get(name) for name in scalars} == scalars
    for path in (paths.record, paths.predictions):
        assert held.files.get(path.name) == (path.read_bytes() if path.exists() else None), path.name
    assert held.plain_config.get("seed") == record.spec.seed and held.plain_config["run_id"] == run_id


def spec_written(store: StorePaths, run: RunSpec) -> RunPaths:
    paths = store.run(run.run_id)
    durable.write_json(paths.spec, to_dict(run))
    return paths


def verified(runs: int, *, sent: int) -> str:
    """What a sync says last where all of a grid's runs are on the server."""
    return f"W&B: {runs} run{'s' * (runs > 1)} in the store, {sent} brought up to date, {runs} read back and equal"
