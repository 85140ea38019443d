"""Training from the constructor's weights, at the images' own size.

Defaults as in widely used CIFAR recipes: SGD with Nesterov momentum, cosine after a short warm-up, label smoothing,
shift-crop, flip where the class survives it, cutout (DeVries & Taylor 2017, arXiv 1708.04552). The last epoch counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from transfergrid.phases import has_completed
from transfergrid.specs import ScratchSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from transfergrid.phases import RunContext
    from transfergrid.store.records import RunRecord

is_done = has_completed


def run(context: RunContext) -> RunRecord:
    """weights.pt: the architecture's own state dict, of the epoch the rule chose."""
    from transfergrid.data.geometry import scratch_preprocess
    from transfergrid.networks import architectures
    from transfergrid.networks.joined import Plain
    from transfergrid.phases._on_images import train_and_record
    from transfergrid.phases._setting import open_setting
    from transfergrid.training.device import on_device
    from transfergrid.training.optimization import split_decay

    spec, runtime, settings = context.spec, context.runtime, context.spec.settings
    assert isinstance(settings, ScratchSettings) and spec.seed is not None
    preprocess = scratch_preprocess(settings)
    setting = open_setting(context, (preprocess,))
    built = architectures.build(spec.model, spec.dataset.num_classes, spec.seed)
    network = on_device(Plain(built), setting.device)
    groups = split_decay(
        "network",
        network.parameters(),
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        decay_norm_and_bias=settings.decay_norm_and_bias,
    )

    def saved(trained: nn.Module) -> dict[str, Tensor] | None:
        assert isinstance(trained, Plain)
        return trained.network.state_dict() if runtime.keep_weights == "final" else None

    return train_and_record(context, setting, network, groups, kept_in_eval=frozenset(), details={}, saved=saved)
