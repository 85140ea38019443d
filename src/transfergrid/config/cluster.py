"""The `cluster` node of a merged configuration -> frozen ClusterSettings, each value checked."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from transfergrid.config.cluster_file import as_name, as_setting, whole_or_real
from transfergrid.config.compose import memory_conflict, parse_overrides, resource_hints, set_overrides
from transfergrid.config.keys import checked
from transfergrid.config.schema import KEYS, Config
from transfergrid.errors import ConfigError, hints
from transfergrid.resources import MEMORY, UNLIMITED, ClusterSettings, Resources
from transfergrid.specs import ANY_NUMBER, PHASES

STARTUP_S = 60  # until a job's first step: python, torch, the first batch
SIGNAL_EARLY_S = 60  # SLURM may send the signal so much earlier than asked (sbatch --signal)
RESOURCES = tuple(f.name for f in fields(Resources) if f.name != "defaults")
YIELDING = ("cpus", "mem_gb", "timeout_min")  # whose defaults are no reason to refuse a job
# What users of a cluster set for all their jobs.
SITE_DEFAULTS = {key: f"SBATCH_{key.upper()}" for key in ("partition", "account", "qos", "constraint", "wckey")}
_KEYS = tuple(key for name, key in KEYS.items() if name.startswith("cluster."))
_TEXT = ("partition", "finish_partition", "account", "qos", "constraint", "gpu_type", "wckey", "exclude")


def cluster_settings(node: DictConfig) -> ClusterSettings:
    """Raises ConfigError, naming the key, for a value that no SLURM could take."""
    values = plain(node)
    if values["kind"] != "local":
        for key, variable in SITE_DEFAULTS.items():  # else they would outweigh the job script's own lines
            values[key] = values[key] if values[key] is not None else os.environ.get(variable) or None
    for declared in _KEYS:
        checked(declared, values[declared.name.removeprefix("cluster.")])
    for key in _TEXT:
        _check_text(f"cluster.{key}", values[key])
    defaults = frozenset(key for key in YIELDING if key not in values["asked"])
    resources = Resources(**{key: values[key] for key in RESOURCES}, defaults=defaults)
    by_phase = {str(p): _of_phase(str(p), changes, resources) for p, changes in values["by_phase"].items()}
    for request in (resources, *by_phase.values()):
        if request.mem_per_gpu_gb is not None and not (request.gpus or by_phase):
            raise ConfigError("cluster.mem_per_gpu_gb asks for memory by GPUs, and cluster.gpus=0; give cluster.mem_gb")
    gpus = bool(resources.gpus) or any(request.gpus for request in by_phase.values())
    options: dict[str, str | bool] = {}
    for key, value in values["sbatch"].items():
        name, option = checked_option(key, value, gpus=gpus)
        if option is not True:  # as {hold: true}
            _check_text(f"cluster.sbatch.{key}", option)
        options[name] = option
    for line in values["setup"]:
        if "\n" in line or "\0" in line:
            raise ConfigError("cluster.setup: one line of shell each; give a list")
    if values["python"] is not None and set("\n\0") & set(values["python"]):
        raise ConfigError(f"cluster.python={values['python']!r} is not one line of shell")
    if not values["scratch_dir"].startswith(("/", "$")) or set("\n\0") & set(values["scratch_dir"]):
        raise ConfigError(
            f"cluster.scratch_dir={values['scratch_dir']!r} is no folder of a node; give one from its root, or $TMPDIR"
        )
    for where, request in {"cluster": resources, **{f"cluster.by_phase.{p}": r for p, r in by_phase.items()}}.items():
        _check_time(f"{where}.timeout_min", request.timeout_min, values["signal_delay_s"])
        if values["kind"] != "local" and request.gpus > 1:
            idle = "the other one would be idle" if request.gpus == 2 else f"the other {request.gpus - 1} would be idle"
            remedy = f"give {where}.gpus=1; for a whole node: cluster.sbatch={{exclusive: true}}"
            raise ConfigError(f"{where}.gpus={request.gpus}: a run computes on one GPU, {idle}", remedy=remedy)
    values |= {"resources": resources, "by_phase": by_phase, "setup": tuple(values["setup"]), "sbatch": options}
    return ClusterSettings(**{f.name: values[f.name] for f in fields(ClusterSettings)})


def plain(node: DictConfig) -> dict[str, Any]:
    """The node as JSON can hold it; changed_cluster() reads it back."""
    content = OmegaConf.to_container(node)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def changed_cluster(stored: Mapping[str, Any], overrides: Sequence[str]) -> DictConfig:
    """What plain() gave, with `cluster.<key>=<value>` of a command line applied. Raises ConfigError for other keys."""
    config = OmegaConf.structured(Config)
    config.cluster.asked = list(YIELDING)  # of a launch that did not say what was
    for key, value in stored.items():
        OmegaConf.update(config, f"cluster.{key}", value, merge=False, force_add=True)
    parsed = parse_overrides(overrides)
    for override in parsed:
        key = str(override.key_or_group)
        if not key.startswith("cluster."):
            raise ConfigError(f"{key}= cannot be changed for a retry; cluster.* can, the rest needs a launch")
    set_overrides(config, parsed)
    node = config.cluster
    assert isinstance(node, DictConfig)
    return node


def _of_phase(phase: str, changes: Any, resources: Resources) -> Resources:
    where = f"cluster.by_phase.{phase}"
    if phase not in PHASES:
        raise ConfigError(f"cluster.by_phase: unknown phase {phase!r}", **hints(phase, PHASES))
    if not isinstance(changes, dict):
        raise ConfigError(f"{where}={changes!r} is not a dictionary; it is written {{{phase}: {{mem_gb: 32}}}}")
    if twice := memory_conflict(changes, f"{where}."):
        raise ConfigError(twice)
    values: dict[str, Any] = dict.fromkeys(MEMORY) if any(changes.get(key) is not None for key in MEMORY) else {}
    for key, value in changes.items():
        if key not in RESOURCES:
            raise ConfigError(f"{where}: unknown key {key!r}", **resource_hints(str(key), RESOURCES))
        if (declared := KEYS[f"cluster.{key}"]).about.span != ANY_NUMBER:
            number = whole_or_real(key, value, where=f"{where}.{key}")
            values[key] = checked(declared, number, name=f"{where}.{key}")
        else:
            values[key] = as_name(as_setting(key, value, where=""), where=f"{where}.{key}")
            _check_text(f"{where}.{key}", values[key])
    request = replace(resources, **values, defaults=resources.defaults - {*values})
    # Memory by GPU is of the phases that have one.
    return request if request.gpus or "mem_per_gpu_gb" in changes else replace(request, mem_per_gpu_gb=None)


def _check_text(key: str, value: Any) -> None:
    """What goes into a job script's #SBATCH line: one word, nothing a shell or sbatch would read as more."""
    if value is not None and (not isinstance(value, str) or not re.fullmatch(r"[\w.,:@+*/&|\[\]()=%-]{1,256}", value)):
        raise ConfigError(f"{key}={value!r} is not a name that SLURM takes; one word, without spaces or quotes")


def _check_time(key: str, timeout_min: int | None, signal_delay_s: int) -> None:
    needed_s = signal_delay_s + SIGNAL_EARLY_S + STARTUP_S
    if timeout_min is not None and timeout_min != UNLIMITED and timeout_min * 60 < needed_s:
        raise ConfigError(
            f"{key}={timeout_min} leaves a job no time: cluster.signal_delay_s={signal_delay_s} before"
            f" its end it is told to save, up to {SIGNAL_EARLY_S} s earlier, and it needs {STARTUP_S} s to start; give"
            f" {key}={-(-needed_s // 60)} or more"
        )


# ----------------------------- what cluster.sbatch may hold: all but how this launcher asks for, orders and finds jobs
_BY_KEY = "has a key of its own, cluster."
# What is to be said of options of sbatch that collide -> these options.
_REASONS = {
    "is set by the launcher itself; leave it out": "array dependency error job-name kill-on-invalid-dep open-mode"
    " output parsable signal test-only wait wrap",
    "does not fit: a run is one task on one node, as the launcher asks; leave it out": "ntasks ntasks-per-core"
    " ntasks-per-socket ntasks-per-gpu nodes ntasks-per-node",
    "makes sbatch answer and send nothing; leave it out": "help usage version",
    f"{_BY_KEY}gpus= (with cluster.gpu_type=; the option is chosen by cluster.gpu_request=)": "gpus gpus-per-node"
    " gpus-per-task gpus-per-socket tres-per-node",
    f"{_BY_KEY}cpus=": "cpus-per-task cpus-per-gpu tres-per-task",
    **{f"{_BY_KEY}{option.replace('-', '_')}_gb=": option for option in ("mem", "mem-per-cpu", "mem-per-gpu")},
    f"{_BY_KEY}timeout_min=": "time",
    **{f"{_BY_KEY}{option}=": option for option in ("partition", "account", "qos", "constraint", "exclude", "wckey")},
}
COLLIDES = {option: reason for reason, options in _REASONS.items() for option in options.split()}
_SHORT = (
    "a=array A=account B=extra-node-info b=begin c=cpus-per-task C=constraint d=dependency D=chdir e=error F=nodefile"
    " G=gpus h=help H=hold i=input I=immediate J=job-name k=no-kill L=licenses m=distribution M=clusters n=ntasks"
    " N=nodes o=output O=overcommit p=partition q=qos Q=quiet s=oversubscribe S=core-spec t=time V=version v=verbose"
    " w=nodelist W=wait x=exclude"
)
SHORT = dict(pair.split("=") for pair in _SHORT.split())


def checked_option(key: Any, value: Any, *, gpus: bool) -> tuple[str, str | bool]:
    """One entry as sbatch is given it. gpus: whether some job asks for GPUs, which a gres of the user's may not.

    Raises ConfigError where it collides with a request of ours, or is no option.
    """
    name = str(key).replace("_", "-")
    long = SHORT.get(name, name)
    spelled = f"cluster.sbatch: {str(key)!r}" + (f" ({long})" if long != name else "")
    if "clusters".startswith(long) and long.startswith("cl"):  # sbatch takes the beginning of a name for the name
        raise ConfigError(
            f"{spelled} would be followed by sbatch alone; export SLURM_CLUSTERS={value} instead, which every command"
            " follows"
        )
    collides = long if long in COLLIDES else next((o for o in COLLIDES if o.startswith(long)), None)
    if re.fullmatch(r"[a-z][a-z-]*", long) is None:
        raise ConfigError(f"{spelled} is not an option of sbatch; write it as {{mail-type: END}}")
    if collides is not None:
        raise ConfigError(f"{spelled} {COLLIDES[collides]}")
    if long != "gres" and "gres".startswith(long):
        raise ConfigError(f"{spelled} is short for gres; write it in full")
    if value is None or value is False:
        raise ConfigError(
            f"cluster.sbatch.{key}={value} is no value of an option; leave it out, or give true to set it"
        )
    if isinstance(value, float):
        raise ConfigError(f"cluster.sbatch.{key}={value!r} was read as a number; write it in quotes")
    if long == "gres" and gpus and re.search(r"(?:^|,)(?:gres[/:])?gpu(?:[:=,]|$)", str(value)):
        raise ConfigError(f"cluster.sbatch.gres={value!r} holds GPUs; cluster.gpus= and cluster.gpu_type= ask for them")
    return long, value if value is True else str(value)
