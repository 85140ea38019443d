"""What W&B is told about a run: the same words, names and numbers as in the store's own files and tables.

At its end these are its numbers, its confusion matrix, its files, and where features and weights lie. Pictures and the
names of files leave the machine only where the user asks for it (tracking.images=true).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfergrid.data.images_at_hand import Images
from transfergrid.errors import DataError
from transfergrid.names import readable, readable_in
from transfergrid.paths import CachePaths, RunPaths
from transfergrid.specs import RunSpec, digest, safe_name, to_dict
from transfergrid.store import durable, provenance, records
from transfergrid.store.records import MANY_CLASSES, Predictions, RunRecord
from transfergrid.training.evaluation import confusion_matrix

SECRET = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)
NAMELESS = frozenset(  # failure classes whose messages name no file
    ("cuda_oom", "host_oom", "timeout", "node_failure", "preempted", "cancelled", "disk_full", "lost")
)
TAG_LENGTH = 64  # W&B refuses longer ones
# Curves, and what they are drawn against. `step` of a line is `batch` there: W&B's own step counts rows.
AXES = {
    **dict.fromkeys(("train/*", "head_*", "lr/*"), "batch"),
    **dict.fromkeys(("val/*", "test/*", "images_per_s", "elapsed_s", "gpu/*"), "epoch"),
}
FILES = ("record.json", "predictions.npz")  # what W&B keeps as it is
IMAGES_SENT = "images_sent"  # in a run's summary: pictures were sent, too
OF_FILES = ("damaged_files", "unused")  # names of pictures and folders, in a record's inventory of its data set
WRONG_SHOWN = 8  # images
MATRIX_CLASSES = 50  # above this many a matrix is a table of thousands of cells that nobody reads
ENLARGED_PX = 96  # images of 28 or 32 pixels are shown at least this large


def grid_tag(grid: str) -> str:
    """Every run of a grid carries it; a run that several grids share has one of each, but only one group."""
    return named_tag("grid", grid)


def named_tag(kind: str, name: str) -> str:
    """`kind:name`, another one for every name."""
    return f"{kind}:{shortened(name, TAG_LENGTH - len(kind) - 1)}"


def shortened(name: str, length: int) -> str:
    """The name, or its beginning and a hash where it is longer."""
    name = safe_name(name)
    return name if len(name) <= length else f"{name[: length - 13]}-{digest(name, 12)}"


def describe(spec: RunSpec, *, grid: str, variant: str, record: RunRecord | None = None) -> dict[str, Any]:
    """Arguments of wandb.init: id, name, group, job type, tags and a flat config, which filters and group-by need.
    record: of a run that has ended, which knows the code that it ran with; else it is this process's."""
    config: dict[str, Any] = {"grid": grid, "model": spec.model, "dataset": spec.dataset.name, "phase": spec.phase}
    if variant:
        config["variant"] = variant
    tags = [grid_tag(grid), *(tag[:TAG_LENGTH] for name, tag in config.items() if name != "grid")]
    known = {} if record is None else record.provenance
    commit = known["git_commit"] if "git_commit" in known else provenance.git_state()[0]
    config |= {"seed": spec.seed, "weights": spec.weights_label, "protocol": spec.protocol, "val_seed": spec.val_seed}
    config |= {"run_id": spec.run_id, "max_images": spec.dataset.max_images, "git_commit": commit}
    config |= {"data_fingerprint": spec.dataset.fingerprint, "train_fraction": spec.train_fraction, "shots": spec.shots}
    if spec.extract is not None and spec.phase != "extract":
        config |= {f"extract_{name}": value for name, value in to_dict(spec.extract).items()}
    described = {
        "id": spec.run_id,
        "name": spec.slug,
        "group": grid[:128],
        "job_type": spec.phase,
        "tags": list(dict.fromkeys(tags)),
        "config": redacted(config | to_dict(spec.settings)),
    }
    return dict(readable_in(described))


def redacted(config: Mapping[str, Any]) -> dict[str, Any]:
    """Values whose names look like a secret's do not leave the machine."""
    return {name: "redacted" if SECRET.search(name) else value for name, value in config.items()}


def as_row(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl as W&B gets it."""
    return {"batch" if name == "step" else name: value for name, value in line.items()}


def as_line(row: Mapping[str, Any]) -> dict[str, Any]:
    """The line that a row of W&B's was, without what W&B adds (`_step`, `_timestamp`, ...)."""
    return {"step" if name == "batch" else name: value for name, value in row.items() if not name.startswith("_")}


def summarise(record: RunRecord) -> dict[str, Any]:
    """The record's scalars under the record's names; `attempt` and `status` also tell a later mirror what was told."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    scalars = {name: value for name, value in values.items() if isinstance(value, (str, int, float))}
    return dict(readable_in(redacted(dict(record.metrics) | scalars)))


def withheld(failure_class: str | None) -> dict[str, Any]:
    """What stands for the message of a run that failed so, and for its remedy, where names of files are not sent; empty
    where it holds none."""
    if failure_class in NAMELESS:
        return {}
    message = f"{failure_class}: the message may name files, so it stays in the store (tracking.images=true sends it)"
    return {"error": message, "remedy": None}


# ------------------------------------------------------------------------------------------------------------ its end
@dataclass(frozen=True)
class Ending:
    """images: whether pictures and names of files may be sent. folder: for copies of files without such names."""

    record: RunRecord
    paths: RunPaths
    images: bool
    folder: Path

    @cached_property
    def test(self) -> Predictions | None:
        """Predictions of test images; None where the run left none that can be read."""
        try:
            return records.read_predictions(self.paths).get("test")
        except DataError:
            return None

    @property
    def class_names(self) -> list[str]:
        return [readable(str(name)) for name in self.record.details.get("class_names", ())]

    @property
    def summary(self) -> dict[str, Any]:
        """The record's scalars under the record's names, and `class_accuracy/<class>`."""
        record = replace(self.record, **self._withheld)
        pictures = {IMAGES_SENT: True} if self.images else {}
        return summarise(record) | self._class_accuracies() | pictures

    @property
    def _withheld(self) -> dict[str, Any]:
        is_failed = self.record.status == "failed" and not self.images
        return withheld(self.record.failure_class) if is_failed else {}

    @property
    def files(self) -> list[Path]:
        """What W&B keeps, so that the tables can be made again from the server alone: the files as they are, but for
        names of pictures."""
        paths = [path for name in FILES if (path := self.paths.root / name).is_file()]
        return paths if self.images else [self._without_names(path) for path in paths]

    def _without_names(self, path: Path) -> Path:
        """The file itself where it names no picture, else a copy that does not."""
        content = durable.read_json(path) if path.name == self.paths.record.name else None
        if not isinstance(content, dict):
            return path
        shared = _nameless(content) | self._withheld
        if shared == content:
            return path
        copy = self.folder / self.record.run_id / path.name
        durable.write_json(copy, shared)
        return copy

    def row(self, images: Images) -> dict[str, Any]:
        """The row that ends a run, without a line number: what can be shown of its test predictions."""
        if self.test is None or not self.class_names:
            return {}
        row = {}
        if len(self.class_names) <= MATRIX_CLASSES:
            row["confusion_matrix"] = _matrix(self.test, self.class_names)
        if self.images and (wrong := _wrong_images(self.record, self.test, self.class_names, images)):
            row["misclassified"] = wrong
        return row

    def _class_accuracies(self) -> dict[str, float]:
        """Share of each class's test images that were recognised, in [0, 1]; nothing above 100 classes."""
        names = self.class_names
        if self.test is None or not 0 < len(names) <= MANY_CLASSES:
            return {}
        counts_CC = confusion_matrix(self.test.label_N, self.test.predicted_N, num_classes=len(names))
        of_class_C = counts_CC.sum(axis=1)
        shares = {name: counts_CC[c, c] / of_class_C[c] for c, name in enumerate(names) if of_class_C[c] > 0}
        return {f"class_accuracy/{name}": float(share) for name, share in shares.items()}


def _nameless(value: Any) -> Any:
    """The same without the names of pictures and folders, wherever they stand."""
    if isinstance(value, Mapping):
        return {name: _nameless(inner) for name, inner in value.items() if name not in OF_FILES}
    return value


def references(record: RunRecord, paths: RunPaths) -> Iterator[Any]:
    """wandb.Artifacts that name features and weights by checksum; the files themselves stay where they are."""
    spec = record.spec
    if spec.phase == "extract":
        for split in record.details.get("feature_keys", ()):
            key = spec.feature_key(spec.backbones[0], split)
            place = CachePaths(Path()).features(key)  # whose name holds the key
            facts = {"key": key.digest, "backbone": key.backbone.name, "dataset": key.dataset.name, "split": split}
            yield _reference("features", f"features-{safe_name(place.stem)}", f"cache:///{place}", place.name, facts)
    if paths.weights.is_file():
        sha256 = record.sha256.get(paths.weights.name) or durable.sha256_of(paths.weights)
        facts = {"sha256": sha256, "model": spec.model, "dataset": spec.dataset.name, "run_id": record.run_id}
        address = f"store:///runs/{record.run_id}/weights.pt#{sha256}"
        yield _reference("model", f"weights-{safe_name(record.run_id)}", address, "weights.pt", facts)


def _reference(kind: str, name: str, address: str, file: str, facts: Mapping[str, Any]) -> Any:
    import wandb

    name = name.replace("+", "_")[:128]  # W&B takes letters, digits, `-`, `_` and `.`, at most 128 of them
    artifact = wandb.Artifact(name, type=kind, metadata=readable_in(facts))
    artifact.add_reference(address, name=file, checksum=False)
    return artifact


def _matrix(test: Predictions, names: list[str]) -> Any:
    """W&B's own confusion matrix, from counts: it is the same for 360 images and for 10,000."""
    import wandb

    counts_CC = confusion_matrix(test.label_N, test.predicted_N, num_classes=len(names))
    cells = [[names[i], names[j], int(counts_CC[i, j])] for i in range(len(names)) for j in range(len(names))]
    return wandb.plot_table(
        vega_spec_name="wandb/confusion_matrix/v1",
        data_table=wandb.Table(columns=["Actual", "Predicted", "nPredictions"], data=cells),
        fields={"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"},
        string_fields={"title": "Test images: true class and predicted class"},
        split_table=True,
    )


def _wrong_images(record: RunRecord, test: Predictions, names: list[str], images: Images) -> list[Any]:
    """The first test images by index that were taken for something else, where this machine has them."""
    import wandb

    wrong_N = np.flatnonzero(test.predicted_N != test.label_N)[:WRONG_SHOWN]
    test_images = images(record.spec.dataset, "test") if len(wrong_N) else None
    if test_images is None or int(test.index_N[wrong_N].max()) >= len(test_images):
        return []
    pictures = []
    for n, image_HWC in zip(wrong_N, test_images.read(test.index_N[wrong_N]), strict=True):
        caption = f"{names[test.label_N[n]]} taken for {names[test.predicted_N[n]]} (test image {test.index_N[n]})"
        pictures.append(wandb.Image(_enlarged(image_HWC), caption=caption))
    return pictures


def _enlarged(image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    factor = max(1, -(-ENLARGED_PX // image_HWC.shape[0]))
    large: NDArray[np.uint8] = image_HWC.repeat(factor, axis=0).repeat(factor, axis=1)
    return large[:, :, 0] if large.shape[2] == 1 else large
