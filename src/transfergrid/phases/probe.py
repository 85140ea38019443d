"""Phase 1: the classification layer alone, on cached features; or, as some studies did, on images through the network.

On features: each backbone's block is standardised with the statistics of the rows trained on (so a block with large
values cannot drown another, whatever the optimizer), the head is solved for, or trained by SGD, with one choice on val,
and the standardisation is folded back into the head, which then acts on raw features. Beside a head that SGD trained
stands the solved one, so an under-trained probe shows (Kornblith et al. 2019, arXiv 1805.08974); beside both stand
heads that are not linear. The logits of a fixed index set are kept for the parity gate of fine-tuning.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from transfergrid import backbones, feature_store
from transfergrid.errors import CorruptFeatures, DataError, MissingInput
from transfergrid.folds import Fold, Folds, dataset_facts, make_folds, open_splits, picture_details
from transfergrid.paths import cache_paths
from transfergrid.phases import has_completed
from transfergrid.specs import ProbeSettings, RunSpec, Runtime, Split

if TYPE_CHECKING:
    import torch

    from transfergrid.phases import RunContext
    from transfergrid.records import RunRecord

is_done = has_completed
COST = ("parameters", "size_mb", "gflops_per_image")  # of a backbone, in its feature files' provenance


def run(context: RunContext) -> RunRecord:
    """Train and publish the head: weights.pt holds `head.weight` (C, D) and `head.bias` (C,), on raw features."""
    settings = context.spec.settings
    assert isinstance(settings, ProbeSettings)
    if settings.source == "images":
        from transfergrid.phases._probe_on_images import run_probe

        return run_probe(context, settings)
    return _run_on_features(context, settings)


def _run_on_features(context: RunContext, settings: ProbeSettings) -> RunRecord:
    import torch

    from transfergrid.device import device_of
    from transfergrid.heads import fit_standardiser
    from transfergrid.phases._heads_on_features import Bench, solve, solve_beside, train_by_sgd
    from transfergrid.phases._other_heads import references
    from transfergrid.phases._parity import gate_logits
    from transfergrid.results import (
        Stopwatch,
        class_details,
        fold_details,
        make_record,
        save_predictions,
        save_weights,
        score_folds,
    )

    spec, runtime = context.spec, context.runtime
    watch = Stopwatch()
    device = device_of(runtime)
    features, folds = load_features(spec, runtime)
    _assert_numbers(spec, features)
    rows = {name: torch.from_numpy(_positions(features[fold.split].index_N, fold)) for name, fold in _named(folds)}
    stacked = {split: torch.from_numpy(found.features_ND).to(device) for split, found in features.items()}
    raw = {name: stacked[fold.split][rows[name].to(device)] for name, fold in _named(folds)}
    standardiser = fit_standardiser(raw["train"])
    standardised = {name: standardiser.apply(rows_ND) for name, rows_ND in raw.items()}
    bench = Bench(context, settings, standardised, folds, device)
    head = solve(bench) if settings.solver == "lbfgs" else train_by_sgd(bench)
    weight_CD, bias_C = standardiser.fold(head.weight_CD, head.bias_C)
    # What is published is what is scored: the folded head on the features as stored.
    made = {name: (fold, _logits(raw[name], weight_CD, bias_C)) for name, fold in _named(folds)}
    metrics = score_folds(made)
    details: dict[str, Any] = head.details | {
        "head_norm": float(weight_CD.norm()),
        "feature_keys": [spec.feature_key(b, "train").digest for b in spec.backbones],
    }
    details |= fold_details(folds, num_classes=spec.dataset.num_classes)
    details |= class_details(made, dataset_facts(spec.dataset, runtime).class_names)
    details |= picture_details(spec.dataset, runtime)
    if settings.solver == "lbfgs":
        metrics["lbfgs_test_accuracy"] = metrics["test_accuracy"]
    elif settings.lbfgs:
        optimum, details["lbfgs"] = solve_beside(bench)
        test_NC = _logits(raw["test"], *standardiser.fold(optimum.weight_CD, optimum.bias_C))
        metrics["lbfgs_test_accuracy"] = float((test_NC.argmax(1) == folds.test.labels_N).mean())
    beside, details["references"] = references(bench, made["test"][1].argmax(1))
    metrics |= beside
    in_gate = [(features[fold.split], fold) for fold in folds.gate]
    gate_ND = torch.cat([torch.from_numpy(x.features_ND[_positions(x.index_N, fold)]) for x, fold in in_gate])
    gate = gate_logits(folds.gate, torch.split(gate_ND, feature_dims(spec, runtime), dim=1), weight_CD, bias_C)
    save_predictions(context.attempt, gate | {name: made[name] for name in ("val", "test") if name in made})
    save_weights(context.attempt, {"head.weight": weight_CD, "head.bias": bias_C})
    return make_record(
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


def _assert_numbers(spec: RunSpec, features: dict[Split, feature_store.Features]) -> None:
    """Raises DataError where a feature is infinite or not a number: no head can be made of it."""
    import numpy as np

    for split, found in features.items():
        bad_N = np.logical_not(np.isfinite(found.features_ND).all(axis=1))
        if bad_N.any():
            row = int(found.index_N[bad_N.argmax()])
            raise DataError(
                f"{int(bad_N.sum())} of {len(found.index_N)} images of {split} have features of {spec.model} that are"
                f" not finite (the first is image {row}); look at these images and at the weights of {spec.model}"
            )


def load_features(spec: RunSpec, runtime: Runtime) -> tuple[dict[Split, feature_store.Features], Folds]:
    """The run's features per split, backbones side by side (N, D1 + D2 + ...), and the folds.

    Rows and labels of all backbones must agree with one another and with the data set itself. Raises MissingInput
    where a file is missing, or was damaged and has been removed.
    """
    import numpy as np

    cache = cache_paths(runtime)
    splits = open_splits(spec.dataset, runtime)
    joined: dict[Split, feature_store.Features] = {}
    for split, images in splits.items():
        blocks: list[feature_store.Features] = []
        for backbone in spec.backbones:
            key = spec.feature_key(backbone, split)
            path = feature_store.find(cache, key, also_read=runtime.cache_also_read)
            again = f"extract the features of {backbone.name} again (launch the grid)"
            if path is None:
                raise MissingInput(f"features of {backbone.name} on {split} are missing; {again}")
            try:
                found = feature_store.read(path, key)
                labels_N = images.labels_N[found.index_N]
                if not np.array_equal(labels_N, found.labels_N):
                    raise CorruptFeatures(f"{path}: labels are not those of the data set")
            except CorruptFeatures as error:
                if not path.is_relative_to(cache.root):
                    raise CorruptFeatures(f"{error}; it is another's cache: take it out of cache.also_read") from error
                path.unlink(missing_ok=True)
                raise MissingInput(f"{error}; the file has been removed: {again}") from error
            if blocks and not np.array_equal(blocks[0].index_N, found.index_N):
                raise CorruptFeatures(f"{path}: rows are not those of {spec.backbones[0].name}")
            blocks.append(found)
        features_ND = blocks[0].features_ND
        if len(blocks) > 1:
            features_ND = np.concatenate([b.features_ND for b in blocks], axis=1)
        joined[split] = feature_store.Features(features_ND, blocks[0].labels_N, blocks[0].index_N)
    return joined, make_folds(spec, {split: images.labels_N for split, images in splits.items()})


def feature_dims(spec: RunSpec, runtime: Runtime) -> list[int]:
    """Of each backbone's block, in the model's order."""
    catalog = cache_paths(runtime).catalog
    return [backbones.entry(b.name, catalog_dir=catalog).feature_dim for b in spec.backbones]


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
