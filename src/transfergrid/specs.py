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
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import lru_cache
from types import UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

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
T = TypeVar("T")


def later(former: T) -> T:
    """A field that the first release did not have; `former` is the value that stands for what that release did."""
    made: T = field(default=former, metadata={"later": True})
    return made


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
    def is_file(self) -> bool:
        """Whether they are a file of the user's."""
        return self.identity.startswith("file:")


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
    """bn_statistics `target`: BatchNorm re-estimated in one pass over the unlabelled training images, then fixed."""

    bn_statistics: Literal["imagenet", "target"] = "imagenet"
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    storage: Literal["float16", "float32"] = "float16"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """What every trained phase has.

    augment_at: pixels of augmentation are those of the image's own size where that is smaller than the network's input
    (`native`), else, and always with `input`, those of the input.

    sampling `replacement`: an epoch's rows are drawn independently, so some come twice and some not at all.
    steps_per_epoch: None = as many as the rows fill.
    lr_update: whether the schedule moves at every step or once per epoch. cosine_epochs: the length of the cosine's
    fall, None = the whole run; shorter than the run, the rate rises again after it, longer, it stays high.
    alternate_flip: an image is flipped in every second epoch, instead of by chance.
    perspective: corners move inwards by up to this share of half a side, for `perspective_share` of the images.
    rotation_expand: the turned image is shown whole, made smaller for it; rotation_fill: grey level of what is empty.
    micro_batch: forward passes over so many images at a time within one step, so BatchNorm sees only those.
    clip_norm: gradients are scaled down to at most this Euclidean norm, over all parameters together.
    selection: `last` epoch, or `best_on_test` (only under protocol `published`).
    test_bn: `batch` evaluates with the statistics of the batch at hand, as code that forgets `eval()` does.
    class_weights: `balanced` weighs each image's loss by n / (classes x images of its class), counted over the n images
    trained on and the classes they hold, as scikit-learn does; the mean over a batch divides by its images.
    """

    epochs: int
    batch_size: int
    drop_last: bool
    sampling: Literal["shuffle", "replacement"]
    steps_per_epoch: int | None
    micro_batch: int | None
    clip_norm: float | None
    precision: Literal["fp32", "tf32", "bf16"]
    optimizer: Literal["sgd", "adam", "adamw"]
    momentum: float
    nesterov: bool
    decay_norm_and_bias: bool
    lookahead: bool
    lookahead_k: int
    lookahead_alpha: float
    schedule: Literal["constant", "step", "linear", "cosine", "onecycle"]
    lr_update: Literal["step", "epoch"]
    cosine_epochs: int | None
    warmup_fraction: float
    step_epochs: tuple[int, ...]
    step_gamma: float
    final_lr_fraction: float
    label_smoothing: float
    ema_decay: float | None
    flip: bool
    alternate_flip: bool
    shift_px: int
    perspective: float
    perspective_share: float
    rotation_deg: float
    rotation_expand: bool
    rotation_fill: int
    cutout_px: int
    augment_at: Literal["native", "input"]
    test_bn: Literal["running", "batch"]
    selection: Literal["last", "best_on_test"]
    class_weights: Literal["none", "balanced"] = later("none")

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
    """The head alone.

    solver `lbfgs`: its optimum at one strength C of the penalty, chosen on val from `cs`, which no seed changes. `sgd`:
    trained by the settings above, with one (learning rate, weight decay) of `lrs` x `weight_decays` chosen on val.
    lbfgs: whether the optimum is reported beside a head that SGD trained.
    source `features`: on cached features; `images`: forward pass, augmentation and `bn=train` as some studies did.
    select_by: the score on val by which it is chosen.
    """

    lrs: tuple[float, ...]
    weight_decays: tuple[float, ...]
    source: Literal["features", "images"]
    bn: Literal["train", "eval"]
    aux_loss_weight: float
    lbfgs: bool
    select_by: SelectBy = later("accuracy")
    solver: Literal["lbfgs", "sgd"] = later("sgd")
    cs: tuple[float, ...] = later((1.0,))

    @property
    def takes_steps(self) -> bool:
        """A head that is solved for takes none."""
        return self.solver == "sgd"


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneSettings(TrainSettings):
    """All layers. Learning rates fall geometrically from `lr` (last trunk group) to `stem_lr`; the head has its own.

    head: the probe's; `refitted`: the probe's, which the gate compares, then its optimum on features that BatchNorm
    made with the statistics of batches, as training will; or a random one.
    l2_sp: strength of the pull of the trunk's weights back to where they started, in place of their weight decay
    (Li et al. 2018, arXiv 1802.01483); 0 = none.
    """

    lr: float
    head_lr: float
    stem_lr: float
    weight_decay: float
    head: Literal["refitted", "probe", "random"]
    bn: Literal["train", "eval"]
    frozen_groups: tuple[str, ...]
    aux_loss_weight: float
    l2_sp: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScratchSettings(TrainSettings):
    """Everything from the constructor's weights. image_size_px: of the input, the images' own unless asked for.

    normalise, mean, std: as in PreprocessSpec.
    """

    lr: float
    weight_decay: float
    image_size_px: int
    normalise: Literal["constants", "image"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSettings:
    """source: a finished run (`run:<run_id>`), a checkpoint file (`file:<sha256>`) or the backbone's `own_head`.

    preprocess: the input of an architecture's checkpoint; None where a run or a backbone's weights tell.
    """

    source: str
    split: Split
    precision: Literal["fp32", "tf32", "bf16"]
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
    at whose end somebody waits does not.
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
