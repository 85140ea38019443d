"""--cfg: the configuration that will run, as YAML, resolved; a file of conf/grid/ as it stands."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from transfergrid.config import composed_grid, composed_run
from transfergrid.config.cluster import cluster_settings
from transfergrid.config.compose import parse_overrides
from transfergrid.config.folders import find, without_file
from transfergrid.config.schema import GROUPS, KEYS
from transfergrid.config.scopes import check_plain_values
from transfergrid.config.spelling import command
from transfergrid.config.variants import read_rule


def printed_grid(arguments: Sequence[str]) -> str:
    """What a launch with these arguments runs. Raises ConfigError as the launch would, as far as no data is needed."""
    typed, config = composed_grid(arguments)
    return _printed("launch_grid.py", typed, config)


def printed_run(arguments: Sequence[str]) -> str:
    """What a run by hand with these arguments is."""
    _, config = composed_run(arguments)
    return _printed("run_phase.py", arguments, config)


def _printed(script: str, arguments: Sequence[str], config: DictConfig) -> str:
    check_plain_values(config)
    cluster_settings(config.cluster)
    typed = {str(o.key_or_group): o for o in parse_overrides(arguments)}
    chosen = [str(o.input_line) for group, o in typed.items() if group in GROUPS]
    named = str(typed["dataset"].value()) if "dataset" in typed else "digits"
    datasets = [named] if script == "run_phase.py" else list(config.grid.datasets)
    values: Any = OmegaConf.to_container(config, resolve=True)
    unset = [name for name, key in KEYS.items() if key.about.not_set and name != "grid.study"]
    # What the file of a data set says holds for that data set alone.
    unset += [name for name in _of_files(datasets) if name not in typed and name not in unset]
    unset += ["cluster.asked", *(["grid.study"] if config.grid.study is None else [])]
    values["grid"]["rules"] = [_without(rule, typed) for rule in values["grid"]["rules"]]
    for name in unset:
        node, leaf = name.split(".")
        del values[node][leaf]
    head = ["# @package _global_", f"# The configuration of: {command(script, *chosen)}"]
    return "\n".join([*head, OmegaConf.to_yaml(OmegaConf.create(values))])


def _without(rule: Any, typed: Container[str]) -> Any:
    """A rule of a grid file as it holds for this launch: what the command line sets wins over it."""
    changes = read_rule(rule).changes
    return rule if not changes else rule | {"set": {key: v for key, v in changes.items() if key not in typed}}


def _of_files(datasets: Sequence[str]) -> list[str]:
    """The keys that the files of these data sets set."""
    files = {name: find("dataset", name) for name in datasets}
    contents: list[Any] = [
        without_file("dataset").get(name, {}) if file is None else yaml.safe_load(file.read_text("utf-8")) or {}
        for name, file in files.items()
    ]
    return list(dict.fromkeys(f"dataset.{key}" for content in contents for key in content if f"dataset.{key}" in KEYS))
