"""A phase's settings: from a merged node to a frozen object, checked against types, choices, ranges and each other."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any, TypeVar, cast, get_args

from omegaconf import DictConfig, OmegaConf

from transfergrid.config.keys import Key, checked, keys_of
from transfergrid.config.schema import DEFAULTS, KEYS
from transfergrid.errors import ConfigError
from transfergrid.specs import ANY_NUMBER, SETTINGS_OF_PHASE, ProbeSettings, Protocol, TrainSettings

T = TypeVar("T")
Trained = TypeVar("Trained", bound=TrainSettings)
MIN_STEPS = 100  # of the optimizer, in a whole run
MIN_BATCH = 16  # BatchNorm's statistics of fewer images are noise


def settings_of(kind: type[T], node: DictConfig, *, where: str, **overrides: Any) -> T:
    """A frozen settings object from a merged node, whose fields yield to `overrides`. ConfigErrors name the key."""
    keys, values = keys_of(cast(Any, kind)), dict[str, Any]()
    for name in (f.name for f in fields(cast(Any, kind))):
        value = overrides[name] if name in overrides else node[name]
        values[name] = _checked(keys[name], value, f"{where}.{name}") if name in keys else value
    return kind(**values)


def _checked(key: Key, value: Any, name: str) -> Any:
    value = checked(key, value, name=name)
    per_channel = key.is_list and ... not in get_args(key.hint)
    if per_channel and len(value) != len(get_args(key.hint)):
        raise ConfigError(f"{name}={list(value)} must hold three numbers, for red, green and blue")
    if key.is_list and not per_channel and len(set(value)) != len(value):
        raise ConfigError(f"{name}={list(value)} holds a value twice")
    return value


def check_settings(config: DictConfig) -> None:
    """Choices and ranges of every key, also of phases that this request does not take."""
    check_keys(config, tuple(name for name in KEYS if not name.startswith(("phase.", "cluster."))))
    select_by = config.phase.probe.select_by or config.select_by
    for phase, kind in SETTINGS_OF_PHASE.items():
        node = config.phase[phase]
        with_the_data = {f.name: None for f in fields(kind) if f.name not in node}  # known later
        settings_of(kind, node, where=f"phase.{phase}", **with_the_data, select_by=select_by)


def check_keys(config: DictConfig, names: tuple[str, ...]) -> None:
    """Those of these keys that have choices or a range."""
    for key in (KEYS[name] for name in names):
        if key.choices or key.about.span != ANY_NUMBER:
            checked(key, OmegaConf.select(config, key.name))


def check_training(settings: TrainSettings, protocol: Protocol, *, where: str) -> None:
    """Raises ConfigError where two settings of one phase do not go together."""
    if settings.selection == "best_on_test" and protocol == "fair":
        raise ConfigError(f"{where}.selection=best_on_test chooses on the test set; only protocol=published may")
    if settings.micro_batch is not None and settings.micro_batch > settings.batch_size:
        raise ConfigError(f"{where}.micro_batch={settings.micro_batch} is larger than batch_size={settings.batch_size}")
    if settings.schedule == "step" and not settings.step_epochs:
        raise ConfigError(f"{where}.schedule=step needs {where}.step_epochs=[...]")
    if settings.schedule != "step" and settings.step_epochs:
        raise ConfigError(f"{where}.step_epochs={list(settings.step_epochs)} needs {where}.schedule=step")
    if settings.cosine_epochs is not None and settings.schedule not in ("cosine", "onecycle"):
        raise ConfigError(f"{where}.cosine_epochs={settings.cosine_epochs} needs {where}.schedule=cosine")
    if settings.alternate_flip and not settings.flip:
        raise ConfigError(f"{where}.alternate_flip=true needs {where}.flip=true")
    if settings.ema_decay is not None and settings.lookahead:
        raise ConfigError(f"{where}: ema_decay and lookahead both average the weights; choose one")


_OF_IMAGES = "flip shift_px perspective rotation_deg cutout_px micro_batch aux_loss_weight bn test_bn precision".split()


def check_probe(settings: ProbeSettings, protocol: Protocol) -> None:
    """Raises ConfigError for what a probe in particular cannot be asked."""
    by_sgd = settings.solver == "sgd"
    if settings.source == "images" and not by_sgd:
        raise ConfigError("phase.probe.source=images has no features to solve on; set phase.probe.solver=sgd")
    if by_sgd and protocol == "published" and len(settings.lrs) * len(settings.weight_decays) > 1:
        raise ConfigError(
            "protocol=published holds out no val to choose on; give one phase.probe.lrs and weight_decays"
        )
    if settings.source == "images" and len(settings.lrs) * len(settings.weight_decays) > 1:
        raise ConfigError(
            "phase.probe.source=images trains one head; give one value each, as phase.probe.lrs=[1e-3] and"
            " phase.probe.weight_decays=[0]"
        )
    if settings.aux_loss_weight and settings.bn == "eval":
        raise ConfigError("phase.probe.aux_loss_weight: auxiliary heads give no output in eval mode; set bn=train")
    if settings.source == "features":
        for name in _OF_IMAGES:
            if getattr(settings, name) != DEFAULTS["probe"][name]:
                raise ConfigError(
                    f"phase.probe.{name} cannot act on cached features; it needs phase.probe.source=images"
                )
    if not by_sgd:
        _check_solved(settings, protocol)


def _check_solved(settings: ProbeSettings, protocol: Protocol) -> None:
    """A solved head has no epochs or rates. What would change nothing is refused, so that equal runs have one id."""
    if protocol == "published" and len(settings.cs) > 1:
        raise ConfigError(
            "protocol=published holds out no val to choose on; set phase.probe.solver=sgd, or give one phase.probe.cs"
        )
    for name, default in DEFAULTS["probe"].items():
        value = getattr(settings, name)
        if name not in ("solver", "cs", "select_by", "class_weights") and value != default:
            text = f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else value
            raise ConfigError(
                f"phase.probe.{name}={text} has no effect on a solved head; set phase.probe.solver=sgd, or leave"
                f" phase.probe.{name} out"
            )


# ------------------------------------------------------------------- little data gets smaller batches and more epochs
def fitted(settings: Trained, node: DictConfig, num_rows: int) -> Trained:
    """`settings` with what `node` leaves to us (null) fitted to `num_rows` images to train on.

    The batch is halved until the usual epochs make 100 steps, but not below 16; then epochs are added until they do.
    It is never larger than the rows. What is set stays; so does all where steps_per_epoch says how long an epoch is.

    Measured by fine-tuning tinynet_mnist and tinynet_cifar from the probe's head on 80 digits (8 of each class, five
    draws; accuracy on test): 10 steps of all of them 51.4 and 54.5 %; 100 steps of 16 at the same rates 92.6 and
    83.6 %, at rates divided by 8, as the batch is, 64.2 and 52.0 %, by the root of 8 90.6 and 75.8 %. So the rates of
    fine-tuning stay; those of training from scratch are per image of a batch (baseline_cnn on the same digits: 92.5 %
    instead of 88.3).
    """
    if num_rows == 0 or not settings.takes_steps or settings.steps_per_epoch is not None:
        return settings
    if node.batch_size is None:
        smallest = max(MIN_BATCH, settings.micro_batch or 1)
        while settings.batch_size // 2 >= smallest and settings.epochs * settings.count_steps(num_rows) < MIN_STEPS:
            settings = replace(settings, batch_size=settings.batch_size // 2)
        settings = replace(settings, batch_size=max(settings.micro_batch or 1, min(settings.batch_size, num_rows)))
    if node.epochs is None:
        epochs = math.ceil(MIN_STEPS / settings.count_steps(num_rows))
        settings = replace(settings, epochs=max(settings.epochs, epochs))
    return settings
