"""What the runs of a plan will write, in bytes, and what is free where they write it. Imports no torch.

Left out: data sets that are fetched, figures, and what W&B keeps. A quota cannot be seen.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from transfergrid.data.folds import dataset_facts, splits_of
from transfergrid.networks import architectures, backbones
from transfergrid.paths import cache_paths
from transfergrid.phases import extract, feature_dims
from transfergrid.planning.work import rows_of
from transfergrid.specs import (
    BackboneSpec,
    EvaluateSettings,
    ExtractSettings,
    ProbeSettings,
    RunSpec,
    Runtime,
    TrainSettings,
)
from transfergrid.store.records import MANY_CLASSES, TOP_CLASSES_KEPT

Kind = Literal["weights", "features", "predictions", "records and logs", "published weights"]
Where = Literal["store.dir", "cache.dir", "weights_dir"]
PLACES: dict[Kind, Where] = {
    "weights": "store.dir",
    "predictions": "store.dir",
    "records and logs": "store.dir",
    "features": "cache.dir",
    "published weights": "weights_dir",
}

# Measured in the quickstart, as blocks of 4 KiB: spec, attempt and log one each, record two; folders are not counted.
RUN_BYTES = 5 * 4096
# Of a step's line in metrics.jsonl: all but the learning rates, and each of them with its group's name.
LINE_BYTES = 155
RATE_BYTES = 40
# Of a feature file, beside its rows: the container with its key and provenance.
CONTAINER_BYTES = 8 * 1024
CSV_ROW_BYTES = 60  # of an evaluation's predictions.csv, whose rows hold the names of files
# Two checkpoints lie beside a run at work, of weights, what the optimizer keeps of them, and their average.
CHECKPOINTS = 6


@dataclass(frozen=True, slots=True)
class Volume:
    """One file system. folder: in it. places: what is set to it, of what is written. writes: bytes by kind. free:
    bytes that this user may write there. at_work: bytes of the checkpoints of the largest run, gone when it ends."""

    folder: Path
    free: int
    places: list[Where] = field(default_factory=list)
    writes: Counter[Kind] = field(default_factory=Counter)
    at_work: int = 0

    @property
    def cannot_fit(self) -> bool:
        """By what is known to the byte; records and logs are guessed."""
        return sum(n for kind, n in self.writes.items() if kind != "records and logs") > self.free

    @property
    def is_tight(self) -> bool:
        return 1.1 * self.writes.total() + self.at_work > self.free


def volumes(runs: Iterable[RunSpec], runtime: Runtime) -> list[Volume]:
    """The file systems that these runs write to. One that does not tell what is free is left out."""
    writes, at_work = expected(runs, runtime)
    folders: dict[Where, Path] = {
        "store.dir": Path(runtime.store_dir),
        "cache.dir": Path(runtime.cache_dir),
        "weights_dir": Path(runtime.weights_dir),
    }
    by_device: dict[int, Volume] = {}
    for kind, num_bytes in writes.items():
        place = PLACES[kind]
        folder = folders[place].absolute()
        if folder.is_relative_to(folders["cache.dir"].absolute()):
            place = "cache.dir"
        there = next(path for path in (folder, *folder.parents) if path.exists())
        try:
            device, usage = os.stat(there).st_dev, shutil.disk_usage(there)
        except OSError:
            continue
        if usage.total == 0:  # of no disk, as /proc
            continue
        volume = by_device.setdefault(device, Volume(there, usage.free))
        volume.writes[kind] += num_bytes
        if place not in volume.places:
            volume.places.append(place)
        if place == "store.dir":
            by_device[device] = replace(volume, at_work=at_work)
    return list(by_device.values())


def expected(runs: Iterable[RunSpec], runtime: Runtime) -> tuple[Counter[Kind], int]:
    """Bytes by kind that runs leave behind, and those of the checkpoints of the largest while it is at work."""
    total: Counter[Kind] = Counter()
    at_work = 0
    known: dict[tuple[object, ...], Counter[Kind]] = {}
    starts: dict[BackboneSpec, None] = {}
    for run in runs:
        # Seeds, and what only weights' files tell apart, write the same; an extraction's key has more.
        key = (run.phase, run.model, run.dataset, run.settings, run.protocol, run.train_fraction, run.shots)
        if run.phase == "extract" or key not in known:
            known[key] = _of_run(run, runtime)
            starts |= dict.fromkeys(run.backbones)
            if run.phase in ("finetune", "scratch"):
                at_work = max(at_work, CHECKPOINTS * 4 * _parameters(run, runtime))
        total.update(known[key])
    total["published weights"] = sum(_to_fetch(backbone, runtime) for backbone in starts)
    return Counter({kind: num_bytes for kind, num_bytes in total.items() if num_bytes}), at_work


def _of_run(run: RunSpec, runtime: Runtime) -> Counter[Kind]:
    writes: Counter[Kind] = Counter({"records and logs": RUN_BYTES})
    facts, settings = dataset_facts(run.dataset, runtime), run.settings
    if isinstance(settings, ExtractSettings):
        [dim], most = feature_dims(run, runtime), run.dataset.max_images
        row = dim * (2 if settings.storage == "float16" else 4) + 16  # label and index
        for split in extract.missing(run, runtime):
            num_rows = min(facts.num_images[split], most or facts.num_images[split])
            writes["features"] += num_rows * row + CONTAINER_BYTES
        return writes
    rows = rows_of(run, facts)
    classes, logits = run.dataset.num_classes, _logits_bytes(run.dataset.num_classes)
    if isinstance(settings, EvaluateSettings):
        seen = facts.num_images[settings.split] if settings.split in splits_of(facts) else rows.held
        num_rows = min(seen, run.dataset.max_images or seen)
        writes["predictions"] = num_rows * (16 + logits + CSV_ROW_BYTES)
        return writes
    assert isinstance(settings, TrainSettings)
    writes["predictions"] = (rows.test + rows.val) * (16 + logits)
    if isinstance(settings, ProbeSettings):
        parts = len(run.backbones) if len(run.backbones) > 1 else 0
        writes["predictions"] += rows.gate * (16 + logits * (1 + parts))
        writes["weights"] = 4 * (sum(feature_dims(run, runtime)) + 1) * classes
    elif runtime.keep_weights == "final":
        writes["weights"] = 4 * _parameters(run, runtime)
    if settings.takes_steps:
        writes["records and logs"] += settings.epochs * settings.count_steps(rows.train) * _line_bytes(run, runtime)
    return writes


def _logits_bytes(num_classes: int) -> int:
    """Of one row: float16; of many classes the largest, with their numbers, and the log-sum-exp of all."""
    return 2 * num_classes if num_classes <= MANY_CLASSES else (2 + 8) * TOP_CLASSES_KEPT + 8


def _line_bytes(run: RunSpec, runtime: Runtime) -> int:
    groups = sum(len(_entry(b, runtime).groups) for b in run.backbones) if run.phase == "finetune" else 0
    return LINE_BYTES + (groups + 1) * RATE_BYTES


def _parameters(run: RunSpec, runtime: Runtime) -> int:
    """Of all that a run trains on images: its trunks and the head, or its architecture."""
    if not run.backbones:
        return architectures.entry(run.model).parameters
    trunks = sum(_entry(b, runtime).parameters for b in run.backbones)
    return trunks + (sum(feature_dims(run, runtime)) + 1) * run.dataset.num_classes


def _to_fetch(backbone: BackboneSpec, runtime: Runtime) -> int:
    """Bytes of a published file that does not lie in weights_dir: 4 a parameter."""
    folder, name = Path(runtime.weights_dir), backbone.weights.identity.removeprefix("tag:")
    if name == backbone.weights.identity or any(folder.glob(f"*{name.removeprefix('timm/')}*")):
        return 0
    known = _entry(backbone, runtime)
    return 4 * (known.parameters + (known.feature_dim + 1) * known.head_classes)


def _entry(backbone: BackboneSpec, runtime: Runtime) -> backbones.CatalogEntry:
    return backbones.entry(backbone.name, catalog_dir=cache_paths(runtime).catalog)
