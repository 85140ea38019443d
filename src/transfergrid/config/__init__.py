"""Command line and conf/ -> validated, frozen specs. The only reader of configuration: what leaves here is final."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from transfergrid.config.arguments import parse
from transfergrid.config.models import missing_parts
from transfergrid.config.request import Request
from transfergrid.errors import ConfigError
from transfergrid.paths import typed
from transfergrid.resources import ClusterSettings
from transfergrid.specs import Configuration, RunSpec, Runtime, digest, safe_name, setting

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from transfergrid.config.scopes import FolderProgress


def compose_grid(arguments: Sequence[str]) -> tuple[list[str], DictConfig]:
    """What a launch is told, checked as far as it goes without data; with the grid named. Raises ConfigError."""
    from transfergrid.config.compose import compose_config, parse_overrides

    arguments = list(arguments)
    overrides = {str(o.key_or_group): o for o in parse_overrides(arguments)}
    if "grid" not in overrides:
        arguments.append("grid=quickstart")
    config = compose_config(arguments)
    for key in ("model", "seed", "run", "again", "needs", "phase"):
        if key in overrides:
            instead = "grid.phases=[...]" if key == "phase" else "grid.models=[...] and grid.seeds=[...]"
            raise ConfigError(f"{key}= belongs to {typed('run_phase.py')}; a grid takes {instead}")
    if "dataset" in overrides:
        if "grid.datasets" in overrides:
            raise ConfigError("dataset= and grid.datasets= are both given; give one")
        config.grid.datasets = [overrides["dataset"].value()]
    if config.grid.complete_pairs:
        config.grid.models = [*missing_parts(config.grid.models), *config.grid.models]
    return arguments, config


def load_grid(arguments: Sequence[str], *, progress: FolderProgress | None = None) -> Request:
    """The grid of a launch; `grid=quickstart` unless another is named. Raises ConfigError or DataError, in one line."""
    # Hydra takes half a second to import, which those who only read the store need not wait for.
    from transfergrid.config.builder import build_grid

    arguments, config = compose_grid(arguments)
    if config.profile and "evaluate" not in config.grid.phases:
        raise ConfigError("profile=true measures the networks of evaluations, and grid.phases has none")
    return build_grid(arguments, config, progress)


def compose_run(arguments: Sequence[str]) -> tuple[dict[str, Any], DictConfig]:
    """What a run by hand is told, by key, and its configuration, as compose_grid()."""
    from transfergrid.config.again import check_keys
    from transfergrid.config.compose import compose_config, parse_overrides

    overrides = {str(o.key_or_group): o for o in parse_overrides(arguments)}
    config = compose_config(arguments)
    if config.again is not None:
        check_keys(overrides)
        return overrides, config
    for key in overrides:
        if key.startswith("grid.") and "grid" not in overrides:
            raise ConfigError(
                f"{key}= belongs to {typed('launch_grid.py')}; one run takes model=, dataset=, phase=, seed="
            )
    if config.run is not None and (config.phase.name != "evaluate" or config.model):
        raise ConfigError("run= goes with phase=evaluate and without model=, which the run itself tells")
    if config.run is None and not config.model:
        raise ConfigError("model= is needed, as model=resnet18 or model=resnet18+googlenet")
    return overrides, config


def load_run(arguments: Sequence[str], *, progress: FolderProgress | None = None) -> Request:
    """One configuration by hand; it joins the grid `grid_name=` (default adhoc), what it overrides is its variant.

    again=RUN_ID: a run whose spec is known, see again.py.
    """
    from transfergrid.config.again import build_again
    from transfergrid.config.builder import build_evaluation, build_run

    overrides, config = compose_run(arguments)
    variant = _hand_variant(overrides)
    if config.again is not None:
        request = build_again(arguments, config, progress)
    elif config.run is not None:
        request = build_evaluation(arguments, config, progress, variant=variant)
    else:
        request = build_run(arguments, config, progress, variant=variant)
    if config.profile and (phase := request.configurations[0].run.phase) != "evaluate":
        raise ConfigError(
            f"profile=true goes with phase=evaluate, not with {phase}; of a finished run: phase=evaluate run=ID"
        )
    return request if "select_by" in overrides else replace(request, select_by=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorKeys:
    """Those that no other script has."""

    wait_s: float = setting(120.0, "how long its jobs may wait in the queue", (0, 86_400), unit="s")


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorRequest:
    """What jobs/doctor.py is asked."""

    runtime: Runtime
    cluster: ClusterSettings
    weights_named: bool
    wait_s: float
    grid: Request | None = None


def compose_doctor(arguments: Sequence[str]) -> tuple[float, list[str], DictConfig]:
    """(wait_s, the other arguments, their configuration). Raises ConfigError."""
    from transfergrid.config.compose import compose_config

    own = [a for a in arguments if a.startswith("wait_s=")]
    others = [a for a in arguments if a not in own]
    return parse(DoctorKeys, own).values.wait_s, others, compose_config(others)


def load_doctor(arguments: Sequence[str]) -> DoctorRequest:
    """The settings of a launch, its grid where one is named; and `wait_s=`, which no other script has."""
    from transfergrid.config.builder import runtime_of
    from transfergrid.config.cluster import cluster_settings

    wait_s, others, config = compose_doctor(arguments)
    return DoctorRequest(
        runtime=runtime_of(config),
        cluster=cluster_settings(config.cluster),
        weights_named=config.weights_dir is not None,
        wait_s=wait_s,
        grid=load_grid(others) if any(a.startswith("grid=") for a in others) else None,
    )


def _hand_variant(overrides: dict[str, Any]) -> str:
    """What a run by hand changes from the defaults, spelled as its variant."""
    # Which data set it is stands in a column of its own; a limit changes no number.
    other = ("dataset.name", "dataset.folder", "dataset.table", "dataset.max_megapixels", "dataset.skip_damaged")
    named = [
        key
        for key in sorted(overrides)
        if key.startswith(("phase.", "dataset.", "weights_seed", "class_weights", "select_by"))
    ]
    changed = [f"{key}={overrides[key].value()}" for key in named if key not in other]
    name = safe_name(",".join(c.removeprefix("phase.") for c in changed)) if changed else ""
    return name if len(name) <= 120 else f"{name[:107]}-{digest(name, 12)}"  # cut, but no other's


def load_retry(
    configurations: Sequence[Configuration],
    runs: Sequence[RunSpec],
    runtime: Runtime,
    *,
    cluster_config: Mapping[str, Any],
    notify: str | None,
    overrides: Sequence[str],
) -> Request:
    """The request of a launch that was made before, for these of its configurations, with `cluster.*` changed."""
    from transfergrid.config.cluster import changed_cluster, cluster_settings, plain

    config = changed_cluster(cluster_config, overrides)
    return Request(
        grid=runtime.grid,
        configurations=tuple(configurations),
        runs={run.run_id: run for run in runs},
        runtime=replace(runtime, num_threads=config.num_threads),
        cluster=cluster_settings(config),
        cluster_config=plain(config),
        dry_run=False,
        wait=None,
        replaces_grid=False,
        notify=notify,
    )


__all__ = ["DoctorRequest", "Request", "load_doctor", "load_grid", "load_retry", "load_run"]
