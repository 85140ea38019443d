"""`run_phase.py -m`: every combination as a checked request, and Hydra's launchers over the runs they ask for."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from transfergrid.config import Request, load_run
from transfergrid.config.compose import is_setting, parse_override
from transfergrid.config.folders import conf_dir
from transfergrid.config.scopes import FolderProgress
from transfergrid.config.spelling import command
from transfergrid.errors import ConfigError, hints, one_line
from transfergrid.paths import typed
from transfergrid.resources import ONE_TASK, ClusterSettings, Resources
from transfergrid.specs import RunSpec, digest
from transfergrid.store.process import temporary_environment

LAUNCHERS = ("basic", "slurm")
MAX_RUNS = 10_000
_SWEPT_BESIDE_SETTINGS = ("model", "dataset", "phase", "seed", "run")
_LAUNCH = typed("launch_grid.py")
_OF_A_LAUNCH = ("wait", "emit", "notify.command")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """request: all combinations as one. launcher: `basic` or `slurm`. options: what was typed, key -> its `key=value`
    arguments, more than one where it is swept; in the order typed."""

    request: Request
    launcher: str
    options: dict[str, tuple[str, ...]]

    @property
    def resources(self) -> Resources:
        """What each of its SLURM jobs asks for."""
        return self.request.cluster.of_phase(self.request.configurations[0].run.phase)


def load_sweep(arguments: Sequence[str], *, progress: FolderProgress | None = None) -> Sweep:
    """Compose and check every combination of `key=a,b` arguments. Raises ConfigError for the first that fails."""
    launcher = "basic"
    options: dict[str, tuple[str, ...]] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key == "hydra/launcher" and equals:
            if value not in LAUNCHERS:
                raise ConfigError(f"unknown hydra/launcher {value!r}", **hints(value, LAUNCHERS))
            launcher = value
        elif key.lstrip("+~").startswith("hydra"):
            raise ConfigError(
                f"{argument!r}: of Hydra's own settings a sweep takes hydra/launcher=slurm; resources are cluster.*"
            )
        else:
            key, values = _options(argument)
            if key in options:
                raise ConfigError(f"{key!r} is given twice; give it once")
            options[key] = values
    count = math.prod(len(values) for values in options.values())
    if count > MAX_RUNS:
        raise ConfigError(f"{count} combinations are too many for one sweep, which takes at most {MAX_RUNS}")
    beside = [] if "needs" in options else ["needs=check"]
    requests = [load_run([*chosen, *beside], progress=progress) for chosen in product(*options.values())]
    sweep = Sweep(request=_joined(requests), launcher=launcher, options=options)
    _check_launcher(sweep)
    return sweep


def _options(argument: str) -> tuple[str, tuple[str, ...]]:
    """(key, every `key=value` that an argument stands for)."""
    override = parse_override(argument)
    key = str(override.key_or_group)
    if key == "again":
        raise ConfigError("again= carries out one run; leave -m out")
    if key in _OF_A_LAUNCH:
        raise ConfigError(f"{key}= belongs to {_LAUNCH}; a sweep waits for its runs, and shows their table")
    if not override.is_sweep_override():
        return key, (argument,)
    if not override.is_discrete_sweep() or override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        raise ConfigError(f"{argument!r}: a sweep takes values written out, {key}=a,b, or {key}=range(0,5)")
    if not is_setting(key) and key not in _SWEPT_BESIDE_SETTINGS:
        raise ConfigError(
            f"{argument!r}: {key} is one for the whole sweep; phase.*, dataset.*, weights and"
            f" {', '.join(_SWEPT_BESIDE_SETTINGS)} take several values"
        )
    return key, tuple(f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator())


def _joined(requests: Sequence[Request]) -> Request:
    """One request for all combinations; what is the same run twice is one."""
    configurations = {c.run.run_id: c for request in requests for c in request.configurations}
    folders: dict[str, str] = {}
    tables: dict[str, str] = {}
    files: dict[str, str] = {}
    runs: dict[str, RunSpec] = {}
    for request in requests:
        for name, folder in request.runtime.data_folders.items():
            if folders.setdefault(name, folder) != folder:
                raise ConfigError(f"two folders are both named {name!r}; sweep over one dataset.folder at a time")
        for name, table in request.runtime.data_tables.items():
            if tables.setdefault(name, table) != table:
                raise ConfigError(f"two tables are both named {name!r}; sweep over one split at a time")
        files |= request.runtime.weights_files
        runs |= request.runs
    return replace(
        requests[0],
        configurations=tuple(configurations.values()),
        runs=runs,
        runtime=replace(requests[0].runtime, data_folders=folders, data_tables=tables, weights_files=files),
    )


def _check_launcher(sweep: Sweep) -> None:
    cluster = sweep.request.cluster
    if sweep.launcher == "basic":
        if cluster.kind == "slurm":
            raise ConfigError(
                f"cluster={cluster.name} in a sweep needs hydra/launcher=slurm; without it runs are here, one by one"
            )
        return
    if cluster.kind != "slurm":
        raise ConfigError(
            f"hydra/launcher=slurm takes its resources from a cluster of kind slurm; cluster={cluster.name} is not one,"
            " give cluster=slurm"
        )
    if not sweep.request.needs_only_checked:
        raise ConfigError(f"needs=run: the jobs of a sweep do not wait for each other; {_LAUNCH} orders them")
    if sweep.resources.time_min in (0, math.inf):
        raise ConfigError("hydra-submitit-launcher needs a time of its jobs; give cluster.timeout_min=")
    if cluster.python is not None:
        raise ConfigError(f"cluster.python cannot be handed on by hydra-submitit-launcher; use {_LAUNCH}")
    phases = list(dict.fromkeys(c.run.phase for c in sweep.request.configurations))
    if len({cluster.of_phase(phase) for phase in phases}) > 1:
        raise ConfigError(
            f"cluster.by_phase gives {' and '.join(phases)} different resources, and one sweep has one kind of job;"
            " sweep over one phase at a time"
        )


# ------------------------------------------------------------------------------------------------------ what is missing
def launch_line(sweep: Sweep, missing: Iterable[RunSpec]) -> str | None:
    """The `launch_grid` command that makes these runs, which the sweep's own need; None where none can."""
    phases = sorted({"probe" if run.phase == "extract" else run.phase for run in missing})
    if "run" in sweep.options:  # which made it is not known here
        return None
    options = dict(sweep.options)
    models, seeds = _values(options.pop("model")), _values(options.pop("seed", ("seed=0",)))
    for key in ("phase", "needs", "dry_run", "grid_name"):
        options.pop(key, None)
    grid = options.pop("grid", ("grid=compare",))[0]
    line = [f"grid.models=[{models}]", f"grid.phases=[{','.join(phases)}]", f"grid.seeds=[{seeds}]"]
    if len(options.get("dataset", ())) > 1:
        line.append(f"grid.datasets=[{_values(options.pop('dataset'))}]")
    groups = ("phase.extract.", *(f"phase.{phase}." for phase in phases))
    options = {key: values for key, values in options.items() if not key.startswith("phase.") or key.startswith(groups)}
    swept_keys = [key for key, values in options.items() if len(values) > 1]
    first, *others = product(*(options[key] for key in swept_keys))
    line += [values[0] for key, values in options.items() if key not in swept_keys] + list(first)
    variants = [", ".join(f"{k}: {v}" for k, _, v in (a.partition("=") for a in chosen)) for chosen in others]
    if variants or sweep.options.get("grid"):
        variants_text = ", ".join(f"v{number}: {{{changes}}}" for number, changes in enumerate(variants, 2))
        line.append(f"grid.variants={{{variants_text}}}")
    name = f"{sweep.request.grid[:51]}_needs-{digest(line, 6)}"  # no other sweep's
    return command("launch_grid.py", grid, f"grid_name={name}", *line)


def _values(arguments: Iterable[str]) -> str:
    return ",".join(argument.partition("=")[2] for argument in arguments)


# ------------------------------------------------------------------------------------------------------------ launching
def run_sweep(
    task: Callable[[str, str], None],
    run_ids: Sequence[str],
    *,
    sweep: Sweep,
    payload: Path,
    name: str,
    folder: Path,
    setup: Path | None = None,
) -> None:
    """Call task(payload, run_id) for each run by the sweep's launcher, and return once all have ended.

    task: with `basic` it is called here, one run after the other, and what it raises ends the sweep; with `slurm` it is
    a function at the top of a module, called in a job of each run, and the first job that ends without a result raises
    the launcher's own exception here, while the others go on. payload: a file in the launch's folder. name: of the
    jobs. folder: takes what submitit writes. setup: a shell script that they source first. Leaves
    <store>/sweeps/<launch>/multirun.yaml.
    """
    sweep_dir = sweep.request.store.root / "sweeps" / payload.parent.name
    values: dict[str, Any] = {
        "run_id": "",
        "job": {"name": name, "payload": str(payload), "sweep_dir": str(sweep_dir), "submitit_dir": str(folder)},
        "cluster": _of_cluster(sweep.request.cluster, sweep.resources, runs=len(run_ids), setup=setup),
    }
    if sweep.launcher == "slurm":  # options of sbatch by whatever name, which slurm.yaml cannot take from `cluster`
        cluster = sweep.request.cluster
        # Named in slurm.yaml, or the launcher's own.
        own = {"partition", "account", "qos", "constraint", "exclude", "time", "cpus-per-task", *ONE_TASK}
        options = {key: value for key, value in cluster.options(sweep.resources).items() if key not in own}
        values["hydra"] = {"launcher": {"additional_parameters": options}}
    ConfigStore.instance().store(name="sweep_values", node=values)

    def run_one(config: DictConfig) -> None:
        task(config.job.payload, config.run_id)

    arguments = [sys.argv[0], "--multirun", f"hydra/launcher={sweep.launcher}", f"run_id={','.join(run_ids)}"]
    raises = os.environ | {"HYDRA_FULL_ERROR": "1"}  # else Hydra prints errors and exits by itself
    try:
        with temporary_environment(raises, arguments=arguments):
            hydra.main(version_base=None, config_path=str(conf_dir()), config_name="sweep")(run_one)()
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(one_line(error.__cause__ or error)) from error


def _of_cluster(cluster: ClusterSettings, resources: Resources, *, runs: int, setup: Path | None) -> dict[str, Any]:
    """What conf/hydra/launcher/slurm.yaml names, in the launcher's own units and types."""
    of_a_job = ("partition", "account", "qos", "constraint", "cpus", "timeout_min")
    return {name: getattr(resources, name) for name in of_a_job} | {
        "exclude": cluster.exclude,
        "signal_delay_s": cluster.signal_delay_s,
        "array_parallelism": cluster.array_parallelism or runs,
        "setup": f"source {shlex.quote(str(setup))}",
    }
