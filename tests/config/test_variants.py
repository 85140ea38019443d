"""What a grid file writes beside its lists, as the frozen values that the builder is given."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
from omegaconf import OmegaConf

from transfergrid.config.variants import Rule, Selection, Variant, read_rules, read_variants
from transfergrid.errors import ConfigError


def test_a_variant_has_dotted_keys_however_they_are_spelled_and_its_limits_apart() -> None:
    node = OmegaConf.create(
        {
            "slow": {"phase": {"finetune": {"lr": 0.1}}, "phase.probe.solver": "sgd", "models": ["resnet18"]},
            "plain": {},
        }
    )
    slow, plain = read_variants(node)
    assert slow == Variant(
        "slow", {"phase.finetune.lr": 0.1, "phase.probe.solver": "sgd"}, Selection(models=("resnet18",))
    )
    assert plain == Variant("plain", {}, Selection(None, None, None))
    with pytest.raises(FrozenInstanceError):
        slow.name = "fast"  # type: ignore[misc]


def test_a_rule_holds_where_all_its_conditions_do() -> None:
    node = OmegaConf.create(
        [
            {"models": ["resnet18", "vgg16"], "phases": ["probe"], "set": {"phase": {"probe": {"epochs": 3}}}},
            {"skip": True},
        ]
    )
    first, second = read_rules(node)
    assert first == Rule(Selection(("resnet18", "vgg16"), None, ("probe",)), {"phase.probe.epochs": 3}, skip=False)
    assert second == Rule(Selection(), {}, skip=True)
    assert first.selection.holds("vgg16", "mnist", "probe")
    assert not first.selection.holds("vgg16", "mnist", "finetune")
    assert not first.selection.holds("vgg11", "mnist", "probe")
    assert second.selection.holds("vgg11", "digits", "scratch")


def test_an_empty_list_of_names_is_a_condition_that_never_holds() -> None:
    (rule,) = read_rules(OmegaConf.create([{"datasets": [], "skip": True}]))
    assert rule.selection == Selection(datasets=()) and not rule.selection.holds("resnet18", "mnist", "probe")
    with pytest.raises(ConfigError, match="grid.variants.x: models='resnet18' is not a list of names"):
        read_variants(OmegaConf.create({"x": {"models": "resnet18"}}))
