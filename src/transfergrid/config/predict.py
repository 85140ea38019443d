"""The command line of jobs/predict.py, read without Hydra: it names one run, whose record holds all settings."""

from __future__ import annotations

import glob
import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transfergrid.config.arguments import parse, shared
from transfergrid.config.spelling import command, where_runs_are
from transfergrid.data._folder_scan import image_files
from transfergrid.data._formats import suffixes
from transfergrid.errors import ConfigError
from transfergrid.names import closest, fitting, some
from transfergrid.networks.classes import classes_of_run
from transfergrid.paths import EXPORT_MARK, CachePaths, RunPaths, StorePaths
from transfergrid.specs import Runtime, setting
from transfergrid.store.records import RunRecord, read_record

Format = Literal["all", "state_dict", "torch_export", "onnx"]
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
FILES = "weights_files."
MOST_RUNS = 5  # in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictKeys:
    run: str | None = setting(None, "a finished run: its id, or its folder")
    images: str | None = setting(None, "a picture, a folder of them, or a pattern as 'pics/*.jpg'")
    top_k: int | None = setting(None, "classes per picture; left out: 5")
    output: str | None = setting(None, "CSV file; left out: standard output")
    precision: Literal["run", "fp32"] = setting("run", "arithmetic: the run's own, or fp32")
    export: str | None = setting(None, "a new folder for the network and its model card")
    export_format: Format = setting("all", "what is exported")
    weights_files: dict[str, str] = shared("weights_files")
    weights_dir: str | None = shared("weights_dir")
    device: Literal["auto", "cpu", "cuda"] = shared("device")
    num_threads: int = shared("cluster.num_threads")
    max_megapixels: float = shared("dataset.max_megapixels")
    store_dir: str = shared("store.dir")
    cache_dir: str = shared("cache.dir")


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictRequest:
    """A finished run, and what is wanted of it: predictions of a folder's images, an export, or both.

    class_names: in the order of the logits. files: relative to the folder `images`, sorted. skipped: why -> how many
    files below it are no images, and the first of them.
    output: None = standard output. in_fp32: compute in float32, as an export does, whatever the run computed in.
    """

    record: RunRecord
    paths: RunPaths
    class_names: tuple[str, ...]
    runtime: Runtime
    images: Path | None
    files: tuple[str, ...]
    skipped: Mapping[str, tuple[int, str]]
    top_k: int
    output: Path | None
    export: Path | None
    export_format: Format
    in_fp32: bool


def parse_predict(arguments: Sequence[str]) -> PredictRequest:
    """Raises ConfigError, in one line, for what makes no sense; DataError for a record that cannot be read."""
    parsed = parse(PredictKeys, arguments)
    keys = parsed.values
    if keys.run is None:
        raise ConfigError(
            f"run= is needed: a finished run's id, or its folder; {where_runs_are(StorePaths(Path(keys.store_dir)))}"
        )
    if keys.images is None and keys.export is None:
        raise ConfigError("nothing is asked for; give images=DIR, export=DIR or both")
    for key, needs in (("output", "images"), ("top_k", "images"), ("precision", "images"), ("export_format", "export")):
        if key in parsed.keys and needs not in parsed.keys:
            raise ConfigError(f"{key}= goes with {needs}=DIR")
    paths, record, class_names = finished_run(keys.run, Path(keys.store_dir))
    skipped: dict[str, tuple[int, str]] = {}
    images, files = (None, ()) if keys.images is None else _pictures(keys.images, skipped)
    return PredictRequest(
        record=record,
        paths=paths,
        class_names=class_names,
        runtime=_runtime(keys, record),
        images=images,
        files=files,
        skipped=skipped,
        top_k=_top_k(keys.top_k, len(class_names)),
        output=_new_file(keys.output),
        export=_new_folder(keys.export),
        export_format=_export_format(keys.export_format),
        in_fp32=keys.precision == "fp32",
    )


def finished_run(run: str, store_dir: Path) -> tuple[RunPaths, RunRecord, tuple[str, ...]]:
    """A run whose network can be used, and its classes. run: its id, or its folder. Raises ConfigError or DataError."""
    paths = run_paths(run, store_dir)
    record = _finished_record(paths)
    class_names = classes_of_run(record.spec, paths)
    if class_names is None:
        raise ConfigError(f"{paths.record} does not name the run's classes; delete it and launch the run again")
    return paths, record, class_names


def run_paths(run: str, store_dir: Path, *, key: str = "run") -> RunPaths:
    """A run by its folder, or by its id in the store, of which a part is enough that no other run has. Raises
    ConfigError, which names the key that gave it."""
    folder = Path(run).expanduser()
    if (folder / "spec.json").is_file():
        return RunPaths(folder.resolve())
    store = StorePaths(store_dir)
    if run_id := whole_run_id(run, store, key=key):
        return store.run(run_id)
    close = closest(run, [p.name for p in store.runs.iterdir()] if store.runs.is_dir() else [])
    hint = f"did you mean {close!r}?" if close else where_runs_are(store)
    raise ConfigError(f"{key}={run!r} is neither a run's folder nor in {store.runs}; {hint}")


def whole_run_id(run: str, store: StorePaths, *, key: str = "run") -> str | None:
    """Of a run of the store that has begun, by its id or by a part that no other run has; None where no run has it.
    Raises ConfigError where several have."""
    names = sorted(p.name for p in store.runs.iterdir()) if run and store.runs.is_dir() else []
    run_ids = [name for name in fitting(run, names) if store.run(name).spec.is_file()]
    if len(run_ids) > 1:
        raise ConfigError(f"{key}={run!r} is a part of several runs: {some(run_ids, MOST_RUNS)}")
    return run_ids[0] if run_ids else None


def _finished_record(paths: RunPaths) -> RunRecord:
    record = read_record(paths)
    name = paths.root.name
    if record is None:
        line = command("status.py", f"run={name}", f"store.dir={paths.root.parent.parent}")
        raise ConfigError(f"run={name!r} has not finished; {line} tells where it is")
    if record.status != "completed":
        raise ConfigError(f"run={name!r} has failed ({record.failure_class}: {record.error}); launch it again first")
    if record.spec.phase not in ("probe", "finetune", "scratch"):
        raise ConfigError(f"run={name!r} is of phase {record.spec.phase}; give one of probe, finetune or scratch")
    if not paths.weights.exists():
        raise ConfigError(
            f"the weights of {name!r} were not kept; delete {paths.record} and launch it with keep_weights=final"
        )
    return record


def _runtime(keys: PredictKeys, record: RunRecord) -> Runtime:
    identities = {b.name: b.weights.identity for b in record.spec.backbones}
    for name, file in keys.weights_files.items():
        if name not in identities:
            known = ", ".join(identities) or "none"
            raise ConfigError(f"{FILES}{name}: the run has no such backbone; it has: {known}")
        if not Path(file).expanduser().is_file():
            raise ConfigError(f"{FILES}{name}={file!r} is not a file")
    cache = CachePaths(Path(keys.cache_dir))
    files = {identities[name]: str(Path(file).expanduser().resolve()) for name, file in keys.weights_files.items()}
    return Runtime(
        store_dir=keys.store_dir,
        cache_dir=str(cache.root),
        data_dir=str(cache.data),
        weights_dir=keys.weights_dir or str(cache.weights),
        weights_files=files,
        device=keys.device,
        num_threads=keys.num_threads,
        max_megapixels=keys.max_megapixels,
    )


def _pictures(images: str, skipped: dict[str, tuple[int, str]]) -> tuple[Path, tuple[str, ...]]:
    """A folder and the files below it, relative to it: of a folder all its images; a file, and what a pattern matches,
    whatever it is called, so that what is no picture is named when it is read."""
    path = Path(images).expanduser()
    if path.is_dir():
        files = image_files(path, skipped)
        if not files:
            raise ConfigError(f"images={images!r} holds no images; wanted files ending in {' '.join(suffixes())}")
        return path, tuple(files)
    if path.is_file():
        return path.parent, (path.name,)
    matches = sorted(match for match in glob.glob(str(path), recursive=True) if os.path.isfile(match))
    if not matches:
        raise ConfigError(f"images={images!r} is no file, no folder, and no pattern that matches a file")
    folder = Path(os.path.commonpath([os.path.dirname(match) for match in matches]) or ".")
    return folder, tuple(os.path.relpath(match, folder) for match in matches)


def _top_k(value: int | None, num_classes: int) -> int:
    if value is None:
        return min(5, num_classes)
    if not 1 <= value <= num_classes:
        raise ConfigError(f"top_k={value} is not a whole number from 1 to {num_classes}")
    return value


def _new_file(value: str | None) -> Path | None:
    if value is None:
        return None
    path = Path(value).expanduser()
    if path.is_dir():
        raise ConfigError(f"output={value!r} is a folder; give the name of a file, as predictions.csv")
    _check_parent("output", path)
    return path


def _new_folder(value: str | None) -> Path | None:
    if value is None:
        return None
    path = Path(value).expanduser()
    _check_parent("export", path / EXPORT_MARK)
    if path.is_dir() and any(path.iterdir()) and not (path / EXPORT_MARK).exists():
        raise ConfigError(f"export={value!r} holds other files; give a new folder, or that of an earlier export")
    return path


def _export_format(value: Format) -> Format:
    lacking = [name for name in ONNX_PACKAGES if value == "onnx" and importlib.util.find_spec(name) is None]
    if lacking:
        raise ConfigError(
            f"export_format=onnx needs {', '.join(lacking)}; install with: uv sync --extra onnx"
            " (or pip install 'transfergrid[onnx]')"
        )
    return value


def _check_parent(key: str, path: Path) -> None:
    there = next(p for p in path.parents if p.exists())
    if not there.is_dir():
        raise ConfigError(f"{key}=: {there} is a file, where a folder is needed")
