"""A phase's settings: from a merged node to a frozen object, checked against types, choices, ranges and each other."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from omegaconf import DictConfig

from transfergrid.config.schema import PROBE_DEFAULTS
from transfergrid.errors import ConfigError
from transfergrid.names import closest
from transfergrid.specs import (
    EvaluateSettings,
    ExtractSettings,
    FinetuneSettings,
    ProbeSettings,
    Protocol,
    ScratchSettings,
    SelectBy,
    TrainSettings,
)

ABOVE_ZERO = 5e-324  # the smallest positive float, as a lowest value
# Lowest and highest value.
RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, 100_000),
    "steps_per_epoch": (1, 100_000_000),
    "cosine_epochs": (1, 100_000),
    "batch_size": (1, 1_000_000),
    "micro_batch": (1, 1_000_000),
    "clip_norm": (ABOVE_ZERO, 1e6),
    "momentum": (0, 0.9999),
    "lookahead_k": (1, 1_000),
    "lookahead_alpha": (0, 1),
    "warmup_fraction": (0, 0.9),
    "step_epochs": (1, 100_000),
    "step_gamma": (ABOVE_ZERO, 1),
    "final_lr_fraction": (0, 1),
    "label_smoothing": (0, 0.99),
    "ema_decay": (0, 0.999999),
    "shift_px": (0, 512),
    "perspective": (0, 1),
    "perspective_share": (0, 1),
    "rotation_deg": (0, 180),
    "rotation_fill": (0, 255),
    "cutout_px": (0, 512),
    "lr": (ABOVE_ZERO, 100),
    "lrs": (ABOVE_ZERO, 100),
    "cs": (1e-9, 1e9),
    "head_lr": (ABOVE_ZERO, 100),
    "stem_lr": (ABOVE_ZERO, 100),
    "weight_decay": (0, 10),
    "weight_decays": (0, 10),
    "aux_loss_weight": (0, 10),
    "l2_sp": (0, 100),
    "mean": (-10, 10),
    "std": (ABOVE_ZERO, 10),
}
T = TypeVar("T")


def settings_of(kind: type[T], node: DictConfig, *, where: str, **given: Any) -> T:
    """A frozen settings object from a merged node; `given` fields replace the node's. ConfigErrors name the key."""
    hints = get_type_hints(kind)
    values = {}
    for f in fields(cast(Any, kind)):
        value = given[f.name] if f.name in given else node[f.name]
        values[f.name] = _checked(f"{where}.{f.name}", f.name, hints[f.name], value)
    return kind(**values)


def _checked(key: str, name: str, hint: Any, value: Any) -> Any:
    if get_origin(hint) is tuple:
        items = tuple(_checked(key, name, get_args(hint)[0], item) for item in value)
        if name in ("lrs", "weight_decays", "cs") and not items:
            raise ConfigError(f"{key} is empty; give at least one value")
        if name in ("mean", "std"):
            if len(items) != 3:
                raise ConfigError(f"{key}={list(items)} must hold three numbers, for red, green and blue")
        elif len(set(items)) != len(items):
            raise ConfigError(f"{key}={list(items)} holds a value twice")
        return items
    if get_origin(hint) is Literal:
        return choice(key, value, get_args(hint))
    if isinstance(value, (int, float)) and not isinstance(value, bool) and name in RANGES:
        return in_range(key, value, *RANGES[name])
    return value


def choice(key: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    if value not in allowed:
        raise ConfigError(f"{key}={value!r} is not one of {', '.join(map(str, allowed))}", **_hint(value, allowed))
    return value


def _hint(value: Any, allowed: tuple[Any, ...]) -> dict[str, Any]:
    close = closest(str(value), [str(a) for a in allowed])
    return {} if close is None else {"remedy": f"did you mean {close!r}?"}


def in_range(key: str, value: Any, low: float, high: float) -> Any:
    if not math.isfinite(value) or not low <= value <= high:
        lowest = "above 0" if low == ABOVE_ZERO else f"at least {low:g}"
        raise ConfigError(f"{key}={value} is out of range; it must be {lowest} and at most {high:.10g}")
    return value


def check_settings(config: DictConfig) -> None:
    """Types, choices and ranges of every phase's settings, also of phases that this request does not take."""
    settings_of(ExtractSettings, config.phase.extract, where="phase.extract")
    select_by = choice("select_by", config.select_by, get_args(SelectBy))
    select_by = config.phase.probe.select_by or select_by
    settings_of(ProbeSettings, config.phase.probe, where="phase.probe", select_by=select_by)
    settings_of(FinetuneSettings, config.phase.finetune, where="phase.finetune")
    settings_of(ScratchSettings, config.phase.scratch, where="phase.scratch", image_size_px=None)
    settings_of(EvaluateSettings, config.phase.evaluate, where="phase.evaluate", source="", preprocess=None)


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
            shown = f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else value
            raise ConfigError(
                f"phase.probe.{name}={shown} has no effect on a solved head; set phase.probe.solver=sgd, or leave"
                f" phase.probe.{name} out"
            )
