"""Phase 2: every layer, from the probe's head (LP-FT, Kumar et al. 2022, arXiv 2202.10054) or from a random one.

A random head's first gradients distort the features; a probed one's do not, which is why the probe comes first. Before
the first step the assembled network must pass the parity gate: in eval mode it reproduces the logits that the probe
stored for a fixed index set. That one comparison fails if the transform, a weight, a BatchNorm buffer, the order of the
features or the labels of the cache differ from what is about to be trained. Training then normalises by batches, which
gives other features; so the head is fitted to those anew, and what either is worth is measured and recorded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from transfergrid.phases import has_completed
from transfergrid.specs import FinetuneSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from transfergrid.phases import RunContext
    from transfergrid.store.records import RunRecord

is_done = has_completed


def run(context: RunContext) -> RunRecord:
    """weights.pt: the JoinedNetwork's state dict, of the epoch the rule chose. Raises ParityError at the gate."""
    from transfergrid.phases._on_images import build_joined, depth_groups, modules_kept_in_eval, train_and_record
    from transfergrid.phases._parity import assert_parity, load_probe, probed_strength
    from transfergrid.phases._setting import open_setting
    from transfergrid.phases._start import hand_over

    spec, runtime, settings = context.spec, context.runtime, context.spec.settings
    assert isinstance(settings, FinetuneSettings) and spec.extract is not None
    setting = open_setting(context, tuple(b.preprocess for b in spec.backbones))
    network = build_joined(spec, runtime, setting, auxiliary=settings.aux_loss_weight > 0)
    details: dict[str, object] = {"gate": {"judged": False, "reason": "random_head"}}
    stored = None if settings.head == "random" else load_probe(network, spec.needs[0], runtime)
    # Before modules_kept_in_eval, which looks at what is frozen here.
    groups = depth_groups(spec, runtime, network, settings)
    kept_in_eval = modules_kept_in_eval(network, all_batch_norm=settings.bn == "eval")
    # Before the first step: once the weights have moved, nobody can tell a wrong transform from training.
    if stored is not None:
        names, extraction = [b.name for b in spec.backbones], spec.extract
        details["gate"] = assert_parity(network, setting, stored, names=names, extraction=extraction)
        strength = probed_strength(spec.needs[0], runtime)
        held_out = setting.folds.val is not None or spec.protocol == "published"
        details["start"] = hand_over(
            network,
            setting,
            settings,
            strength=strength,
            held_out=held_out,
            kept_in_eval=kept_in_eval,
            precision=extraction.precision,
        )

    def saved(trained: nn.Module) -> dict[str, Tensor] | None:
        return trained.state_dict() if runtime.keep_weights == "final" else None

    return train_and_record(
        context,
        setting,
        network,
        groups,
        kept_in_eval=kept_in_eval,
        details=details,
        saved=saved,
    )
