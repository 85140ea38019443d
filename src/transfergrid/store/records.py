"""What a run leaves behind: record.json, written last (with status `completed` the run is done), and predictions.npz;
and the list of a grid's runs."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from transfergrid.errors import DataError, one_line
from transfergrid.paths import RunPaths
from transfergrid.specs import RunSpec, Runtime, SelectBy, from_dict, to_dict
from transfergrid.store import durable
from transfergrid.store.attempts import AttemptTime

RECORD_FORMAT = 1
FLOAT16_LARGEST = 65504
TOP_CLASSES_KEPT = 20  # of the logits, above MANY_CLASSES
MANY_CLASSES = 100
Array = np.ndarray[Any, Any]


# ------------------------------------------------------------------------------------------------------------- record
@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """record.json. Accuracies and macro scores in [0, 1], losses in nats, size in 1e6 bytes of float32, times in s.

    metrics: `<split>_accuracy`, `<split>_loss`, `<split>_macro_{precision,recall,f1}`, `lbfgs_test_accuracy`, ...
    details: what a reader may want beside the table: the chosen learning rate, the parity gate, both epochs of a
    published rule. gflops_per_image counts 2 x MAC of one forward pass. n_train: images trained on.
    phase_s: the phase's own seconds, those before an interruption included. on_gpu: whether it computed on one.
    gpu_allocated_mib: the most that torch had allocated there, in 2^20 bytes. attempts: every start of the run up to
    this record, whatever became of it. usage: what it used of what it was given, see usage.UsageMeter. remedy: of a
    failure, where that of its class would not help. sha256: of weights.pt and predictions.npz, by name; empty in
    records of earlier releases.
    """

    run_id: str
    spec: RunSpec
    status: Literal["completed", "failed"]
    failure_class: str | None = None
    error: str | None = None
    remedy: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    trainable_parameters: int | None = None
    size_mb: float | None = None
    gflops_per_image: float | None = None
    images_per_s: float | None = None
    phase_s: float = 0.0
    on_gpu: bool = False
    gpu_allocated_mib: float | None = None
    epochs: int | None = None
    n_train: int | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    attempt: int = 0
    attempts: tuple[AttemptTime, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)


def checksums_of(paths: RunPaths) -> dict[str, str]:
    """RunRecord.sha256 of what lies in a run's folder now; about 1 GB/s."""
    return {path.name: durable.sha256_of(path) for path in (paths.weights, paths.predictions) if path.is_file()}


def assert_as_recorded(paths: RunPaths, path: Path) -> None:
    """Raises DataError where one of a run's files is not what its record was written with."""
    try:
        recorded = durable.read_json(paths.record)["sha256"][path.name]
    except (OSError, ValueError, KeyError, TypeError):
        return  # no record, one of an earlier release, or one whose damage others name
    if durable.sha256_of(path) != recorded:
        raise DataError(
            f"{path} is damaged: it is not the file that its record was written with",
            remedy=f"delete {paths.record} and launch again",
        )


def write_record(paths: RunPaths, record: RunRecord) -> None:
    durable.write_json(paths.record, {"format": RECORD_FORMAT, **to_dict(record)})


def read_record(paths: RunPaths) -> RunRecord | None:
    """The run's record, or None if it has none yet. Raises DataError where the file is not a record."""
    try:
        content = durable.read_json(paths.record)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{paths.record} is damaged ({error})", remedy="delete it and launch again") from error
    except OSError as error:
        raise DataError(f"{paths.record} cannot be read ({error.strerror})") from error
    try:
        content.pop("format")
        _from_former_names(content)
        record = from_dict(RunRecord, content)
        _check(record)
        return record
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{paths.record} is not a record of this version ({error})", remedy="launch again") from error


def phase_seconds(content: Mapping[str, Any]) -> float | None:
    """RunRecord.phase_s of a record.json that was read without building the rest."""
    seconds: float | None = content.get("phase_s", content.get("wall_s"))
    return seconds


def _from_former_names(content: dict[str, Any]) -> None:
    """Of records of earlier releases: seconds and memory under the names that have since come to mean one thing."""
    if "wall_s" in content:
        content["phase_s"] = content.pop("wall_s")
    if "gpu_s" in content:
        content["on_gpu"] = content.pop("gpu_s") > 0
    if "peak_memory_mb" in content:  # without a GPU it was the process's, which `usage` tells
        peak_mb = content.pop("peak_memory_mb")
        content["gpu_allocated_mib"] = peak_mb * 1e6 / 2**20 if content.get("on_gpu") and peak_mb is not None else None
    if content.get("usage"):
        content["usage"] = {re.sub("_mb$", "_mib", name): value for name, value in content["usage"].items()}


_SHARES = ("accuracy", "precision", "recall", "f1")  # last word of metrics that lie in [0, 1]


def _check(record: RunRecord) -> None:
    """Raises ValueError where a file edited by hand holds what no run writes: reports rely on what is read here."""
    for name in ("metrics", "details", "usage", "provenance", "sha256"):
        if not isinstance(getattr(record, name), dict):
            raise ValueError(f"{name} is {getattr(record, name)!r}, not an object")
    for name in ("failure_class", "error", "remedy"):
        if not isinstance(getattr(record, name), (str, type(None))):
            raise ValueError(f"{name} is {getattr(record, name)!r}, not a text")
    numbers = {f.name: getattr(record, f.name) for f in fields(record) if str(f.type).startswith(("int", "float"))}
    figures = {name: value for name, value in numbers.items() if value is not None} | dict(record.metrics)
    if record.details.get("n_test") is not None:
        figures["n_test"] = record.details["n_test"]
    for name, value in figures.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{name} is {value!r}, not a number")
        if name.rsplit("_", 1)[-1] in _SHARES and not 0 <= value <= 1:
            raise ValueError(f"{name} is {value!r}, not between 0 and 1")
    if record.status not in ("completed", "failed") or figures.get("n_test", 1) < 1:
        raise ValueError(f"no run writes status {record.status!r} with n_test {figures.get('n_test')!r}")


@dataclass(frozen=True, slots=True)
class RecordHead:
    """The part of a record that a plan needs, read without building the rest."""

    status: str
    failure_class: str | None
    error: str | None
    code_hash: str | None
    remedy: str | None = None


def record_head(paths: RunPaths) -> RecordHead | None:
    """None where there is no readable record: such a run is simply not done."""
    try:
        content = durable.read_json(paths.record)
        if content["format"] != RECORD_FORMAT:
            return None
        code_hash, remedy = content["provenance"].get("code_hash"), content.get("remedy")
        return RecordHead(content["status"], content["failure_class"], content["error"], code_hash, remedy)
    except (OSError, ValueError, KeyError, TypeError):
        return None


# --------------------------------------------------------------------------------------------------------- predictions
@dataclass(frozen=True, slots=True)
class Predictions:
    """One index set's predictions: index, label, predicted and group (N,) int64, logits (N, C) float16.

    predicted is the class with the largest logit, the first of several equal ones. group: None without a table.
    Above 100 classes only the 20 largest logits of each row are kept, with their classes, and the log-sum-exp of all.
    """

    index_N: Array
    label_N: Array
    logits_NC: Array
    classes_NC: Array | None = None
    logsumexp_N: Array | None = None
    group_N: Array | None = None

    @property
    def predicted_N(self) -> Array:
        best_N: Array = self.logits_NC.astype(np.float32).argmax(axis=1)
        if self.classes_NC is None:
            return best_N
        chosen: Array = np.take_along_axis(self.classes_NC, best_N[:, None], axis=1)[:, 0]
        return chosen


def make_predictions(index_N: Array, label_N: Array, logits_NC: Array, *, keep_predicted: bool = True) -> Predictions:
    """From full logits (N, C) in float32. Values beyond float16 are clipped to its largest. keep_predicted: a class
    that rounding makes equal to the predicted one goes down by one step, so that what was predicted is read back."""
    clipped_NC = np.clip(logits_NC.astype(np.float32), -FLOAT16_LARGEST, FLOAT16_LARGEST)
    if logits_NC.shape[1] <= MANY_CLASSES:
        rounded_NC = clipped_NC.astype(np.float16)
        if keep_predicted:
            _keep_predicted(rounded_NC, logits_NC.argmax(axis=1))
        return Predictions(index_N.astype(np.int64), label_N.astype(np.int64), rounded_NC)
    top_NC = np.argsort(-clipped_NC, axis=1, kind="stable")[:, :TOP_CLASSES_KEPT]
    largest_N1 = clipped_NC.max(axis=1, keepdims=True)
    logsumexp_N = largest_N1[:, 0] + np.log(np.exp(clipped_NC - largest_N1).sum(axis=1))
    top_logits_NC = np.take_along_axis(clipped_NC, top_NC, axis=1).astype(np.float16)
    return Predictions(index_N.astype(np.int64), label_N.astype(np.int64), top_logits_NC, top_NC, logsumexp_N)


def _keep_predicted(rounded_NC: Array, predicted_N: Array) -> None:
    """In place: classes that stand before the predicted one and tie with it go down by one step of float16."""
    largest_N1 = np.take_along_axis(rounded_NC, predicted_N[:, None], axis=1)
    tied_NC = (rounded_NC == largest_N1) & (np.arange(rounded_NC.shape[1]) < predicted_N[:, None])
    below_NC = np.nextafter(rounded_NC, np.float16(-FLOAT16_LARGEST))
    rounded_NC[tied_NC] = below_NC[tied_NC]


def write_predictions(paths: RunPaths, sets: Mapping[str, Predictions]) -> None:
    """predictions.npz: arrays `<set>_index`, `<set>_label`, `<set>_logits`, ... for the sets val, test, gate.

    Beside gate, whose rows are held out, there may be gate_train, rows of the training split, and for a join
    gate_part_1, gate_part_2, ...: what each backbone alone adds to the logits of gate.
    """
    arrays: dict[str, Array] = {}
    for name, predictions in sets.items():
        for f in fields(predictions):
            if (value := getattr(predictions, f.name)) is not None:
                arrays[f"{name}_{f.name.split('_')[0]}"] = value
    content = io.BytesIO()  # zipfile, on a full disk, ends with another error than that
    np.savez(content, **arrays)  # type: ignore[arg-type]  # numpy types the keywords as its flags
    durable.write_bytes(paths.predictions, content.getbuffer())


def read_predictions(paths: RunPaths) -> dict[str, Predictions]:
    """All sets of a run's predictions. Raises DataError where the file is missing or damaged."""
    try:
        assert_as_recorded(paths, paths.predictions)
        with open(paths.predictions, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return {
            name: Predictions(
                arrays[f"{name}_index"],
                arrays[f"{name}_label"],
                arrays[f"{name}_logits"],
                arrays.get(f"{name}_classes"),
                arrays.get(f"{name}_logsumexp"),
                arrays.get(f"{name}_group"),
            )
            for name in sorted({name.rsplit("_", 1)[0] for name in arrays})
        }
    except DataError:
        raise
    except Exception as error:  # zipfile and numpy raise a dozen kinds for damaged files
        raise DataError(
            f"{paths.predictions} cannot be read ({one_line(error)})", remedy=f"delete {paths.record} and launch again"
        ) from error


# --------------------------------------------------------------------------------------------------------------- grids
@dataclass(frozen=True, slots=True, kw_only=True)
class GridEntry:
    """One configuration of a grid as results/grids/<grid>.json lists it, enough for its row in the table."""

    run_id: str
    dataset: str
    model: str
    phase: str
    variant: str
    weights: str
    protocol: str
    seed: int | None


def entry_of(run: RunSpec, variant: str) -> GridEntry:
    return GridEntry(
        run_id=run.run_id,
        dataset=run.dataset.name,
        model=run.model,
        phase=run.phase,
        variant=variant,
        weights=run.weights_label,
        protocol=run.protocol or "",
        seed=run.seed,
    )


def write_grid(
    path: Path,
    *,
    grid: str,
    entries: list[GridEntry],
    runtime: Runtime | None = None,
    select_by: SelectBy = "accuracy",
    expected: Mapping[str, Any] | None = None,
) -> None:
    """The grid as it was last launched, in place of an earlier launch of that name. runtime: where its images lay, for
    the figures that show some. select_by: the score on val that its report chooses by. expected: how long a launch on
    this machine is to take, for status."""
    launched = {} if runtime is None else {"runtime": to_dict(runtime)}
    launched |= {} if expected is None else {"expected": dict(expected)}
    durable.write_json(path, {"grid": grid, "select_by": select_by, "configurations": to_dict(entries), **launched})


def read_grid(path: Path) -> list[GridEntry]:
    """Raises FileNotFoundError where no such grid was launched, DataError where the file is damaged."""
    try:
        return [GridEntry(**e) for e in durable.read_json(path)["configurations"]]
    except (ValueError, KeyError, TypeError) as error:
        what = f"{path} is damaged ({one_line(error)})"
        raise DataError(what, remedy="delete it and launch the grid again") from error


def launched_with(path: Path) -> Runtime | None:
    """How a grid was last launched; None where another release wrote it. Raises OSError."""
    try:
        return from_dict(Runtime, durable.read_json(path)["runtime"])
    except (KeyError, TypeError, ValueError):
        return None


def selected_by(path: Path) -> SelectBy:
    """The score on val that the grid was launched to choose by; accuracy in files of earlier releases. Raises as
    read_grid."""
    read_grid(path)
    score = durable.read_json(path).get("select_by", "accuracy")
    if score not in get_args(SelectBy):
        raise DataError(f"{path} is damaged (select_by is {score!r}); delete it and launch the grid again")
    return cast(SelectBy, score)
