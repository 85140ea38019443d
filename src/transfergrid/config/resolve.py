"""Merged configuration -> frozen specs, with the identities of weights; the last that knows OmegaConf."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from transfergrid.config.dataset import DatasetChoice
from transfergrid.config.keys import in_range
from transfergrid.config.models import is_architecture, split_model
from transfergrid.config.schema import DEFAULTS, KEYS
from transfergrid.config.settings import check_probe, check_training, fitted, settings_of
from transfergrid.data import facts
from transfergrid.data.folds import RowCounts, count_rows
from transfergrid.data.geometry import preprocess_for, scratch_preprocess
from transfergrid.errors import ConfigError, hints
from transfergrid.networks import architectures, backbones
from transfergrid.networks.backbones.weight_files import identity_of
from transfergrid.networks.classes import IMAGENET_CLASSES, imagenet_places, names_imagenet_anew
from transfergrid.specs import (
    RULES_VERSION,
    SETTINGS_OF_PHASE,
    UNCHOSEN_C,
    BackboneSpec,
    EvaluateSettings,
    ExtractSettings,
    FinetuneSettings,
    Phase,
    ProbeSettings,
    Protocol,
    RunSpec,
    ScratchSettings,
    Settings,
    TrainSettings,
    WeightsSpec,
)

SCRATCH_LR_PER_IMAGE = 0.1 / 128  # linear scaling with the batch, Goyal et al. 2017 (arXiv 1706.02677)


# ------------------------------------------------------------------------------------------- one way of setting things
@dataclass
class Scope:
    """One merged configuration over one data set: what all its models and seeds share is resolved once."""

    config: DictConfig
    dataset: DatasetChoice
    protocol: Protocol
    catalog_dir: Path
    weights_files: dict[str, str] = field(default_factory=dict)  # identity -> file, for the Runtime
    _backbones: dict[str, BackboneSpec] = field(default_factory=dict)
    _settings: dict[Phase, Settings] = field(default_factory=dict)

    def backbone(self, name: str) -> BackboneSpec:
        if name not in self._backbones:
            self._backbones[name] = self._resolve_backbone(name)
        return self._backbones[name]

    def settings(self, phase: Phase) -> Settings:
        if phase not in self._settings:
            self._settings[phase] = self._resolve_settings(phase)
        return self._settings[phase]

    @cached_property
    def extract(self) -> ExtractSettings:
        return cast(ExtractSettings, self.settings("extract"))

    @cached_property
    def data_settings(self) -> dict[str, Any]:
        """`dataset` in plain values, which are read for every run."""
        return cast(dict[str, Any], OmegaConf.to_container(self.config.dataset, resolve=True))

    @cached_property
    def rows(self) -> RowCounts:
        """How many images the runs train on and hold out."""
        return count_rows(
            self.dataset.facts,
            max_images=self.data_settings["max_images"],
            protocol=self.protocol,
            train_fraction=self.data_settings["train_fraction"],
            shots=self.data_settings["shots"],
            val_seed=self.data_settings["val_seed"],
        )

    def _resolve_backbone(self, name: str) -> BackboneSpec:
        entry = backbones.entry(name, catalog_dir=self.catalog_dir)
        source = self.config.weights_files.get(name) or self.config.weights or entry.default_weights
        if name in self.config.weights_files and not looks_like_file(source):
            raise ConfigError(f"weights_files.{name}={source!r} is not a file's name; tags are given by weights=TAG")
        weights = backbones.weights_spec(
            name, source, weights_seed=self.config.weights_seed, catalog_dir=self.catalog_dir
        )
        if weights.identity.startswith("file:"):
            self.weights_files[weights.identity] = str(Path(source).expanduser().resolve())
        tag = weights.label if weights.label in entry.weights else entry.default_weights
        published = entry.weights.get(tag) or next(iter(entry.weights.values()))
        preprocess = preprocess_for(
            image_size_px=self.data_settings["image_size_px"],
            native_size_px=self.dataset.facts.image_size_px,
            shortest_px=self.dataset.facts.shortest_px,
            small=self.data_settings["small_pictures"],
            resize_px=published.resize_px,
            crop_px=published.crop_px,
            interpolation=published.interpolation,
            mean=published.mean,
            std=published.std,
        )
        backbones.check_image_size(name, preprocess.crop_px, catalog_dir=self.catalog_dir)
        return BackboneSpec(name=name, tap=entry.tap, weights=weights, preprocess=preprocess)

    def _resolve_settings(self, phase: Phase) -> Settings:
        node, where = self.config.phase[phase], f"phase.{phase}"
        overrides: dict[str, Any] = {"source": "own_head", "preprocess": None}
        if phase in DEFAULTS:
            overrides = {n: DEFAULTS[phase][n] if node[n] is None else node[n] for n in ("epochs", "batch_size")}
            overrides["flip"] = self.dataset.facts.mirror_ok if node.flip is None else node.flip
        if phase == "probe":
            by_key = node.select_by or self.config.select_by
            overrides["select_by"] = "accuracy" if self.protocol == "published" else by_key
        if phase == "scratch":
            overrides["image_size_px"] = self._scratch_size_px()
        settings: Settings = settings_of(SETTINGS_OF_PHASE[phase], node, where=where, **overrides)
        if not isinstance(settings, TrainSettings):
            return settings
        if self.protocol != "published":  # a published study stays as it was
            settings = fitted(settings, node, self.rows.train)
        if isinstance(settings, ScratchSettings) and node.lr is None:
            settings = replace(settings, lr=SCRATCH_LR_PER_IMAGE * settings.batch_size)
        check_training(settings, self.protocol, where=where)
        # What changes no number gets one value, so that equal runs have one id.
        if isinstance(settings, ProbeSettings):
            check_probe(settings, self.protocol)
            solves_one = not settings.lbfgs or settings.source == "images" or self.protocol == "published"
            if settings.solver == "sgd" and solves_one:
                return replace(settings, cs=(UNCHOSEN_C,))
        # Where BatchNorm keeps its statistics there is nothing to refit to.
        if isinstance(settings, FinetuneSettings) and settings.head == "refitted" and settings.bn == "eval":
            return replace(settings, head="probe")
        return settings

    def _scratch_size_px(self) -> int:
        size_px: int | None = self.data_settings["image_size_px"] or self.dataset.facts.image_size_px
        if size_px is None:
            name = self.dataset.spec.name
            raise ConfigError(f"{name} has images of mixed sizes; training from scratch needs dataset.image_size_px=N")
        return size_px


def looks_like_file(weights: str) -> bool:
    return os.sep in weights or weights.lower().endswith(backbones.STATE_DICT_SUFFIXES) or Path(weights).is_file()


# ---------------------------------------------------------------------------------------------------------------- runs
def make_run(scope: Scope, *, model: str, phase: Phase, seed: int, needs: tuple[RunSpec, ...] = ()) -> RunSpec:
    """One RunSpec. `needs`: the runs it is made from, which its identity covers (a probe for a finetune)."""
    in_range("seed", seed, *KEYS["seed"].about.span)
    specs = () if is_architecture(model) else tuple(scope.backbone(part) for part in split_model(model))
    settings = scope.settings(phase)
    if isinstance(settings, ScratchSettings):
        architectures.check_image_size(model, settings.image_size_px)
    _check_against_models(settings, phase, specs, scope.catalog_dir)
    check_splits(scope, phase)
    if isinstance(settings, EvaluateSettings):
        settings = _evaluate_settings(scope, settings, model, needs)
        if settings.source.startswith("file:"):  # then the weights are the checkpoint's, and no other file is read
            label = Path(scope.config.phase.evaluate.checkpoint).name
            specs = tuple(replace(b, weights=WeightsSpec(label=label, identity=settings.source)) for b in specs)
    return RunSpec(
        phase=phase,
        model=model,
        backbones=specs,
        dataset=scope.dataset.spec,
        extract=scope.extract if specs else None,
        settings=settings,
        protocol=scope.protocol,
        seed=seed if _draws(settings, scope) else None,
        val_seed=scope.data_settings["val_seed"],
        train_fraction=None if phase == "evaluate" else scope.data_settings["train_fraction"],
        shots=None if phase == "evaluate" else scope.data_settings["shots"],
        needs=tuple(run.run_id for run in needs),
        rules=RULES_VERSION if phase in ("probe", "finetune") or _counts_anew(scope, settings) else 1,
    )


def _counts_anew(scope: Scope, settings: Settings) -> bool:
    """Does another phase give other numbers than the first release did, with the same fields?"""
    known = scope.dataset.facts
    if isinstance(settings, ScratchSettings):
        if scope.protocol == "fair" and scope.rows.val_was_larger:
            return True
        # Images larger than the input are augmented at its size; smaller ones among others, at their own.
        augments = (settings.flip, settings.shift_px, settings.perspective, settings.rotation_deg, settings.cutout_px)
        own_px, size_px = known.image_size_px, settings.image_size_px
        if own_px is None:
            differs = known.shortest_px is not None and known.shortest_px < size_px
        else:
            differs = own_px > size_px
        return differs and settings.augment_at == "native" and any(augments)
    if not isinstance(settings, EvaluateSettings):
        return False
    if settings.split == "val" and scope.rows.val_was_larger:
        return True
    # Folders found by name among the classes of published logits, where their order did not say the same.
    return (
        not settings.source.startswith("run:")
        and scope.dataset.folder is not None
        and names_imagenet_anew(known.class_names)
    )


def _draws(settings: Settings, scope: Scope) -> bool:
    """Whether a seed changes the numbers. An evaluation draws nothing, and a solved head only the images it learns
    from: three seeds would be one number."""
    if isinstance(settings, ProbeSettings) and settings.solver == "lbfgs":
        return scope.data_settings["train_fraction"] is not None or scope.data_settings["shots"] is not None
    return not isinstance(settings, EvaluateSettings)


def _check_against_models(settings: Settings, phase: Phase, specs: tuple[BackboneSpec, ...], catalog_dir: Path) -> None:
    if isinstance(settings, (ProbeSettings, FinetuneSettings)) and settings.aux_loss_weight:
        if tuple(b.name for b in specs) != ("googlenet",):
            raise ConfigError(f"phase.{phase}.aux_loss_weight: only googlenet alone has auxiliary heads")
    if isinstance(settings, FinetuneSettings) and settings.frozen_groups:
        known = [group for b in specs for group, _ in backbones.entry(b.name, catalog_dir=catalog_dir).groups]
        for group in settings.frozen_groups:
            if group not in known:
                raise ConfigError(f"phase.finetune.frozen_groups: unknown group {group!r}", **hints(group, known))


def _evaluate_settings(
    scope: Scope, settings: EvaluateSettings, model: str, needs: tuple[RunSpec, ...]
) -> EvaluateSettings:
    """Where the evaluated weights come from: a run, a checkpoint file, or the backbone's own published head."""
    checkpoint = scope.config.phase.evaluate.checkpoint
    if needs:
        source = f"run:{needs[0].run_id}"
    elif checkpoint is not None:
        file = Path(checkpoint).expanduser()
        if not file.is_file():
            raise ConfigError(f"phase.evaluate.checkpoint={checkpoint!r} is not a file")
        source = f"file:{identity_of(file)}"
        scope.weights_files[source] = str(file.resolve())
        if is_architecture(model):
            settings = replace(
                settings, preprocess=scratch_preprocess(cast(ScratchSettings, scope.settings("scratch")))
            )
    else:
        source = "own_head"
        _check_own_head(scope, model)
    return replace(settings, source=source)


def _check_own_head(scope: Scope, model: str) -> None:
    """Raises ConfigError where the data set's classes are not those of the backbone's published head."""
    entry, dataset = backbones.entry(model, catalog_dir=scope.catalog_dir), scope.dataset
    if entry.head_classes == IMAGENET_CLASSES and dataset.folder is not None:
        imagenet_places(dataset.facts.class_names, dataset=dataset.spec.name)
    elif entry.head_classes != dataset.spec.num_classes:
        raise ConfigError(
            f"phase=evaluate: {model}'s own head has {entry.head_classes} classes, {dataset.spec.name} has"
            f" {dataset.spec.num_classes}; give run=ID or phase.evaluate.checkpoint=FILE"
        )
    elif entry.classes_of and dataset.facts.class_names != facts(entry.classes_of).class_names:
        other = next(n for n in dataset.facts.class_names if n not in facts(entry.classes_of).class_names)
        raise ConfigError(
            f"phase=evaluate: {model}'s own head tells the classes of {entry.classes_of} apart; {dataset.spec.name} has"
            f" {other!r}, which is none of them; give run=ID or phase.evaluate.checkpoint=FILE"
        )


def check_splits(scope: Scope, phase: Phase) -> None:
    """Raises ConfigError where the data set lacks the split a phase reads: a folder may have val/ or test/ alone."""
    name, present = scope.dataset.spec.name, scope.dataset.facts.num_images
    if phase != "evaluate":
        if "train" not in present:
            raise ConfigError(f"{scope.dataset.folder} has no train/<class>/*; without it {name} serves evaluate alone")
        return
    split = cast(EvaluateSettings, scope.settings("evaluate")).split
    if split not in present and not (split == "val" and "train" in present):
        raise ConfigError(f"phase.evaluate.split={split}: {name} has no such split; it has: {', '.join(present)}")
    if split == "val" and scope.rows.held == 0:
        raise ConfigError(f"phase.evaluate.split=val: no class of {name} has two images, so none was held out")


def make_evaluation(scope: Scope, trained: RunSpec) -> RunSpec:
    """The evaluation of a finished run over the scope's data set: the run's own backbones and what they are fed."""
    check_splits(scope, "evaluate")
    settings = replace(cast(EvaluateSettings, scope.settings("evaluate")), source=f"run:{trained.run_id}")
    return replace(
        trained,
        phase="evaluate",
        dataset=scope.dataset.spec,
        settings=settings,
        protocol=scope.protocol,
        seed=None,
        val_seed=scope.data_settings["val_seed"],
        train_fraction=None,
        shots=None,
        needs=(trained.run_id,),
        rules=RULES_VERSION if _counts_anew(scope, settings) else 1,
    )
