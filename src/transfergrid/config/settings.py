"""A phase's settings: from a merged node to a frozen object, checked against types, choices, ranges and each other."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any, TypeVar, cast, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf

from transfergrid.config.keys import Key, about_of, checked
from transfergrid.config.schema import KEYS, PROBE_DEFAULTS
from transfergrid.errors import ConfigError
from transfergrid.specs import (
    ANY_NUMBER,
    EvaluateSettings,
    ExtractSettings,
    FinetuneSettings,
    ProbeSettings,
    Protocol,
    ScratchSettings,
    TrainSettings,
)

T = TypeVar("T")


def settings_of(kind: type[T], node: DictConfig, *, where: str, **given: Any) -> T:
    """A frozen settings object from a merged node; `given` fields replace the node's. ConfigErrors name the key."""
    values = {}
    for key in _fields_of(cast(Any, kind)):
        value = given[key.name] if key.name in given else node[key.name]
        values[key.name] = _checked(key, value, f"{where}.{key.name}")
    return kind(**values)


@cache
def _fields_of(kind: type[Any]) -> tuple[Key, ...]:
    hints = get_type_hints(kind)
    return tuple(Key(f.name, hints[f.name], None, about_of(f)) for f in fields(kind))


def _checked(key: Key, value: Any, name: str) -> Any:
    value = checked(key, value, name=name)
    if key.is_list:
        if ... not in get_args(key.hint):
            if len(value) != len(get_args(key.hint)):
                raise ConfigError(f"{name}={list(value)} must hold three numbers, for red, green and blue")
        elif len(set(value)) != len(value):
            raise ConfigError(f"{name}={list(value)} holds a value twice")
    return value


def check_settings(config: DictConfig) -> None:
    """Choices and ranges of every key, also of phases that this request does not take."""
    check_keys(config, tuple(name for name in KEYS if not name.startswith(("phase.", "cluster."))))
    settings_of(ExtractSettings, config.phase.extract, where="phase.extract")
    select_by = config.phase.probe.select_by or config.select_by
    settings_of(ProbeSettings, config.phase.probe, where="phase.probe", select_by=select_by)
    settings_of(FinetuneSettings, config.phase.finetune, where="phase.finetune")
    settings_of(ScratchSettings, config.phase.scratch, where="phase.scratch", image_size_px=None)
    settings_of(EvaluateSettings, config.phase.evaluate, where="phase.evaluate", source="", preprocess=None)


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
        needs_images = {
            "flip": settings.flip,
            "shift_px": settings.shift_px,
            "perspective": settings.perspective,
            "rotation_deg": settings.rotation_deg,
            "cutout_px": settings.cutout_px,
            "micro_batch": settings.micro_batch,
            "aux_loss_weight": settings.aux_loss_weight,
            "bn": settings.bn == "train",
            "test_bn": settings.test_bn == "batch",
            "precision": settings.precision != "fp32",
        }
        for name, value in needs_images.items():
            if value:
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
    for name, default in PROBE_DEFAULTS.items():
        value = getattr(settings, name)
        if name not in ("solver", "cs", "select_by", "class_weights") and value != default:
            text = f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else value
            raise ConfigError(
                f"phase.probe.{name}={text} has no effect on a solved head; set phase.probe.solver=sgd, or leave"
                f" phase.probe.{name} out"
            )
