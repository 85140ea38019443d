"""What runs are expected to cost: by a record of the same kind where there is one, else by FLOPs. Imports no torch.

A record of the same kind foretells within a factor of three; FLOPs give the order of magnitude. What an estimate leaves
out: downloads, decoding of large photographs, waiting for a node.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from statistics import median
from typing import TYPE_CHECKING

from transfergrid.data import DatasetFacts
from transfergrid.data.folds import RowCounts, count_rows, dataset_facts, splits_of
from transfergrid.errors import DataError
from transfergrid.networks import architectures, backbones
from transfergrid.paths import cache_paths, store_paths
from transfergrid.phases import extract, feature_dims
from transfergrid.specs import (
    EvaluateSettings,
    ExtractSettings,
    ProbeSettings,
    RunSpec,
    Runtime,
    ScratchSettings,
    Split,
    TrainSettings,
    safe_name,
)
from transfergrid.store.attempts import read_spec
from transfergrid.store.records import RunRecord, read_record

if TYPE_CHECKING:
    from transfergrid.planning.plan import PlannedRun

# Measured: `python -m transfergrid.planning.job` on one thread of an AMD EPYC that others used too. Total minus the
# phase's own time was 8.8 to 14.1 s, median 11, in 16 runs that train on or extract from images; importing torch is 4.2
# s of it, torchvision and timm are the rest. Context and kernels of a GPU come on top: assumed, not measured.
START_S = 10.0
GPU_START_S = 5.0
# A probe on features imports half of that after its clock has started: the shortest took 5.1 s by their records.
PROBE_IMPORTS_S = 5.0

# FLOP/s (2 x multiply-accumulate) that runs achieve, whole step included. CPU: per core, measured as above in float32:
# resnet18 at 224 px 73, resnet50 at 128 px 59, googlenet at 224 px 41, vgg16 at 64 px 40 forward; resnet18_5m 82 and
# baseline_cnn 59 in training at 32 px (1e9 each). In bfloat16 these two reached 157 and 77, on a CPU that has it in
# hardware; others have not, so nothing is expected of it.
CPU_FLOP_PER_S = {"fp32": 60e9, "tf32": 60e9, "bf16": 60e9}
# Assumed, not measured: 15 % of an A100's dense peak in bfloat16 (312e12), 40 % of its float32 peak without TF32
# (19.5e12), 15 % of its TF32 peak (156e12). Published ResNets train at 19 to 25 % of the first, tuned ones.
GPU_FLOP_PER_S = {"fp32": 8e12, "tf32": 23e12, "bf16": 47e12}
# Reading, resizing and augmenting one image: tinynet at 32 px spends 0.27 (forward) to 0.41 ms (training) beyond its
# FLOPs on the CPU. On a GPU images are resident; assumed.
CPU_IMAGE_S = 0.3e-3
GPU_IMAGE_S = 0.01e-3
# Some hundred kernels are launched in a step, however small the network; assumed.
GPU_STEP_S = 10e-3
# A head on cached features, measured: a step costs 0.2 to 0.5 ms a head beyond its products, and those run at 10e9
# FLOP/s with 10 classes (float32), as L-BFGS's do; a whole path took 320 to 520 iterations on digits, MNIST.
HEAD_STEP_S = 0.5e-3
CPU_HEAD_FLOP_PER_S = 8e9
GPU_HEAD_FLOP_PER_S = 0.5e12
PATH_ITERATIONS = 400

TRAINING = 3  # forward passes that a forward and a backward pass cost
RECORDS_READ = 12  # of one kind of run, the newest
SHORT_S = 120.0
ADVISED_RUNS_PER_JOB = 16
FLOPS = "flops"
RUN_ID = re.compile(r"(?P<head>.+)-(?P<phase>extract|probe|finetune|scratch|evaluate)(-s\d+)?-[0-9a-f]{12}")

Kind = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Estimate:
    """seconds: expected wall time of one run on its own, start of the process included; 0 where nothing is left to do.
    basis: `records` (the run_id it rests on), or `flops`."""

    seconds: float
    basis: str


# ----------------------------------------------------------------------------------------------------------- estimates
def estimate(runs: Sequence[RunSpec], runtime: Runtime, *, gpus: int) -> dict[str, Estimate]:
    """By run_id. gpus: what one run gets; 0, or runtime.device `cpu`, means that it runs on the CPU."""
    history = History(runtime, on_gpu=gpus > 0 and runtime.device != "cpu")
    return {run.run_id: _estimate(run, runtime, history) for run in runs}


def start_overhead_s(*, on_gpu: bool = False) -> float:
    """What a process costs before its first step: python, torch and its companions, on a GPU also its context."""
    return START_S + (GPU_START_S if on_gpu else 0.0)


def gpu_hours(plan_runs: Iterable[PlannedRun], estimates: Mapping[str, Estimate], gpus: int) -> float:
    """Of what is to be run, each run on so many GPUs."""
    return gpus * sum(estimates[p.run.run_id].seconds for p in plan_runs if p.state == "run") / 3600


def packing_advice(estimates: Mapping[str, Estimate], *, runs_per_job: int, packed_jobs: int) -> str | None:
    """What several runs per job would save; None where runs are long, or packed already, or too few to be packed.

    packed_jobs: how many jobs ADVISED_RUNS_PER_JOB would make of them; runs of different phases share none.
    """
    seconds = [e.seconds for e in estimates.values() if e.seconds > 0]
    if runs_per_job > 1 or len(seconds) < 2 or median(seconds) >= SHORT_S:
        return None
    saved_min = (len(seconds) - packed_jobs) * start_overhead_s() / 60
    if saved_min < 1:
        return None
    jobs = "1 job" if packed_jobs == 1 else f"{packed_jobs} jobs"
    return (
        f"half of the {len(seconds)} runs take less than {median(seconds):.0f} s: cluster.runs_per_job="
        f"{ADVISED_RUNS_PER_JOB} makes {jobs} of them and saves {saved_min:.1f} min of starting python"
    )


def _estimate(run: RunSpec, runtime: Runtime, history: History) -> Estimate:
    images, epochs = _images_and_epochs(run, runtime)
    if images == 0:
        return Estimate(0.0, FLOPS)
    start_s = start_overhead_s(on_gpu=history.on_gpu)
    record = history.nearest(run, images, epochs)
    if record is None:
        return Estimate(start_s + _seconds_by_flops(run, runtime, on_gpu=history.on_gpu), FLOPS)
    return Estimate(start_s + _seconds_by_record(record, images, epochs), f"records ({record.run_id})")


def _images_and_epochs(run: RunSpec, runtime: Runtime) -> tuple[int, int]:
    """What the time grows with: images of an epoch, or of the one pass of a phase without epochs; number of epochs."""
    if isinstance(run.settings, ExtractSettings):
        return _not_cached(run, runtime), 1
    if isinstance(run.settings, EvaluateSettings):
        return _evaluated(run, runtime), 1
    assert isinstance(run.settings, TrainSettings)
    return _rows(run, runtime).train, run.settings.epochs


# ------------------------------------------------------------------------------------------------------- by the records
def _kind(run: RunSpec, *, on_gpu: bool) -> Kind:
    """What two runs must share for one's time to tell the other's."""
    sizes = frozenset((b.name, b.preprocess.crop_px) for b in run.backbones)
    model = sizes or (run.model, getattr(run.settings, "image_size_px", None))
    source = (run.settings.source, run.settings.solver) if isinstance(run.settings, ProbeSettings) else None
    return run.phase, model, run.dataset.kind, run.settings.precision, source, on_gpu


def _measured(record: RunRecord) -> tuple[int, int]:
    """Images and epochs of a record, as _images_and_epochs has them; no images where it does not say."""
    images = record.n_train or record.details.get("images") or record.details.get("n_test") or 0
    return images, record.epochs or 1


def _seconds_by_record(record: RunRecord, images: int, epochs: int) -> float:
    """Training grows with images x epochs; the rest (data, last evaluation, L-BFGS) with the images."""
    images_then, epochs_then = _measured(record)
    trained_s = min(images_then * epochs_then / record.images_per_s, record.phase_s) if record.images_per_s else 0.0
    imports_s = PROBE_IMPORTS_S if record.spec.phase == "probe" else 0.0
    rest_s = max(0.0, record.phase_s - trained_s - imports_s)
    return (trained_s * epochs / epochs_then + rest_s) * images / images_then


class History:
    """The completed runs of a store, found by their names: only records that may match are read."""

    def __init__(self, runtime: Runtime, *, on_gpu: bool) -> None:
        self.on_gpu = on_gpu
        self._store = store_paths(runtime)
        self._of_kind: dict[Kind, list[RunRecord]] = {}
        self._names: dict[tuple[str, str], list[str]] = {}  # (what stands before the phase, phase) -> run_ids
        if self._store.runs.is_dir():
            for name in os.listdir(self._store.runs):
                match = RUN_ID.fullmatch(name)
                if match is not None:
                    self._names.setdefault((match["head"], match["phase"]), []).append(name)

    def nearest(self, run: RunSpec, images: int, epochs: int) -> RunRecord | None:
        """A record of the same kind: of as many images and epochs if there is one, and the newest of those."""
        kind = _kind(run, on_gpu=self.on_gpu)
        if kind not in self._of_kind:
            own, others = self._candidates(run)
            self._of_kind[kind] = self._records(own, kind) or self._records(others, kind)
        return min(self._of_kind[kind], key=lambda r: _measured(r) != (images, epochs), default=None)

    def _candidates(self, run: RunSpec) -> tuple[list[str], list[str]]:
        """run_ids of the same phase and model: on the data set of this name, and on others, maybe of its kind."""
        match = RUN_ID.fullmatch(run.run_id)
        assert match is not None, run.run_id
        parts = run.model.split("+")
        orders = permutations(parts) if len(parts) <= 4 else [tuple(parts)]
        endings = tuple(f"-{safe_name('+'.join(order))}" for order in orders)
        own_heads = {match["head"], *(safe_name(run.dataset.name)[:24] + ending for ending in endings)}
        own: list[str] = []
        others: list[str] = []
        for (head, phase), members in self._names.items():
            if phase == run.phase and (head in own_heads or head.endswith(endings)):
                (own if head in own_heads else others).extend(members)
        return own, others

    def _records(self, run_ids: list[str], kind: Kind) -> list[RunRecord]:
        """Completed runs of this kind, newest first."""
        records = []
        for ended, run_id in sorted(((self._ended(i), i) for i in run_ids), reverse=True)[:RECORDS_READ]:
            try:
                record = read_record(self._store.run(run_id)) if ended else None
            except DataError:
                continue  # damaged, or of another version
            if record is None or record.status != "completed" or _measured(record)[0] == 0:
                continue
            if _kind(record.spec, on_gpu=record.on_gpu) == kind:
                records.append(record)
        return records

    def _ended(self, run_id: str) -> int:
        """When its record was written, in ns; 0 where it has none."""
        try:
            return os.stat(self._store.run(run_id).record).st_mtime_ns
        except OSError:
            return 0


# ------------------------------------------------------------------------------------------------------------ by FLOPs
def _seconds_by_flops(run: RunSpec, runtime: Runtime, *, on_gpu: bool) -> float:
    """From the first image on."""
    settings = run.settings
    cores = 1 if on_gpu else runtime.num_threads or len(os.sched_getaffinity(0))
    if isinstance(settings, ProbeSettings) and settings.source == "features":
        return _seconds_of_heads(run, settings, runtime, cores=cores, on_gpu=on_gpu)
    read, forward, steps = _passes(run, runtime)
    rate = (GPU_FLOP_PER_S if on_gpu else CPU_FLOP_PER_S)[settings.precision] * cores
    image_s = GPU_IMAGE_S if on_gpu else CPU_IMAGE_S / cores
    step_s = GPU_STEP_S if on_gpu else 0.0
    return forward * gflops_per_image(run, runtime) * 1e9 / rate + read * image_s + steps * step_s


def gflops_per_image(run: RunSpec, runtime: Runtime) -> float:
    """Of a forward pass through all of a run's networks at the size they are fed, heads left out."""
    total = 0.0
    for backbone in run.backbones:
        known = backbones.entry(backbone.name, catalog_dir=cache_paths(runtime).catalog)
        total += 2 * known.gmacs * (backbone.preprocess.crop_px / known.recipe(known.default_weights).crop_px) ** 2
    if run.backbones:
        return total
    return architectures.entry(run.model).gflops_at_32_px * (_input_px(run, runtime) / 32) ** 2


def _passes(run: RunSpec, runtime: Runtime) -> tuple[int, int, int]:
    """Images prepared; images passed forward, where one that is trained on counts three; optimizer steps.

    Each epoch evaluates val, under `published` test instead; after the last, every fold is predicted once.
    """
    settings = run.settings
    rows = _rows(run, runtime)
    target = _seen(run, runtime).get("train", 0) * (run.extract is not None and run.extract.bn_statistics == "target")
    if isinstance(settings, EvaluateSettings):
        return (_evaluated(run, runtime),) * 2 + (0,)
    if not isinstance(settings, TrainSettings):
        images = _not_cached(run, runtime) + target
        return images, images, 0
    watched = rows.val if run.protocol == "fair" else rows.test
    head = getattr(settings, "head", None)
    hands_over = isinstance(settings, ProbeSettings) or head in ("refitted", "probe")
    evaluated = settings.epochs * watched + rows.train + rows.val + rows.test + rows.gate * hands_over + target
    evaluated += rows.train * (head == "refitted")
    steps = settings.epochs * settings.count_steps(rows.train)
    trained = min(settings.epochs * rows.train, steps * settings.batch_size)
    if settings.sampling == "replacement":
        trained = steps * settings.batch_size
    factor = 1 if isinstance(settings, ProbeSettings) else TRAINING  # nothing goes back through a frozen trunk
    passes = settings.epochs * _passes_per_epoch(settings, rows.train)
    return trained + evaluated, factor * trained + evaluated, passes


def _passes_per_epoch(settings: TrainSettings, num_train: int) -> int:
    """Forward and backward passes: one per step, or as many as it has micro-batches."""
    parts = math.ceil(settings.batch_size / (settings.micro_batch or settings.batch_size))
    return parts * settings.count_steps(num_train)


def _seconds_of_heads(run: RunSpec, settings: ProbeSettings, runtime: Runtime, *, cores: int, on_gpu: bool) -> float:
    """Every head that SGD trains, the path of solved ones, and those beside them, on cached features."""
    rows = _rows(run, runtime)
    num_train, feature_dim = rows.train, sum(feature_dims(run, runtime))
    num_heads = len(settings.lrs) * len(settings.weight_decays)
    product = 2 * num_train * feature_dim * run.dataset.num_classes
    by_sgd = settings.solver == "sgd"
    flop = TRAINING * product * num_heads * settings.epochs if by_sgd else 0
    if settings.lbfgs:
        flop += 2 * product * PATH_ITERATIONS  # features have no gradient
    flop += 2 * num_train * feature_dim * (feature_dim + rows.val + rows.test)  # covariances, nearest neighbours
    steps = settings.epochs * settings.count_steps(num_train) if by_sgd else 0
    rate = GPU_HEAD_FLOP_PER_S if on_gpu else CPU_HEAD_FLOP_PER_S * cores
    return steps * num_heads * HEAD_STEP_S + flop / rate


# -------------------------------------------------------------------------------------------------------------- images
def _seen(run: RunSpec, runtime: Runtime) -> dict[Split, int]:
    """Images of each split, at most max_images."""
    most = run.dataset.max_images
    facts = dataset_facts(run.dataset, runtime)
    return {split: min(facts.num_images[split], most or sys.maxsize) for split in splits_of(facts)}


def _rows(run: RunSpec, runtime: Runtime) -> RowCounts:
    return rows_of(run, dataset_facts(run.dataset, runtime))


def rows_of(run: RunSpec, facts: DatasetFacts) -> RowCounts:
    """The sizes of a run's folds, by the facts of its data set."""
    return count_rows(
        facts,
        max_images=run.dataset.max_images,
        protocol=run.protocol,
        train_fraction=run.train_fraction,
        shots=run.shots,
        val_seed=run.val_seed,
    )


def _not_cached(run: RunSpec, runtime: Runtime) -> int:
    """Images whose features an extraction still has to make."""
    seen = _seen(run, runtime)
    return sum(seen[split] for split in extract.missing(run, runtime))


def _evaluated(run: RunSpec, runtime: Runtime) -> int:
    assert isinstance(run.settings, EvaluateSettings)
    return _seen(run, runtime).get(run.settings.split) or _rows(run, runtime).held


def _input_px(run: RunSpec, runtime: Runtime) -> int:
    """What an architecture is fed. An evaluated run's own spec tells; before it has one, the size of the images."""
    settings = run.settings
    if isinstance(settings, EvaluateSettings):
        if settings.preprocess is not None:
            return settings.preprocess.crop_px
        source = read_spec(store_paths(runtime).run(settings.source.removeprefix("run:")))
        if source is None:
            return dataset_facts(run.dataset, runtime).image_size_px or 32
        settings = source.settings
    assert isinstance(settings, ScratchSettings)
    return settings.image_size_px
