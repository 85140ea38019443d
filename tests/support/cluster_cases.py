"""Small runs, payloads and environments for tests of what goes to a cluster; no data, no torch, no Hydra."""

from __future__ import annotations

import os
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import pytest
from replayed_slurm import CLUSTER, TOKEN
from rich.console import Console

from transfergrid.config.schema import DEFAULTS
from transfergrid.planning.plan import PlannedRun
from transfergrid.specs import (
    BackboneSpec,
    DatasetSpec,
    EvaluateSettings,
    ExtractSettings,
    Phase,
    PreprocessSpec,
    RunSpec,
    Runtime,
    ScratchSettings,
    Settings,
    WeightsSpec,
)

DIGITS = DatasetSpec(name="digits", kind="digits", fingerprint="f0", num_classes=10)


def scratch_run(seed: int = 0, *, model: str = "tinynet", dataset: DatasetSpec = DIGITS) -> RunSpec:
    settings = ScratchSettings(**DEFAULTS["scratch"] | {"lr": 0.1, "flip": False, "image_size_px": 32})
    return run_of("scratch", settings, model=model, seed=seed, dataset=dataset)


def evaluate_run(seed: int = 0, *needs: str) -> RunSpec:
    settings = EvaluateSettings(source="own_head", split="test", precision="fp32", preprocess=None)
    return run_of("evaluate", settings, model="resnet18", seed=seed, needs=needs)


def extract_run(name: str = "resnet18", dataset: DatasetSpec = DIGITS) -> RunSpec:
    transform = PreprocessSpec(
        mode="direct", resize_px=32, crop_px=32, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    weights = WeightsSpec(label="random", identity="random:v1:0")
    backbone = BackboneSpec(name=name, tap="avgpool", weights=weights, preprocess=transform)
    settings = ExtractSettings()
    return RunSpec(
        phase="extract",
        model=name,
        backbones=(backbone,),
        dataset=dataset,
        extract=settings,
        settings=settings,
        protocol=None,
        seed=None,
        val_seed=None,
    )


def run_of(
    phase: Phase,
    settings: Settings,
    *,
    model: str,
    seed: int,
    dataset: DatasetSpec = DIGITS,
    needs: tuple[str, ...] = (),
) -> RunSpec:
    return RunSpec(
        phase=phase,
        model=model,
        backbones=(),
        dataset=dataset,
        extract=None,
        settings=settings,
        protocol="fair",
        seed=seed,
        val_seed=0,
        needs=needs,
    )


def planned(run: RunSpec, *needs: str) -> PlannedRun:
    return PlannedRun(run, "run", "not done yet", needs)


def runtime_in(folder: Path, **data_folders: str) -> Runtime:
    return Runtime(
        store_dir=str(folder / "results"),
        cache_dir=str(folder / "cache"),
        data_dir=str(folder / "cache" / "data"),
        weights_dir=str(folder / "cache" / "weights"),
        data_folders=data_folders,
        device="cpu",
        num_threads=1,
        tracking="disabled",
        grid="g",
    )


def as_job(
    monkeypatch: pytest.MonkeyPatch, job_id: str | None, *, task: int | None = None, restarts: int | None = None
) -> None:
    """This process's environment as SLURM sets it in a job, or in none."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TRANSFERGRID_JOB"))]:
        monkeypatch.delenv(name)
    if job_id is not None:
        monkeypatch.setenv("SLURM_CLUSTER_NAME", CLUSTER)
        monkeypatch.setenv("SLURM_JOB_NAME", f"name-{TOKEN}")
        monkeypatch.setenv("TRANSFERGRID_JOB_TOKEN", TOKEN)
        monkeypatch.setenv("SLURM_JOB_ID", job_id if task is None else "999")  # a task has an id of its own as well
    if task is not None:
        assert job_id is not None
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", job_id)
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
    if restarts is not None:
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))


def executable(path: Path, *lines: str) -> None:
    """A shell script of these lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    path.chmod(0o755)


def console() -> Console:
    """As make_console() makes it where the output goes to a file; said() tells what it printed."""
    return Console(file=StringIO(), width=100, markup=False)


def said(printed: Console) -> list[str]:
    """The lines that were printed, without blanks at their ends and without empty lines."""
    assert isinstance(printed.file, StringIO)
    return [line.rstrip() for line in printed.file.getvalue().splitlines() if line.strip()]


def names_in(folder: Path) -> Sequence[str]:
    return sorted(path.name for path in folder.iterdir())
