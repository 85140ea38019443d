"""The `cluster` node of a merged configuration -> frozen ClusterSettings, each value checked."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from transfergrid.config.compose import assign, nearest, parse_overrides
from transfergrid.config.schema import Config
from transfergrid.config.settings import choice, in_range
from transfergrid.errors import ConfigError
from transfergrid.resources import MAX_PACKED, ClusterSettings, Resources
from transfergrid.specs import PHASES

STARTUP_S = 60  # until a job's first step: python, torch, the first batch
SIGNAL_EARLY_S = 60  # SLURM may send the signal so much earlier than asked (sbatch --signal)
RESOURCES = tuple(f.name for f in fields(Resources))
RANGES: dict[str, tuple[float, float]] = {
    "gpus": (0, 64),
    "cpus": (1, 1024),
    "mem_gb": (0.1, 16384),
    "timeout_min": (1, 60 * 24 * 365),
    "num_threads": (0, 1024),
    "array_parallelism": (0, 1_000_000),
    "runs_per_job": (1, MAX_PACKED),
    "signal_delay_s": (10, 86_400),
    "max_requeues": (0, 100_000),
    "poll_s": (0.5, 3600),
}
# What users of a cluster set for all their jobs.
SITE_DEFAULTS = {
    "partition": "SBATCH_PARTITION",
    "account": "SBATCH_ACCOUNT",
    "qos": "SBATCH_QOS",
    "constraint": "SBATCH_CONSTRAINT",
    "wckey": "SBATCH_WCKEY",
}
# Options of sbatch that the launcher sets itself: by them jobs are found, ordered and told to save.
OWN_OPTIONS = (
    *("array", "dependency", "error", "job-name", "kill-on-invalid-dep", "open-mode", "output", "parsable"),
    *("signal", "test-only", "wait", "wrap"),
)
KEY_OF = {"time": "timeout_min", "mem": "mem_gb", "cpus-per-task": "cpus"}
OWN_KEYS = {"partition", "account", "qos", "constraint", "time", "mem", "cpus-per-task", "exclude", "wckey"}
_TEXT = ("partition", "finish_partition", "account", "qos", "constraint", "gpu_type", "wckey", "exclude")


def cluster_settings(node: DictConfig) -> ClusterSettings:
    """Raises ConfigError, naming the key, for a value that no SLURM could take."""
    values = plain(node)
    if values["kind"] != "local":
        for key, variable in SITE_DEFAULTS.items():  # else they would outweigh the job script's own lines
            values[key] = values[key] if values[key] is not None else os.environ.get(variable) or None
    choice("cluster.kind", values["kind"], ("auto", "local", "slurm"))
    for key, (low, high) in RANGES.items():
        in_range(f"cluster.{key}", values[key], low, high)
    for key in _TEXT:
        _check_text(f"cluster.{key}", values[key])
    for key, value in values["sbatch"].items():
        if key in ("M", "cluster", "clusters"):  # sbatch takes the beginning of a name for the name
            raise ConfigError(
                f"cluster.sbatch: {key!r} would be followed by sbatch alone; export SLURM_CLUSTERS={value} instead,"
                " which every command follows"
            )
        if not re.fullmatch(r"[a-z][a-z-]*", str(key)):
            raise ConfigError(f"cluster.sbatch: {key!r} is not an option of sbatch; write it as {{mail-type: END}}")
        if any(own.startswith(str(key)) for own in OWN_OPTIONS):  # sbatch takes the beginning of a name for the name
            raise ConfigError(f"cluster.sbatch: {key!r} is set by the launcher itself; leave it out")
        if key in OWN_KEYS:
            raise ConfigError(f"cluster.sbatch: {key!r} has a key of its own, cluster.{KEY_OF.get(str(key), key)}=")
        if value is None or value is False:
            raise ConfigError(
                f"cluster.sbatch.{key}={value} is no value of an option; leave it out, or give true to set it"
            )
        if value is not True:  # as {hold: true}
            _check_text(f"cluster.sbatch.{key}", str(value))
    for line in values["setup"]:
        if "\n" in line or "\0" in line:
            raise ConfigError("cluster.setup: one line of shell each; give a list")
    if values["python"] is not None and set("\n\0") & set(values["python"]):
        raise ConfigError(f"cluster.python={values['python']!r} is not one line of shell")
    if not values["scratch_dir"].startswith(("/", "$")) or set("\n\0") & set(values["scratch_dir"]):
        raise ConfigError(
            f"cluster.scratch_dir={values['scratch_dir']!r} is no folder of a node; give one from its root, or $TMPDIR"
        )
    resources = Resources(**{key: values[key] for key in RESOURCES})
    settings = ClusterSettings(
        name=values["name"],
        kind=values["kind"],
        resources=resources,
        by_phase={str(p): _of_phase(str(p), given, resources) for p, given in values["by_phase"].items()},
        setup=tuple(values["setup"]),
        sbatch={str(k): v if v is True else str(v) for k, v in values["sbatch"].items()},
        **{
            key: values[key]
            for key in (
                *("finish_partition", "array_parallelism", "runs_per_job", "signal_delay_s", "max_requeues", "wckey"),
                *("exclude", "python", "stage_folders", "scratch_dir", "poll_s"),
            )
        },
    )
    _check_time("cluster.timeout_min", resources.timeout_min, settings.signal_delay_s)
    for phase, asked in settings.by_phase.items():
        _check_time(f"cluster.by_phase.{phase}.timeout_min", asked.timeout_min, settings.signal_delay_s)
    return settings


def plain(node: DictConfig) -> dict[str, Any]:
    """The node as JSON can hold it; changed_cluster() reads it back."""
    content = OmegaConf.to_container(node)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def changed_cluster(stored: Mapping[str, Any], overrides: Sequence[str]) -> DictConfig:
    """What plain() gave, with `cluster.<key>=<value>` of a command line applied. Raises ConfigError for other keys."""
    config = OmegaConf.structured(Config)
    for key, value in stored.items():
        OmegaConf.update(config, f"cluster.{key}", value, merge=False, force_add=True)
    for override in parse_overrides(overrides):
        key = str(override.key_or_group)
        if not key.startswith("cluster."):
            raise ConfigError(f"{key}= cannot be changed for a retry; cluster.* can, the rest needs a launch")
        assign(config, key, override.value(), where="")
    node = config.cluster
    assert isinstance(node, DictConfig)
    return node


def _of_phase(phase: str, given: Any, resources: Resources) -> Resources:
    where = f"cluster.by_phase.{phase}"
    if phase not in PHASES:
        raise ConfigError(f"cluster.by_phase: unknown phase {phase!r}{nearest(phase, PHASES)}")
    if not isinstance(given, dict):
        raise ConfigError(f"{where}={given!r} is not a dictionary; it is written {{{phase}: {{mem_gb: 32}}}}")
    number: dict[str, tuple[type, ...]] = {
        "gpus": (int,),
        "cpus": (int,),
        "timeout_min": (int,),
        "mem_gb": (int, float),
    }
    for key, value in given.items():
        if key not in RESOURCES:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(str(key), RESOURCES)}")
        if key in number:
            if isinstance(value, bool) or not isinstance(value, number[key]):
                raise ConfigError(f"{where}.{key}={value!r} is not a number")
            in_range(f"{where}.{key}", value, *RANGES[key])
        else:
            _check_text(f"{where}.{key}", value)
    return replace(resources, **given)


def _check_text(key: str, value: Any) -> None:
    """What goes into a job script's #SBATCH line: one word, nothing a shell or sbatch would read as more."""
    if value is not None and (not isinstance(value, str) or not re.fullmatch(r"[\w.,:@+*/&|\[\]()=%-]{1,256}", value)):
        raise ConfigError(f"{key}={value!r} is not a name that SLURM takes; one word, without spaces or quotes")


def _check_time(key: str, timeout_min: int, signal_delay_s: int) -> None:
    needed_s = signal_delay_s + SIGNAL_EARLY_S + STARTUP_S
    if timeout_min * 60 < needed_s:
        raise ConfigError(
            f"{key}={timeout_min} leaves a job no time: cluster.signal_delay_s={signal_delay_s} before"
            f" its end it is told to save, up to {SIGNAL_EARLY_S} s earlier, and it needs {STARTUP_S} s to start; give"
            f" {key}={-(-needed_s // 60)} or more"
        )
