"""What can be configured, with every default: mutable dataclasses, because Hydra cannot merge a group into frozen ones.

The settings of the phases are not spelled again: their fields come from specs.py, their defaults from the tables here.
A default is changed only for a measured reason, written beside it.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from functools import partial
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from transfergrid.specs import ExtractSettings, FinetuneSettings, ProbeSettings, ScratchSettings

_COMMON: dict[str, Any] = {
    "drop_last": True,
    "sampling": "shuffle",
    "steps_per_epoch": None,
    "micro_batch": None,
    "clip_norm": None,
    "precision": "bf16",
    "optimizer": "sgd",
    "momentum": 0.9,
    "nesterov": True,
    "decay_norm_and_bias": False,
    "lookahead": False,
    "lookahead_k": 5,
    "lookahead_alpha": 0.5,
    "lr_update": "step",
    "cosine_epochs": None,
    "warmup_fraction": 0.0,
    "step_epochs": (),
    "step_gamma": 0.1,
    "final_lr_fraction": 0.0,
    "label_smoothing": 0.0,
    "ema_decay": None,
    "flip": False,
    "alternate_flip": False,
    "shift_px": 0,
    "perspective": 0.0,
    "perspective_share": 0.5,
    "rotation_deg": 0.0,
    "rotation_expand": False,
    "rotation_fill": 0,
    "cutout_px": 0,
    "augment_at": "native",
    "test_bn": "running",
    "selection": "last",
}
PROBE_DEFAULTS: dict[str, Any] = _COMMON | {
    "epochs": 5,
    "batch_size": 256,
    "drop_last": False,  # there is no BatchNorm that a short last batch could disturb
    "precision": "fp32",  # of the head; the features have phase.extract.precision
    "optimizer": "adamw",
    # Of solver=sgd. Measured on val, 5 epochs: 0.03 leads on digits (both tiny backbones), on MNIST (tinynet_mnist) and
    # on CIFAR-10 (tinynet_cifar); 0.1 on MNIST with tinynet_cifar; 1 on CIFAR-10 with tinynet_mnist, so 3 ends the
    # search. A decay of 1e-2 moved a few val images, so there is none to choose.
    "lrs": (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0),
    "weight_decays": (0.0,),
    "schedule": "cosine",
    "source": "features",
    "bn": "eval",
    "aux_loss_weight": 0.0,
    "lbfgs": True,
    "select_by": None,  # as the whole grid: select_by=
    "solver": "lbfgs",
    "cs": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0),
}
FINETUNE_DEFAULTS: dict[str, Any] = _COMMON | {
    "epochs": 10,
    "batch_size": 128,
    "lr": 1e-2,
    "head_lr": 2e-2,
    "stem_lr": 1e-3,
    "weight_decay": 5e-4,
    "schedule": "onecycle",
    "warmup_fraction": 0.2,
    # A net under a fall, not a regulariser. Measured without it: VGG16 with random weights at 64 px (MNIST, 1,080
    # images) has a loss of NaN at step 3, because the folded head multiplies tiny features by large weights; with 5 it
    # runs. At 1 it costs: tinynet_cifar on digits, val 91.7 % against 93.8 % (two seeds).
    "clip_norm": 5.0,
    "label_smoothing": 0.1,
    "flip": None,  # by the data set: not for digits
    "shift_px": 4,
    # Measured (docs/results; three networks, three data sets): with the probe's head as it is the first step's loss is
    # 11 instead of 2 on average, val in the end 79 % instead of 81 %.
    "head": "refitted",
    "bn": "train",
    "frozen_groups": (),
    "aux_loss_weight": 0.0,
    "l2_sp": 0.0,
}
SCRATCH_DEFAULTS: dict[str, Any] = _COMMON | {
    "epochs": 30,
    "batch_size": 128,
    "lr": None,  # 0.1 at batch 128, scaled with the batch
    "weight_decay": 5e-4,
    "schedule": "cosine",
    "warmup_fraction": 0.05,
    "label_smoothing": 0.1,
    "flip": None,
    "shift_px": 4,
    "cutout_px": 8,
    "normalise": "constants",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
}
# Of the data set where nobody sets them: what stands above is for data that fill enough steps, see batches.py.
_BY_SIZE = ("epochs", "batch_size")
FROM_ABOVE = {"class_weights": "${class_weights}"}  # one key for all phases, which a phase's own overrides
NO_KEY = {"is_key": False}  # of fields that stand in the configuration and that nobody sets
_NOT_CONFIGURED = {"image_size_px"}  # of the scratch settings: it comes from dataset.image_size_px


def _plain(hint: Any) -> Any:
    """A spec's type as OmegaConf knows it: Literal -> str, tuple -> list, X | None -> Optional."""
    origin = get_origin(hint)
    if origin is Literal:
        return str
    if origin is tuple:
        return list[_plain(get_args(hint)[0])]  # type: ignore[misc]
    if origin in (Union, UnionType):
        return _plain(next(a for a in get_args(hint) if a is not type(None))) | None
    return hint


def _schema_of(
    name: str, spec: type[Any], defaults: dict[str, Any], optional: frozenset[str] = frozenset()
) -> type[Any]:
    """A mutable dataclass with the spec's fields and these defaults; `optional` fields may be left to the data set."""
    hints = get_type_hints(spec)
    members: list[Any] = []
    for f in fields(spec):
        if f.name in _NOT_CONFIGURED:
            continue
        usual = defaults[f.name] if f.default is MISSING else defaults.get(f.name, f.default)
        default: Any = None if f.name in _BY_SIZE else FROM_ABOVE.get(f.name, usual)
        hint = _plain(hints[f.name]) | None if f.name in optional else _plain(hints[f.name])
        value = field(default_factory=partial(list, default)) if isinstance(default, tuple) else field(default=default)
        members.append((f.name, hint, value))
    return make_dataclass(name, members)


_BY_DATASET = frozenset({"flip", *_BY_SIZE})
ExtractConfig = _schema_of("ExtractConfig", ExtractSettings, {})
ProbeConfig = _schema_of("ProbeConfig", ProbeSettings, PROBE_DEFAULTS, frozenset({"select_by", *_BY_SIZE}))
FinetuneConfig = _schema_of("FinetuneConfig", FinetuneSettings, FINETUNE_DEFAULTS, _BY_DATASET)
ScratchConfig = _schema_of("ScratchConfig", ScratchSettings, SCRATCH_DEFAULTS, _BY_DATASET | {"lr"})


@dataclass
class EvaluateConfig:
    """checkpoint: a state-dict file of the model, head included; without it and without run=, the published head."""

    split: str = "test"
    checkpoint: str | None = None
    precision: str = "fp32"


@dataclass
class PhaseConfig:
    name: str = ""
    extract: Any = field(default_factory=ExtractConfig)
    probe: Any = field(default_factory=ProbeConfig)
    finetune: Any = field(default_factory=FinetuneConfig)
    scratch: Any = field(default_factory=ScratchConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


@dataclass
class DatasetConfig:
    """name: as paths and tables show it; for an image folder the folder's own name unless given.

    train_fraction, shots: train on a share of the training images, or on so many of each class (give one of the two).
    value_range: the stored values that become 0 and 255 in a folder's pictures deeper than 8 bits; null = the least and
    the largest of train. orientation: exif | stored. small_pictures: whole | recipe, of those smaller than the input.
    classes: folders | imagenet, whose folders are named by wnids or 0 to 999.
    max_megapixels: a larger picture of a folder is refused before it is decoded.
    skip_damaged: leave out the pictures of a folder that cannot be used, which else end the launch.
    """

    name: str | None = None
    kind: str = ""
    folder: str | None = None
    max_images: int | None = None
    image_size_px: int | None = None
    val_seed: int = 0
    train_fraction: float | None = None
    shots: int | None = None
    value_range: list[float] | None = None
    orientation: str = "exif"
    small_pictures: str = "whole"
    classes: str = "folders"
    max_megapixels: float = 180.0
    skip_damaged: bool = False


@dataclass
class GridConfig:
    """study: the published study whose settings the grid holds, or null. variants, rules: docs/adding.md.

    only_variants: the settings of the file alone are no row, each row is one of the variants.
    """

    name: str = ""
    study: str | None = None
    models: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0])
    variants: dict[str, Any] = field(default_factory=dict)
    only_variants: bool = False
    rules: list[Any] = field(default_factory=list)


@dataclass
class ClusterConfig:
    """docs/slurm.md. num_threads: CPU threads per run; 0 = the cores its process may use.

    by_phase: {phase: {key: value}} for phases that ask for other resources. sbatch: further options of sbatch.
    asked: the keys that a file or a command line set; what is none of them is a default, and yields to the cluster.
    """

    name: str = "auto"
    kind: str = "auto"
    num_threads: int = 0
    partition: str | None = None
    finish_partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus: int = 1
    gpu_type: str | None = None
    cpus: int = 4
    mem_gb: float | None = 16.0
    mem_per_cpu_gb: float | None = None
    mem_per_gpu_gb: float | None = None
    timeout_min: int | None = 240
    gpu_request: str = "auto"
    by_phase: dict[str, Any] = field(default_factory=dict)
    array_parallelism: int = 0
    runs_per_job: int = 1
    signal_delay_s: int = 120
    max_requeues: int = 50
    wckey: str | None = None
    exclude: str | None = None
    setup: list[str] = field(default_factory=list)
    python: str | None = None
    sbatch: dict[str, Any] = field(default_factory=dict)
    stage_folders: bool = False
    scratch_dir: str = "/tmp"
    poll_s: float = 10.0
    asked: list[str] = field(default_factory=list, metadata=NO_KEY)


@dataclass
class NotifyConfig:
    """command: run once by the finish job, in a shell, with what there is to say on its standard input."""

    command: str | None = None


@dataclass
class ReportConfig:
    """figures: whether the report that ends a launch has them; null = yes where SLURM's finish job makes it."""

    figures: bool | None = None


@dataclass
class TrackingConfig:
    mode: str = "auto"
    project: str = "transfergrid"
    entity: str | None = None
    images: bool = False


@dataclass
class StoreConfig:
    dir: str = "results"


@dataclass
class CacheConfig:
    dir: str = "cache"
    also_read: list[str] = field(default_factory=list)


@dataclass
class DataConfig:
    """dir: where data sets lie; null = TRANSFERGRID_DATA_DIR, else <cache>/data. resident_gb: kept in memory up to."""

    dir: str | None = None
    resident_gb: float = 8.0


@dataclass
class CheckpointConfig:
    """min_interval_s: at least so long between two checkpoints, and 50 times the last one's cost; 0 = at every step."""

    min_interval_s: float = 60.0


@dataclass
class Config:
    """select_by: the score on val by which every choice is made: of a probe's head, and between rows in the report.
    class_weights: of every phase that trains, unless phase.<name>.class_weights says otherwise."""

    grid: GridConfig = field(default_factory=GridConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    phase: PhaseConfig = field(default_factory=PhaseConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    data: DataConfig = field(default_factory=DataConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    notify: NotifyConfig = field(default_factory=NotifyConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    protocol: str = "fair"
    select_by: str = "accuracy"
    model: str | None = None
    seed: int = 0
    run: str | None = None
    grid_name: str | None = None
    replace: bool = False
    needs: str = "run"
    class_weights: str = "none"
    weights: str | None = None
    weights_seed: int = 0
    weights_dir: str | None = None
    weights_files: dict[str, str] = field(default_factory=dict)
    device: str = "auto"
    keep_weights: str = "final"
    dry_run: bool = False
    wait: bool | None = None
    emit: str | None = None
