"""A finished run, built again: its network with its weights, what it is fed, and how its own figures were read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from transfergrid.data import MAX_MEGAPIXELS, PictureRules
from transfergrid.data.geometry import scratch_preprocess
from transfergrid.errors import DataError, MissingInput
from transfergrid.networks import architectures, backbones
from transfergrid.networks.backbones.build import build
from transfergrid.networks.joined import EVALUATION_BATCH, JoinedNetwork, Plain
from transfergrid.paths import RunPaths, cache_paths
from transfergrid.specs import (
    RANDOM_RULE_VERSION,
    PreprocessSpec,
    ProbeSettings,
    RunSpec,
    Runtime,
    ScratchSettings,
    TrainSettings,
    WeightsSpec,
)
from transfergrid.store.records import RunRecord, assert_as_recorded


@dataclass(frozen=True, slots=True)
class Reading:
    """How the figures of a run's record were read: the arithmetic, and BatchNorm by its statistics or by the batch."""

    precision: Literal["fp32", "tf32", "bf16"]
    test_bn: Literal["running", "batch"]
    batch_size: int


def reading_of(spec: RunSpec) -> Reading:
    """A study that never calls eval() is not given its running statistics."""
    settings = spec.settings
    assert isinstance(settings, TrainSettings)
    batch_size = (settings.micro_batch or settings.batch_size) if settings.test_bn == "batch" else EVALUATION_BATCH
    return Reading(spec.precision, settings.test_bn, batch_size)


def picture_rules_of(record: RunRecord, max_megapixels: float = MAX_MEGAPIXELS) -> PictureRules:
    """How the pictures of a run were read. Where none of them was turned, others are, as their EXIF data say."""
    dataset = record.spec.dataset
    orientation = record.details.get("orientation", dataset.orientation)
    return PictureRules(dataset.value_range, orientation, max_megapixels)


def network_of_run(spec: RunSpec, paths: RunPaths, runtime: Runtime) -> tuple[nn.Module, tuple[PreprocessSpec, ...]]:
    """The network in eval mode on the CPU, and what each of its backbones is fed.

    A probe keeps its head alone, so the files its backbones started from are needed again; a fine-tuning needs none.
    Raises MissingInput where the run's weights were not kept, DataError where a file is missing or does not fit.
    """
    state = load_weights(paths)
    num_classes = spec.dataset.num_classes
    if isinstance(spec.settings, ScratchSettings):
        network = architectures.build(spec.model, num_classes, 0)
        _load(network, state, paths.weights, whole=True)
        return Plain(network).eval(), (scratch_preprocess(spec.settings),)
    is_probe = isinstance(spec.settings, ProbeSettings)
    if is_probe and spec.extract is not None and spec.extract.bn_statistics == "target":
        raise DataError(
            f"{spec.run_id}: a probe with bn_statistics=target is evaluated by its fine-tuning, run=ID of that"
        )
    # All values of a fine-tuned trunk are about to be replaced, so no file is needed for it.
    random = WeightsSpec(label="random", identity=f"random:v{RANDOM_RULE_VERSION}:0")
    starts = spec.backbones if is_probe else [replace(b, weights=random) for b in spec.backbones]
    weights_dir, files = Path(runtime.weights_dir), runtime.weights_files
    trunks = [build(b, weights_dir=weights_dir, weights_files=files) for b in starts]
    catalog = cache_paths(runtime).catalog
    feature_dim = sum(backbones.entry(b.name, catalog_dir=catalog).feature_dim for b in spec.backbones)
    joined = JoinedNetwork(
        trunks, feature_dim=feature_dim, num_classes=num_classes, generator=torch.Generator().manual_seed(0)
    )
    own = joined.state_dict()  # auxiliary heads served training only
    _load(joined, {name: v for name, v in state.items() if name in own}, paths.weights, whole=not is_probe)
    return joined.eval(), tuple(b.preprocess for b in spec.backbones)


def _load(network: nn.Module, state: dict[str, Tensor], path: Path, *, whole: bool) -> None:
    """whole: every parameter and buffer must be in the state; otherwise the head."""
    try:
        misfits = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise DataError(f"{path} is of another network: {str(error).splitlines()[-1].strip()}") from error
    missing = [name for name in misfits.missing_keys if whole or name.startswith("head.")]
    if missing or misfits.unexpected_keys:
        raise DataError(f"{path} is of another network: {(missing + misfits.unexpected_keys)[0]!r} does not fit")


def load_weights(paths: RunPaths) -> dict[str, Tensor]:
    """A finished run's weights. Raises MissingInput with the remedy where they were not kept, DataError if damaged."""
    run_id = paths.root.name
    if not paths.weights.exists():
        remedy = f"delete {paths.record} and launch with keep_weights=final"
        raise MissingInput(f"the weights of {run_id} were not kept", remedy=remedy)
    try:
        assert_as_recorded(paths, paths.weights)
        state: dict[str, Tensor] = torch.load(paths.weights, map_location="cpu", weights_only=True)
    except DataError:
        raise
    except Exception as error:  # torch.load raises half a dozen kinds for damaged files
        raise DataError(f"{paths.weights} is not a readable state dict ({type(error).__name__})") from error
    return state
