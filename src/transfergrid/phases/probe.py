"""Phase 1: the classification layer alone, on cached features; or, as some studies did, on images through the network.

On features: each backbone's block is standardised with the statistics of the rows trained on (so a block with large
values cannot drown another, whatever the optimizer), the head is solved for, or trained by SGD, with one choice on val,
and the standardisation is folded back into the head, which then acts on raw features. Beside a head that SGD trained
stands the solved one, so an under-trained probe shows (Kornblith et al. 2019, arXiv 1805.08974); beside both stand
heads that are not linear. The logits of a fixed index set are kept for the parity gate of fine-tuning.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transfergrid.data.folds import Fold, Folds, dataset_facts, make_folds, open_splits, picture_details, subset
from transfergrid.errors import CorruptFeatures, LostFeatures
from transfergrid.paths import cache_paths
from transfergrid.phases import feature_dims, has_completed
from transfergrid.specs import ProbeSettings, RunSpec, Runtime, Split
from transfergrid.store import feature_store

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from transfergrid.data import LabeledImages
    from transfergrid.phases import RunContext
    from transfergrid.store.records import RunRecord

is_done = has_completed
logger = logging.getLogger(__name__)
COST = ("parameters", "size_mb", "gflops_per_image")  # of a backbone, in its feature files' provenance


def run(context: RunContext) -> RunRecord:
    """Train and publish the head: weights.pt holds `head.weight` (C, D) and `head.bias` (C,), on raw features."""
    settings = context.spec.settings
    assert isinstance(settings, ProbeSettings)
    if settings.source == "images":
        from transfergrid.phases._on_images import run_probe

        return run_probe(context, settings)
    return _run_on_features(context, settings)


def _run_on_features(context: RunContext, settings: ProbeSettings) -> RunRecord:
    import torch

    from transfergrid.networks.heads import fit_standardiser
    from transfergrid.phases._heads_beside import references
    from transfergrid.phases._heads_on_features import Bench, solve, solve_beside, train_by_sgd
    from transfergrid.phases._parity import gate_logits
    from transfergrid.training import results
    from transfergrid.training.device import device_of

    spec, runtime = context.spec, context.runtime
    watch = results.Stopwatch()
    device = device_of(runtime)
    features, folds = load_features(spec, runtime)
    rows = {name: torch.from_numpy(_positions(features[fold.split].index_N, fold)) for name, fold in _named(folds)}
    stacked = {split: torch.from_numpy(of_split.features_ND).to(device) for split, of_split in features.items()}
    raw = {name: stacked[fold.split][rows[name].to(device)] for name, fold in _named(folds)}
    standardiser = fit_standardiser(raw["train"])  # of the rows trained on: val and test must not shape their input
    standardised = {name: standardiser.apply(rows_ND) for name, rows_ND in raw.items()}
    bench = Bench(context, settings, standardised, folds, device)
    head = solve(bench) if settings.solver == "lbfgs" else train_by_sgd(bench)
    weight_CD, bias_C = standardiser.fold(head.weight_CD, head.bias_C)
    # What is published is what is scored: the folded head on the features as stored.
    by_fold = {name: (fold, _logits(raw[name], weight_CD, bias_C)) for name, fold in _named(folds)}
    metrics = results.score_folds(by_fold)
    details: dict[str, Any] = head.details | {
        "head_norm": float(weight_CD.norm()),
        "feature_keys": [spec.feature_key(b, "train").digest for b in spec.backbones],
    }
    details |= results.fold_details(folds, num_classes=spec.dataset.num_classes)
    details |= results.class_details(by_fold, dataset_facts(spec.dataset, runtime).class_names)
    details |= picture_details(spec.dataset, runtime)
    # Beside every head stands the solved one: the same number twice where that is the head itself.
    if settings.solver == "lbfgs":
        metrics["lbfgs_test_accuracy"] = metrics["test_accuracy"]
    elif settings.lbfgs:
        optimum, details["lbfgs"] = solve_beside(bench)
        test_NC = _logits(raw["test"], *standardiser.fold(optimum.weight_CD, optimum.bias_C))
        metrics["lbfgs_test_accuracy"] = float((test_NC.argmax(1) == folds.test.labels_N).mean())
    beside, details["references"] = references(bench, by_fold["test"][1].argmax(1))
    metrics |= beside
    # The gate's logits from float16 features as they are stored, so that fine-tuning knows what rounding explains.
    in_gate = [(features[fold.split], fold) for fold in folds.gate]
    gate_ND = torch.cat([torch.from_numpy(x.features_ND[_positions(x.index_N, fold)]) for x, fold in in_gate])
    gate = gate_logits(folds.gate, torch.split(gate_ND, feature_dims(spec, runtime), dim=1), weight_CD, bias_C)
    results.save_predictions(
        context.attempt, gate | {name: by_fold[name] for name in ("val", "test") if name in by_fold}
    )
    results.save_weights(context.attempt, {"head.weight": weight_CD, "head.bias": bias_C})
    return results.make_record(
        spec,
        context.attempt,
        device,
        metrics=metrics,
        details=details,
        phase_s=watch.seconds + head.elapsed_before_s,
        n_train=len(folds.train),
        trainable_parameters=weight_CD.numel() + bias_C.numel(),
        images_per_s=head.images_per_s,
        epochs=head.epochs,
        **network_cost(spec, runtime, num_weights=weight_CD.numel(), num_biases=bias_C.numel()),
    )


def load_features(spec: RunSpec, runtime: Runtime) -> tuple[dict[Split, feature_store.Features], Folds]:
    """The run's features per split, backbones side by side (N, D1 + D2 + ...), and the folds.

    Raises LostFeatures naming every file that is missing, or is damaged and has been set aside.
    """
    import numpy as np

    cache = cache_paths(runtime)
    splits = open_splits(spec.dataset, runtime)
    joined: dict[Split, feature_store.Features] = {}
    lost: list[str] = []
    for split, images in splits.items():
        blocks: list[feature_store.Features] = []
        for backbone, feature_dim in zip(spec.backbones, feature_dims(spec, runtime), strict=True):
            key = spec.feature_key(backbone, split)
            path = feature_store.find(cache, key, also_read=runtime.cache_also_read)
            if path is None:
                lost.append(f"features of {backbone.name} on {split} are missing")
                continue
            seen = os.lstat(path)  # before it is read: another process may put a good one in its place meanwhile
            try:
                block = feature_store.read(path, key)
                _assert_of(block, images, subset(spec.dataset, images.labels_N), feature_dim, path=path)
                blocks.append(block)
            except CorruptFeatures as error:
                place = feature_store.set_aside(cache, key, path, str(error), seen=seen)
                logger.warning("%s; %s", error, f"kept as {place}" if place != path else "no longer read")
                lost.append(str(error))
        if lost:
            continue  # and look on: all that is damaged is set aside now, so that one more launch mends it
        features_ND = blocks[0].features_ND
        if len(blocks) > 1:
            features_ND = np.concatenate([b.features_ND for b in blocks], axis=1)
        joined[split] = feature_store.Features(features_ND, blocks[0].labels_N, blocks[0].index_N)
    if lost:
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        raise LostFeatures(f"{lost[0]}{more}; extract again (launch the grid)")
    groups = dataset_facts(spec.dataset, runtime).groups
    return joined, make_folds(spec, {split: images.labels_N for split, images in splits.items()}, groups)


def _assert_of(
    block: feature_store.Features, images: LabeledImages, index_N: NDArray[np.int64], feature_dim: int, *, path: Path
) -> None:
    """Raises CorruptFeatures unless a file's rows are those of the data set, all of them, and finite numbers.

    No extraction writes others, so a file that holds some was changed afterwards, checksums and all.
    """
    import numpy as np

    if block.features_ND.shape[1] != feature_dim:
        raise CorruptFeatures(f"{path} has {block.features_ND.shape[1]} features a row, not {feature_dim}")
    if not np.array_equal(block.index_N, index_N):
        raise CorruptFeatures(f"{path}: rows are not those of the data set")
    if not np.array_equal(images.labels_N[index_N], block.labels_N):
        raise CorruptFeatures(f"{path}: labels are not those of the data set")
    bad_N = np.logical_not(np.isfinite(block.features_ND).all(axis=1))
    if bad_N.any():
        raise CorruptFeatures(
            f"{path}: {int(bad_N.sum())} of {len(bad_N)} rows are not finite, the first is image"
            f" {int(index_N[bad_N.argmax()])}"
        )


def network_cost(spec: RunSpec, runtime: Runtime, *, num_weights: int, num_biases: int) -> dict[str, Any]:
    """Parameters, size and FLOPs of backbones and head together; each feature file says what its backbone costs."""
    cache, total = cache_paths(runtime), dict.fromkeys(COST, 0.0)
    for backbone in spec.backbones:
        path = feature_store.find(cache, spec.feature_key(backbone, "train"), also_read=runtime.cache_also_read)
        facts = {} if path is None else json.loads(feature_store.provenance_of(path))
        if not facts.keys() >= total.keys():
            return {}  # written before feature files said so
        total = {name: value + facts[name] for name, value in total.items()}
    return {
        "parameters": int(total["parameters"]) + num_weights + num_biases,
        "size_mb": total["size_mb"] + 4 * (num_weights + num_biases) / 1e6,
        "gflops_per_image": total["gflops_per_image"] + 2 * num_weights / 1e9,
    }


def _named(folds: Folds) -> list[tuple[str, Fold]]:
    named: list[tuple[str, Fold | None]] = [
        ("train", folds.train),
        ("val", folds.val),
        ("test", folds.test),
    ]
    return [(name, fold) for name, fold in named if fold is not None]


def _positions(stored_index_N: Any, fold: Fold) -> Any:
    """Where a fold's rows stand in a feature file."""
    import numpy as np

    positions_N = np.searchsorted(stored_index_N, fold.index_N)
    assert np.array_equal(stored_index_N[positions_N], fold.index_N), "the features do not hold the fold's rows"
    return positions_N


def _logits(features_ND: torch.Tensor, weight_CD: torch.Tensor, bias_C: torch.Tensor) -> Any:
    """(N, C) float32 on the CPU."""
    return (features_ND.float() @ weight_CD.T.to(features_ND.device) + bias_C.to(features_ND.device)).cpu().numpy()
