"""What can be configured, with every default: mutable dataclasses, because Hydra cannot merge a group into frozen ones.

The settings of phases and clusters are declared in specs/ and resources.py, with what each means and may be; here
stand the others, and the defaults that differ by phase. A default is changed only for a measured reason, written beside
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import MISSING, dataclass, field, fields, make_dataclass, replace
from functools import partial
from types import MappingProxyType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from transfergrid.config.keys import Key, about_of, keys_of, usual_of
from transfergrid.resources import ClusterSettings, Resources
from transfergrid.specs import (
    ABOVE_ZERO,
    SETTINGS_OF_PHASE,
    About,
    FinetuneSettings,
    ProbeSettings,
    Protocol,
    ScratchSettings,
    SelectBy,
    setting,
)


def _defaults_of(kind: type[Any], **own: Any) -> dict[str, Any]:
    """The value of each setting that nobody sets; `own` are those of one phase."""
    usual = {f.name: usual_of(f) for f in fields(kind) if about_of(f).doc}
    return {name: value for name, value in usual.items() if value is not MISSING} | own


# Of the phases that train.
DEFAULTS: Mapping[str, dict[str, Any]] = {
    "probe": _defaults_of(
        ProbeSettings,
        epochs=5,
        batch_size=256,
        drop_last=False,  # there is no BatchNorm that a short last batch could disturb
        precision="fp32",  # of the head; the features have phase.extract.precision
        optimizer="adamw",
        schedule="cosine",
    ),
    "finetune": _defaults_of(
        FinetuneSettings,
        epochs=10,
        batch_size=128,
        schedule="onecycle",
        warmup_fraction=0.2,
        # A net under a fall, not a regulariser. Measured without it: VGG16 with random weights at 64 px (MNIST, 1,080
        # images) has a loss of NaN at step 3, because the folded head multiplies tiny features by large weights; with 5
        # it runs. At 1 it costs: tinynet_cifar on digits, val 91.7 % against 93.8 % (two seeds).
        clip_norm=5.0,
        label_smoothing=0.1,
        flip=None,
        shift_px=4,
    ),
    "scratch": _defaults_of(
        ScratchSettings,
        epochs=30,
        batch_size=128,
        schedule="cosine",
        warmup_fraction=0.05,
        label_smoothing=0.1,
        flip=None,
        shift_px=4,
        cutout_px=8,
    ),
}
# Left to the data set where nobody sets them (what stands above is for data that fill enough steps, see fitted()), or
# to a key of all phases: what null stands for.
_LEFT_OPEN: Mapping[str, str] = {
    "epochs": "null = {usual}, more where images are few",
    "batch_size": "null = {usual}, fewer where images are few",
    "flip": "null = as fits the data set",
    "class_weights": "left out: as class_weights=",
}
FROM_ABOVE = {"class_weights": "${class_weights}"}  # one key for all phases, which a phase's own overrides


def _plain(hint: Any) -> Any:
    """A field's type as OmegaConf knows it: Literal -> str, tuple -> list, X | None -> Optional."""
    origin = get_origin(hint)
    if origin is Literal:
        return str
    if origin in (tuple, list):
        return list[_plain(get_args(hint)[0])]  # type: ignore[misc]
    if origin is dict:
        return hint if get_args(hint)[1] is str else dict[str, Any]
    if origin in (Union, UnionType):
        return _plain(next(a for a in get_args(hint) if a is not type(None))) | None
    return hint


def _schema_of(
    name: str,
    *kinds: type[Any],
    defaults: Mapping[str, Any] | None = None,
    groups: Mapping[str, type[Any]] = MappingProxyType({}),
) -> type[Any]:
    """A mutable dataclass with these groups of keys, and the settings of these kinds; with `defaults`, the phase's own
    stand in for the fields'."""
    members: list[Any] = [(group, schema, field(default_factory=schema)) for group, schema in groups.items()]
    for kind in kinds:
        hints = get_type_hints(kind)
        for f in (f for f in fields(kind) if "about" in f.metadata):
            default = usual_of(f) if defaults is None else defaults[f.name]
            described = about_of(f)
            if defaults is not None and f.name in _LEFT_OPEN and (f.name != "flip" or default is None):
                described = replace(described, doc=f"{described.doc}; {_LEFT_OPEN[f.name].format(usual=default)}")
                default = FROM_ABOVE.get(f.name)
            hint = hints[f.name] | None if default is None else hints[f.name]
            default = list(default) if isinstance(default, tuple) else default
            value: Any = field(
                default_factory=partial(deepcopy, default),
                metadata={"about": replace(described, usual=...), "hint": hint},
            )
            members.append((f.name, _plain(hint), value))
    return make_dataclass(name, members)


def _configured(kind: type[Any]) -> type[Any]:
    """A dataclass with its types as OmegaConf knows them."""
    return _schema_of(kind.__name__, dataclass(kind))


@dataclass
class _Checkpoint:
    checkpoint: str | None = setting(None, "a state-dict file of the model, head included")


@dataclass
class _ClusterBeside:
    num_threads: int = setting(0, "CPU threads per run; 0 = the cores its process may use", (0, 1024))
    # The keys that a file or a command line set; what is none of them is a default, and yields to the cluster.
    asked: list[str] = setting([], "")


ClusterConfig = _schema_of("ClusterConfig", Resources, ClusterSettings, _ClusterBeside)
_PHASES = {
    phase: _schema_of(phase, kind, *([_Checkpoint] if phase == "evaluate" else []), defaults=DEFAULTS.get(phase))
    for phase, kind in SETTINGS_OF_PHASE.items()
}


@dataclass
class _Phase:
    name: str = setting("", "the phase", not_set="choose it as phase=NAME")


_SEED = (0, 2**31)


@_configured
class DatasetConfig:
    name: str | None = setting(None, "in tables and paths; null = the folder's or the set's own")
    kind: str = setting("", "how its files are read", not_set="choose it as dataset=NAME")
    folder: str | None = setting(None, "your pictures: train/<class>/* and test/<class>/*, or <class>/*")
    table: str | None = setting(None, "FILE.csv with path,label[,split][,group] instead of such folders")
    test_fraction: float | None = setting(
        None, "share that becomes test where folder or table has no split; null = 0.2", (0.01, 0.9)
    )
    max_images: int | None = setting(None, "at most so many per split, class shares kept", (1, 1_000_000_000))
    image_size_px: int | None = setting(
        None, "resize straight to N x N; null = as the weights say", (1, 4096), unit="px"
    )
    val_seed: int = setting(0, "which 10 % of train are held out as val", _SEED)
    train_fraction: float | None = setting(None, "train on this share of the training images", (ABOVE_ZERO, 1))
    shots: int | None = setting(None, "train on so many images of each class", (1, 1_000_000_000))
    value_range: list[float] | None = setting(
        None, "values that become 0 and 255 in pictures deeper than 8 bits; null = those of train"
    )
    orientation: Literal["exif", "stored"] = setting("exif", "turn pictures as EXIF says, or not")
    small_pictures: Literal["whole", "recipe"] = setting(
        "whole", "pictures smaller than the input: all of them, or as the weights' transform"
    )
    classes: Literal["folders", "imagenet"] = setting("folders", "imagenet = folders are named by wnids or 0 to 999")
    max_megapixels: float = setting(180.0, "larger pictures of a folder are refused", (ABOVE_ZERO, 100_000))
    skip_damaged: bool = setting(False, "leave out pictures that cannot be used")


@_configured
class GridConfig:
    name: str = setting("", "the grid file's own name; grid_name= gives another")
    study: str | None = setting(
        None,
        "the published study whose settings it holds",
        not_set="it is told by a grid file, whose settings go with it",
    )
    models: list[str] = setting([], "networks, as [resnet18,resnet18+vgg16]")
    complete_pairs: bool = setting(False, "add the parts of each join that do not stand alone")
    datasets: list[str] = setting([], "data sets, as [mnist,cifar10]")
    phases: list[str] = setting([], "of probe, finetune, scratch and evaluate")
    seeds: list[int] = setting([0], "one run each, as [0,1,2]")
    variants: dict[str, Any] = setting({}, "named changes, as {small: {phase.finetune.batch_size: 32}}")
    only_variants: bool = setting(False, "only the variants are rows, not the file's settings")
    rules: list[Any] = setting([], "changes by condition; docs/adding.md")


@_configured
class NotifyConfig:
    command: str | None = setting(None, "the finish job runs it, with the outcome on its input")


@_configured
class ReportConfig:
    figures: bool | None = setting(None, "figures at a launch's end; null = on SLURM only")
    within: float = setting(1.0, "how much worse than the winner a cheaper row may be", (0, 100), unit="points")


@_configured
class TrackingConfig:
    mode: Literal["auto", "online", "offline", "disabled"] = setting("auto", "usually chosen as tracking=NAME")
    project: str = setting("transfergrid", "W&B project")
    entity: str | None = setting(None, "W&B team or user; null = your default")
    images: bool = setting(False, "send pictures and names of files to W&B, too")


@_configured
class StoreConfig:
    dir: str = setting("results", "folder of runs, grids and reports: what must be kept")


@_configured
class CacheConfig:
    dir: str = setting("cache", "folder of features, data, weights: what can be made again")
    also_read: list[str] = setting([], "other caches, read only, as [/lab/cache]")


@_configured
class DataConfig:
    dir: str | None = setting(None, "where data sets lie; null = TRANSFERGRID_DATA_DIR, else cache/data")
    resident_gb: float = setting(8.0, "images are kept in memory up to", (0, 1_000_000), unit="GB")


@_configured
class CheckpointConfig:
    min_interval_s: float = setting(60.0, "least time between two checkpoints; 0 = every step", (0, 86400), unit="s")


@dataclass
class _Single:
    protocol: Protocol = setting("fair", "published = as the study ran; with its grid files")
    select_by: SelectBy = setting("accuracy", "the score on val by which every choice is made")
    model: str | None = setting(None, "a network, or several joined by +, as resnet18+vgg16")
    seed: int = setting(0, "of everything drawn at random", _SEED)
    run: str | None = setting(None, "with phase=evaluate: a finished run's id")
    again: str | None = setting(None, "a run's id or folder: that run, from its spec.json")
    grid_name: str | None = setting(None, "the name results go by, where not the grid file's own")
    replace: bool = setting(False, "rows with results may go; the former grid keeps a dated name")
    needs: Literal["run", "check"] = setting("run", "runs that this one needs: run or check them")
    class_weights: Literal["none", "balanced"] = setting("none", "balanced = rare classes weigh more in training")
    weights: str | None = setting(None, "a tag, random or a file; null = the usual tag")
    weights_seed: int = setting(0, "of weights=random", _SEED)
    weights_dir: str | None = setting(None, "folder of downloaded weights; null = cache/weights")
    weights_files: dict[str, str] = setting({}, "a file for one network: weights_files.resnet18=FILE")
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "auto = the GPU where there is one")
    keep_weights: Literal["final", "none"] = setting("final", "whether trained weights are kept")
    profile: bool = setting(False, "with phase=evaluate: measure latency, throughput and memory, too")
    dry_run: bool = setting(False, "show the plan; start and write nothing")
    wait: bool | None = setting(None, "wait for the table; null = not on SLURM")
    emit: str | None = setting(None, "folder: write SLURM job scripts, send nothing")


_GROUPS: dict[str, Any] = {
    "grid": GridConfig,
    "dataset": DatasetConfig,
    "phase": _schema_of("PhaseConfig", _Phase, groups=_PHASES),
    "cluster": ClusterConfig,
    "tracking": TrackingConfig,
    "store": StoreConfig,
    "cache": CacheConfig,
    "data": DataConfig,
    "checkpoint": CheckpointConfig,
    "notify": NotifyConfig,
    "report": ReportConfig,
}
Config: Any = _schema_of("Config", _Single, groups=_GROUPS)
KEYS = keys_of(Config)
# Keys whose value is the name of a file in conf/<key>/.
GROUPS = {
    "grid": Key("grid", str | None, None, About(doc="a grid file; `list grids` shows them")),
    "dataset": Key("dataset", str, "digits", About(doc="a data set; `list datasets` shows them")),
    "phase": Key("phase", str, "probe", About(doc="probe, finetune, scratch, evaluate or extract")),
    "cluster": Key("cluster", str, "auto", About(doc="SLURM where it answers, else here; or local, slurm, yours")),
    "tracking": Key("tracking", str, "auto", About(doc="Weights & Biases: auto, online, offline or disabled")),
}
