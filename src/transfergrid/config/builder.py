"""One composed configuration -> the runs it asks for, and those they need."""

from __future__ import annotations

import atexit
import copy
import os
import shutil
import tempfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from transfergrid.config.compose import (
    choices,
    compose_config,
    is_setting,
    nearest,
    parse_overrides,
    set_value,
)
from transfergrid.config.dataset import resolve_dataset
from transfergrid.config.models import check_models, check_phases, is_architecture, split_model, takes
from transfergrid.config.names import DATASET_NAME, grid_name_of, named_by_datasets
from transfergrid.config.resolve import Scope, check_splits, looks_like_file, make_evaluation, make_run
from transfergrid.config.settings import check_settings, choice, in_range
from transfergrid.config.variants import applies, check_names, checked_rule, variants_of
from transfergrid.data import DatasetFacts, ValueRange
from transfergrid.errors import ConfigError, DataError
from transfergrid.networks import backbones
from transfergrid.networks.classes import classes_of_run, match_classes
from transfergrid.paths import CachePaths, StorePaths
from transfergrid.specs import (
    PHASES,
    Configuration,
    FinetuneSettings,
    Phase,
    Protocol,
    RunSpec,
    Runtime,
    extraction,
    from_dict,
    safe_name,
)
from transfergrid.store import durable

FolderProgress = Callable[[int, int], None]


class GridBuilder:
    """Turns one composed configuration into runs. Lives for one command line; gathers runs and files on the way."""

    def __init__(self, arguments: list[str], config: DictConfig, progress: FolderProgress | None) -> None:
        self.arguments = arguments
        self.config = config
        self.progress = progress
        self.name = _name_or_template(config)
        self.cache = CachePaths(Path(config.cache.dir))
        self.catalog_dir = self.cache.catalog
        if config.dry_run and any("timm/" in argument for argument in arguments):
            self.catalog_dir = _forgotten_copy(self.cache.catalog)
        self.runs: dict[str, RunSpec] = {}
        self.folders: dict[str, str] = {}
        self.facts: dict[str, DatasetFacts] = {}
        self.weights_files: dict[str, str] = {}
        self.notes: dict[str, None] = {}
        self.protocol = cast(Protocol, choice("protocol", config.protocol, ("fair", "published")))
        if self.protocol == "published" and config.grid.study is None:
            raise ConfigError(
                "protocol=published belongs to a published study; use a grid file that names one (grid.study)"
            )
        self.named_dataset = next((a.split("=", 1)[1] for a in arguments if a.startswith("dataset=")), "digits")
        self._by_dataset: dict[str, Scope] = {}
        self._scopes: dict[tuple[Any, ...], Scope] = {}
        # What the command line sets wins over a grid file's rules, too.
        self._typed = [str(o.key_or_group) for o in parse_overrides(arguments) if is_setting(str(o.key_or_group))]
        check_plain_values(config)

    def build(self) -> tuple[Configuration, ...]:
        grid = self.config.grid
        models = list(grid.models)
        check_models(models)
        phases = check_phases(list(grid.phases))
        seeds, datasets = list(grid.seeds), list(grid.datasets)
        for key, values in (("grid.seeds", seeds), ("grid.datasets", datasets)):
            if not values:
                raise ConfigError(f"{key} is empty; give at least one")
            if len(set(values)) != len(values):
                raise ConfigError(f"{key}={values} holds a value twice")
        if DATASET_NAME in self.name:
            named = [self._dataset_scope(dataset).dataset.spec.name for dataset in datasets]
            self.name = named_by_datasets(self.name, named)
        variants: dict[str, dict[str, Any]] = {} if grid.only_variants else {"": {}}
        variants |= variants_of(grid.variants)
        if not variants:
            raise ConfigError("grid.only_variants=true leaves no row, because grid.variants is empty; give a variant")
        rules = self._rules()
        self._check_weights(models)
        found: dict[str, Configuration] = {}
        phases_taken: set[Phase] = set()
        phases_met: set[Phase] = set()
        for variant, changes in variants.items():
            if variant and safe_name(variant) != variant:
                raise ConfigError(f"grid.variants: {variant!r} may hold only a-z 0-9 . _ + -")
            check_names(changes, f"grid.variants.{variant}")
            of_models = list(changes.get("models", models))
            check_models(of_models)
            of_phases = check_phases(list(changes.get("phases", phases)))
            for dataset, model, phase in product(datasets, of_models, of_phases):
                if phase not in phases or not takes(model, phase):
                    continue
                phases_taken.add(phase)
                if any(r.get("skip") and applies(r, model, dataset, phase) for r in rules):
                    continue
                phases_met.add(phase)
                for seed in seeds:
                    run = self._run(dataset, model, phase, variant, changes, rules, seed)
                    # A variant that changes nothing in this phase is the same run, and the same row.
                    found.setdefault(run.run_id, Configuration(grid=self.name, variant=variant, run=run))
        for phase in phases:
            if phase not in phases_met:
                skipped = f"grid.rules skip all of phase {phase!r}; leave it out of grid.phases, or change the rules"
                untaken = f"no model of the grid takes phase {phase!r}; models: {', '.join(models)}"
                raise ConfigError(skipped if phase in phases_taken else f"grid.phases: {untaken}")
        return tuple(found.values())

    def _rules(self) -> list[dict[str, Any]]:
        return [checked_rule(rule) for rule in OmegaConf.to_container(self.config.grid.rules)]  # type: ignore[union-attr]

    def one_run(self, model: str, phase: str, seed: int, variant: str) -> Configuration:
        choice("phase", phase, PHASES)
        dataset = self.named_dataset
        self._check_weights([model])
        if phase == "extract":
            run = self._extraction(model, dataset)
        elif not takes(model, cast(Phase, phase)):
            raise ConfigError(f"phase={phase} does not take {model!r}, {_why_not(model, phase)}")
        else:
            run = self._run(dataset, model, cast(Phase, phase), variant, {}, self._rules(), seed)
        return Configuration(grid=self.name, variant=variant, run=run)

    def evaluation_of(self, run_id: str, variant: str) -> Configuration:
        """The evaluation of a finished run, on whatever data set and split are named."""
        paths = StorePaths(Path(self.config.store.dir)).run(run_id)
        if safe_name(run_id) != run_id or not paths.spec.is_file():
            runs = StorePaths(Path(self.config.store.dir)).runs
            raise ConfigError(f"run={run_id!r} is not in {runs}; its folders are the run ids")
        trained = from_dict(RunSpec, durable.read_json(paths.spec))
        if trained.phase not in ("probe", "finetune", "scratch"):
            raise ConfigError(
                f"run={run_id!r} is of phase {trained.phase}; only probe, finetune and scratch are evaluated"
            )
        dataset = self.named_dataset
        scope = self._dataset_scope(dataset, of_run=trained.dataset.value_range)
        own = classes_of_run(trained, paths)
        if own is not None:  # else it is to be trained first, and its evaluation compares
            try:
                match_classes(own, scope.dataset.facts.class_names, run_id=run_id, dataset=scope.dataset.spec.name)
            except DataError as error:
                raise ConfigError(str(error)) from error
        self._check_weights([trained.model])
        self._find_files_of(trained)
        run = make_evaluation(scope, trained)
        self.runs |= {trained.run_id: trained, run.run_id: run}
        return Configuration(grid=self.name, variant=variant, run=run)

    def _find_files_of(self, trained: RunSpec) -> None:
        """The files of the weights that a finished run started from, as far as the command line names them."""
        for backbone in trained.backbones:
            file = self.config.weights_files.get(backbone.name) or self.config.weights
            if file is None or not backbone.weights.identity.startswith("file:"):
                continue
            given = backbones.weights_spec(backbone.name, file, catalog_dir=self.catalog_dir)
            if given.identity != backbone.weights.identity:
                raise ConfigError(
                    f"{file!r} is not the file of {backbone.name} that run={trained.run_id!r} started from"
                )
            self.weights_files[given.identity] = str(Path(file).expanduser().resolve())

    def _extraction(self, model: str, dataset: str) -> RunSpec:
        if len(split_model(model)) > 1 or is_architecture(model):
            raise ConfigError(f"phase=extract takes one backbone; {model!r} is not one")
        scope = self._dataset_scope(dataset)
        check_splits(scope, "extract")
        run = extraction(scope.backbone(model), scope.dataset.spec, scope.extract)
        self.runs[run.run_id] = run
        self.weights_files |= scope.weights_files
        return run

    def _run(
        self,
        dataset: str,
        model: str,
        phase: Phase,
        variant: str,
        changes: dict[str, Any],
        rules: list[dict[str, Any]],
        seed: int,
    ) -> RunSpec:
        scope = self._scope(dataset, model, phase, variant, changes, rules)
        needs: tuple[RunSpec, ...] = ()
        settings = scope.settings(phase)
        if isinstance(settings, FinetuneSettings) and settings.head != "random":
            needs = (self._run(dataset, model, "probe", variant, changes, rules, seed),)
        if phase == "evaluate" and is_architecture(model) and scope.config.phase.evaluate.checkpoint is None:
            needs = (self._run(dataset, model, "scratch", variant, changes, rules, seed),)
        run = make_run(scope, model=model, phase=phase, seed=seed, needs=needs)
        self.runs[run.run_id] = run
        self.weights_files |= scope.weights_files
        return run

    def _scope(
        self,
        dataset: str,
        model: str,
        phase: Phase,
        variant: str,
        changes: dict[str, Any],
        rules: list[dict[str, Any]],
    ) -> Scope:
        applying = tuple(i for i, r in enumerate(rules) if not r.get("skip") and applies(r, model, dataset, phase))
        key = (dataset, variant, applying)
        if key not in self._scopes:
            self._scopes[key] = self._make_scope(dataset, variant, changes, [rules[i] for i in applying])
        return self._scopes[key]

    def _make_scope(self, dataset: str, variant: str, changes: dict[str, Any], rules: list[dict[str, Any]]) -> Scope:
        base = self._dataset_scope(dataset)
        settings = {k: v for k, v in changes.items() if k not in ("models", "phases")}
        if not rules and not settings:
            return base
        config = copy.deepcopy(base.config)
        for rule in rules:
            for name, value in rule["set"].items():
                set_value(config, name, value, where="grid.rules")
        if rules:
            for name in self._typed:
                set_value(config, name, OmegaConf.select(base.config, name), where="command line")
        for name, value in settings.items():
            set_value(config, name, value, where=f"grid.variants.{variant}")
        check_plain_values(config)
        choice_ = base.dataset
        if config.dataset != base.config.dataset:
            choice_ = resolve_dataset(config, self.cache, keep=not self.config.dry_run, progress=self.progress)
            self.facts[choice_.spec.name] = choice_.facts
            self.notes |= dict.fromkeys(choice_.notes)
        return Scope(config, choice_, self.protocol, self.catalog_dir)

    def _dataset_scope(self, dataset: str, of_run: ValueRange | None = None) -> Scope:
        """The grid's defaults over one data set: composed once per name."""
        if dataset not in self._by_dataset:
            if dataset not in choices("dataset"):
                raise ConfigError(f"unknown dataset {dataset!r}{nearest(dataset, choices('dataset'))}")
            config = self.config
            if dataset != self.named_dataset:
                arguments = [a for a in self.arguments if not a.startswith("dataset=")]
                config = compose_config([*arguments, f"dataset={dataset}"])
            found = resolve_dataset(
                config, self.cache, keep=not self.config.dry_run, progress=self.progress, of_run=of_run
            )
            self.notes |= dict.fromkeys(found.notes)
            if found.folder is not None:
                if self.folders.get(found.spec.name, found.folder) != found.folder:
                    raise ConfigError(f"two folders are both named {found.spec.name!r}; give one a dataset.name")
                self.folders[found.spec.name] = found.folder
            self.facts[found.spec.name] = found.facts
            self._by_dataset[dataset] = Scope(config, found, self.protocol, self.catalog_dir)
        return self._by_dataset[dataset]

    def _check_weights(self, models: list[str]) -> None:
        parts = {part for model in models if not is_architecture(model) for part in split_model(model)}
        weights = self.config.weights
        if weights is not None and looks_like_file(weights) and len(parts) > 1:
            raise ConfigError(
                f"weights={weights!r} is one file for {len(parts)} backbones; give weights_files.<backbone>=FILE"
            )
        for name in self.config.weights_files:
            if name not in parts:
                raise ConfigError(f"weights_files.{name}: no model uses it{nearest(name, sorted(parts))}")

    def runtime(self) -> Runtime:
        config = self.config
        data_dir = config.data.dir or os.environ.get("TRANSFERGRID_DATA_DIR") or str(self.cache.data)
        return Runtime(
            store_dir=config.store.dir,
            cache_dir=config.cache.dir,
            data_dir=data_dir,
            weights_dir=config.weights_dir or str(self.cache.weights),
            data_folders=self.folders,
            weights_files=self.weights_files,
            cache_also_read=tuple(config.cache.also_read),
            device=config.device,
            num_threads=config.cluster.num_threads,
            tracking=config.tracking.mode,
            wandb_project=config.tracking.project,
            wandb_entity=config.tracking.entity,
            wandb_images=config.tracking.images,
            grid=self.name,
            checkpoint_min_interval_s=config.checkpoint.min_interval_s,
            keep_weights=config.keep_weights,
            resident_gb=config.data.resident_gb,
            report_figures=config.report.figures,
            max_megapixels=config.dataset.max_megapixels,
        )


def _name_or_template(config: DictConfig) -> str:
    """The grid's name; that of a template has its data sets' names put in once these are known."""
    name = config.grid_name or config.grid.name or "adhoc"
    if config.grid_name is None and DATASET_NAME in name:
        grid_name_of(name.replace(DATASET_NAME, ""))
        return str(name)
    return grid_name_of(name)


def _forgotten_copy(catalog_dir: Path) -> Path:
    """A dry run writes nothing: what it must have described of timm's networks goes when this process ends."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for kept in catalog_dir.glob("timm-*.json"):
        shutil.copy(kept, folder)
    return folder


def _why_not(model: str, phase: str) -> str:
    """Why a model does not take a phase, and what it takes."""
    if is_architecture(model):
        return "which is trained from scratch; choose phase=scratch or phase=evaluate"
    if phase == "evaluate":
        return "a join; its finished run can be evaluated: phase=evaluate run=ID"
    return "which is made of pretrained backbones; choose phase=probe or phase=finetune"


def check_plain_values(config: DictConfig) -> None:
    choice("device", config.device, ("auto", "cpu", "cuda"))
    choice("class_weights", config.class_weights, ("none", "balanced"))
    choice("keep_weights", config.keep_weights, ("final", "none"))
    choice("tracking.mode", config.tracking.mode, choices("tracking"))
    in_range("checkpoint.min_interval_s", config.checkpoint.min_interval_s, 0, 86400)
    in_range("data.resident_gb", config.data.resident_gb, 0, 1_000_000)
    in_range("cluster.num_threads", config.cluster.num_threads, 0, 1024)
    check_settings(config)
    for key in ("store.dir", "cache.dir", "data.dir", "weights_dir"):
        value = OmegaConf.select(config, key)
        if value is not None:
            _check_folder_name(key, value)


def _check_folder_name(key: str, value: str) -> None:
    """A folder that is there or can be made; whether it can be written is seen when it is."""
    if not value.strip() or "\0" in value:
        raise ConfigError(f"{key}={value!r} is not the name of a folder")
    path = Path(value)
    try:
        there = next((p for p in (path, *path.parents) if p.exists()), path)
    except OSError as error:
        raise ConfigError(f"{key}={value!r} cannot be a folder: {error.strerror}") from error
    if there.exists() and not there.is_dir():
        raise ConfigError(f"{key}={value!r} cannot be a folder: {there} is a file")
