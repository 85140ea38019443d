"""Merged configuration -> frozen specs: settings checked against types and ranges, models taken apart, identities.

The only code that interprets `+`, and the last that knows OmegaConf.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from omegaconf import DictConfig

from transfergrid import architectures, backbones, data, durable
from transfergrid.backbones.timm_names import timm_names
from transfergrid.config.compose import nearest
from transfergrid.data.geometry import preprocess_for, scratch_preprocess
from transfergrid.errors import ConfigError
from transfergrid.paths import CachePaths
from transfergrid.specs import (
    PHASES,
    BackboneSpec,
    DatasetSpec,
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

# Lowest and highest value; a lowest of `above 0` is written as the smallest positive float.
_TINY = 5e-324
SCRATCH_LR_PER_IMAGE = 0.1 / 128  # linear scaling with the batch, Goyal et al. 2017 (arXiv 1706.02677)
RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, 100_000),
    "steps_per_epoch": (1, 100_000_000),
    "cosine_epochs": (1, 100_000),
    "batch_size": (1, 1_000_000),
    "micro_batch": (1, 1_000_000),
    "clip_norm": (_TINY, 1e6),
    "momentum": (0, 0.9999),
    "lookahead_k": (1, 1_000),
    "lookahead_alpha": (0, 1),
    "warmup_fraction": (0, 0.9),
    "step_epochs": (1, 100_000),
    "step_gamma": (_TINY, 1),
    "final_lr_fraction": (0, 1),
    "label_smoothing": (0, 0.99),
    "ema_decay": (0, 0.999999),
    "shift_px": (0, 512),
    "perspective": (0, 1),
    "perspective_share": (0, 1),
    "rotation_deg": (0, 180),
    "rotation_fill": (0, 255),
    "cutout_px": (0, 512),
    "lr": (_TINY, 100),
    "lrs": (_TINY, 100),
    "head_lr": (_TINY, 100),
    "stem_lr": (_TINY, 100),
    "weight_decay": (0, 10),
    "weight_decays": (0, 10),
    "aux_loss_weight": (0, 10),
    "l2_sp": (0, 100),
    "mean": (-10, 10),
    "std": (_TINY, 10),
}
T = TypeVar("T")


def settings_of(kind: type[T], node: DictConfig, *, where: str, **given: Any) -> T:
    """A frozen settings object from a merged node; `given` fields replace the node's. ConfigErrors name the key."""
    hints = get_type_hints(kind)
    values = {}
    for f in fields(cast(Any, kind)):
        value = given[f.name] if f.name in given else node[f.name]
        values[f.name] = _checked(f"{where}.{f.name}", f.name, hints[f.name], value)
    return kind(**values)


def _checked(key: str, name: str, hint: Any, value: Any) -> Any:
    if get_origin(hint) is tuple:
        items = tuple(_checked(key, name, get_args(hint)[0], item) for item in value)
        if name in ("lrs", "weight_decays") and not items:
            raise ConfigError(f"{key} is empty; give at least one value")
        if name in ("mean", "std"):
            if len(items) != 3:
                raise ConfigError(f"{key}={list(items)} must hold three numbers, for red, green and blue")
        elif len(set(items)) != len(items):
            raise ConfigError(f"{key}={list(items)} holds a value twice")
        return items
    if get_origin(hint) is Literal:
        return choice(key, value, get_args(hint))
    if isinstance(value, (int, float)) and not isinstance(value, bool) and name in RANGES:
        return in_range(key, value, *RANGES[name])
    return value


def choice(key: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    if value not in allowed:
        raise ConfigError(f"{key}={value!r} is not one of {', '.join(map(str, allowed))}{_hint(value, allowed)}")
    return value


def _hint(value: Any, allowed: tuple[Any, ...]) -> str:
    text = nearest(str(value), [str(a) for a in allowed])
    return text if text.startswith("; did you mean") else ""


def in_range(key: str, value: Any, low: float, high: float) -> Any:
    if not math.isfinite(value) or not low <= value <= high:
        lowest = "above 0" if low == _TINY else f"at least {low:g}"
        raise ConfigError(f"{key}={value} is out of range; it must be {lowest} and at most {high:.10g}")
    return value


def check_settings(config: DictConfig) -> None:
    """Types, choices and ranges of every phase's settings, also of phases that this request does not take."""
    settings_of(ExtractSettings, config.phase.extract, where="phase.extract")
    settings_of(ProbeSettings, config.phase.probe, where="phase.probe")
    settings_of(FinetuneSettings, config.phase.finetune, where="phase.finetune")
    settings_of(ScratchSettings, config.phase.scratch, where="phase.scratch", image_size_px=None)
    settings_of(EvaluateSettings, config.phase.evaluate, where="phase.evaluate", source="", preprocess=None)


# ------------------------------------------------------------------------------------------------------------- models
@lru_cache(maxsize=4096)
def split_model(model: str) -> tuple[str, ...]:
    """`resnet18+googlenet` -> ("resnet18", "googlenet"). Raises ConfigError for parts that are unknown or twice."""
    parts = tuple(model.split("+"))
    for part in parts:
        _check_part(part, "" if len(parts) == 1 else f" in model {model!r}")
    if len(parts) > 1:
        for part in parts:
            if is_architecture(part):
                raise ConfigError(
                    f"model {model!r}: {part} is trained from scratch and cannot be joined; join backbones"
                )
        if len(set(parts)) != len(parts):
            raise ConfigError(f"model {model!r} holds {max(parts, key=parts.count)} twice; a backbone is joined once")
    return parts


def _check_part(part: str, where: str) -> None:
    """One part of a model, known by name alone: nothing is imported or built."""
    known = (*backbones.names(), *architectures.names())
    if part in known:
        return
    if part.startswith("timm/"):
        architecture = part.removeprefix("timm/").partition(".")[0]
        if architecture not in timm_names():
            close = difflib.get_close_matches(architecture, timm_names(), n=1, cutoff=0.5)
            hint = f"; did you mean {f'timm/{close[0]}'!r}?" if close else "; timm.list_models() lists them"
            raise ConfigError(f"unknown timm network {part!r}{where}{hint}")
        return
    if not part:
        raise ConfigError(f"a part of the model is empty{where}; write backbones joined by +")
    reason = backbones.refusal(part)
    if reason is not None:
        raise ConfigError(f"{part!r}{where} cannot be a backbone: it {reason}; choose another, as resnet18")
    what = "model" if not where else "backbone"
    hint = nearest(part, known)
    if not hint.startswith("; did you mean"):
        hint = "; known are torchvision's names, as resnet18, timm/<name>, and those of docs/adding.md, as baseline_cnn"
    raise ConfigError(f"unknown {what} {part!r}{where}{hint}")


@lru_cache(maxsize=4096)
def is_architecture(model: str) -> bool:
    return model in architectures.names()


def check_models(models: list[str]) -> None:
    """Raises ConfigError for an empty list, a model twice, or two orders of one join."""
    if not models:
        raise ConfigError("grid.models is empty; give at least one model, as grid.models=[resnet18,resnet18+googlenet]")
    seen: dict[frozenset[str], str] = {}
    for model in models:
        parts = frozenset(split_model(model))
        if parts in seen:
            again = "is given twice" if seen[parts] == model else f"and {seen[parts]!r} are the same join"
            raise ConfigError(f"grid.models: {model!r} {again}; keep one")
        seen[parts] = model


def takes(model: str, phase: Phase) -> bool:
    """Whether a kind of model takes a phase: architectures scratch and evaluate, backbones and joins the others."""
    if is_architecture(model):
        return phase in ("scratch", "evaluate")
    if phase == "evaluate":
        return "+" not in model  # a join is evaluated by run=ID only
    return phase in ("probe", "finetune")


# ------------------------------------------------------------------------------------------------------- one data set
@dataclass(frozen=True)
class DatasetChoice:
    """A data set as one configuration names it: facts known without reading images, and where a folder lies."""

    spec: DatasetSpec
    facts: data.DatasetFacts
    folder: str | None
    image_size_px: int | None
    val_seed: int
    train_fraction: float | None
    shots: int | None


def resolve_dataset(
    config: DictConfig, cache: CachePaths, *, keep: bool, progress: Callable[[int, int], None] | None = None
) -> DatasetChoice:
    """keep: whether a folder's content hash may be written to the cache. Raises ConfigError or DataError."""
    node = config.dataset
    if node.kind not in data.kinds():
        raise ConfigError(f"unknown dataset.kind {node.kind!r}{nearest(node.kind, data.kinds())}")
    if (node.folder is None) == (node.kind == "image_folder"):
        if node.kind == "image_folder":
            raise ConfigError(
                f"dataset={node.name or node.kind} needs dataset.folder=DIR, with DIR/train/<class>/* and DIR/test/..."
            )
        raise ConfigError(
            f"dataset.folder={node.folder!r}: {node.kind} lies in data.dir; only image_folder takes a folder"
        )
    folder = None if node.folder is None else Path(node.folder).expanduser().resolve()
    facts = data.facts(node.kind, folder=folder, kept_hashes=cache.folder_hashes, keep=keep, progress=progress)
    name = node.name or (folder.name if folder is not None else node.kind)
    if any(sign in name for sign in "/\\\n\0") or name.startswith(".") or not name.strip():
        raise ConfigError(f"dataset.name={name!r} cannot name a folder; use letters, digits, . _ and -")
    if folder is not None and name in data.kinds():
        raise ConfigError(
            f"dataset.name={name!r} is a published data set's name; give the folder another, as {name}-mine"
        )
    if node.max_images is not None:
        in_range("dataset.max_images", node.max_images, facts.num_classes, 1_000_000_000)
    if node.image_size_px is not None:
        in_range("dataset.image_size_px", node.image_size_px, 1, 4096)
    in_range("dataset.val_seed", node.val_seed, 0, 2**31)
    if node.train_fraction is not None and node.shots is not None:
        raise ConfigError("dataset.train_fraction and dataset.shots both say how many images are trained on; give one")
    if node.train_fraction is not None:
        in_range("dataset.train_fraction", node.train_fraction, _TINY, 1)
    if node.shots is not None:
        in_range("dataset.shots", node.shots, 1, 1_000_000_000)
    spec = DatasetSpec(
        name=name,
        kind=node.kind,
        fingerprint=facts.fingerprint,
        num_classes=facts.num_classes,
        max_images=node.max_images,
    )
    return DatasetChoice(
        spec,
        facts,
        None if folder is None else str(folder),
        node.image_size_px,
        node.val_seed,
        node.train_fraction,
        node.shots,
    )


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

    def _resolve_backbone(self, name: str) -> BackboneSpec:
        entry = backbones.entry(name, catalog_dir=self.catalog_dir)
        wanted = self.config.weights_files.get(name) or self.config.weights or entry.default_weights
        if name in self.config.weights_files and not looks_like_file(wanted):
            raise ConfigError(f"weights_files.{name}={wanted!r} is not a file's name; tags are given by weights=TAG")
        in_range("weights_seed", self.config.weights_seed, 0, 2**31)
        weights = backbones.weights_spec(
            name, wanted, weights_seed=self.config.weights_seed, catalog_dir=self.catalog_dir
        )
        if weights.identity.startswith("file:"):
            self.weights_files[weights.identity] = str(Path(wanted).expanduser().resolve())
        tag = weights.label if weights.label in entry.weights else entry.default_weights
        published = entry.weights.get(tag) or next(iter(entry.weights.values()))
        preprocess = preprocess_for(
            image_size_px=self.dataset.image_size_px,
            native_size_px=self.dataset.facts.image_size_px,
            resize_px=published.resize_px,
            crop_px=published.crop_px,
            interpolation=published.interpolation,
            mean=published.mean,
            std=published.std,
        )
        backbones.check_image_size(name, preprocess.crop_px, catalog_dir=self.catalog_dir)
        return BackboneSpec(name=name, tap=entry.tap, weights=weights, preprocess=preprocess)

    def _resolve_settings(self, phase: Phase) -> Settings:
        node = self.config.phase[phase]
        where = f"phase.{phase}"
        if phase == "extract":
            return settings_of(ExtractSettings, node, where=where)
        if phase == "evaluate":
            return settings_of(EvaluateSettings, node, where=where, source="own_head", preprocess=None)
        flip = node.flip if node.flip is not None else self.dataset.facts.mirror_ok
        if phase == "probe":
            probe = settings_of(ProbeSettings, node, where=where, flip=flip)
            self._check_training(probe, where)
            self._check_probe(probe)
            return probe
        if phase == "finetune":
            finetune = settings_of(FinetuneSettings, node, where=where, flip=flip)
            self._check_training(finetune, where)
            return finetune
        size = self.dataset.image_size_px or self.dataset.facts.image_size_px
        if size is None:
            name = self.dataset.spec.name
            raise ConfigError(f"{name} has images of mixed sizes; training from scratch needs dataset.image_size_px=N")
        lr = SCRATCH_LR_PER_IMAGE * node.batch_size if node.lr is None else node.lr
        scratch = settings_of(ScratchSettings, node, where=where, flip=flip, lr=lr, image_size_px=size)
        self._check_training(scratch, where)
        return scratch

    def _check_training(self, settings: TrainSettings, where: str) -> None:
        if settings.selection == "best_on_test" and self.protocol == "fair":
            raise ConfigError(f"{where}.selection=best_on_test chooses on the test set; only protocol=published may")
        if settings.micro_batch is not None and settings.micro_batch > settings.batch_size:
            raise ConfigError(
                f"{where}.micro_batch={settings.micro_batch} is larger than batch_size={settings.batch_size}"
            )
        if settings.schedule == "step" and not settings.step_epochs:
            raise ConfigError(f"{where}.schedule=step needs {where}.step_epochs=[...]")
        if settings.schedule != "step" and settings.step_epochs:
            raise ConfigError(f"{where}.step_epochs={list(settings.step_epochs)} needs {where}.schedule=step")
        if settings.cosine_epochs is not None and settings.schedule not in ("cosine", "onecycle"):
            raise ConfigError(f"{where}.cosine_epochs={settings.cosine_epochs} needs {where}.schedule=cosine")
        if settings.alternate_flip and not settings.flip:
            raise ConfigError(f"{where}.alternate_flip=true needs {where}.flip=true")
        if settings.ema_decay is not None and settings.lookahead:
            raise ConfigError(f"{where}: ema_decay and lookahead both average the weights; choose one")

    def _check_probe(self, settings: ProbeSettings) -> None:
        if self.protocol == "published" and len(settings.lrs) * len(settings.weight_decays) > 1:
            raise ConfigError(
                "protocol=published holds out no val to choose on; give one phase.probe.lrs and weight_decays"
            )
        if settings.source == "images" and len(settings.lrs) * len(settings.weight_decays) > 1:
            raise ConfigError(
                "phase.probe.source=images trains one head; give one value each, as phase.probe.lrs=[1e-3] and"
                " phase.probe.weight_decays=[0]"
            )
        if settings.aux_loss_weight and settings.bn == "eval":
            raise ConfigError("phase.probe.aux_loss_weight: auxiliary heads give no output in eval mode; set bn=train")
        if settings.source == "features":
            needs_images = {
                "flip": settings.flip,
                "shift_px": settings.shift_px,
                "perspective": settings.perspective,
                "rotation_deg": settings.rotation_deg,
                "cutout_px": settings.cutout_px,
                "micro_batch": settings.micro_batch,
                "aux_loss_weight": settings.aux_loss_weight,
                "bn": settings.bn == "train",
                "test_bn": settings.test_bn == "batch",
                "precision": settings.precision == "bf16",
            }
            for name, value in needs_images.items():
                if value:
                    raise ConfigError(
                        f"phase.probe.{name} cannot act on cached features; it needs phase.probe.source=images"
                    )


def looks_like_file(weights: str) -> bool:
    return os.sep in weights or Path(weights).suffix in (".pt", ".pth", ".bin", ".ckpt", ".tar")


# ---------------------------------------------------------------------------------------------------------------- runs
def make_run(scope: Scope, *, model: str, phase: Phase, seed: int, needs: tuple[RunSpec, ...] = ()) -> RunSpec:
    """One RunSpec. `needs`: the runs it is made from, which its identity covers (a probe for a finetune)."""
    in_range("seed", seed, 0, 2**31)
    dataset = scope.dataset
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
        dataset=dataset.spec,
        extract=scope.extract if specs else None,
        settings=settings,
        protocol=scope.protocol,
        seed=None if phase == "evaluate" else seed,  # an evaluation draws nothing: three seeds would be one number
        val_seed=dataset.val_seed,
        train_fraction=None if phase == "evaluate" else dataset.train_fraction,
        shots=None if phase == "evaluate" else dataset.shots,
        needs=tuple(run.run_id for run in needs),
    )


def _check_against_models(settings: Settings, phase: Phase, specs: tuple[BackboneSpec, ...], catalog_dir: Path) -> None:
    if isinstance(settings, (ProbeSettings, FinetuneSettings)) and settings.aux_loss_weight:
        if tuple(b.name for b in specs) != ("googlenet",):
            raise ConfigError(f"phase.{phase}.aux_loss_weight: only googlenet alone has auxiliary heads")
    if isinstance(settings, FinetuneSettings) and settings.frozen_groups:
        known = [group for b in specs for group, _ in backbones.entry(b.name, catalog_dir=catalog_dir).groups]
        for group in settings.frozen_groups:
            if group not in known:
                raise ConfigError(f"phase.finetune.frozen_groups: unknown group {group!r}{nearest(group, known)}")


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
        source = f"file:{durable.sha256_of(file)}"
        scope.weights_files[source] = str(file.resolve())
        if is_architecture(model):
            settings = replace(
                settings, preprocess=scratch_preprocess(cast(ScratchSettings, scope.settings("scratch")))
            )
    else:
        source = "own_head"
        head_classes = backbones.entry(model, catalog_dir=scope.catalog_dir).head_classes
        if head_classes != scope.dataset.spec.num_classes:
            why = " (the folders must hold all of them)" if scope.dataset.folder is not None else ""
            raise ConfigError(
                f"phase=evaluate: {model}'s own head has {head_classes} classes{why}, {scope.dataset.spec.name} has"
                f" {scope.dataset.spec.num_classes}; give run=ID or phase.evaluate.checkpoint=FILE"
            )
    return replace(settings, source=source)


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


def make_evaluation(scope: Scope, trained: RunSpec) -> RunSpec:
    """The evaluation of a finished run over the scope's data set: the run's own backbones and what they are fed."""
    check_splits(scope, "evaluate")
    settings = replace(cast(EvaluateSettings, scope.settings("evaluate")), source=f"run:{trained.run_id}")
    return RunSpec(
        phase="evaluate",
        model=trained.model,
        backbones=trained.backbones,
        dataset=scope.dataset.spec,
        extract=trained.extract,
        settings=settings,
        protocol=scope.protocol,
        seed=None,
        val_seed=scope.dataset.val_seed,
        needs=(trained.run_id,),
    )


def check_phases(phases: list[str]) -> list[Phase]:
    """In the order of PHASES. Raises ConfigError for unknown, repeated or no phases."""
    if not phases:
        raise ConfigError(f"grid.phases is empty; choose from {', '.join(PHASES[1:])}")
    for phase in phases:
        if phase not in PHASES:
            raise ConfigError(f"unknown phase {phase!r} in grid.phases{nearest(phase, PHASES)}")
    if "extract" in phases:
        raise ConfigError("grid.phases: extract is planned by itself wherever cached features are needed; leave it out")
    if len(set(phases)) != len(phases):
        raise ConfigError(f"grid.phases={phases} holds a phase twice")
    return [phase for phase in PHASES if phase in phases]
