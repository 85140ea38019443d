"""The nouns of a grid, frozen, and their identities.

A field stands in RunSpec if and only if it changes the numbers beyond rounding; where and how a run is carried out
(device, workers, folders, partition, W&B mode) stands in Runtime. So an identity is a hash over *all* fields, never
over a difference from some default, and there is no list of fields to leave out. The one exception keeps
old names true: a field that a later release added (`later`) is left out of the hash, and of stored files, at the value
that stands for what the release before did. So older records are read as what they were, and feature files of equal
bytes keep their key.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from copy import copy
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import lru_cache, partial
from types import MappingProxyType, UnionType
from typing import Any, Literal, TypeAlias, TypeVar, Union, cast, get_args, get_origin, get_type_hints

Phase = Literal["extract", "probe", "finetune", "scratch", "evaluate"]
PHASES: tuple[Phase, ...] = ("extract", "probe", "finetune", "scratch", "evaluate")
Protocol = Literal["fair", "published"]
Split = Literal["train", "val", "test"]
SelectBy = Literal["accuracy", "balanced_accuracy", "macro_f1"]

RANDOM_RULE_VERSION = 1  # of weights=random: constructor under a seed, then BatchNorm statistics from seeded noise
FEATURE_FORMAT_VERSION = 1  # of the HDF5 layout and of everything else a FeatureKey does not name
VAL_FRACTION = 0.1
UNCHOSEN_C = 1.0  # of a solved head, where nothing is held out to choose on
# Of probes and fine-tunings, for what no field names. 2: the gate's rows are up to 256, val first, then training rows.
RULES_VERSION = 2
ABOVE_ZERO = 5e-324  # the smallest positive float, as a lowest value
ANY_NUMBER = (-math.inf, math.inf)
T = TypeVar("T")
Metadata: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a setting means and may be: command line, help and checks follow from it (config/keys.py).

    doc: one line. usual: the value where nobody sets it; `...` = the field's own default, or one of its phase.
    span: lowest and highest value of a number, or of each in a list. also: values outside it that mean something.
    choices: those that a type, a Literal, does not list. unit: of a number. filled: a list that must hold something.
    key: on the command line, where the field has another name. not_set: how else it is chosen, of what cannot be set;
    empty where it can.
    """

    doc: str
    usual: Any = ...
    span: tuple[float, float] = ANY_NUMBER
    also: tuple[float, ...] = ()
    choices: tuple[str, ...] = ()
    unit: str = ""
    filled: bool = False
    key: str = ""
    not_set: str = ""


def about(doc: str, usual: Any = ..., span: tuple[float, float] = ANY_NUMBER, **more: Any) -> Metadata:
    """The metadata of a field that is a setting."""
    return {"about": About(doc=doc, usual=usual, span=span, **more)}


def setting(default: T, doc: str, span: tuple[float, float] = ANY_NUMBER, **more: Any) -> T:
    """A field that is a setting, and has a default."""
    metadata = about(doc, span=span, **more)
    fresh = isinstance(default, (list, dict))
    value: T = (
        field(default_factory=partial(copy, default), metadata=metadata)
        if fresh
        else field(default=default, metadata=metadata)
    )
    return value


def later(former: T, metadata: Metadata = MappingProxyType({})) -> T:
    """A field that the first release did not have; `former` is the value that stands for what that release did."""
    value: T = field(default=former, metadata={"later": True, **metadata})
    return value


# ---------------------------------------------------------------------------------------------------- what is used
@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsSpec:
    """What a backbone starts from.

    label: what tables show (`IMAGENET1K_V1`, `random`, `file-<12 hex of its sha256>`, `builtin`).
    identity: what makes it what it is: `tag:<file name with torchvision's own hash>`, `random:v<rule>:<seed>`,
    `file:<sha256>`, `builtin:<sha256>`. Where the bytes lie is the Runtime's business.
    """

    label: str
    identity: str

    @property
    def kind(self) -> str:
        """`tag`, `random`, `file` or `builtin`"""
        return self.identity.partition(":")[0]

    @property
    def is_file(self) -> bool:
        """Whether they are a file of the user's."""
        return self.kind == "file"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessSpec:
    """uint8 RGB image of any size -> normalised float32 (3, crop_px, crop_px).

    mode `direct`: resize to crop_px x crop_px whatever the aspect ratio; `recipe`: resize the shorter edge to
    resize_px, then centre-crop crop_px (the weights' own published transform). Interpolation on uint8 with antialias,
    bit-equal to PIL on the CPU; grey images are repeated to three channels. mean and std are in units of [0, 1].
    normalise `image`: each image by its own mean and standard deviation per channel, and `mean` and `std` go unused.
    small `whole`: a `recipe` in which an edge shorter than crop_px becomes crop_px instead of resize_px.
    """

    mode: Literal["direct", "recipe"]
    resize_px: int
    crop_px: int
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    antialias: bool = True
    channels: Literal["rgb"] = "rgb"
    normalise: Literal["constants", "image"] = "constants"
    small: Literal["recipe", "whole"] = later("recipe")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneSpec:
    """A feature extractor f(x) -> (N, D): name in the catalog, where it is tapped, its weights, what it is fed."""

    name: str
    tap: str
    weights: WeightsSpec
    preprocess: PreprocessSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSpec:
    """name: as paths and tables show it. kind: the module in `data/`. fingerprint: published checksums or content hash.

    max_images: at most so many per split, class shares kept; None = all.
    value_range: the stored values that become 0 and 255, for pictures deeper than 8 bits; None = 8 bits as stored.
    orientation: whether pictures are turned as their EXIF data say, or left as their pixels lie.
    left_out: how many files of a folder `dataset.skip_damaged` leaves out.
    """

    name: str
    kind: str
    fingerprint: str
    num_classes: int
    max_images: int | None = None
    value_range: tuple[float, float] | None = later(None)
    orientation: Literal["stored", "exif"] = later("stored")
    left_out: int = later(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureKey:
    """Identity of one cached feature file: one backbone over one split. Any change is a miss, never a warning."""

    backbone: BackboneSpec
    dataset: DatasetSpec
    split: Split
    bn_statistics: Literal["imagenet", "target"]
    precision: Literal["fp32", "tf32", "bf16"]
    storage: Literal["float16", "float32"]
    version: int = FEATURE_FORMAT_VERSION

    @property
    def digest(self) -> str:
        """16 hex digits of sha256 over all fields."""
        return digest(self, 16)


# --------------------------------------------------------------------------------------------------- how it is run
@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractSettings:
    """How images become cached features."""

    bn_statistics: Literal["imagenet", "target"] = setting(
        "imagenet", "target = BatchNorm re-estimated over the unlabelled training images, then fixed"
    )
    precision: Literal["fp32", "tf32", "bf16"] = setting("fp32", "arithmetic of the forward pass")
    storage: Literal["float16", "float32"] = setting("float16", "type of the stored features")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """What every trained phase has.

    augment_at `native`: pixels of augmentation are those of the image's own size where that is smaller than the
    network's input, else, and always with `input`, those of the input.
    class_weights `balanced`: counted over the n images trained on and the classes they hold, as scikit-learn does; the
    mean over a batch divides by its images.
    """

    epochs: int = field(metadata=about("passes over the training images", span=(1, 100_000)))
    batch_size: int = field(metadata=about("images per optimizer step", span=(1, 1_000_000)))
    drop_last: bool = field(metadata=about("leave out the last batch of an epoch where it is smaller", True))
    sampling: Literal["shuffle", "replacement"] = field(
        metadata=about("replacement = rows are drawn independently: some twice, some not at all", "shuffle")
    )
    steps_per_epoch: int | None = field(metadata=about("null = as many as the images fill", None, (1, 100_000_000)))
    micro_batch: int | None = field(
        metadata=about("images per forward pass within a step: BatchNorm sees only those", None, (1, 1_000_000))
    )
    clip_norm: float | None = field(
        metadata=about("gradients are scaled down to this Euclidean norm, over all parameters", None, (ABOVE_ZERO, 1e6))
    )
    precision: Literal["fp32", "tf32", "bf16"] = field(metadata=about("arithmetic of training", "bf16"))
    optimizer: Literal["sgd", "adam", "adamw"] = field(metadata=about("the optimizer", "sgd"))
    momentum: float = field(metadata=about("of sgd", 0.9, (0, 0.9999)))
    nesterov: bool = field(metadata=about("Nesterov momentum, of sgd", True))
    decay_norm_and_bias: bool = field(metadata=about("weight decay also on BatchNorm and biases", False))
    lookahead: bool = field(metadata=about("wrap the optimizer in Lookahead", False))
    lookahead_k: int = field(metadata=about("steps between two updates of Lookahead's slow weights", 5, (1, 1_000)))
    lookahead_alpha: float = field(metadata=about("share that the slow weights move", 0.5, (0, 1)))
    schedule: Literal["constant", "step", "linear", "cosine", "onecycle"] = field(
        metadata=about("how the learning rate moves")
    )
    lr_update: Literal["step", "epoch"] = field(
        metadata=about("whether the schedule moves at every step or once per epoch", "step")
    )
    cosine_epochs: int | None = field(
        metadata=about("length of the cosine's fall; null = the whole run; the rate rises after it", None, (1, 100_000))
    )
    warmup_fraction: float = field(
        metadata=about("share of the run in which the rate rises to its value", 0.0, (0, 0.9))
    )
    step_epochs: tuple[int, ...] = field(
        metadata=about("epochs after which schedule=step multiplies the rate", (), (1, 100_000))
    )
    step_gamma: float = field(metadata=about("the factor of schedule=step", 0.1, (ABOVE_ZERO, 1)))
    final_lr_fraction: float = field(metadata=about("where the schedule ends, as a share of the rate", 0.0, (0, 1)))
    label_smoothing: float = field(metadata=about("share of the target spread over all classes", 0.0, (0, 0.99)))
    ema_decay: float | None = field(
        metadata=about("evaluate a moving average of the weights with this decay", None, (0, 0.999999))
    )
    flip: bool = field(metadata=about("mirror images at random, left to right", False))
    alternate_flip: bool = field(
        metadata=about("mirror every image in every second epoch, instead of at random", False)
    )
    shift_px: int = field(metadata=about("random shift, up to this far", 0, (0, 512), unit="px"))
    perspective: float = field(metadata=about("corners move inwards by up to this share of half a side", 0.0, (0, 1)))
    perspective_share: float = field(metadata=about("share of the images that perspective changes", 0.5, (0, 1)))
    rotation_deg: float = field(metadata=about("random rotation, up to this far", 0.0, (0, 180), unit="degrees"))
    rotation_expand: bool = field(metadata=about("show the turned image whole, made smaller for it", False))
    rotation_fill: int = field(metadata=about("grey level of what a rotation leaves empty", 0, (0, 255)))
    cutout_px: int = field(metadata=about("side of a random square set to grey", 0, (0, 512), unit="px"))
    augment_at: Literal["native", "input"] = field(
        metadata=about("pixels of augmentation: the image's own where smaller, or the network's input", "native")
    )
    test_bn: Literal["running", "batch"] = field(
        metadata=about("batch = test with the batch's statistics, as code without eval() does", "running")
    )
    selection: Literal["last", "best_on_test"] = field(
        metadata=about("which epoch counts; best_on_test only under protocol=published", "last")
    )
    class_weights: Literal["none", "balanced"] = later("none", about("balanced = n / (classes x images of its class)"))

    @property
    def takes_steps(self) -> bool:
        """Whether an optimizer steps over batches."""
        return True

    def count_steps(self, num_rows: int) -> int:
        """Optimizer steps per epoch: the last, smaller batch counts unless drop_last; fewer images than a batch are
        one. steps_per_epoch ends an epoch sooner; only rows drawn with replacement can fill more steps than there are.
        """
        batch_size = min(self.batch_size, num_rows)
        full = num_rows // batch_size if self.drop_last else math.ceil(num_rows / batch_size)
        if self.steps_per_epoch is None:
            return full
        return self.steps_per_epoch if self.sampling == "replacement" else min(full, self.steps_per_epoch)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSettings(TrainSettings):
    """The head alone, on frozen features.

    solver `lbfgs`: its optimum at one strength C of the penalty, chosen on val from `cs`, which no seed changes. `sgd`:
    trained by the settings above, with one (learning rate, weight decay) of `lrs` x `weight_decays` chosen on val.
    """

    # Of solver=sgd. Measured on val, 5 epochs: 0.03 leads on digits (both tiny backbones), on MNIST (tinynet_mnist) and
    # on CIFAR-10 (tinynet_cifar); 0.1 on MNIST with tinynet_cifar; 1 on CIFAR-10 with tinynet_mnist, so 3 ends the
    # search. A decay of 1e-2 moved a few val images, so there is none to choose.
    lrs: tuple[float, ...] = field(
        metadata=about(
            "learning rates of solver=sgd to choose from on val",
            (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0),
            (ABOVE_ZERO, 100),
            filled=True,
        )
    )
    weight_decays: tuple[float, ...] = field(
        metadata=about("weight decays of solver=sgd to choose from on val", (0.0,), (0, 10), filled=True)
    )
    source: Literal["features", "images"] = field(
        metadata=about("images = forward pass and augmentation at every step, with solver=sgd", "features")
    )
    bn: Literal["train", "eval"] = field(metadata=about("BatchNorm's mode, with source=images", "eval"))
    aux_loss_weight: float = field(
        metadata=about("weight of the auxiliary heads' loss (GoogLeNet, Inception)", 0.0, (0, 10))
    )
    lbfgs: bool = field(metadata=about("report the optimum beside a head that solver=sgd trained", True))
    select_by: SelectBy = later("accuracy", about("the score on val that chooses; null = as select_by= says", None))
    solver: Literal["lbfgs", "sgd"] = later(
        "sgd", about("lbfgs = the head's optimum, without epochs or seeds; sgd = trained", "lbfgs")
    )
    cs: tuple[float, ...] = later(
        (1.0,),
        about(
            "strengths C of solver=lbfgs to choose from on val; penalty 1 / (2 C n)",
            (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0),
            (1e-9, 1e9),
            filled=True,
        ),
    )

    @property
    def takes_steps(self) -> bool:
        """A head that is solved for takes none."""
        return self.solver == "sgd"


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneSettings(TrainSettings):
    """All layers. Learning rates fall geometrically from `lr` (last trunk group) to `stem_lr`; the head has its own.

    head `refitted`: the probe's, which the gate compares, then its optimum on features that BatchNorm made with the
    statistics of batches, as training will. l2_sp: Li et al. 2018, arXiv 1802.01483.
    """

    lr: float = field(metadata=about("learning rate of the last group of the trunk", 1e-2, (ABOVE_ZERO, 100)))
    head_lr: float = field(metadata=about("learning rate of the head", 2e-2, (ABOVE_ZERO, 100)))
    stem_lr: float = field(metadata=about("learning rate of the first group of the trunk", 1e-3, (ABOVE_ZERO, 100)))
    weight_decay: float = field(metadata=about("weight decay", 5e-4, (0, 10)))
    # Measured (docs/results; three networks, three data sets): with the probe's head as it is the first step's loss is
    # 11 instead of 2 on average, val in the end 79 % instead of 81 %.
    head: Literal["refitted", "probe", "random"] = field(
        metadata=about("what the head starts from; refitted = the probe's, solved anew for batches", "refitted")
    )
    bn: Literal["train", "eval"] = field(metadata=about("BatchNorm's mode while training", "train"))
    frozen_groups: tuple[str, ...] = field(
        metadata=about("groups of the trunk that stay as they are, as [stem,stage1]", ())
    )
    aux_loss_weight: float = field(
        metadata=about("weight of the auxiliary heads' loss (GoogLeNet, Inception)", 0.0, (0, 10))
    )
    l2_sp: float = field(
        metadata=about("pull of the trunk back to its start, in place of its weight decay", 0.0, (0, 100))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScratchSettings(TrainSettings):
    """Everything from the constructor's weights.

    image_size_px: of the input, the images' own unless asked for. normalise, mean, std: as in PreprocessSpec.
    """

    lr: float = field(
        metadata=about("learning rate; null = 0.1 at batch 128, scaled with the batch", None, (ABOVE_ZERO, 100))
    )
    weight_decay: float = field(metadata=about("weight decay", 5e-4, (0, 10)))
    image_size_px: int
    normalise: Literal["constants", "image"] = field(
        metadata=about("by mean and std, or each image by its own", "constants")
    )
    mean: tuple[float, float, float] = field(
        metadata=about("subtracted, per channel in [0, 1]", (0.5, 0.5, 0.5), (-10, 10))
    )
    std: tuple[float, float, float] = field(
        metadata=about("divided by, per channel in [0, 1]", (0.5, 0.5, 0.5), (ABOVE_ZERO, 10))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSettings:
    """source: a finished run (`run:<run_id>`), a checkpoint file (`file:<sha256>`) or the backbone's `own_head`.

    preprocess: the input of an architecture's checkpoint; None where a run or a backbone's weights tell.
    """

    source: str
    split: Split = field(metadata=about("which split is scored", "test"))
    precision: Literal["fp32", "tf32", "bf16"] = field(metadata=about("arithmetic of the forward pass", "fp32"))
    preprocess: PreprocessSpec | None


Settings = ExtractSettings | ProbeSettings | FinetuneSettings | ScratchSettings | EvaluateSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """One configuration, without the names (grid, variant) that a grid gives it.

    backbones: in the order written in `model`; empty for an architecture. extract: how the backbones' features are
    made; None where no backbone is used. needs: run_ids of the runs it is made from, other than extractions (whose
    identity its own fields hold). seed, val_seed and protocol are None for `extract`, which has none of them; seed also
    for an evaluation, and for a solved probe on all images: they draw nothing.
    train_fraction, shots: train on this share of the training images, or on so many of each class, chosen by the seed;
    None = on all. Features are those of all images, so every share reads the same files.
    rules: RULES_VERSION of the release that planned it, for probes and fine-tunings.
    """

    phase: Phase
    model: str
    backbones: tuple[BackboneSpec, ...]
    dataset: DatasetSpec
    extract: ExtractSettings | None
    settings: Settings
    protocol: Protocol | None
    seed: int | None
    val_seed: int | None
    train_fraction: float | None = None
    shots: int | None = None
    needs: tuple[str, ...] = ()
    rules: int = later(1)

    @property
    def weights_label(self) -> str:
        """What the table's `weights` column shows: the labels, joined by `+` where they differ."""
        return "+".join(dict.fromkeys(b.weights.label for b in self.backbones))

    @property
    def epochs(self) -> int | None:
        """What progress is counted in, where it can be told; of a solved probe the strengths of its penalty."""
        if isinstance(self.settings, ProbeSettings) and self.is_solved:
            return len(self.settings.cs)
        return self.settings.epochs if isinstance(self.settings, TrainSettings) else None

    @property
    def is_solved(self) -> bool:
        """Whether its lines are strengths of a penalty, not epochs of a training."""
        return isinstance(self.settings, ProbeSettings) and self.settings.solver == "lbfgs"

    @property
    def slug(self) -> str:
        """dataset-model-phase-s<seed>, from [a-z0-9._+-], at most 67 characters; the model's part is cut first."""
        tail = f"-{self.phase}" + ("" if self.seed is None else f"-s{self.seed}")
        dataset = safe_name(self.dataset.name)[:24]
        room = 67 - len(dataset) - len(tail) - 1
        return f"{dataset}-{safe_name(self.model)[:room].rstrip('-.+')}{tail}"

    @property
    def run_id(self) -> str:
        """slug + `-` + 12 hex of sha256 over all fields: at most 80 characters, safe as a path and a W&B id."""
        return _run_id(self)

    def feature_key(self, backbone: BackboneSpec, split: Split) -> FeatureKey:
        """The cached features of one of this run's backbones over one split."""
        assert self.extract is not None
        return FeatureKey(
            backbone=backbone,
            dataset=self.dataset,
            split=split,
            bn_statistics=self.extract.bn_statistics,
            precision=self.extract.precision,
            storage=self.extract.storage,
        )

    @property
    def extractions(self) -> tuple[RunSpec, ...]:
        """The extract runs whose features this run reads: one per backbone, in the model's order."""
        reads = isinstance(self.settings, ProbeSettings) and self.settings.source == "features"
        if not reads or self.extract is None:
            return ()
        return tuple(extraction(b, self.dataset, self.extract) for b in self.backbones)


@lru_cache(maxsize=4096)
def extraction(backbone: BackboneSpec, dataset: DatasetSpec, settings: ExtractSettings) -> RunSpec:
    """The extract run of one backbone over all splits of a dataset; without variant, seed or protocol."""
    return RunSpec(
        phase="extract",
        model=backbone.name,
        backbones=(backbone,),
        dataset=dataset,
        extract=settings,
        settings=settings,
        protocol=None,
        seed=None,
        val_seed=None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """A run as a grid names it: the same RunSpec may stand in several grids, or under several variant names."""

    grid: str
    variant: str
    run: RunSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """Where and how runs are carried out: nothing in here changes their numbers beyond rounding.

    data_folders: dataset name -> its folder, for image folders. weights_files: weights identity -> file.
    report_figures: whether the report that ends a launch has figures; None = SLURM's finish job makes them, a launch
    at whose end somebody waits does not. report_within: percentage points that a cheaper row may be worse.
    max_megapixels: a larger picture of a folder is refused before it is decoded.
    wandb_images: whether W&B gets pictures and names of files, too.
    """

    store_dir: str
    cache_dir: str
    data_dir: str
    weights_dir: str
    data_folders: dict[str, str] = field(default_factory=dict)
    weights_files: dict[str, str] = field(default_factory=dict)
    cache_also_read: tuple[str, ...] = ()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_threads: int = 0
    tracking: Literal["auto", "online", "offline", "disabled"] = "auto"
    wandb_project: str = "transfergrid"
    wandb_entity: str | None = None
    wandb_images: bool = False
    grid: str = "adhoc"
    checkpoint_min_interval_s: float = 60.0
    keep_weights: Literal["final", "none"] = "final"
    resident_gb: float = 8.0
    report_figures: bool | None = None
    report_within: float = 1.0
    max_megapixels: float = 180.0


# -------------------------------------------------------------------------------------------------------- identities
def safe_name(text: str) -> str:
    """Lower case, anything outside [a-z0-9._+-] becomes `-`, no leading dot or dash: safe in paths, jobs and shells."""
    return re.sub(r"[^a-z0-9._+-]", "-", text.lower()).lstrip(".-") or "x"


def seed_for(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part: how order, augmentation and dropout are keyed by (seed, epoch, ...)."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def canonical_json(value: Any) -> str:
    """One spelling per value: sorted keys, no spaces, tuples as lists, dataclasses as objects; NaN is refused."""
    return json.dumps(to_dict(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any, length: int) -> str:
    """The first `length` hex digits of sha256 over canonical_json(value)."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()[:length]


def _canonical(value: Any) -> str:
    """canonical_json, with the parts that many runs share (backbones, data sets, settings) spelled only once."""
    if isinstance(value, RunSpec):
        parts = {f.name: _canonical_part(getattr(value, f.name)) for f in _stored_fields(value)}
        return "{" + ",".join(f'"{name}":{parts[name]}' for name in sorted(parts)) + "}"
    return canonical_json(value)


@lru_cache(maxsize=65536)
def _canonical_part(value: Any) -> str:
    return canonical_json(value)


@lru_cache(maxsize=65536)
def _run_id(spec: RunSpec) -> str:
    return f"{spec.slug}-{digest(spec, 12)}"


def to_dict(value: Any) -> Any:
    """Dataclasses, tuples and dicts as plain JSON values."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_dict(getattr(value, f.name)) for f in _stored_fields(value)}
    if isinstance(value, (list, tuple)):
        return [to_dict(v) for v in value]
    if isinstance(value, dict):
        return {str(k): to_dict(v) for k, v in value.items()}
    return value


def _stored_fields(value: Any) -> list[Field[Any]]:
    """All fields, without those of a later release that say what the release before did."""
    return [f for f in fields(value) if not ("later" in f.metadata and getattr(value, f.name) == f.default)]


_SETTINGS_OF_PHASE: dict[str, type[Any]] = {
    "extract": ExtractSettings,
    "probe": ProbeSettings,
    "finetune": FinetuneSettings,
    "scratch": ScratchSettings,
    "evaluate": EvaluateSettings,
}


def from_dict(kind: type[T], data: dict[str, Any]) -> T:
    """The inverse of to_dict for the dataclasses of this module. Raises ValueError on unknown or missing fields."""
    hints = _hints(cast(Any, kind))
    unknown = set(data) - set(hints)
    if unknown:
        raise ValueError(f"{kind.__name__}: unknown field {sorted(unknown)[0]!r}")
    values: dict[str, Any] = {}
    for f in fields(cast(Any, kind)):
        if f.name not in data:
            if f.default is MISSING and f.default_factory is MISSING:
                raise ValueError(f"{kind.__name__}: field {f.name!r} is missing")
            continue
        hint = _SETTINGS_OF_PHASE[data["phase"]] if kind is RunSpec and f.name == "settings" else hints[f.name]
        values[f.name] = _decode(hint, data[f.name])
    return kind(**values)


@lru_cache(maxsize=64)
def _hints(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def _decode(hint: Any, value: Any) -> Any:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        if value is None:
            return None
        return _decode(next(a for a in get_args(hint) if a is not type(None)), value)
    if origin is tuple:
        return tuple(_decode(get_args(hint)[0], v) for v in value)
    if is_dataclass(hint) and isinstance(hint, type):
        return from_dict(hint, value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value
