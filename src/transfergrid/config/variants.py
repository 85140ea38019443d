"""What a grid file writes beside its lists: variants by name, rules by condition."""

from __future__ import annotations

from typing import Any, Literal, cast

from omegaconf import DictConfig, OmegaConf

from transfergrid.config.compose import (
    check_setting,
    choices,
    nearest,
)
from transfergrid.config.models import split_model
from transfergrid.errors import ConfigError
from transfergrid.specs import (
    PHASES,
    Phase,
)


def variants_of(node: DictConfig) -> dict[str, dict[str, Any]]:
    values = cast(dict[str, Any], OmegaConf.to_container(node))
    for name, changes in values.items():
        if not isinstance(changes, dict):
            raise ConfigError(
                f"grid.variants.{name}={changes!r} must hold key: value pairs, as {{phase.finetune.lr: 0.1}}"
            )
    return {name: _flatten(changes) for name, changes in values.items()}


def _flatten(changes: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested and dotted spellings alike, as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in changes.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


_RULE_KEYS = ("models", "datasets", "phases", "set", "skip")


def checked_rule(rule: Any) -> dict[str, Any]:
    if not isinstance(rule, dict) or ("set" in rule) == ("skip" in rule):
        raise ConfigError(f"grid.rules: {rule!r} must hold either set: {{key: value}} or skip: true")
    for key in rule:
        if key not in _RULE_KEYS:
            raise ConfigError(f"grid.rules: unknown key {key!r}{nearest(str(key), _RULE_KEYS)}")
    if rule.get("skip", True) is not True or not isinstance(rule.get("set", {}), dict):
        raise ConfigError(f"grid.rules: {rule!r} must hold either set: {{key: value}} or skip: true")
    check_names(rule, "grid.rules")
    changes = _flatten(rule.get("set", {}))
    for key in changes:
        check_setting(key, where="grid.rules")
    return rule | {"set": changes}


def check_names(selection: dict[str, Any], where: str) -> None:
    """What a variant or a rule is limited to: lists of names that exist, whether or not the grid holds them now."""
    for key in ("models", "datasets", "phases"):
        names = selection.get(key, [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"{where}: {key}={names!r} is not a list of names; a list is written {key}: [a, b]")
    for model in selection.get("models", []):
        split_model(model)
    for key, known in (("datasets", choices("dataset")), ("phases", PHASES)):
        for name in selection.get(key, []):
            if name not in known:
                raise ConfigError(f"{where}: unknown {key[:-1]} {name!r}{nearest(name, known)}")


def applies(rule: dict[str, Any], model: str, dataset: str, phase: Literal[Phase]) -> bool:
    wanted = (("models", model), ("datasets", dataset), ("phases", phase))
    return all(key not in rule or value in rule[key] for key, value in wanted)
