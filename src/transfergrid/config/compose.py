"""Command line -> one merged configuration. Hydra composes; what it would let pass is refused here, in one line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from transfergrid.config import folders
from transfergrid.config.cluster_file import as_setting, read_cluster_file
from transfergrid.config.folders import choices
from transfergrid.config.keys import kind_in_words, nearest_key, nodes_of
from transfergrid.config.schema import GROUPS, KEYS, Config
from transfergrid.config.spelling import hydra_value
from transfergrid.errors import ConfigError, hints
from transfergrid.resources import MEMORY

_OPEN_NODES = ("grid.variants", "weights_files", "cluster.by_phase", "cluster.sbatch")  # their keys are the user's
_OF_A_BACKBONE = "weights_files."  # then the backbone, whose name may hold a slash and dots
# Keys whose values are names of files and folders.
_NAMES = (
    "weights weights_dir phase.evaluate.checkpoint dataset.folder dataset.table dataset.name data.dir store.dir"
    " cache.dir again"
).split()
_QUOTE = "quote a value that holds blanks, letters beyond a-z or any of = , : ( ) [ ] { } > ~ ' \" as key='\"value\"'"
_NODES = nodes_of(KEYS)
SETTABLE = tuple(name for name, key in KEYS.items() if not key.about.not_set)


class _OwnFolders(SearchPathPlugin):
    """Hydra looks in the user's folders before it looks in the package's."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in reversed(folders.conf_dirs()):
            if folder != folders.conf_dir().resolve():
                search_path.prepend(provider="transfergrid", path=f"file://{folder}")


def parse_overrides(arguments: Sequence[str]) -> list[Override]:
    """Check every `key=value` against the schema. Raises ConfigError on the first that does not fit."""
    seen: set[str] = set()
    parsed = []
    for argument in arguments:
        override = parse_override(argument)
        key = str(override.key_or_group)
        if override.is_add() or override.is_force_add() or override.is_delete():
            raise ConfigError(
                f"{argument!r}: keys can be neither added nor removed, only set: key=value{_nearest_key(key)}"
            )
        if override.is_sweep_override():
            remedy = _QUOTE if _is_name(key) else "a list is written key=[a,b]"
            if key.startswith("cluster.") and _is_text(key):
                remedy = f"as one text it is written '{key}=\"{_typed(override)}\"'"
            raise ConfigError(f"{argument!r} gives several values where one is needed; {remedy}")
        if key in seen:
            raise ConfigError(f"{key!r} is given twice; give it once")
        seen.add(key)
        if key in GROUPS:
            check_choice(key, override.value())
        elif key in KEYS and KEYS[key].about.not_set:
            raise ConfigError(f"{key}= cannot be set on its own; {KEYS[key].about.not_set}")
        elif not _is_known(key):
            raise ConfigError(f"unknown key {key!r}{_nearest_key(key)}")
        parsed.append(override)
    return parsed


@lru_cache(maxsize=1024)
def parse_override(argument: str) -> Override:
    """One `key=value` by Hydra's grammar. The name of a file or folder may be typed as it is where that grammar has no
    meaning for it; and a backbone's name may hold the slash of `timm/`, which Hydra allows in groups alone."""
    key, equals, value = argument.partition("=")
    if not equals:
        raise ConfigError(f"{argument!r} is not of the form key=value; see --help")
    own_key = key.startswith(_OF_A_BACKBONE)
    spelling = f"weights_files={value}" if own_key else argument
    try:
        override = OverridesParser.create().parse_override(spelling)
    except HydraException as error:
        if re.fullmatch(r"[\w+~/@-]+(\.[\w/-]+)*", key) is None:
            raise ConfigError(f"unknown key {key!r}{_nearest_key(key)}") from error
        if not _is_name(key):
            reason = str(error).splitlines()[0].strip()
            raise ConfigError(f"{argument!r} cannot be read ({reason}); {_QUOTE}") from error
        override = OverridesParser.create().parse_override(f"{spelling.partition('=')[0]}={hydra_value(value)}")
    override.key_or_group, override.input_line = key, argument
    return override


def compose_config(arguments: Sequence[str]) -> DictConfig:
    """Merge conf/transfergrid.yaml, the groups and the overrides over the schema. Raises ConfigError in one line.

    Hydra composes the groups; values are set here, each with its own check. So a dictionary whose keys are the user's
    replaces the grid file's whole, as a list does, and `grid.variants.mine={...}` adds one entry.
    """
    parsed = parse_overrides(arguments)
    chosen = {str(o.key_or_group): o for o in parsed if str(o.key_or_group) in GROUPS}
    groups = [str(o.input_line) for group, o in chosen.items() if group != "cluster"]
    config = deepcopy(_composed(folders.conf_dirs(), tuple(groups)))
    cluster = str(chosen["cluster"].value()) if "cluster" in chosen else "auto"
    for path, values in read_cluster_file(cluster):
        set_cluster(config, {"name": cluster} | values, where=f"{path}: ")
    set_overrides(config, parsed)
    return config


def set_overrides(config: DictConfig, parsed: Sequence[Override]) -> None:
    """What a command line sets, groups excepted. Raises ConfigError that says what a key takes."""
    values = {str(o.key_or_group): _value(o) for o in parsed if str(o.key_or_group) not in GROUPS}
    of_cluster = {key.removeprefix("cluster."): v for key, v in values.items() if key.startswith("cluster.")}
    set_cluster(config, of_cluster, where="")
    for key, value in values.items():
        if not key.startswith("cluster."):
            assign(config, key, value, where="")


def set_cluster(config: DictConfig, values: Mapping[str, Any], *, where: str) -> None:
    """What one file or one command line says of `cluster`, by keys without that word. It is remembered as asked for.

    One way of asking for memory takes the place of what an earlier layer said. Raises ConfigError, opened by `where`.
    """
    if twice := memory_conflict(values):
        raise ConfigError(f"{where}{twice}")
    changed = dict(values)
    if any(values.get(key) is not None for key in MEMORY):
        changed = dict.fromkeys(MEMORY) | changed
    for name, value in changed.items():
        key = f"cluster.{name}"
        if not _is_known(key):
            raise ConfigError(f"{where}unknown key {name!r}{_nearest_key(key)}")
        try:
            setting = as_setting(name.rpartition(".")[2], value, where=key)
        except ConfigError as error:
            raise ConfigError(f"{where}{error}") from error
        assign(config, key, setting, where=where)
    config.cluster.asked = sorted({*config.cluster.asked, *changed})


def memory_conflict(values: Mapping[str, Any], of: str = "cluster.") -> str | None:
    """That more than one way of asking for memory is given; else None."""
    forms = [f"{of}{key}={values[key]}" for key in MEMORY if values.get(key) is not None]
    return f"{' and '.join(forms)} both ask for memory; give one of {', '.join(MEMORY)}" if len(forms) > 1 else None


def _is_name(key: str) -> bool:
    return key in _NAMES or key.startswith(_OF_A_BACKBONE)


def _value(override: Override) -> Any:
    """As it was typed where the key takes a text: Hydra's grammar would make 12000.0 of an account 12e3."""
    value = override.value()
    return _typed(override) if _is_text(str(override.key_or_group)) and isinstance(value, (int, float)) else value


def _typed(override: Override) -> str:
    return str(override.input_line).partition("=")[2]


def _is_text(key: str) -> bool:
    """Whether a key takes a text, those in by_phase included."""
    if key.startswith("cluster.by_phase."):
        key = "cluster." + key.rpartition(".")[2]
    return key in KEYS and not KEYS[key].is_list and (KEYS[key].plain is str or bool(KEYS[key].choices))


@lru_cache(maxsize=64)
def _composed(places: tuple[Path, ...], groups: tuple[str, ...]) -> DictConfig:
    """The groups merged, before any value is set; kept, as Hydra takes long and a process asks for few of them.

    places: those that _OwnFolders names to Hydra, and the package's.
    """
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for group in GROUPS:
        for name, content in folders.without_file(group).items():
            if folders.find(group, name) is None:
                store.store(group=group, name=name, node=content)
            else:  # Hydra would take what an earlier call has stored for the file's schema
                store.repo.get(group, {}).pop(f"{name}.yaml", None)
    Plugins.instance().register(_OwnFolders)
    try:
        with initialize_config_dir(str(folders.conf_dir()), version_base=None):
            return compose("transfergrid", list(groups))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_first_line(error.__cause__ or error)) from error


def assign(config: DictConfig, key: str, value: Any, *, where: str) -> None:
    """Set one dotted key. Raises ConfigError, opened by `where`, that says what the key takes."""
    is_open = key.startswith(_OPEN_NODES)
    try:
        if key.startswith(_OF_A_BACKBONE):
            with open_dict(config):
                config.weights_files[key.removeprefix(_OF_A_BACKBONE)] = value
            return
        OmegaConf.update(config, key, value, merge=not is_open, force_add=is_open)
    except (OmegaConfBaseException, TypeError) as error:
        raise ConfigError(f"{where}{_explain(error, key, value)}") from error


def set_value(config: DictConfig, key: str, value: Any, *, where: str) -> None:
    """Set one dotted key of a merged configuration, with the checks of the command line; `where` opens the message."""
    check_setting(key, where=where)
    assign(config, key, value, where=f"{where}: ")


def check_setting(key: str, *, where: str) -> None:
    """A variant or a rule may set only what is about the numbers of a run. Raises ConfigError, opened by `where`."""
    if not _is_known(key):
        raise ConfigError(f"{where}: unknown key {key!r}{_nearest_key(key)}")
    if not is_setting(key):
        raise ConfigError(f"{where}: {key!r} is not a setting of a run; phase.*, dataset.* and weights are")


def is_setting(key: str) -> bool:
    """Whether a key is about the numbers of a run, so that variants, rules and a hand run's variant may hold it."""
    settable = key not in KEYS or not KEYS[key].about.not_set
    dotted = key.startswith(("phase.", "dataset.", "weights_files.")) and settable
    return dotted or key in ("weights", "weights_seed", "class_weights")


def resource_hints(name: str, known: Sequence[str]) -> dict[str, Any]:
    """As errors.hints(), by SLURM's own names too."""
    other = _OTHER_NAMES.get(name.replace("-", "_"), "").removeprefix("cluster.")
    return {"remedy": f"did you mean {other!r}?"} if other in known else hints(name, known)


def check_choice(group: str, name: Any) -> None:
    """Raises ConfigError for a name that no file of a group has."""
    if name not in choices(group):
        raise ConfigError(f"unknown {group} {str(name)!r}", **hints(str(name), choices(group)))


def _explain(error: Exception, key: str, value: Any) -> str:
    """What the key takes instead of this value; for one inside a dictionary, the library's own words."""
    full_key = str(getattr(error, "full_key", None) or key)
    is_key = key in KEYS or key in _NODES
    if is_key and (isinstance(value, (str, int, float, list)) or value is None or full_key == key):
        return f"{key}={'null' if value is None else value} is not {kind_in_words(key, KEYS.get(key))}"
    if full_key != key and not _is_known(full_key):
        return f"{key}: unknown key {full_key!r}{_nearest_key(full_key)}"
    line = _first_line(error)
    return line if full_key in line else f"{full_key}: {line}"


def _first_line(error: BaseException) -> str:
    return next((text.strip() for text in str(error).splitlines() if text.strip()), type(error).__name__)


def _is_known(key: str) -> bool:
    return key in KEYS or key in _NODES or any(key.startswith(f"{node}.") for node in _OPEN_NODES)


_OF_SBATCH = "comment nodelist mail_type mail_user reservation hold begin nice licenses exclusive export options"
# What SLURM and others call what has a key of its own here.
_OTHER_NAMES = {
    other: f"cluster.{key}"
    for key, others in {
        "timeout_min": "time time_min time_limit walltime timeout timelimit",
        "mem_gb": "mem memory mem_per_node ram",
        "mem_per_cpu_gb": "mem_per_cpu",
        "mem_per_gpu_gb": "mem_per_gpu",
        "gpus": "gpu gres gpus_per_node gpus_per_task ngpus num_gpus",
        "cpus": "cpu cpus_per_task ncpus num_cpus cores",
        "partition": "queue",
        "account": "project",
        "setup": "modules",
        "sbatch": f"{_OF_SBATCH} sbatch_options",
    }.items()
    for other in others.split()
}


def _nearest_key(key: str) -> str:
    known = [*SETTABLE, *_NODES]
    if key.startswith("cluster.") and (name := _OTHER_NAMES.get(key.removeprefix("cluster.").replace("-", "_"))):
        return f"; did you mean {name!r}?" + (" (with cluster.gpu_type)" if name == "cluster.gpus" else "")
    same_leaf = [k for k in known if k.endswith(f".{key}")]
    if same_leaf and "." not in key:
        return f"; did you mean {' or '.join(map(repr, same_leaf))}?"
    close = nearest_key(key, known)
    return f"; did you mean {close!r}?" if close else "; --help all lists the keys"
