"""Command line -> one merged configuration. Hydra composes; what it would let pass is refused here, in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from transfergrid.config.schema import Config
from transfergrid.errors import ConfigError

GROUPS = ("grid", "dataset", "phase", "cluster", "tracking")
_OPEN_NODES = ("grid.variants", "grid.rules", "weights_files")  # dictionaries whose keys are the user's


def conf_dir() -> Path:
    """The folder of the configuration files: the checkout's `conf/`, else the copy inside the installed package."""
    checkout = Path(__file__).resolve().parents[3] / "conf"
    return checkout if (checkout / "config.yaml").is_file() else Path(__file__).resolve().parents[1] / "conf"


@cache
def choices(group: str) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in (conf_dir() / group).glob("*.yaml")))


def parse_overrides(arguments: Sequence[str]) -> list[Override]:
    """Check every `key=value` against the schema. Raises ConfigError on the first that does not fit."""
    seen: set[str] = set()
    parsed = []
    for argument in arguments:
        if "=" not in argument:
            raise ConfigError(f"{argument!r} is not of the form key=value; see --help")
        try:
            override = OverridesParser.create().parse_override(argument)
        except HydraException as error:
            reason = str(error).splitlines()[0].strip()
            raise ConfigError(
                f"{argument!r} cannot be read ({reason}); quote a value that holds = , ( or ~ as key='\"value\"'"
            ) from error
        key = str(override.key_or_group)
        if override.is_add() or override.is_force_add() or override.is_delete():
            raise ConfigError(
                f"{argument!r}: keys can be neither added nor removed, only set: key=value{_nearest_key(key)}"
            )
        if override.is_sweep_override():
            raise ConfigError(f"{argument!r} gives several values where one is needed; a list is written key=[a,b]")
        if key in seen:
            raise ConfigError(f"{key!r} is given twice; give it once")
        seen.add(key)
        if key in GROUPS:
            _check_choice(key, override.value())
        elif not _is_known(key):
            raise ConfigError(f"unknown key {key!r}{_nearest_key(key)}")
        parsed.append(override)
    return parsed


def compose_config(arguments: Sequence[str]) -> DictConfig:
    """Merge conf/config.yaml, the groups and the overrides over the schema. Raises ConfigError in one line."""
    ConfigStore.instance().store(name="schema", node=Config)
    try:
        with initialize_config_dir(str(conf_dir()), version_base=None):
            return compose("config", list(arguments))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error)) from error


def set_value(config: DictConfig, key: str, value: Any, *, where: str) -> None:
    """Set one dotted key of a merged configuration, with the checks of the command line; `where` opens the message."""
    if not _is_known(key) or key in GROUPS:
        raise ConfigError(f"{where}: unknown key {key!r}{_nearest_key(key)}")
    try:
        OmegaConf.update(config, key, value, merge=False)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}: {_explain(error)}") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where a known name is close, else the known names."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def _check_choice(group: str, value: Any) -> None:
    if not isinstance(value, str) or value not in choices(group):
        raise ConfigError(f"unknown {group} {str(value)!r}{nearest(str(value), choices(group))}")


def _explain(error: Exception) -> str:
    """The first telling line of Hydra's or OmegaConf's message, with the key it is about."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    key = getattr(cause, "full_key", None)
    line = next((text.strip() for text in str(cause).splitlines() if text.strip()), type(cause).__name__)
    if isinstance(cause, OmegaConfBaseException) and "not in" in line and key:
        return f"unknown key {key!r}{_nearest_key(str(key))}"
    return f"{key}: {line}" if key and key not in line else line


@cache
def _known_keys() -> tuple[str, ...]:
    def walk(prefix: str, node: Any) -> list[str]:
        keys = []
        for f in fields(node):
            value = getattr(node, f.name)
            keys.append(prefix + f.name)
            if is_dataclass(value):
                keys += walk(f"{prefix}{f.name}.", value)
        return keys

    return tuple(walk("", Config()))


def _is_known(key: str) -> bool:
    return key in _known_keys() or any(key.startswith(f"{node}.") for node in _OPEN_NODES)


def _nearest_key(key: str) -> str:
    leaves = {k.rsplit(".", 1)[-1]: k for k in _known_keys()}
    close = difflib.get_close_matches(key, _known_keys(), n=1, cutoff=0.75)
    if not close:
        prefix = key.rsplit(".", 1)[0] + "."
        siblings = [k for k in _known_keys() if k.startswith(prefix)] if "." in key else []
        close = difflib.get_close_matches(key, siblings, n=1, cutoff=0.6)
    if not close:
        close = [leaves[leaf] for leaf in difflib.get_close_matches(key.rsplit(".", 1)[-1], leaves, n=1, cutoff=0.75)]
    return f"; did you mean {close[0]!r}?" if close else "; --help lists the keys"
