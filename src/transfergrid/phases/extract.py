"""Images -> cached features: one backbone over all splits of a data set, rows in data-set order, computed once.

The backbone is frozen for good (eval mode, no dropout, fixed BatchNorm statistics). The last batch is padded to full
size and the padding dropped, so a row does not depend on how many rows there are. With `bn_statistics=target` BatchNorm
is first re-estimated in one pass over the training images, without their labels, then fixed (AdaBN, arXiv 1603.04779):
what studies that left their frozen network in training mode compared, in a form that can be cached.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from transfergrid.data.folds import dataset_facts, open_splits, splits_of, subset
from transfergrid.errors import Interrupted
from transfergrid.networks.backbones.weight_files import Taken, weights_taken
from transfergrid.paths import CachePaths, cache_paths
from transfergrid.phases import feature_dims
from transfergrid.specs import FeatureKey, RunSpec, Runtime, Split, to_dict
from transfergrid.store import feature_store

if TYPE_CHECKING:
    from transfergrid.phases import RunContext
    from transfergrid.store.records import RunRecord

logger = logging.getLogger(__name__)
BATCH = 64  # fixed: part of the numbers in the last bits on some GPUs, and recorded nowhere else


def is_done(spec: RunSpec, runtime: Runtime) -> bool:
    return not missing(spec, runtime)


def missing(spec: RunSpec, runtime: Runtime) -> list[Split]:
    """The splits whose features lie neither in this cache nor in a shared one."""
    cache, [backbone] = cache_paths(runtime), spec.backbones
    keys = {split: spec.feature_key(backbone, split) for split in splits_of(dataset_facts(spec.dataset, runtime))}
    paths = {split: feature_store.find(cache, key, also_read=runtime.cache_also_read) for split, key in keys.items()}
    return [split for split, path in paths.items() if path is None]


def damaged(spec: RunSpec, runtime: Runtime) -> str | None:
    """What is wrong with features that were extracted before; None where nothing is."""
    for split in missing(spec, runtime):
        reason = feature_store.damage(cache_paths(runtime), spec.feature_key(spec.backbones[0], split))
        if reason is not None:
            return f"features of {spec.model} on {split} are damaged ({reason})"
    return None


def run(context: RunContext) -> RunRecord:
    """Write one feature file per split. A damaged one is set aside first."""
    import torch

    from transfergrid.data.batches import NetworkInputs
    from transfergrid.networks.backbones.build import Frozen, bn_statistics, build
    from transfergrid.networks.size import describe
    from transfergrid.training.device import device_of, on_device
    from transfergrid.training.on_images import autocast
    from transfergrid.training.results import Stopwatch, make_record

    spec, runtime = context.spec, context.runtime
    watch = Stopwatch()
    device = device_of(runtime)
    cache, backbone = cache_paths(runtime), spec.backbones[0]
    splits = open_splits(spec.dataset, runtime)
    rows = {split: subset(spec.dataset, images.labels_N) for split, images in splits.items()}
    files: list[Taken] = []
    built = build(
        backbone, weights_dir=Path(runtime.weights_dir), weights_files=runtime.weights_files, note=files.append
    )
    module = on_device(built, device)
    inputs = NetworkInputs(splits, (backbone.preprocess,), device=device, resident_gb=runtime.resident_gb, rows=rows)
    # Before any split, and from the training images alone: test features by test statistics would see the test set.
    if spec.extract is not None and spec.extract.bn_statistics == "target":
        index_N = torch.from_numpy(rows["train"])
        bn_statistics(module, (images for [images] in inputs.batches("train", torch.split(index_N, BATCH))))
    network = Frozen(module)
    size_px = backbone.preprocess.crop_px
    cost = describe(network, [(3, size_px, size_px)])
    [feature_dim] = feature_dims(spec, runtime)
    # Kept in the files: a probe must tell what its backbones cost without building one.
    costs = {"parameters": cost.parameters, "size_mb": cost.size_mb, "gflops_per_image": cost.gflops_per_image}
    keys = {}
    num_images, forward_s = 0, 0.0
    for split, images in splits.items():
        key = spec.feature_key(backbone, split)
        keys[split] = key.digest
        if feature_store.find(cache, key, also_read=runtime.cache_also_read) is not None:
            logger.info("%s: features are there already", split)  # of an earlier attempt, or in a shared cache
            continue
        _set_aside(cache, key)
        index_N = torch.from_numpy(rows[split])
        forward = Stopwatch()
        with (
            feature_store.writing(
                cache,
                key,
                feature_dim=feature_dim,
                labels_N=images.labels_N[rows[split]],
                index_N=rows[split],
                provenance={"run_id": spec.run_id, "spec": to_dict(spec)} | costs,
            ) as writer,
            torch.inference_mode(),
            autocast(device, key.precision),
        ):
            # Full batches only: some kernels round differently for other sizes, and a row must not depend on that.
            padding = index_N[-1:].expand(-len(index_N) % BATCH)
            padded = torch.split(torch.cat([index_N, padding]), BATCH)
            for number, [images_BCHW] in enumerate(inputs.batches(split, padded)):
                if context.stop.signal is not None:
                    raise Interrupted(f"stopped by signal {context.stop.signal}; launch again to start this split anew")
                features_BD = network(images_BCHW)[: len(index_N) - number * BATCH]
                writer.write(number * BATCH, features_BD.float().cpu().numpy())
        split_s = forward.seconds
        logger.info("%s: %d images, %.0f images/s, %.1f s", split, len(index_N), len(index_N) / split_s, split_s)
        num_images += len(index_N)
        forward_s += split_s
    return make_record(
        spec,
        context.attempt,
        device,
        metrics={},
        details={"feature_keys": keys, "feature_dim": feature_dim, "images": num_images}
        | weights_taken({backbone.name: files[0]} if files and backbone.weights.is_file else {}),
        phase_s=watch.seconds,
        n_train=None,
        trainable_parameters=0,
        **costs,
        images_per_s=num_images / forward_s if num_images else None,
    )


def _set_aside(cache: CachePaths, key: FeatureKey) -> None:
    path = cache.features(key)
    if os.path.lexists(path):
        reason = feature_store.damage(cache, key) or "the file cannot be used"
        place = feature_store.set_aside(cache, key, path, reason, seen=os.lstat(path))
        logger.warning("%s; kept as %s, extracted again", reason, place)
