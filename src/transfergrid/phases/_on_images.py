"""What the phases that train on images share: the network, its inputs, and the way from fit() to the record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from transfergrid.data.folds import dataset_facts, picture_details
from transfergrid.networks import backbones
from transfergrid.networks.backbones.build import attach_auxiliary_heads, bn_statistics, build
from transfergrid.networks.backbones.construct import group_parameters
from transfergrid.networks.backbones.weight_files import Taken, weights_taken
from transfergrid.networks.joined import JoinedNetwork, is_auxiliary, is_classifier
from transfergrid.networks.size import describe
from transfergrid.paths import cache_paths
from transfergrid.phases import RunContext, feature_dims
from transfergrid.phases._parity import gate_features, gate_logits
from transfergrid.phases._setting import Setting, open_setting, train
from transfergrid.phases.extract import BATCH as EXTRACTION_BATCH
from transfergrid.specs import FinetuneSettings, ProbeSettings, RunSpec, Runtime, ScratchSettings, seed_for
from transfergrid.store.records import RunRecord
from transfergrid.training import results
from transfergrid.training.device import arithmetic, on_device
from transfergrid.training.on_images import ImageTrainee
from transfergrid.training.optimization import ParameterGroup, split_decay


def build_joined(spec: RunSpec, runtime: Runtime, setting: Setting, *, auxiliary: bool) -> JoinedNetwork:
    """The run's backbones with their starting weights, under a head drawn from the run's seed, on the device."""
    assert spec.seed is not None
    trunks = []
    for backbone in spec.backbones:
        files: list[Taken] = []
        trunk = build(
            backbone,
            weights_dir=Path(runtime.weights_dir),
            weights_files=runtime.weights_files,
            auxiliary=auxiliary,
            note=files.append,
        )
        if files and backbone.weights.is_file:
            setting.taken[backbone.name] = files[0]
        if auxiliary:
            generator = torch.Generator().manual_seed(seed_for("auxiliary", spec.seed))
            attach_auxiliary_heads(trunk, spec.dataset.num_classes, generator)
        trunks.append(trunk)
    feature_dim = sum(feature_dims(spec, runtime))
    generator = torch.Generator().manual_seed(seed_for("head", spec.seed))
    network = JoinedNetwork(trunks, feature_dim=feature_dim, num_classes=spec.dataset.num_classes, generator=generator)
    network = on_device(network, setting.device)
    if spec.extract is not None and spec.extract.bn_statistics == "target":
        _use_target_statistics(spec, network, setting)
    return network


def _use_target_statistics(spec: RunSpec, network: JoinedNetwork, setting: Setting) -> None:
    """As the extraction did: one pass over all training images, in the same order and batches."""
    index_N = torch.from_numpy(setting.folds.unlabelled.index_N)
    for position, trunk in enumerate(network.backbones):
        batches = torch.split(index_N, EXTRACTION_BATCH)
        bn_statistics(trunk, (inputs[position] for inputs in setting.inputs.batches("train", batches)))


def depth_groups(
    spec: RunSpec, runtime: Runtime, network: JoinedNetwork, settings: FinetuneSettings
) -> list[ParameterGroup]:
    """Learning rates rise geometrically from stem_lr at a trunk's stem to lr at its last group; the head has its own.

    Parameters of frozen groups stop requiring gradients and belong to no group. Of auxiliary heads, the classification
    layer learns as the head does, the rest, which is the weights file's, as a trunk's last group.
    """
    decayed = partial(split_decay, weight_decay=settings.weight_decay, decay_norm_and_bias=settings.decay_norm_and_bias)
    groups: list[ParameterGroup] = []
    own = set()
    for backbone, trunk in zip(spec.backbones, network.backbones, strict=True):
        entry = backbones.entry(backbone.name, catalog_dir=cache_paths(runtime).catalog)
        stages = group_parameters(trunk, entry.groups)
        for position, (name, parameters) in enumerate(stages):
            own |= {id(p) for _, p in parameters}  # frozen ones too: what is left over below is no trunk's
            if name in settings.frozen_groups:
                for _, p in parameters:
                    p.requires_grad_(False)
                continue
            share = 1.0 if len(stages) == 1 else position / (len(stages) - 1)
            lr = settings.stem_lr * (settings.lr / settings.stem_lr) ** share
            label = name if len(spec.backbones) == 1 else f"{backbone.name}.{name}"
            own_parameters = [p for _, p in parameters]
            if settings.l2_sp:  # the pull to the start takes the place of the pull to zero
                groups.append(ParameterGroup(label, lr, 0.0, own_parameters, l2_sp=settings.l2_sp))
                continue
            groups += decayed(label, own_parameters, lr=lr)
    rest = {"auxiliary": settings.lr, "head": settings.head_lr}
    for label, lr in rest.items():
        own_parameters = [
            p for name, p in network.named_parameters() if id(p) not in own and is_classifier(name) == (label == "head")
        ]
        groups += decayed(label, own_parameters, lr=lr)
    return groups


def modules_kept_in_eval(network: nn.Module, *, all_batch_norm: bool) -> frozenset[str]:
    """BatchNorm layers whose statistics stay: all of them, or those whose parameters are frozen."""
    return frozenset(
        name
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm)
        and (all_batch_norm or not any(p.requires_grad for p in module.parameters(recurse=False)))
    )


def train_and_record(
    context: RunContext,
    setting: Setting,
    network: nn.Module,
    groups: list[ParameterGroup],
    *,
    kept_in_eval: frozenset[str],
    details: Mapping[str, object],
    saved: Callable[[nn.Module], dict[str, Tensor] | None],
    gate_precision: str | None = None,
) -> RunRecord:
    """fit(), the study's checkpoint rule, predictions, weights, record.

    saved(network) gives the state to publish as weights.pt, or None. gate_precision: also store the gate's logits,
    computed in this precision.
    """
    spec, runtime, settings = context.spec, context.runtime, context.spec.settings
    assert isinstance(settings, (ProbeSettings, FinetuneSettings, ScratchSettings)) and spec.seed is not None
    folds = setting.folds
    trainee = ImageTrainee(
        network,
        setting.inputs,
        folds,
        settings,
        seed=spec.seed,
        kept_in_eval=kept_in_eval,
        aux_loss_weight=getattr(settings, "aux_loss_weight", 0.0),
        watch_test=spec.protocol == "published",
    )
    with arithmetic(settings.precision):  # of the backward pass, too
        result, trained = train(context, trainee, groups, device=setting.device)
    # The training images as well, without augmentation: the last epoch's mean is of weights that have since changed.
    reported = {"train": folds.train, "val": folds.val, "test": folds.test}
    by_fold = {name: (fold, trainee.predict(network, fold)) for name, fold in reported.items() if fold is not None}
    metrics = results.score_folds(by_fold)
    stored = {name: by_fold[name] for name in ("val", "test") if name in by_fold}
    if gate_precision is not None:
        # As fine-tuning will compute them: in eval mode, whatever test_bn the study's own figures were read with.
        assert isinstance(network, JoinedNetwork)
        blocks = gate_features(network, setting, precision=gate_precision)
        stored |= gate_logits(folds.gate, blocks, network.head.weight.detach(), network.head.bias.detach())
    # Before the record, which marks the run as done and holds the checksums of both files.
    results.save_predictions(context.attempt, stored)
    state = saved(network)
    if state is not None:
        results.save_weights(context.attempt, state)
    sizes = [(3, p.crop_px, p.crop_px) for p in setting.inputs.preprocess]
    cost = describe(network, sizes)
    # What f(x) consists of: auxiliary heads are there for training only.
    auxiliary = {id(p): p.numel() for name, p in network.named_parameters() if is_auxiliary(name)}
    extra = sum(auxiliary.values())
    buffers = (b for name, b in network.named_buffers() if is_auxiliary(name) and b.is_floating_point())
    extra_mb = 4 * (extra + sum(b.numel() for b in buffers)) / 1e6
    return results.make_record(
        spec,
        context.attempt,
        setting.device,
        metrics=metrics,
        details=trained
        | results.fold_details(folds, num_classes=spec.dataset.num_classes)
        | results.class_details(by_fold, dataset_facts(spec.dataset, runtime).class_names)
        | picture_details(spec.dataset, runtime)
        | weights_taken(setting.taken)
        | dict(details),
        phase_s=setting.watch.seconds + result.elapsed_before_s,
        n_train=len(folds.train),
        parameters=cost.parameters - extra,
        trainable_parameters=sum(p.numel() for g in groups for p in g.parameters if id(p) not in auxiliary),
        size_mb=cost.size_mb - extra_mb,
        gflops_per_image=cost.gflops_per_image,
        images_per_s=result.images_per_s,
        epochs=settings.epochs,
    )


def run_probe(context: RunContext, settings: ProbeSettings) -> RunRecord:
    """Phase 1 as some studies ran it: images through the network at every step, with augmentation, or with BatchNorm
    and dropout in training mode while only the classification layers learn (auxiliary heads' own included).

    weights.pt: the classification layers, and with bn=train the trunk's buffers, which have moved.
    """
    spec = context.spec
    setting = open_setting(context, tuple(b.preprocess for b in spec.backbones))
    network = build_joined(spec, context.runtime, setting, auxiliary=settings.aux_loss_weight > 0)
    learns = [(name, p) for name, p in network.named_parameters() if is_classifier(name)]
    # So that nothing goes back through the trunk, which is most of a step's time.
    for p in network.parameters():
        p.requires_grad_(False)
    for _, p in learns:
        p.requires_grad_(True)
    groups = split_decay(
        "head",
        [p for _, p in learns],
        lr=settings.lrs[0],
        weight_decay=settings.weight_decays[0],
        decay_norm_and_bias=settings.decay_norm_and_bias,
    )
    trunk = {name for name, _ in network.named_modules() if name.startswith("backbones.")}
    auxiliary = {name for name in trunk if is_auxiliary(name)}

    def saved(trained: nn.Module) -> dict[str, Tensor]:
        assert isinstance(trained, JoinedNetwork)
        buffers = dict(trained.named_buffers()) if settings.bn == "train" else {}
        return {name: p for name, p in trained.named_parameters() if is_classifier(name)} | buffers

    assert spec.extract is not None
    return train_and_record(
        context,
        setting,
        network,
        groups,
        kept_in_eval=frozenset() if settings.bn == "train" else frozenset(trunk - auxiliary),
        details={"chosen": {"lr": settings.lrs[0], "weight_decay": settings.weight_decays[0]}},
        saved=saved,
        gate_precision=spec.extract.precision,
    )
