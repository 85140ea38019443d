"""What each published study did, in this project's own nouns, so that a row can be told apart from it field by field.

Sources: the studies' repositories and texts as `published.csv` names them. Where a study leaves a setting without
effect (momentum under Adam), the value here is the default of this project, and `published.differs` ignores it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from transfergrid.specs import FinetuneSettings, ProbeSettings, ScratchSettings, TrainSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySettings:
    """One published training.

    settings: None where the study does not state them. image_size_px: the side of the network's input.
    weights: label of the weights it started from; None for a network trained from scratch.
    beyond_options: what changes its numbers and no general option can repeat; listed with every row's differences.
    notes: what only reshuffles chance (data order) or cannot be known from what was published; never counted as a
    difference.
    """

    settings: TrainSettings | None
    image_size_px: int
    weights: str | None
    beyond_options: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


_BORDER = "border of the shift"  # theirs is black; ours reflects the image

_PLAIN: dict[str, Any] = {
    "drop_last": False,
    "sampling": "shuffle",
    "steps_per_epoch": None,
    "micro_batch": None,
    "clip_norm": None,
    "precision": "fp32",
    "momentum": 0.9,
    "nesterov": False,
    "decay_norm_and_bias": True,  # torch's optimizers decay every parameter they are given
    "lookahead": False,
    "lookahead_k": 5,
    "lookahead_alpha": 0.5,
    "schedule": "constant",
    "lr_update": "step",
    "cosine_epochs": None,
    "warmup_fraction": 0.0,
    "step_epochs": (),
    "step_gamma": 0.1,
    "final_lr_fraction": 0.0,
    "label_smoothing": 0.0,
    "ema_decay": None,
    "flip": False,
    "alternate_flip": False,
    "shift_px": 0,
    "perspective": 0.0,
    "perspective_share": 0.5,
    "rotation_deg": 0.0,
    "rotation_expand": False,
    "rotation_fill": 0,
    "cutout_px": 0,
    "augment_at": "native",
    "test_bn": "running",
}

# --------------------------------------------------------------------------------------------- individual_vs_parallel
_IVP_NOTES = (
    "data order and random numbers of its loader are not repeated, only their distribution",
    "torchvision's version, and so the weights' download and the resize of PIL images, is not stated",
    "its float32 convolutions ran as its GPU does them by default, in TF32; ours do not",
)

_SINGLE_PROBE = ProbeSettings(
    **_PLAIN,
    epochs=5,
    batch_size=32,
    optimizer="adam",
    lrs=(1e-3,),
    weight_decays=(0.0,),
    source="images",
    bn="train",
    aux_loss_weight=0.0,
    lbfgs=False,
    selection="best_on_test",
)
_SINGLE_FINETUNE = FinetuneSettings(
    **_PLAIN,
    epochs=10,
    batch_size=32,
    optimizer="adam",
    lr=1e-5,
    stem_lr=1e-5,
    head_lr=1e-3,
    weight_decay=0.0,
    head="probe",
    bn="train",
    frozen_groups=(),
    aux_loss_weight=0.0,
    l2_sp=0.0,
    selection="best_on_test",
)
_PAIR_FINETUNE = replace(
    _SINGLE_FINETUNE, batch_size=64, lr=1e-4, stem_lr=1e-4, head_lr=1e-3, head="random", selection="last"
)


def _transfer(settings: ProbeSettings | FinetuneSettings, *, cifar: bool = False) -> StudySettings:
    beyond_options: tuple[str, ...] = ()
    if cifar:  # RandomCrop(224, padding=4) and a flip, both after the image was enlarged to 224
        settings = replace(settings, flip=True, shift_px=4, augment_at="input")
        beyond_options = (_BORDER,)
    return StudySettings(
        settings=settings,
        image_size_px=224,
        weights="IMAGENET1K_V1",
        beyond_options=beyond_options,
        notes=_IVP_NOTES,
    )


_AUX = 0.3  # GoogLeNet's two auxiliary heads, each
_VGG_FROZEN = ("fc6", "fc7")

# ---------------------------------------------------------------------------------------------------- scratch_cifar10
_SCRATCH_CIFAR10 = ScratchSettings(
    **_PLAIN
    | {
        "micro_batch": 1,  # images pass one at a time, in training and in testing
        "test_bn": "batch",
        "sampling": "replacement",  # of each 30 images drawn, 24 are trained on and 6 are its "val"
        "steps_per_epoch": 1666,
        "flip": True,
        "perspective": 0.3,
        "perspective_share": 0.2,
        "rotation_deg": 30.0,
        "rotation_expand": True,
        "rotation_fill": 255,
    },
    epochs=21,
    batch_size=24,
    optimizer="sgd",
    lr=1e-3,
    weight_decay=5e-4,
    image_size_px=32,
    normalise="image",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    selection="last",
)

# ----------------------------------------------------------------------------------------------------- small_resnet18
# Its "cosine" has T_max = whole batches per epoch but moves once per epoch: after 51 epochs it is at 96, 85, 48 %.
_COSINE_EPOCHS = {128: 390, 256: 195, 512: 97}
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2023, 0.1994, 0.2010)


# Its Cutout fills with 0 after normalising, which is the mean colour; ours with mid grey before.
_CUTOUT = "fill of Cutout"
# Its slow weights start at step 0 and its fast ones are tested; ours start at step k, and the slow ones are tested.
_LOOKAHEAD = "start of Lookahead and which of its weights are tested"


def _small(batch_size: int, *, lr: float = 1e-2, epochs: int = 51, **changes: Any) -> StudySettings:
    settings = ScratchSettings(
        **_PLAIN
        | {
            "lookahead": True,
            "schedule": "cosine",
            "lr_update": "epoch",
            "cosine_epochs": _COSINE_EPOCHS[batch_size],
            "flip": True,
            "shift_px": 4,
            "cutout_px": 8,
        }
        | changes,
        epochs=epochs,
        batch_size=batch_size,
        optimizer="adam",
        lr=lr,
        weight_decay=0.0,
        image_size_px=32,
        normalise="constants",
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
        selection="best_on_test",
    )
    beyond_options = (_BORDER, _CUTOUT, *((_LOOKAHEAD,) if settings.lookahead else ()))
    return StudySettings(settings=settings, image_size_px=32, weights=None, beyond_options=beyond_options)


def _small_sgd() -> StudySettings:
    study = _small(128, epochs=30)
    assert isinstance(study.settings, ScratchSettings)
    return replace(study, settings=replace(study.settings, optimizer="sgd", weight_decay=5e-4))


_ONE_CYCLE: dict[str, Any] = {
    "lr": 4e-4,
    "epochs": 31,
    "lookahead": False,
    "schedule": "constant",
    "cosine_epochs": None,
    "lr_update": "step",
}


def _small_onecycle(batch_size: int) -> StudySettings:
    """torch's OneCycleLR at its first value, which also sets Adam's beta1 to 0.95."""
    study = _small(batch_size, **_ONE_CYCLE)
    return replace(study, beyond_options=(*study.beyond_options, "beta1 of Adam"))


STUDIES: dict[str, StudySettings] = {
    "single_probe_mnist": _transfer(_SINGLE_PROBE),
    "single_probe_mnist_googlenet": _transfer(replace(_SINGLE_PROBE, aux_loss_weight=_AUX)),
    "single_probe_cifar10": _transfer(_SINGLE_PROBE, cifar=True),
    "single_probe_cifar10_googlenet": _transfer(replace(_SINGLE_PROBE, aux_loss_weight=_AUX), cifar=True),
    "single_finetune_mnist": _transfer(_SINGLE_FINETUNE),
    "single_finetune_mnist_vgg16": _transfer(replace(_SINGLE_FINETUNE, frozen_groups=_VGG_FROZEN)),
    "single_finetune_mnist_googlenet": _transfer(replace(_SINGLE_FINETUNE, aux_loss_weight=_AUX)),
    "single_finetune_cifar10": _transfer(_SINGLE_FINETUNE, cifar=True),
    "single_finetune_cifar10_vgg16": _transfer(replace(_SINGLE_FINETUNE, frozen_groups=_VGG_FROZEN), cifar=True),
    "single_finetune_cifar10_googlenet": _transfer(replace(_SINGLE_FINETUNE, aux_loss_weight=_AUX), cifar=True),
    "pair_finetune": _transfer(_PAIR_FINETUNE),
    "scratch_cifar10": StudySettings(
        settings=_SCRATCH_CIFAR10,
        image_size_px=32,
        weights=None,
        # It fills with 255 in images that run from 0 to 1; it turns on a larger canvas that is then resized; its
        # corners move by whole pixels, of 0 to 4.
        beyond_options=("fill of the rotation", "interpolation of the rotation", "steps of the perspective"),
        notes=("its order of images is not repeated, only that they are drawn with replacement",),
    ),
    "resnet50_one_epoch": StudySettings(
        settings=None,
        image_size_px=224,
        weights=None,
        beyond_options=("settings not stated",),
    ),
    "small_adam_256": _small(256),
    "small_adam_128": _small(128),
    "small_adam_512": _small(512),
    "small_adam_256_lr_1e-1": _small(256, lr=1e-1),
    "small_adam_256_lr_1e-3": _small(256, lr=1e-3),
    "small_adam_256_lr_1e-6": _small(256, lr=1e-6),
    "small_adam_512_no_lookahead": _small(512, lookahead=False),
    "small_sgd_128": _small_sgd(),
    "small_onecycle_128": _small_onecycle(128),
    "small_onecycle_512": _small_onecycle(512),
    "small_adam_31": StudySettings(
        settings=None, image_size_px=32, weights=None, beyond_options=("settings not stated",)
    ),
}
