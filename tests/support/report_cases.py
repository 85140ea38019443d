"""Specs and records by hand, for tests of what is made from records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transfergrid.paths import StorePaths
from transfergrid.report import documents, markdown
from transfergrid.report.analysis.comparison import Comparison, read_comparison
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.write import write
from transfergrid.specs import (
    RULES_VERSION,
    BackboneSpec,
    DatasetSpec,
    ExtractSettings,
    FinetuneSettings,
    PreprocessSpec,
    ProbeSettings,
    RunSpec,
    ScratchSettings,
    WeightsSpec,
)
from transfergrid.store import records
from transfergrid.store.attempts import AttemptTime
from transfergrid.store.records import GridEntry, RunRecord

COMMON: dict[str, Any] = {
    "drop_last": True,
    "sampling": "shuffle",
    "steps_per_epoch": None,
    "micro_batch": None,
    "clip_norm": None,
    "precision": "bf16",
    "optimizer": "sgd",
    "momentum": 0.9,
    "nesterov": True,
    "decay_norm_and_bias": False,
    "lookahead": False,
    "lookahead_k": 5,
    "lookahead_alpha": 0.5,
    "lr_update": "step",
    "cosine_epochs": None,
    "warmup_fraction": 0.2,
    "step_epochs": (),
    "step_gamma": 0.1,
    "final_lr_fraction": 0.0,
    "label_smoothing": 0.1,
    "ema_decay": None,
    "flip": True,
    "alternate_flip": False,
    "shift_px": 4,
    "perspective": 0.0,
    "perspective_share": 0.5,
    "rotation_deg": 0.0,
    "rotation_expand": False,
    "rotation_fill": 0,
    "cutout_px": 0,
    "augment_at": "native",
    "test_bn": "running",
    "selection": "last",
    "schedule": "onecycle",
    "batch_size": 128,
}
FAIR_SETTINGS: dict[str, dict[str, Any]] = {
    "probe": COMMON
    | {
        "epochs": 5,
        "optimizer": "adamw",
        "lrs": (3e-4, 1e-3),
        "weight_decays": (0.0, 1e-4),
        "source": "features",
        "bn": "eval",
        "aux_loss_weight": 0.0,
        "lbfgs": True,
    },
    "finetune": COMMON
    | {
        "epochs": 10,
        "lr": 1e-2,
        "head_lr": 2e-2,
        "stem_lr": 1e-3,
        "weight_decay": 5e-4,
        "head": "probe",
        "bn": "train",
        "frozen_groups": (),
        "aux_loss_weight": 0.0,
        "l2_sp": 0.0,
    },
    "scratch": COMMON
    | {
        "epochs": 30,
        "lr": 0.1,
        "weight_decay": 5e-4,
        "image_size_px": None,
        "normalise": "constants",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
    },
}
KINDS = {"probe": ProbeSettings, "finetune": FinetuneSettings, "scratch": ScratchSettings}


def backbone(name: str, *, weights: str = "IMAGENET1K_V1", crop_px: int = 224, identity: str = "tag:x") -> BackboneSpec:
    preprocess = PreprocessSpec(
        mode="direct",
        resize_px=crop_px,
        crop_px=crop_px,
        interpolation="bilinear",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    return BackboneSpec(
        name=name, tap="avgpool", weights=WeightsSpec(label=weights, identity=identity), preprocess=preprocess
    )


def spec(
    phase: str,
    model: str,
    *,
    dataset: str = "mnist",
    seed: int | None = 0,
    protocol: str = "fair",
    max_images: int | None = None,
    backbone_options: dict[str, Any] | None = None,
    **changes: Any,
) -> RunSpec:
    """One run under this file's settings of `phase`, with `changes` to them."""
    options = backbone_options or {}
    return RunSpec(
        phase=phase,  # type: ignore[arg-type]
        model=model,
        backbones=() if phase == "scratch" else tuple(backbone(name, **options) for name in model.split("+")),
        dataset=DatasetSpec(
            name=dataset,
            kind=dataset if dataset.isidentifier() else "image_folder",
            fingerprint="f",
            num_classes=10,
            max_images=max_images,
        ),
        extract=None if phase == "scratch" else ExtractSettings(),
        settings=KINDS[phase](**FAIR_SETTINGS[phase] | changes),
        protocol=protocol,  # type: ignore[arg-type]
        seed=seed,
        val_seed=0,
        rules=RULES_VERSION if phase in ("probe", "finetune") else 1,
    )


def entry(run: RunSpec, *, variant: str = "") -> GridEntry:
    return GridEntry(
        run_id=run.run_id,
        dataset=run.dataset.name,
        model=run.model,
        phase=run.phase,
        variant=variant,
        weights=run.weights_label,
        protocol=run.protocol or "",
        seed=run.seed,
    )


def write_grid(store: StorePaths, name: str, runs: Sequence[tuple[RunSpec, str]]) -> None:
    """results/grids/<name>.json of (run, variant) pairs."""
    records.write_grid(store.grid(name), grid=name, entries=[entry(run, variant=variant) for run, variant in runs])


def completed(store: StorePaths, run: RunSpec, *, test_accuracy: float = 0.95, **changes: Any) -> RunRecord:
    """Write a completed record; `metrics` and `details` add to what stands here, other changes replace fields.

    wall_s, gpu_s: what the row shows of it; its phase took all of wall_s."""
    metrics = {
        "test_accuracy": test_accuracy,
        "val_accuracy": 0.94,
        "train_accuracy": 0.99,
        "test_loss": 0.125,
        "test_macro_precision": 0.951,
        "test_macro_recall": 0.952,
        "test_macro_f1": 0.953,
    }
    wall_s, gpu_s = changes.pop("wall_s", 10.0), changes.pop("gpu_s", 4.0)
    content: dict[str, Any] = {
        "phase_s": wall_s,
        "on_gpu": gpu_s > 0,
        "attempts": attempts(wall_s=wall_s, gpu_s=gpu_s),
        "epochs": getattr(run.settings, "epochs", None),
        "n_train": 54_000,
        "parameters": 11_181_642,
        "trainable_parameters": 5_130,
        "size_mb": 44.7,
        "gflops_per_image": 3.64,
        "images_per_s": 2_000.0,
        "metrics": metrics | changes.pop("metrics", {}),
        "details": {"n_test": 10_000} | changes.pop("details", {}),
    }
    record = RunRecord(run_id=run.run_id, spec=run, status="completed", **content | changes)
    records.write_record(store.run(run.run_id), record)
    return record


def attempts(*, wall_s: float, gpu_s: float) -> tuple[AttemptTime, ...]:
    """So long in all, and so long on one GPU."""
    times = ((1, wall_s - gpu_s, 0), (2, gpu_s, 1))
    return tuple(AttemptTime(n, "2026-11-20T13:00:00+00:00", seconds, gpus=gpus) for n, seconds, gpus in times)


def failed(store: StorePaths, run: RunSpec, *, failure_class: str, error: str, remedy: str | None = None) -> None:
    record = RunRecord(
        run_id=run.run_id, spec=run, status="failed", failure_class=failure_class, error=error, remedy=remedy
    )
    records.write_record(store.run(run.run_id), record)


def as_markdown(comparison: Comparison) -> str:
    """comparison.md of one grid."""
    return markdown.document(f"Comparison: {comparison.grid}", documents.sections(comparison))


def row(**changes: object) -> ComparisonRow:
    content: dict[str, object] = {
        "grid": "quickstart",
        "dataset": "digits",
        "model": "tinynet_mnist",
        "phase": "probe",
        "variant": "",
        "weights": "builtin",
        "protocol": "fair",
        "n_seeds": 3,
        "test_accuracy": 0.972,
        "ci95_low": 0.95,
        "ci95_high": 0.985,
        "wall_s": 1.25,
        "gpu_s": 0.0,
        "status": "completed",
    }
    return ComparisonRow(**content | changes)  # type: ignore[arg-type]


def write_report(grid: str | Sequence[str], store: StorePaths, *, figures: bool = True) -> Path:
    """The report of a grid, or of several side by side; returns the path of comparison.md."""
    grids = [grid] if isinstance(grid, str) else grid
    return write(tuple(read_comparison(name, store) for name in grids), figures=figures)


def write_join(store: StorePaths, *, protocol: str = "fair") -> None:
    # On test googlenet is the better part, on val resnet18: the choice must follow val.
    accuracies = {"resnet18": (0.95, 0.96), "googlenet": (0.97, 0.95), "vgg16": (0.99, 0.99)}
    runs = {m: spec("probe", m, protocol=protocol) for m in (*accuracies, "resnet18+googlenet")}
    write_grid(store, "mine", [(run, "") for run in runs.values()])
    for model, (test, val) in accuracies.items():
        completed(store, runs[model], test_accuracy=test, metrics={"val_accuracy": val})
    completed(store, runs["resnet18+googlenet"], test_accuracy=0.98)
