"""--cfg: the configuration that will run, as YAML, resolved; a file of conf/grid/ as it stands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

from omegaconf import DictConfig, OmegaConf

from transfergrid.config import compose_grid, compose_run
from transfergrid.config.cluster import cluster_settings
from transfergrid.config.compose import check_choice, parse_overrides
from transfergrid.config.folders import content_of
from transfergrid.config.models import check_models, check_phases
from transfergrid.config.schema import FROM_ABOVE, GROUPS, KEYS
from transfergrid.config.scopes import checked_protocol
from transfergrid.config.spelling import command
from transfergrid.config.variants import read_rule, read_variants
from transfergrid.errors import ConfigError


def printed_grid(arguments: Sequence[str]) -> str:
    """What a launch with these arguments runs. Raises ConfigError as the launch would, as far as no data is needed."""
    arguments, config = compose_grid(arguments)
    check_models(list(config.grid.models))
    check_phases(list(config.grid.phases))
    for name in config.grid.datasets:
        check_choice("dataset", name)
    read_variants(config.grid.variants)
    return _printed("launch_grid.py", arguments, config)


def printed_run(arguments: Sequence[str]) -> str:
    """What a run by hand with these arguments is."""
    _, config = compose_run(arguments)
    for key in ("again", "run"):
        if config[key] is not None:
            raise ConfigError(f"{key}= takes its settings from a run; its spec.json in the store holds them")
    check_models([config.model])
    return _printed("run_phase.py", arguments, config)


def _printed(script: str, arguments: Sequence[str], config: DictConfig) -> str:
    checked_protocol(config)
    cluster_settings(config.cluster)
    overrides = {str(o.key_or_group): o for o in parse_overrides(arguments)}
    chosen = [str(o.input_line) for group, o in overrides.items() if group in GROUPS]
    dataset = str(overrides["dataset"].value()) if "dataset" in overrides else "digits"
    datasets = [dataset] if script == "run_phase.py" else list(config.grid.datasets)
    values: Any = OmegaConf.to_container(config, resolve=True)
    if script == "launch_grid.py":  # where a phase takes a key from above, a variant or a rule may set that one
        written: Any = OmegaConf.to_container(config, resolve=False)
        for phase, (key, above) in product(values["phase"], FROM_ABOVE.items()):
            if isinstance(written["phase"][phase], dict) and written["phase"][phase].get(key) == above:
                del values["phase"][phase][key]
    unset = [name for name, key in KEYS.items() if key.about.not_set and name != "grid.study"]
    # What the file of a data set says holds for that data set alone.
    unset += [name for name in _of_files(datasets) if name not in overrides and name not in unset]
    unset += ["cluster.asked", *(["grid.study"] if config.grid.study is None else [])]
    values["grid"]["rules"] = [_without(rule, overrides) for rule in values["grid"]["rules"]]
    for name in unset:
        node, leaf = name.split(".")
        del values[node][leaf]
    head = ["# @package _global_", f"# The configuration of: {command(script, *chosen)}"]
    return "\n".join([*head, OmegaConf.to_yaml(OmegaConf.create(values))])


def _without(rule: Any, overrides: Iterable[str]) -> Any:
    """A rule of a grid file as it holds for this launch: what the command line sets wins over it."""
    changes = read_rule(rule).changes
    wins = tuple(f"{name}." for name in overrides)  # a group is typed as one value: phase.finetune={lr: 0.1}
    return rule if not changes else rule | {"set": {k: v for k, v in changes.items() if not f"{k}.".startswith(wins)}}


def _of_files(datasets: Sequence[str]) -> list[str]:
    """The keys that the files of these data sets set."""
    contents = [content_of("dataset", name) for name in datasets]
    return list(dict.fromkeys(f"dataset.{key}" for content in contents for key in content if f"dataset.{key}" in KEYS))
