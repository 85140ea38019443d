"""Phase 1: the classification layer alone, on cached features; or, as some studies did, on images through the network.

On features: each backbone's block is standardised with the statistics of the rows trained on (so a block with large
values cannot drown another, whatever the optimizer), the learning rates and weight decays to choose from are trained
side by side, one is chosen on val, and the standardisation is folded back into the head, which then acts on raw
features. Beside it stands the L-BFGS optimum of the same head, so an under-trained probe shows (Kornblith et al. 2019,
arXiv 1805.08974). The logits of a fixed index set are kept for the parity gate of fine-tuning.
"""

from __future__ import annotations

import json
from itertools import product
from typing import TYPE_CHECKING, Any

from transfergrid import backbones, feature_store
from transfergrid.errors import CorruptFeatures, MissingInput
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
    from transfergrid.heads import fit_lbfgs, fit_standardiser
    from transfergrid.optimization import split_decay
    from transfergrid.phases._feature_trainee import FeatureTrainee
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
    from transfergrid.training import fit

    spec, runtime = context.spec, context.runtime
    watch = Stopwatch()
    device = device_of(runtime)
    assert spec.seed is not None
    features, folds = load_features(spec, runtime)
    rows = {name: torch.from_numpy(_positions(features[fold.split].index_N, fold)) for name, fold in _named(folds)}
    stacked = {split: torch.from_numpy(found.features_ND).to(device) for split, found in features.items()}
    train_ND = stacked[folds.train.split][rows["train"].to(device)]
    standardiser = fit_standardiser(train_ND)

    choices = list(product(settings.lrs, settings.weight_decays))
    trainee = FeatureTrainee(
        {name: standardiser.apply(stacked[fold.split][rows[name].to(device)]) for name, fold in _named(folds)},
        folds,
        settings,
        num_classes=spec.dataset.num_classes,
        num_heads=len(choices),
        seed=spec.seed,
        device=device,
        watch_test=spec.protocol == "published",
    )
    groups = [
        group
        for head, (lr, decay) in enumerate(choices)
        for group in split_decay(
            f"head_{head}" if len(choices) > 1 else "head",
            [trainee.module.weights[head], trainee.module.biases[head]],
            lr=lr,
            weight_decay=decay,
            decay_norm_and_bias=settings.decay_norm_and_bias,
        )
    ]
    result = fit(
        trainee,
        settings,
        groups,
        attempt=context.attempt,
        seed=spec.seed,
        device=device,
        checkpoint_min_interval_s=runtime.checkpoint_min_interval_s,
        stop=context.stop,
    )
    if result.best_state is not None:
        trainee.module.load_state_dict(result.best_state)
    head = trainee.choose_head(trainee.module)
    weight_CD, bias_C = standardiser.fold(*trainee.module.linear(head))
    # What is published is what is scored: the folded head on the features as stored.
    made = {
        name: (fold, _logits(stacked[fold.split][rows[name].to(device)], weight_CD, bias_C))
        for name, fold in _named(folds)
    }
    metrics = score_folds(made)
    details: dict[str, Any] = {
        "first_step": result.first_step,
        "optimizer_steps": result.optimizer_steps,
        "chosen": {"head": head, "lr": choices[head][0], "weight_decay": choices[head][1]},
        "choices": [{"lr": lr, "weight_decay": decay} for lr, decay in choices],
        "head_norm": float(weight_CD.norm()),
        "feature_keys": [spec.feature_key(b, "train").digest for b in spec.backbones],
    } | result.rules(settings.epochs)
    details |= fold_details(folds, num_classes=spec.dataset.num_classes)
    details |= class_details(made, dataset_facts(spec.dataset, runtime).class_names)
    details |= picture_details(spec.dataset, runtime)
    if settings.lbfgs:
        labels_N = torch.from_numpy(folds.train.labels_N).to(device)
        optimum = fit_lbfgs(standardiser.apply(train_ND), labels_N, num_classes=spec.dataset.num_classes)
        weights = standardiser.fold(optimum.weight_CD, optimum.bias_C)
        test_NC = _logits(stacked["test"][rows["test"].to(device)], *weights)
        metrics["lbfgs_test_accuracy"] = float((test_NC.argmax(1) == folds.test.labels_N).mean())
        details["lbfgs"] = {"iterations": optimum.iterations, "gradient_norm": optimum.gradient_norm}
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
        phase_s=watch.seconds + result.elapsed_before_s,
        n_train=len(folds.train),
        trainable_parameters=weight_CD.numel() + bias_C.numel(),
        images_per_s=result.images_per_s,
        epochs=settings.epochs,
        **network_cost(spec, runtime, num_weights=weight_CD.numel(), num_biases=bias_C.numel()),
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
