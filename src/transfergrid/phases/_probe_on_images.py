"""Phase 1 as some studies ran it: images through the network at every step, with augmentation, or with BatchNorm and
dropout in training mode while only the classification layers learn (auxiliary heads' own included). Nothing is cached.
"""

from __future__ import annotations

from torch import Tensor, nn

from transfergrid.networks.joined import JoinedNetwork, is_auxiliary, is_classifier
from transfergrid.phases import RunContext
from transfergrid.phases._on_images import build_joined, train_and_record
from transfergrid.phases._setting import open_setting
from transfergrid.specs import ProbeSettings
from transfergrid.store.records import RunRecord
from transfergrid.training.optimization import split_decay


def run_probe(context: RunContext, settings: ProbeSettings) -> RunRecord:
    """weights.pt: the classification layers, and with bn=train the trunk's buffers, which have moved."""
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
