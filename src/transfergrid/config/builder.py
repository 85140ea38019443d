"""One composed configuration -> the runs it asks for, and those they need."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import cast

from omegaconf import DictConfig

from transfergrid.config.cluster import cluster_settings, plain
from transfergrid.config.keys import choice
from transfergrid.config.models import check_models, check_phases, is_architecture, split_model, takes
from transfergrid.config.predict import whole_run_id
from transfergrid.config.request import Request
from transfergrid.config.resolve import check_splits, looks_like_file, make_evaluation, make_run
from transfergrid.config.scopes import (
    FolderProgress,
    Row,
    Scopes,
    cache_of,
    checked_protocol,
    open_scopes,
)
from transfergrid.config.spelling import ADHOC, DATASET_NAME, grid_name_of, named_by_datasets
from transfergrid.config.variants import Variant, read_rules, read_variants
from transfergrid.data import DatasetFacts
from transfergrid.errors import ConfigError, DataError, hints
from transfergrid.networks import backbones
from transfergrid.networks.classes import classes_of_run, match_classes
from transfergrid.paths import StorePaths
from transfergrid.specs import (
    PHASES,
    Configuration,
    FinetuneSettings,
    Phase,
    RunSpec,
    Runtime,
    extraction,
    from_dict,
    safe_name,
)
from transfergrid.store import durable


def build_grid(arguments: Sequence[str], config: DictConfig, progress: FolderProgress | None) -> Request:
    """Every combination that makes sense. Raises ConfigError or DataError."""
    grid = config.grid
    models, seeds, datasets = list(grid.models), list(grid.seeds), list(grid.datasets)
    check_models(models)
    phases = check_phases(list(grid.phases))
    for key, values in (("grid.seeds", seeds), ("grid.datasets", datasets)):
        if not values:
            raise ConfigError(f"{key} is empty; give at least one")
        if len(set(values)) != len(values):
            raise ConfigError(f"{key}={values} holds a value twice")
    variants = {} if grid.only_variants else {"": Variant("", {})}
    variants |= {variant.name: variant for variant in read_variants(grid.variants)}
    if not variants:
        raise ConfigError("grid.only_variants=true leaves no row, because grid.variants is empty; give a variant")
    _check_weights(config, models)
    with open_scopes(arguments, config, rules=read_rules(grid.rules), progress=progress) as scopes:
        name = _grid_name(config, scopes, datasets)
        rows = [
            Row(dataset, model, phase, variant)
            for variant in variants.values()
            for dataset, model, phase in product(datasets, variant.selection.models or models, phases)
            if phase in (variant.selection.phases or phases) and takes(model, phase)
        ]
        remaining = [row for row in rows if not scopes.skips(row)]
        _check_every_phase(phases, models, rows, remaining)
        runs: list[RunSpec] = []
        configurations: dict[str, Configuration] = {}
        for row, seed in product(remaining, seeds):
            *needed, run = _runs(scopes, row, seed)
            runs += [*needed, run]
            # A variant that changes nothing in this phase is the same run, and the same row.
            configurations.setdefault(run.run_id, Configuration(grid=name, variant=row.variant.name, run=run))
        request = _request(scopes, tuple(configurations.values()), runs)
        return replace(request, replaces_grid=True, replace=config.replace)


def build_run(
    arguments: Sequence[str], config: DictConfig, progress: FolderProgress | None, *, variant: str
) -> Request:
    """One run by hand of the grid `grid_name=`, where it is called this variant. Raises ConfigError or DataError."""
    name, model, phase = grid_name_of(config.grid_name or ADHOC), config.model, config.phase.name
    choice("phase", phase, PHASES)
    _check_weights(config, [model])
    with open_scopes(arguments, config, rules=read_rules(config.grid.rules), progress=progress) as scopes:
        if phase == "extract":
            runs: tuple[RunSpec, ...] = (_extraction(scopes, model),)
        elif not takes(model, cast(Phase, phase)):
            raise ConfigError(f"phase={phase} does not take {model!r}, {_why_not(model, phase)}")
        else:
            row = Row(scopes.named_dataset, model, cast(Phase, phase), Variant(variant, {}))
            runs = _runs(scopes, row, config.seed)
        return _request(scopes, (Configuration(grid=name, variant=variant, run=runs[-1]),), runs)


def build_evaluation(
    arguments: Sequence[str], config: DictConfig, progress: FolderProgress | None, *, variant: str
) -> Request:
    """Of the finished run `run=`, on whatever data set and split are named. Raises ConfigError or DataError."""
    name = grid_name_of(config.grid_name or ADHOC)
    trained = _finished_run(config)
    # Which run is evaluated stands in no other column; its last 12 digits are its identity.
    variant = safe_name(",".join(filter(None, (f"run-{trained.run_id[-12:]}", variant))))
    with open_scopes(arguments, config, progress=progress) as scopes:
        scope = scopes.of_dataset(scopes.named_dataset, of_run=trained.dataset.value_range)
        classes_of_training = classes_of_run(trained, StorePaths(Path(config.store.dir)).run(trained.run_id))
        if classes_of_training is not None:  # else it is to be trained first, and its evaluation compares
            classes, dataset = scope.dataset.facts.class_names, scope.dataset.spec.name
            try:
                match_classes(classes_of_training, classes, run_id=trained.run_id, dataset=dataset)
            except DataError as error:
                raise ConfigError(str(error)) from error
        _check_weights(config, [trained.model])
        scope.weights_files |= files_of(config, trained, scope.catalog_dir)
        run = make_evaluation(scope, trained)
        return _request(scopes, (Configuration(grid=name, variant=variant, run=run),), (trained, run))


def runtime_of(config: DictConfig) -> Runtime:
    """Where and on what, without a grid. Raises ConfigError."""
    checked_protocol(config)
    grid = config.grid.name or ADHOC if config.grid_name is None else grid_name_of(config.grid_name)
    return make_runtime(config, grid=grid, folders={}, tables={}, weights_files={})


def _runs(scopes: Scopes, row: Row, seed: int) -> tuple[RunSpec, ...]:
    """The run of a row and a seed, last; before it the one that it is made from."""
    scope = scopes.of(row)
    settings = scope.settings(row.phase)
    needs: tuple[RunSpec, ...] = ()
    if isinstance(settings, FinetuneSettings) and settings.head != "random":
        needs = _runs(scopes, replace(row, phase="probe"), seed)
    if row.phase == "evaluate" and is_architecture(row.model) and scope.config.phase.evaluate.checkpoint is None:
        needs = _runs(scopes, replace(row, phase="scratch"), seed)
    return (*needs, make_run(scope, model=row.model, phase=row.phase, seed=seed, needs=needs))


def _extraction(scopes: Scopes, model: str) -> RunSpec:
    if len(split_model(model)) > 1 or is_architecture(model):
        raise ConfigError(f"phase=extract takes one backbone; {model!r} is not one")
    scope = scopes.of_dataset(scopes.named_dataset)
    check_splits(scope, "extract")
    return extraction(scope.backbone(model), scope.dataset.spec, scope.extract)


def _finished_run(config: DictConfig) -> RunSpec:
    """Of the run that `run=` names, by its id or a part that `whole_run_id` takes. Raises ConfigError."""
    store = StorePaths(Path(config.store.dir))
    run_id = whole_run_id(config.run, store)
    if run_id is None:
        raise ConfigError(f"run={config.run!r} is not in {store.runs}; its folders are the run ids")
    trained = from_dict(RunSpec, durable.read_json(store.run(run_id).spec))
    if trained.phase not in ("probe", "finetune", "scratch"):
        raise ConfigError(f"run={run_id!r} is of phase {trained.phase}; only probe, finetune and scratch are evaluated")
    return trained


def files_of(config: DictConfig, trained: RunSpec, catalog_dir: Path) -> dict[str, str]:
    """The files of the weights that a finished run started from, as far as the command line names them."""
    files: dict[str, str] = {}
    for backbone in trained.backbones:
        file = config.weights_files.get(backbone.name) or config.weights
        if file is None or not backbone.weights.identity.startswith("file:"):
            continue
        weights = backbones.weights_spec(backbone.name, file, catalog_dir=catalog_dir)
        if weights.identity != backbone.weights.identity:
            raise ConfigError(f"{file!r} is not the file of {backbone.name} that run={trained.run_id!r} started from")
        files[weights.identity] = str(Path(file).expanduser().resolve())
    return files


def _check_every_phase(phases: list[Phase], models: list[str], rows: list[Row], remaining: list[Row]) -> None:
    """Raises ConfigError for a phase of the grid that has no row."""
    phases_taken = {row.phase for row in rows}
    for phase in phases:
        if phase not in phases_taken:
            raise ConfigError(f"grid.phases: no model of the grid takes phase {phase!r}; models: {', '.join(models)}")
        if phase not in {row.phase for row in remaining}:
            raise ConfigError(
                f"grid.rules skip all of phase {phase!r}; leave it out of grid.phases, or change the rules"
            )


def _check_weights(config: DictConfig, models: list[str]) -> None:
    parts = {part for model in models if not is_architecture(model) for part in split_model(model)}
    weights = config.weights
    if weights is not None and looks_like_file(weights) and len(parts) > 1:
        raise ConfigError(
            f"weights={weights!r} is one file for {len(parts)} backbones; give weights_files.<backbone>=FILE"
        )
    for name in config.weights_files:
        if name not in parts:
            raise ConfigError(f"weights_files.{name}: no model uses it", **hints(name, sorted(parts)))


def _grid_name(config: DictConfig, scopes: Scopes, datasets: list[str]) -> str:
    """The name of a grid file's template gets that of the data sets, folders by the names they are shown by."""
    name = config.grid_name or config.grid.name or ADHOC
    if config.grid_name is not None or DATASET_NAME not in name:
        return grid_name_of(name)
    grid_name_of(name.replace(DATASET_NAME, ""))
    return named_by_datasets(name, [scopes.of_dataset(dataset).dataset.spec.name for dataset in datasets])


def _why_not(model: str, phase: str) -> str:
    """Why a model does not take a phase, and what it takes."""
    if is_architecture(model):
        return "which is trained from scratch; choose phase=scratch or phase=evaluate"
    if phase == "evaluate":
        return "a join; its finished run can be evaluated: phase=evaluate run=ID"
    return "which is made of pretrained backbones; choose phase=probe or phase=finetune"


def _request(scopes: Scopes, rows: tuple[Configuration, ...], runs: Iterable[RunSpec]) -> Request:
    runtime = make_runtime(
        scopes.config,
        grid=rows[0].grid,
        folders=scopes.folders,
        tables=scopes.tables,
        weights_files=scopes.weights_files,
    )
    return make_request(scopes.config, runtime, rows, runs, facts=scopes.facts, notes=scopes.notes)


def make_request(
    config: DictConfig,
    runtime: Runtime,
    rows: tuple[Configuration, ...],
    runs: Iterable[RunSpec],
    *,
    facts: dict[str, DatasetFacts],
    notes: tuple[str, ...],
) -> Request:
    """runs: those of the rows and those they need, needed ones first."""
    return Request(
        grid=runtime.grid,
        configurations=rows,
        runs={run.run_id: run for run in runs},
        runtime=runtime,
        cluster=cluster_settings(config.cluster),
        cluster_config=plain(config.cluster),
        dry_run=config.dry_run,
        wait=config.wait,
        replaces_grid=False,
        emit=config.emit,
        notify=config.notify.command,
        needs_only_checked=config.needs == "check",
        select_by=config.select_by,
        notes=notes,
        facts=facts,
    )


def make_runtime(
    config: DictConfig, *, grid: str, folders: dict[str, str], tables: dict[str, str], weights_files: dict[str, str]
) -> Runtime:
    cache = cache_of(config)
    return Runtime(
        store_dir=config.store.dir,
        cache_dir=config.cache.dir,
        data_dir=config.data.dir or os.environ.get("TRANSFERGRID_DATA_DIR") or str(cache.data),
        weights_dir=config.weights_dir or str(cache.weights),
        data_folders=folders,
        data_tables=tables,
        weights_files=weights_files,
        cache_also_read=tuple(config.cache.also_read),
        device=config.device,
        num_threads=config.cluster.num_threads,
        tracking=config.tracking.mode,
        wandb_project=config.tracking.project,
        wandb_entity=config.tracking.entity,
        wandb_images=config.tracking.images,
        grid=grid,
        checkpoint_min_interval_s=config.checkpoint.min_interval_s,
        keep_weights=config.keep_weights,
        resident_gb=config.data.resident_gb,
        report_figures=config.report.figures,
        report_within=config.report.within,
        max_megapixels=config.dataset.max_megapixels,
        profile="here" if config.profile else "no",
    )
