"""What a grid file writes beside its lists: variants by name, rules by condition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from omegaconf import DictConfig, ListConfig, OmegaConf

from transfergrid.config.compose import check_setting
from transfergrid.config.folders import choices
from transfergrid.config.models import check_models, check_phases, split_model
from transfergrid.errors import ConfigError, hints
from transfergrid.specs import PHASES, Phase, safe_name


@dataclass(frozen=True, slots=True)
class Selection:
    """What a variant or a rule is limited to, by name, whether or not the grid holds it; None is no limit."""

    models: tuple[str, ...] | None = None
    datasets: tuple[str, ...] | None = None
    phases: tuple[str, ...] | None = None

    def holds(self, model: str, dataset: str, phase: Phase) -> bool:
        limits = ((self.models, model), (self.datasets, dataset), (self.phases, phase))
        return all(names is None or name in names for names, name in limits)


@dataclass(frozen=True, slots=True)
class Variant:
    """A named set of changes, dotted key -> value, for these models (not only the grid's) and phases."""

    name: str
    changes: Mapping[str, object]
    selection: Selection = Selection()


@dataclass(frozen=True, slots=True)
class Rule:
    """What holds for the rows of its selection: changes, dotted key -> value, or that the grid skips them."""

    selection: Selection
    changes: Mapping[str, object]
    skip: bool


def read_variants(node: DictConfig) -> tuple[Variant, ...]:
    """Raises ConfigError. Whether a changed key exists is seen when the variant is first used."""
    by_name = OmegaConf.to_container(node)
    assert isinstance(by_name, dict)
    return tuple(_variant(str(name), changes) for name, changes in by_name.items())


def read_rules(node: ListConfig) -> tuple[Rule, ...]:
    return tuple(read_rule(value) for value in OmegaConf.to_container(node) or ())


def _variant(name: str, value: object) -> Variant:
    if not isinstance(value, dict):
        raise ConfigError(f"grid.variants.{name}={value!r} must hold key: value pairs, as {{phase.finetune.lr: 0.1}}")
    flat = _flatten(value)
    if safe_name(name) != name and name:
        raise ConfigError(f"grid.variants: {name!r} may hold only a-z 0-9 . _ + -")
    selection = _selection(flat, f"grid.variants.{name}")
    if selection.models is not None:
        check_models(list(selection.models))
    if selection.phases is not None:
        check_phases(list(selection.phases))
    return Variant(name, {k: v for k, v in flat.items() if k not in ("models", "phases")}, selection)


_RULE_KEYS = ("models", "datasets", "phases", "set", "skip")


def read_rule(value: object) -> Rule:
    wrong = ConfigError(f"grid.rules: {value!r} must hold either set: {{key: value}} or skip: true")
    if not isinstance(value, dict) or ("set" in value) == ("skip" in value):
        raise wrong
    for key in value:
        if key not in _RULE_KEYS:
            raise ConfigError(f"grid.rules: unknown key {key!r}", **hints(str(key), _RULE_KEYS))
    if value.get("skip", True) is not True or not isinstance(value.get("set", {}), dict):
        raise wrong
    selection = _selection(value, "grid.rules")
    changes = _flatten(value.get("set", {}))
    for key in changes:
        check_setting(key, where="grid.rules")
    return Rule(selection, changes, skip="skip" in value)


def _flatten(changes: Mapping[object, object], prefix: str = "") -> dict[str, object]:
    """Nested and dotted spellings alike, as dotted keys."""
    flat: dict[str, object] = {}
    for key, value in changes.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _selection(values: Mapping[str, object], where: str) -> Selection:
    """Lists of names that exist. Raises ConfigError."""
    models, datasets, phases = (_names(values, key, where) for key in ("models", "datasets", "phases"))
    for model in models or ():
        split_model(model)
    for kind, names, known in (("dataset", datasets, choices("dataset")), ("phase", phases, PHASES)):
        for name in names or ():
            if name not in known:
                raise ConfigError(f"{where}: unknown {kind} {name!r}", **hints(name, known))
    return Selection(models, datasets, phases)


def _names(values: Mapping[str, object], key: str, where: str) -> tuple[str, ...] | None:
    names = values.get(key, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{where}: {key}={names!r} is not a list of names; a list is written {key}: [a, b]")
    return tuple(names) if key in values else None
