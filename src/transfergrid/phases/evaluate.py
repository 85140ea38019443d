"""A finished run, a checkpoint file, or a backbone with its own published head, on any split of any data set.

Top-1 and top-5 error, macro scores, and every prediction as CSV beside the record.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from transfergrid.data.folds import Fold, dataset_facts, held_out, open_splits, rows_seen
from transfergrid.names import csv_rows
from transfergrid.networks.backbones.weight_files import Taken, weights_taken
from transfergrid.networks.classes import NamedLogits, classes_of_run, match_classes, name_logits
from transfergrid.paths import store_paths
from transfergrid.phases import has_completed
from transfergrid.phases._profile import is_measured
from transfergrid.specs import EvaluateSettings, PreprocessSpec, RunSpec, Runtime, Split, from_dict
from transfergrid.store import durable
from transfergrid.training.evaluation import top_k_accuracy

if TYPE_CHECKING:
    from torch import nn

    from transfergrid.phases import RunContext
    from transfergrid.store.records import RunRecord
    from transfergrid.training.results import Logits

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A network, what each of its backbones is fed, and how BatchNorm is read, if not as usual.

    own: its classes in the order of its logits; None where only their number can tell. taken: of the user's file.
    """

    network: nn.Module
    preprocess: tuple[PreprocessSpec, ...]
    own: NamedLogits | None
    reading: Mapping[str, Any]
    taken: Mapping[str, Taken] = field(default_factory=dict)


def is_done(spec: RunSpec, runtime: Runtime) -> bool:
    """Whether its record says so, and with profile=true what using its network costs has been measured."""
    return has_completed(spec, runtime) and (runtime.profile == "no" or is_measured(spec, runtime))


def run(context: RunContext) -> RunRecord:
    """predictions.csv: file, index, label, predicted, probability. Scores are under the name of the split.

    Labels and predictions are places among the network's own classes, which `class_names` names.
    """
    from transfergrid.data.batches import NetworkInputs
    from transfergrid.networks.size import describe
    from transfergrid.training.device import device_of, on_device
    from transfergrid.training.on_images import predict
    from transfergrid.training.results import (
        Stopwatch,
        class_details,
        group_details,
        make_record,
        save_predictions,
        score_folds,
    )

    spec, runtime, settings = context.spec, context.runtime, context.spec.settings
    assert isinstance(settings, EvaluateSettings)
    watch = Stopwatch()
    device = device_of(runtime)
    splits = open_splits(spec.dataset, runtime)
    groups = dataset_facts(spec.dataset, runtime).groups
    fold = _fold(spec, {split: images.labels_N for split, images in splits.items()}, groups)
    subject = _open(spec, runtime, splits[fold.split].class_names)
    network = on_device(subject.network, device)
    # Every image is used once, so a resident copy would serve nothing: they stream, however many there are.
    inputs = NetworkInputs(splits, subject.preprocess, device=device, resident_gb=0.0, rows={fold.split: fold.index_N})
    forward = Stopwatch()  # images per second without the imports and the weights, as in training
    logits_NC = predict(network, inputs, fold, precision=settings.precision, **subject.reading)
    images_per_s = len(fold) / forward.seconds
    names, dataset = splits[fold.split].class_names, spec.dataset
    named = subject.own or name_logits(
        names, logits_NC.shape[1], model=spec.model, dataset=dataset.name, kind=dataset.kind
    )
    if named.note is not None:
        logger.info("%s", named.note)
    compared = {} if named.columns is None else {"classes_compared": len(named.columns)}
    logits_NC = logits_NC if named.columns is None else logits_NC[:, named.columns]
    fold = replace(fold, labels_N=named.place_S[fold.labels_N])
    by_fold: dict[str, tuple[Fold, Logits]] = {settings.split: (fold, logits_NC)}
    save_predictions(context.attempt, by_fold)
    files = dataset_facts(spec.dataset, runtime).paths(fold.split)
    _write_csv(context.paths.predictions_csv, fold, logits_NC, named.class_names, files)
    cost = describe(network, [(3, p.crop_px, p.crop_px) for p in subject.preprocess])
    details = {"source": settings.source, "n_test": len(fold), **_errors(fold, logits_NC), **compared}
    details |= weights_taken(subject.taken) | (group_details(fold) if settings.split == "test" else {})
    return make_record(
        spec,
        context.attempt,
        device,
        metrics=score_folds(by_fold),
        details=details | class_details(by_fold, named.class_names),
        phase_s=watch.seconds,
        n_train=None,
        parameters=cost.parameters,
        trainable_parameters=0,
        size_mb=cost.size_mb,
        gflops_per_image=cost.gflops_per_image,
        images_per_s=images_per_s,
    )


def _errors(fold: Fold, logits_NC: Logits) -> dict[str, float]:
    """top1_error and, with more than five classes, top5_error in [0, 1]; they are also logged."""
    errors = {k: 1 - top_k_accuracy(logits_NC, fold.labels_N, k=k) for k in (1, 5) if logits_NC.shape[1] > k}
    text = ", ".join(f"top-{k} error {100 * error:.2f} %" for k, error in errors.items())
    logger.info("%s over %d images", text, len(fold))
    return {f"top{k}_error": error for k, error in errors.items()}


def _fold(spec: RunSpec, labels: Mapping[Split, NDArray[np.int64]], groups: Mapping[str, NDArray[np.int64]]) -> Fold:
    """The rows evaluated. `val` of a data set without its own is the 10 % that training under `fair` held out."""
    settings = spec.settings
    assert isinstance(settings, EvaluateSettings)
    if settings.split == "val" and "val" not in labels:
        return held_out(spec, labels, groups)
    return rows_seen(spec, labels, settings.split, groups)


def _open(spec: RunSpec, runtime: Runtime, class_names: tuple[str, ...]) -> Evaluated:
    """class_names: of the data set; a finished run has its own, among which they are found by name."""
    settings = spec.settings
    assert isinstance(settings, EvaluateSettings)
    if settings.source.startswith("run:"):
        return _finished(settings.source.removeprefix("run:"), spec, runtime, class_names)
    files: list[Taken] = []
    network, preprocess = network_from_file(spec, runtime, note=files.append)
    is_users = settings.source.startswith("file:") or any(b.weights.is_file for b in spec.backbones)
    return Evaluated(network.eval(), preprocess, None, {}, {spec.model: files[0]} if files and is_users else {})


def _finished(run_id: str, spec: RunSpec, runtime: Runtime, class_names: tuple[str, ...]) -> Evaluated:
    from transfergrid.networks.finished import network_of_run, reading_of

    paths = store_paths(runtime).run(run_id)
    trained = from_dict(RunSpec, durable.read_json(paths.spec))
    own = classes_of_run(trained, paths) or class_names
    place_S = match_classes(own, class_names, run_id=run_id, dataset=spec.dataset.name)
    reading = reading_of(trained)
    network, preprocess = network_of_run(trained, paths, runtime)
    named = NamedLogits(own, None, place_S)
    return Evaluated(network, preprocess, named, {"test_bn": reading.test_bn, "batch_size": reading.batch_size})


def network_from_file(
    spec: RunSpec, runtime: Runtime, *, note: Callable[[Taken], None]
) -> tuple[nn.Module, tuple[PreprocessSpec, ...]]:
    """A checkpoint of an architecture or a backbone, or the backbone's published weights, head included.

    Raises DataError, as a launch does that looks before the run.
    """
    from transfergrid.networks.joined import Plain

    settings = spec.settings
    assert isinstance(settings, EvaluateSettings)
    if not spec.backbones:
        from transfergrid.networks import architectures
        from transfergrid.networks.backbones.build import state_for
        from transfergrid.networks.backbones.state_dicts import assign_weights

        path = Path(runtime.weights_files[settings.source])
        network = architectures.build(spec.model, spec.dataset.num_classes, 0)
        assign_weights(network, state_for(network, path, note=note).state, path=path)
        assert settings.preprocess is not None
        return Plain(network), (settings.preprocess,)
    from transfergrid.networks.backbones.build import build_classifier

    backbone = spec.backbones[0]
    if settings.source.startswith("file:"):
        weights = replace(backbone.weights, identity=settings.source, label=settings.source[:13])
        backbone = replace(backbone, weights=weights)
    network = build_classifier(
        backbone, weights_dir=Path(runtime.weights_dir), weights_files=runtime.weights_files, note=note
    )
    return Plain(network), (backbone.preprocess,)


def _write_csv(
    path: Path, fold: Fold, logits_NC: Logits, class_names: tuple[str, ...], files: Sequence[str] | None
) -> None:
    """file, index in the split, label, predicted, probability of the predicted class; classes by name.

    files: of the whole split, from the data set's folder on; None where the images lie in no files of their own, and
    the first cell of every row is empty.
    """
    shifted_NC = logits_NC.astype(np.float64) - logits_NC.max(axis=1, keepdims=True)
    probability_N = 1.0 / np.exp(shifted_NC).sum(axis=1)
    text = io.StringIO()
    writer = csv_rows(text)
    writer.writerow(["file", "index", "label", "predicted", "probability"])
    for index, label, predicted, probability in zip(
        fold.index_N.tolist(), fold.labels_N.tolist(), logits_NC.argmax(1).tolist(), probability_N.tolist(), strict=True
    ):
        name = "" if files is None else files[index]
        writer.writerow([name, index, class_names[label], class_names[predicted], f"{probability:.4f}"])
    durable.write_bytes(path, text.getvalue().encode("utf-8", "surrogateescape"))
