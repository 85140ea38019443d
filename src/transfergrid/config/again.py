"""again=RUN_ID: exactly the run whose spec.json lies in a store, and the runs that it needs; nothing is spelled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from transfergrid.config.dataset import resolve_dataset
from transfergrid.config.predict import run_paths
from transfergrid.config.spelling import command, folder_value
from transfergrid.errors import ConfigError, DataError
from transfergrid.networks.backbones.weight_files import identity_of
from transfergrid.paths import RunPaths, StorePaths
from transfergrid.phases import phase_module
from transfergrid.specs import RULES_VERSION, Configuration, EvaluateSettings, RunSpec, from_dict
from transfergrid.store import durable
from transfergrid.store.records import read_grid

if TYPE_CHECKING:
    from transfergrid.config.builder import GridBuilder

# Where the run's files lie, which no spec knows; what they hold must be what the run was made of.
_PLACES = ("dataset.folder", "dataset.max_megapixels", "phase.evaluate.checkpoint", "weights")
_OF_THE_RUN = (
    *("grid", "dataset", "phase", "model", "seed", "run", "protocol", "select_by"),
    *("class_weights", "weights_seed", "replace"),
)


def check_keys(keys: Iterable[str]) -> None:
    """Raises ConfigError for a key that would make another run of it."""
    for key in keys:
        if key not in _PLACES and (key in _OF_THE_RUN or key.startswith(("grid.", "dataset.", "phase."))):
            raise ConfigError(f"again= takes {key} from the run's spec.json; leave {key}= out, or leave again= out")


def run_again(builder: GridBuilder) -> Configuration:
    """The run that `again=` names, with all that it needs in builder.runs. Raises ConfigError or DataError."""
    config = builder.config
    paths = run_paths(config.again, Path(config.store.dir), key="again")
    runs = {spec.run_id: spec for spec in _with_needs(paths)}
    run = runs[paths.root.name]
    _find_pictures(builder, run)
    for spec in runs.values():
        builder.find_files_of(spec)
    if (config.weights or config.weights_files) and not builder.weights_files:
        raise ConfigError(f"{run.run_id} is made of no weights file of yours; leave weights= out")
    _find_checkpoint(builder, run)
    builder.runs |= runs
    builder.name, variant = _row(run.run_id, StorePaths(Path(config.store.dir)), config.grid_name)
    runtime = builder.runtime()
    for spec in runs.values():
        done = phase_module(spec.phase).is_done(spec, runtime)
        if not done and spec.phase in ("probe", "finetune") and spec.rules != RULES_VERSION:
            raise ConfigError(
                f"{spec.run_id} was planned by another release, whose numbers this one does not give; launch its grid"
            )
        if not done and spec.dataset.name != run.dataset.name and spec.dataset.kind == "image_folder":
            first = command("run_phase.py", f"again={folder_value(str(paths.root.parent / spec.run_id))}")
            raise ConfigError(f"{run.run_id} needs {spec.run_id}, which is of another folder; run first: {first}")
    return Configuration(grid=builder.name, variant=variant, run=run)


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


def _find_pictures(builder: GridBuilder, run: RunSpec) -> None:
    """The data set as the spec has it; of a folder, where it lies. Raises ConfigError where it holds other pictures."""
    node, wanted = builder.config.dataset, run.dataset
    if wanted.kind == "image_folder" and node.folder is None:
        raise ConfigError(
            f"{run.run_id} is made of the pictures of {wanted.name}; say where they lie: dataset.folder=FOLDER"
        )
    node.kind, node.name = wanted.kind, wanted.name
    node.max_images, node.skip_damaged = wanted.max_images, bool(wanted.left_out)
    node.value_range = None if wanted.value_range is None else list(wanted.value_range)
    node.orientation = wanted.orientation
    chosen = resolve_dataset(builder.config, builder.cache, keep=not builder.config.dry_run, progress=builder.progress)
    if chosen.spec != wanted:
        raise ConfigError(
            f"{chosen.folder or wanted.name} holds other pictures than {run.run_id} was made of:"
            f" {chosen.spec.fingerprint} instead of {wanted.fingerprint}"
        )
    if chosen.folder is not None:
        builder.folders[wanted.name] = chosen.folder
    builder.facts[wanted.name] = chosen.facts
    builder.notes |= dict.fromkeys(chosen.notes)


def _find_checkpoint(builder: GridBuilder, run: RunSpec) -> None:
    """The file that an evaluation of a checkpoint reads."""
    given = builder.config.phase.evaluate.checkpoint
    source = run.settings.source if isinstance(run.settings, EvaluateSettings) else ""
    if not source.startswith("file:"):
        if given is not None:
            raise ConfigError(f"{run.run_id} reads no checkpoint; leave phase.evaluate.checkpoint= out")
        return
    if given is None:
        raise ConfigError(f"{run.run_id} evaluates a checkpoint; say where it lies: phase.evaluate.checkpoint=FILE")
    file = Path(given).expanduser()
    if not file.is_file() or f"file:{identity_of(file)}" != source:
        raise ConfigError(f"phase.evaluate.checkpoint={given!r} is not the file that {run.run_id} evaluates")
    builder.weights_files[source] = str(file.resolve())


def _row(run_id: str, store: StorePaths, named: str | None) -> tuple[str, str]:
    """(grid, variant): the row that the run is of the grid `named`, or else of the newest grid that has it.

    A run of no grid of this store becomes a row of its own, as an evaluation of a run does.
    """
    grids = store.grid("x").parent
    newest_first = sorted(grids.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in [store.grid(named)] if named else newest_first:
        try:
            rows = [entry for entry in read_grid(path) if entry.run_id == run_id]
        except (DataError, OSError):
            continue
        if rows:
            return path.stem, rows[0].variant
    return named or "adhoc", f"run-{run_id[-12:]}"


__all__ = ["check_keys", "run_again"]
