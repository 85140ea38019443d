"""What Python code may ask: a grid's rows, a run's record, features, and a finished run's network.

These are the names of `import transfergrid`. Folders are those of the command line: `results` and `cache` by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from transfergrid.errors import ConfigError, MissingInput
from transfergrid.paths import CachePaths, StorePaths
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.specs import PreprocessSpec, Runtime, Split
from transfergrid.store.records import RunRecord
from transfergrid.store.records import read_record as _record_at

if TYPE_CHECKING:
    import torch
    from torch import nn

    from transfergrid.export.inference import Predicted
    from transfergrid.store.feature_store import Features


def read_comparison(grid: str, store: str | Path = "results") -> list[ComparisonRow]:
    """The rows of a grid's table, in its order: accuracies in [0, 1], times in seconds, None where nothing is known.

    Raises ConfigError where the store has no such grid, DataError where its file is damaged.
    """
    from transfergrid.report.analysis.comparison import comparison_rows

    return comparison_rows(grid, StorePaths(Path(store)))


def read_record(run: str, store: str | Path = "results") -> RunRecord:
    """What a run left behind. run: its id, or a part that no other run has. Raises MissingInput where it has not ended,
    DataError where its record is damaged, ConfigError where several runs have that part."""
    from transfergrid.config.predict import whole_run_id

    paths = StorePaths(Path(store)).run(whole_run_id(run, StorePaths(Path(store))) or run)
    record = _record_at(paths)
    if record is None:
        raise MissingInput(f"{paths.record} does not exist: the run has not ended, or the id is wrong")
    return record


def read_features(
    run: str, split: Split, *, store: str | Path = "results", cache: str | Path = "cache"
) -> dict[str, Features]:
    """The cached features that a run's head was fitted on: backbone -> features_ND as stored, labels_N and index_N.

    N: images of the split that were extracted, in the data set's order. D: the backbone's features. Raises MissingInput
    where they are not in the cache, CorruptFeatures where their checksums do not hold.
    """
    from transfergrid.store import feature_store

    spec, places = read_record(run, store).spec, CachePaths(Path(cache))
    if spec.extract is None:
        raise ConfigError(f"{run} is of phase {spec.phase}, which reads no features")
    features = {}
    for backbone in spec.backbones:
        key = spec.feature_key(backbone, split)
        path = feature_store.find(places, key)
        if path is None:
            raise MissingInput(f"{places.features(key)} does not exist", remedy="launch its grid again to extract it")
        features[backbone.name] = feature_store.read(path, key)
    return features


@dataclass(frozen=True, slots=True)
class Model:
    """A finished run's network, in eval mode on its device. class_names: in the order of its logits."""

    network: nn.Module
    preprocess: tuple[PreprocessSpec, ...]
    class_names: tuple[str, ...]
    record: RunRecord
    device: torch.device

    def predict(self, files: Sequence[str | Path]) -> list[Predicted]:
        """Of each picture file its logits (C,) float32, computed as the run's own figures were, or why it cannot be
        read."""
        from transfergrid.export.inference import predict_files
        from transfergrid.networks.finished import picture_rules_of, reading_of

        predictions = predict_files(
            self.network,
            self.preprocess,
            Path(),
            tuple(map(str, files)),
            reading=reading_of(self.record.spec),
            rules=picture_rules_of(self.record),
            device=self.device,
        )
        return list(predictions) if files else []


def load_model(
    run: str,
    store: str | Path = "results",
    *,
    weights_dir: str | Path = "cache/weights",
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> Model:
    """The network of a finished probe, fine-tuning or training from scratch. run: its id, or its folder.

    weights_dir: where a probe's pretrained weights lie; a fine-tuned network holds its own. Raises ConfigError for a
    run that cannot be loaded, with what helps, and DataError for files that are damaged.
    """
    from transfergrid.config.predict import finished_run
    from transfergrid.networks.finished import network_of_run
    from transfergrid.training.device import device_of, on_device, prepare_process

    paths, record, class_names = finished_run(run, Path(store))
    runtime = Runtime(
        store_dir=str(store),
        cache_dir="cache",
        data_dir="cache/data",
        weights_dir=str(weights_dir),
        device=device,
    )
    prepare_process(runtime)
    network, preprocess = network_of_run(record.spec, paths, runtime)
    place = device_of(runtime)
    return Model(on_device(network, place), preprocess, class_names, record, place)
