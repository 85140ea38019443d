"""again=RUN_ID: exactly the run whose spec.json lies in a store, and the runs that it needs; nothing is spelled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig

from transfergrid.config.builder import files_of, make_request, make_runtime
from transfergrid.config.dataset import DatasetChoice, resolve_dataset
from transfergrid.config.predict import run_paths
from transfergrid.config.request import Request
from transfergrid.config.scopes import FolderProgress, cache_of, open_scopes
from transfergrid.config.spelling import ADHOC, command, folder_value, grid_name_of, launched_grids
from transfergrid.errors import ConfigError, DataError
from transfergrid.networks.backbones.weight_files import identity_of
from transfergrid.paths import RunPaths, StorePaths
from transfergrid.phases import phase_module
from transfergrid.specs import RULES_VERSION, Configuration, EvaluateSettings, RunSpec, from_dict
from transfergrid.store import durable
from transfergrid.store.records import read_grid

# Where the run's files lie, which no spec knows; what they hold must be what the run was made of.
_PLACES = ("dataset.folder", "dataset.table", "dataset.max_megapixels", "phase.evaluate.checkpoint", "weights")
_OF_THE_RUN = "grid dataset phase model seed run protocol select_by class_weights weights_seed replace".split()


def check_keys(keys: Iterable[str]) -> None:
    """Raises ConfigError for a key that would make another run of it."""
    for key in keys:
        if key not in _PLACES and (key in _OF_THE_RUN or key.startswith(("grid.", "dataset.", "phase."))):
            raise ConfigError(f"again= takes {key} from the run's spec.json; leave {key}= out, or leave again= out")


def build_again(arguments: Sequence[str], config: DictConfig, progress: FolderProgress | None) -> Request:
    """The run that `again=` names, and all that it needs. Raises ConfigError or DataError."""
    with open_scopes(arguments, config, progress=progress) as scopes:
        store = StorePaths(Path(config.store.dir))
        paths = run_paths(config.again, store.root, key="again")
        runs = {spec.run_id: spec for spec in _with_needs(paths)}
        run = runs[paths.root.name]
        pictures = _pictures(config, run, progress)
        folders = {} if pictures.folder is None else {run.dataset.name: pictures.folder}
        tables = {} if pictures.table is None else {run.dataset.name: pictures.table}
        files: dict[str, str] = {}
        for spec in runs.values():
            files |= files_of(config, spec, scopes.catalog_dir)
        keys_of_run = {f"weights_files.{backbone.name}" for spec in runs.values() for backbone in spec.backbones}
        keys = (["weights"] if config.weights else []) + [f"weights_files.{name}" for name in config.weights_files]
        for key in keys:
            if not files or key not in {"weights", *keys_of_run}:
                raise ConfigError(f"{run.run_id} is made of no weights file of yours; leave {key}= out")
        files |= _checkpoint(config, run)
        grid_of_user = None if config.grid_name is None else grid_name_of(config.grid_name)
        grid, variant = _row(run.run_id, store, grid_of_user)
        runtime = make_runtime(config, grid=grid, folders=folders, tables=tables, weights_files=files)
        for spec in runs.values():
            _check_still_made(spec, run, paths, done=phase_module(spec.phase).is_done(spec, runtime))
        rows = (Configuration(grid=grid, variant=variant, run=run),)
        facts = {run.dataset.name: pictures.facts}
        return make_request(config, runtime, rows, runs.values(), facts=facts, notes=pictures.notes)


def _check_still_made(spec: RunSpec, run: RunSpec, paths: RunPaths, *, done: bool) -> None:
    """Raises ConfigError for a run that is not done and would not become what it was."""
    if not done and spec.phase in ("probe", "finetune") and spec.rules != RULES_VERSION:
        raise ConfigError(
            f"{spec.run_id} was planned by another release, whose numbers this one does not give; launch its grid"
        )
    if not done and spec.dataset.name != run.dataset.name and spec.dataset.kind == "image_folder":
        first = command("run_phase.py", f"again={folder_value(str(paths.root.parent / spec.run_id))}")
        raise ConfigError(f"{run.run_id} needs {spec.run_id}, which is of another folder; run first: {first}")


def _with_needs(paths: RunPaths) -> Iterator[RunSpec]:
    """The runs that a run needs, and it, in that order. Raises ConfigError where a spec is missing or damaged."""
    run_id = paths.root.name
    try:
        spec = from_dict(RunSpec, durable.read_json(paths.spec))
    except FileNotFoundError:
        raise ConfigError(f"{paths.spec} is missing, which tells what {run_id} was; launch its grid") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{paths.spec} cannot be read ({error}); launch the run's grid") from error
    if spec.run_id != run_id:
        raise ConfigError(f"{paths.spec} tells of another run ({spec.run_id}); launch the grid of {run_id}")
    for need in spec.needs:
        yield from _with_needs(RunPaths(paths.root.parent / need))
    yield spec


def _pictures(config: DictConfig, run: RunSpec, progress: FolderProgress | None) -> DatasetChoice:
    """The data set as the spec has it; of a folder, where it lies. Raises ConfigError where it holds other pictures."""
    node, stored = config.dataset, run.dataset
    if stored.kind == "image_folder" and node.folder is None and node.table is None:
        raise ConfigError(
            f"{run.run_id} is made of the pictures of {stored.name}; say where they lie: dataset.folder=FOLDER"
        )
    node.kind, node.name = stored.kind, stored.name
    node.max_images, node.skip_damaged = stored.max_images, bool(stored.left_out)
    node.value_range = None if stored.value_range is None else list(stored.value_range)
    node.orientation = stored.orientation
    dataset = resolve_dataset(config, cache_of(config), keep=not config.dry_run, progress=progress)
    if dataset.spec != stored:
        raise ConfigError(
            f"{dataset.folder or stored.name} holds other pictures than {run.run_id} was made of:"
            f" {dataset.spec.fingerprint} instead of {stored.fingerprint}"
        )
    return dataset


def _checkpoint(config: DictConfig, run: RunSpec) -> dict[str, str]:
    """Identity -> the file that an evaluation of a checkpoint reads."""
    checkpoint = config.phase.evaluate.checkpoint
    source = run.settings.source if isinstance(run.settings, EvaluateSettings) else ""
    if not source.startswith("file:"):
        if checkpoint is not None:
            raise ConfigError(f"{run.run_id} reads no checkpoint; leave phase.evaluate.checkpoint= out")
        return {}
    if checkpoint is None:
        raise ConfigError(f"{run.run_id} evaluates a checkpoint; say where it lies: phase.evaluate.checkpoint=FILE")
    file = Path(checkpoint).expanduser()
    if not file.is_file() or f"file:{identity_of(file)}" != source:
        raise ConfigError(f"phase.evaluate.checkpoint={checkpoint!r} is not the file that {run.run_id} evaluates")
    return {source: str(file.resolve())}


def _row(run_id: str, store: StorePaths, named: str | None) -> tuple[str, str]:
    """(grid, variant): the row that the run is of the grid `named`, or else of the newest grid that has it.

    A run of no grid of this store becomes a row of its own, as an evaluation of a run does.
    """
    for grid in [named] if named else reversed(launched_grids(store)):
        with contextlib.suppress(DataError, OSError):
            for entry in read_grid(store.grid(grid)):
                if entry.run_id == run_id:
                    return grid, entry.variant
    return named or ADHOC, f"run-{run_id[-12:]}"
