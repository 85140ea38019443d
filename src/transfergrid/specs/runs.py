"""One run, as a grid names it, and where it is carried out."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from transfergrid.specs.declared import later
from transfergrid.specs.identity import digest, safe_name
from transfergrid.specs.inputs import BackboneSpec, DatasetSpec, FeatureKey, Precision, Split
from transfergrid.specs.settings import (
    SETTINGS_OF_PHASE,
    ExtractSettings,
    Phase,
    ProbeSettings,
    Settings,
    TrainSettings,
)

Protocol = Literal["fair", "published"]
# Of probes and fine-tunings, for what no field names. 2: the gate's rows are up to 256, val first, then training rows.
RULES_VERSION = 2


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
    settings: Settings = field(metadata={"by_phase": SETTINGS_OF_PHASE})
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
    def precision(self) -> Precision:
        """The arithmetic of its own figures; a probe's is that of its features."""
        on_features = isinstance(self.settings, ProbeSettings) and self.settings.source == "features"
        return self.extract.precision if on_features and self.extract is not None else self.settings.precision

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


@lru_cache(maxsize=65536)
def _run_id(spec: RunSpec) -> str:
    return f"{spec.slug}-{digest(spec, 12)}"


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

    data_folders: dataset name -> its folder, for image folders. data_tables: its table, for those that have one.
    weights_files: weights identity -> file.
    report_figures: whether the report that ends a launch has figures; None = SLURM's finish job makes them, a launch
    at whose end somebody waits does not. report_within: percentage points that a cheaper row may be worse.
    max_megapixels: a larger picture of a folder is refused before it is decoded.
    wandb_images: whether W&B gets pictures and names of files, too.
    profile: whether an evaluation also measures what using its network costs: on the machine that plans it, or in a job
    on whatever node that lands, once.
    """

    store_dir: str
    cache_dir: str
    data_dir: str
    weights_dir: str
    data_folders: dict[str, str] = field(default_factory=dict)
    data_tables: dict[str, str] = field(default_factory=dict)
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
    profile: Literal["no", "here", "in a job"] = later("no")
