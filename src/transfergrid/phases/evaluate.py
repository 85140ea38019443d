"""A finished run, a checkpoint file, or a backbone with its own published head, on any split of any data set.

Top-1 and top-5 accuracy, macro scores, and every prediction as CSV beside the record.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from transfergrid import durable
from transfergrid.data.geometry import scratch_preprocess
from transfergrid.errors import DataError
from transfergrid.folds import Fold, make_folds, open_splits, subset
from transfergrid.paths import store_paths
from transfergrid.phases import has_completed
from transfergrid.specs import (
    EvaluateSettings,
    PreprocessSpec,
    RunSpec,
    Runtime,
    ScratchSettings,
    Split,
    TrainSettings,
    from_dict,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from transfergrid.phases import RunContext
    from transfergrid.records import RunRecord
    from transfergrid.results import Logits

is_done = has_completed


def run(context: RunContext) -> RunRecord:
    """predictions.csv: index, label, predicted, probability; scores under the name of the split (`test` for test)."""
    from transfergrid.device import device_of
    from transfergrid.images import NetworkInputs
    from transfergrid.network import predict
    from transfergrid.network_size import describe
    from transfergrid.results import Stopwatch, class_details, make_record, save_predictions, score_folds

    spec, runtime, settings = context.spec, context.runtime, context.spec.settings
    assert isinstance(settings, EvaluateSettings)
    watch = Stopwatch()
    device = device_of(runtime)
    splits = open_splits(spec.dataset, runtime)
    fold = _fold(spec, {split: images.labels_N for split, images in splits.items()})
    network, preprocess = _network(spec, runtime, device)
    network.eval()
    inputs = NetworkInputs(
        splits, preprocess, device=device, resident_gb=runtime.resident_gb, rows={fold.split: fold.index_N}
    )
    forward = Stopwatch()
    logits_NC = predict(network, inputs, fold, precision=settings.precision, **_reading(settings.source, runtime))
    images_per_s = len(fold) / forward.seconds
    if logits_NC.shape[1] != spec.dataset.num_classes:
        raise DataError(
            f"{spec.model} tells {logits_NC.shape[1]} classes apart, {spec.dataset.name} has {spec.dataset.num_classes}"
        )
    made: dict[str, tuple[Fold, Logits]] = {settings.split: (fold, logits_NC)}
    save_predictions(context.attempt, made)
    class_names = next(iter(splits.values())).class_names
    _write_csv(context.paths.predictions_csv, fold, logits_NC, class_names)
    cost = describe(network, [(3, p.crop_px, p.crop_px) for p in preprocess])
    return make_record(
        spec,
        context.attempt,
        device,
        metrics=score_folds(made),
        details={"source": settings.source, "n_test": len(fold)} | class_details(made, class_names),
        wall_s=watch.seconds,
        n_train=None,
        parameters=cost.parameters,
        trainable_parameters=0,
        size_mb=cost.size_mb,
        gflops_per_image=cost.gflops_per_image,
        images_per_s=images_per_s,
    )


def _fold(spec: RunSpec, labels: Mapping[Split, NDArray[np.int64]]) -> Fold:
    """The rows evaluated. `val` of a data set without its own is the 10 % that training under `fair` held out."""
    settings = spec.settings
    assert isinstance(settings, EvaluateSettings)
    if settings.split == "val" and "val" not in labels:
        return make_folds(spec, labels).gate
    labels_N = labels[settings.split]
    index_N = subset(spec.dataset, labels_N)
    return Fold(settings.split, index_N, labels_N[index_N])


def _network(spec: RunSpec, runtime: Runtime, device: torch.device) -> tuple[nn.Module, tuple[PreprocessSpec, ...]]:
    """The network to evaluate and what each of its backbones is fed."""
    import torch

    from transfergrid.network import Plain

    settings = spec.settings
    assert isinstance(settings, EvaluateSettings)
    preprocess = tuple(b.preprocess for b in spec.backbones)
    if settings.source.startswith("run:"):
        network, preprocess = _of_run(settings.source.removeprefix("run:"), spec, runtime)
    elif not spec.backbones:
        from transfergrid import architectures
        from transfergrid.backbones.state_dicts import assign_weights, read_state_dict

        path = Path(runtime.weights_files[settings.source])
        network = architectures.build(spec.model, spec.dataset.num_classes, 0)
        assign_weights(network, read_state_dict(path), path=path, ignored=())
        network, preprocess = (
            Plain(network),
            (scratch_preprocess(image_size_px=settings.image_size_px, native_size_px=None),),
        )
    else:
        from dataclasses import replace

        from transfergrid.backbones.build import build_classifier

        backbone = spec.backbones[0]
        if settings.source.startswith("file:"):
            weights = replace(backbone.weights, identity=settings.source, label=settings.source[:13])
            backbone = replace(backbone, weights=weights)
        network = Plain(
            build_classifier(backbone, weights_dir=Path(runtime.weights_dir), weights_files=runtime.weights_files)
        )
    return network.to(device, memory_format=torch.channels_last), preprocess  # type: ignore[call-overload]


def _reading(source: str, runtime: Runtime) -> dict[str, Any]:
    """BatchNorm as the run itself was read with: a study that never calls eval() is not given its statistics here."""
    if not source.startswith("run:"):
        return {}
    trained = from_dict(RunSpec, durable.read_json(store_paths(runtime).run(source.removeprefix("run:")).spec))
    settings = trained.settings
    if not isinstance(settings, TrainSettings) or settings.test_bn == "running":
        return {}
    return {"test_bn": settings.test_bn, "batch_size": settings.micro_batch or settings.batch_size}


def _of_run(run_id: str, spec: RunSpec, runtime: Runtime) -> tuple[nn.Module, tuple[PreprocessSpec, ...]]:
    """A finished run's network with its weights. Raises DataError where they were not kept."""
    import torch

    from transfergrid import architectures, backbones
    from transfergrid.backbones.build import build
    from transfergrid.network import JoinedNetwork, Plain
    from transfergrid.paths import cache_paths
    from transfergrid.results import load_weights

    paths = store_paths(runtime).run(run_id)
    trained = from_dict(RunSpec, durable.read_json(paths.spec))
    state = load_weights(paths)
    num_classes = trained.dataset.num_classes
    if isinstance(trained.settings, ScratchSettings):
        network = architectures.build(trained.model, num_classes, 0)
        network.load_state_dict(state)
        size_px = trained.settings.image_size_px
        return Plain(network), (scratch_preprocess(image_size_px=size_px, native_size_px=None),)
    trunks = [
        build(b, weights_dir=Path(runtime.weights_dir), weights_files=runtime.weights_files) for b in trained.backbones
    ]
    catalog = cache_paths(runtime).catalog
    feature_dim = sum(backbones.entry(b.name, catalog_dir=catalog).feature_dim for b in trained.backbones)
    joined = JoinedNetwork(
        trunks, feature_dim=feature_dim, num_classes=num_classes, generator=torch.Generator().manual_seed(0)
    )
    if trained.extract is not None and trained.extract.bn_statistics == "target" and trained.phase == "probe":
        raise DataError(f"{run_id}: a probe with bn_statistics=target is evaluated by its fine-tuning, run=ID of that")
    own = joined.state_dict()
    joined.load_state_dict({name: value for name, value in state.items() if name in own}, strict=False)
    return joined, tuple(b.preprocess for b in trained.backbones)


def _write_csv(path: Path, fold: Fold, logits_NC: Logits, class_names: tuple[str, ...]) -> None:
    """index, label, predicted, probability of the predicted class; classes by name."""
    shifted_NC = logits_NC.astype(np.float64) - logits_NC.max(axis=1, keepdims=True)
    probability_N = 1.0 / np.exp(shifted_NC).sum(axis=1)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", "label", "predicted", "probability"])
    for index, label, predicted, probability in zip(
        fold.index_N.tolist(), fold.labels_N.tolist(), logits_NC.argmax(1).tolist(), probability_N.tolist(), strict=True
    ):
        writer.writerow([index, class_names[label], class_names[predicted], f"{probability:.4f}"])
    durable.write_bytes(path, text.getvalue().encode())
