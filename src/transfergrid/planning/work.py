"""What a run computes, and how long that takes at a speed: images, passes, steps, FLOPs. Imports no torch."""

from __future__ import annotations

import math
import sys

from transfergrid.data import DatasetFacts
from transfergrid.data.folds import RowCounts, count_rows, dataset_facts, splits_of
from transfergrid.networks import architectures, backbones
from transfergrid.paths import cache_paths, store_paths
from transfergrid.phases import extract, feature_dims
from transfergrid.specs import (
    BackboneSpec,
    EvaluateSettings,
    ExtractSettings,
    FinetuneSettings,
    ProbeSettings,
    RunSpec,
    Runtime,
    ScratchSettings,
    Split,
    TrainSettings,
)
from transfergrid.store.attempts import read_spec
from transfergrid.training.speed import TRAINING, Speed

PATH_ITERATIONS = 400  # of a whole path of solved heads: 320 to 520 on digits, MNIST


def seconds_by_flops(run: RunSpec, runtime: Runtime, speed: Speed) -> float:
    """From the first image on."""
    settings = run.settings
    if isinstance(settings, ProbeSettings) and settings.source == "features":
        return _seconds_of_heads(run, settings, runtime, speed)
    read, forward, steps = _passes(run, runtime)
    networks = max(1, len(run.backbones))
    seconds = forward * gflops_per_image(run, runtime) * 1e9 / speed.flop_per_s[settings.precision]
    trained = sum(_known(b, runtime).parameters for b in run.backbones) if isinstance(settings, FinetuneSettings) else 0
    return seconds + read * speed.image_s + steps * (networks * speed.step_s + trained * speed.parameter_s)


def images_and_epochs(run: RunSpec, runtime: Runtime) -> tuple[int, int]:
    """What the time grows with: images of an epoch, or of the one pass of a phase without epochs; number of epochs."""
    if isinstance(run.settings, ExtractSettings):
        return _not_cached(run, runtime), 1
    if isinstance(run.settings, EvaluateSettings):
        return _evaluated(run, runtime), 1
    assert isinstance(run.settings, TrainSettings)
    return _rows(run, runtime).train, run.settings.epochs


def gflops_per_image(run: RunSpec, runtime: Runtime) -> float:
    """Of a forward pass through all of a run's networks at the size they are fed, heads left out."""
    total = 0.0
    for backbone in run.backbones:
        known = _known(backbone, runtime)
        total += 2 * known.gmacs * (backbone.preprocess.crop_px / known.recipe(known.default_weights).crop_px) ** 2
    if run.backbones:
        return total
    return architectures.entry(run.model).gflops_at_32_px * (_input_px(run, runtime) / 32) ** 2


def _known(backbone: BackboneSpec, runtime: Runtime) -> backbones.CatalogEntry:
    return backbones.entry(backbone.name, catalog_dir=cache_paths(runtime).catalog)


def _passes(run: RunSpec, runtime: Runtime) -> tuple[int, int, int]:
    """Images prepared; images passed forward, where one that is trained on counts three; optimizer steps.

    Each epoch evaluates val, under `published` test instead; after the last, every fold is predicted once.
    """
    settings = run.settings
    rows = _rows(run, runtime)
    target = _seen(run, runtime).get("train", 0) * (run.extract is not None and run.extract.bn_statistics == "target")
    if isinstance(settings, EvaluateSettings):
        return (_evaluated(run, runtime),) * 2 + (0,)
    if not isinstance(settings, TrainSettings):
        images = _not_cached(run, runtime) + target
        return images, images, 0
    watched = rows.val if run.protocol == "fair" else rows.test
    head = getattr(settings, "head", None)
    hands_over = isinstance(settings, ProbeSettings) or head in ("refitted", "probe")
    evaluated = settings.epochs * watched + rows.train + rows.val + rows.test + rows.gate * hands_over + target
    evaluated += rows.train * (head == "refitted")
    steps = settings.epochs * settings.count_steps(rows.train)
    trained = min(settings.epochs * rows.train, steps * settings.batch_size)
    if settings.sampling == "replacement":
        trained = steps * settings.batch_size
    factor = 1 if isinstance(settings, ProbeSettings) else TRAINING  # nothing goes back through a frozen trunk
    passes = settings.epochs * _passes_per_epoch(settings, rows.train)
    return trained + evaluated, factor * trained + evaluated, passes


def _passes_per_epoch(settings: TrainSettings, num_train: int) -> int:
    """Forward and backward passes: one per step, or as many as it has micro-batches."""
    parts = math.ceil(settings.batch_size / (settings.micro_batch or settings.batch_size))
    return parts * settings.count_steps(num_train)


def _seconds_of_heads(run: RunSpec, settings: ProbeSettings, runtime: Runtime, speed: Speed) -> float:
    """Every head that SGD trains, the path of solved ones, and those beside them, on cached features."""
    rows = _rows(run, runtime)
    num_train, feature_dim = rows.train, sum(feature_dims(run, runtime))
    num_heads = len(settings.lrs) * len(settings.weight_decays)
    product = 2 * num_train * feature_dim * run.dataset.num_classes
    by_sgd = settings.solver == "sgd"
    flop = TRAINING * product * num_heads * settings.epochs if by_sgd else 0
    if settings.lbfgs:
        flop += 2 * product * PATH_ITERATIONS  # features have no gradient
    flop += 2 * num_train * feature_dim * (feature_dim + rows.val + rows.test)  # covariances, nearest neighbours
    steps = settings.epochs * settings.count_steps(num_train) if by_sgd else 0
    return steps * num_heads * speed.head_step_s + flop / speed.head_flop_per_s


def _seen(run: RunSpec, runtime: Runtime) -> dict[Split, int]:
    """Images of each split, at most max_images."""
    most = run.dataset.max_images
    facts = dataset_facts(run.dataset, runtime)
    return {split: min(facts.num_images[split], most or sys.maxsize) for split in splits_of(facts)}


def _rows(run: RunSpec, runtime: Runtime) -> RowCounts:
    return rows_of(run, dataset_facts(run.dataset, runtime))


def rows_of(run: RunSpec, facts: DatasetFacts) -> RowCounts:
    """The sizes of a run's folds, by the facts of its data set."""
    return count_rows(
        facts,
        max_images=run.dataset.max_images,
        protocol=run.protocol,
        train_fraction=run.train_fraction,
        shots=run.shots,
        val_seed=run.val_seed,
    )


def _not_cached(run: RunSpec, runtime: Runtime) -> int:
    """Images whose features an extraction still has to make."""
    seen = _seen(run, runtime)
    return sum(seen[split] for split in extract.missing(run, runtime))


def _evaluated(run: RunSpec, runtime: Runtime) -> int:
    assert isinstance(run.settings, EvaluateSettings)
    return _seen(run, runtime).get(run.settings.split) or _rows(run, runtime).held


def _input_px(run: RunSpec, runtime: Runtime) -> int:
    """What an architecture is fed. An evaluated run's own spec tells; before it has one, the size of the images."""
    settings = run.settings
    if isinstance(settings, EvaluateSettings):
        if settings.preprocess is not None:
            return settings.preprocess.crop_px
        source = read_spec(store_paths(runtime).run(settings.source.removeprefix("run:")))
        if source is None:
            return dataset_facts(run.dataset, runtime).image_size_px or 32
        settings = source.settings
    assert isinstance(settings, ScratchSettings)
    return settings.image_size_px
