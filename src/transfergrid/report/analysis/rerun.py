"""The command that makes a row's runs again: each setting that is not a default, whatever grid it was in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from transfergrid import data
from transfergrid.config.schema import FROM_ABOVE, Config
from transfergrid.config.spelling import command, hydra_value
from transfergrid.data.geometry import preprocess_for
from transfergrid.errors import GridError
from transfergrid.networks import backbones
from transfergrid.paths import StorePaths
from transfergrid.specs import BackboneSpec, EvaluateSettings, PreprocessSpec, RunSpec, ScratchSettings, from_dict
from transfergrid.store import durable

STUDY_GRID = "individual_vs_parallel_as_published"  # any grid file of a study lets protocol=published through
_ALWAYS_NAMED = ("name", "kind", "fingerprint", "num_classes")  # of a DatasetSpec: told by dataset=, or by its files


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """script: in jobs/. arguments: `key=value`, not yet quoted for a shell.

    to_fill_in: what no record knows and the reader must put in: the place of a file or a folder.
    """

    script: str
    arguments: tuple[str, ...]
    to_fill_in: tuple[str, ...]

    @property
    def line(self) -> str:
        return command(self.script, *self.arguments)


def commands_of(specs: Sequence[RunSpec], store: StorePaths) -> tuple[Command, ...]:
    """`run_phase.py` for one run, `launch_grid.py` for several that differ in their seeds only; one for each run that
    is an evaluation of another run, which has no seed.

    What the runs need (a probe for a fine-tuning) is read from the store; where that is gone, its defaults stand.
    """
    if specs and _evaluated(specs[0]) is not None:
        return tuple(_evaluation(spec, store) for spec in specs)
    return (_training(specs, store),) if specs else ()


def _evaluated(spec: RunSpec) -> str | None:
    """The run that a run evaluates."""
    if isinstance(spec.settings, EvaluateSettings) and spec.settings.source.startswith("run:"):
        return spec.settings.source.removeprefix("run:")
    return None


def _evaluation(spec: RunSpec, store: StorePaths) -> Command:
    arguments = ["phase=evaluate", f"run={_evaluated(spec)}", *_dataset(spec), *_overrides(spec, store)]
    return Command(script="run_phase.py", arguments=tuple(arguments), to_fill_in=_to_fill_in(spec))


def _training(specs: Sequence[RunSpec], store: StorePaths) -> Command:
    first = specs[0]
    published = first.protocol == "published"
    if len(specs) == 1:
        script, arguments = "run_phase.py", [f"grid={STUDY_GRID}"] if published else []
        arguments += [f"model={hydra_value(first.model)}", f"phase={first.phase}"]
        arguments += [] if first.seed is None else [f"seed={first.seed}"]
    else:
        script, arguments = "launch_grid.py", [f"grid={STUDY_GRID if published else 'compare'}"]
        arguments += [f"grid_name=again-{first.run_id[-12:]}"]  # no other row's
        arguments += [f"grid.models=[{hydra_value(first.model)}]", f"grid.phases=[{first.phase}]"]
        arguments += [f"grid.seeds=[{','.join(str(s.seed) for s in specs)}]"]
        arguments += ["grid.rules=[]"] if published else []
    arguments += [*_dataset(first), *_overrides(first, store)]
    return Command(script=script, arguments=tuple(arguments), to_fill_in=_to_fill_in(first))


# --------------------------------------------------------------------------------------------------------- the settings
def _overrides(spec: RunSpec, store: StorePaths) -> Iterator[str]:
    published = spec.protocol == "published"
    if published:
        yield "protocol=published"
    size = list(_image_size(spec))
    # Where a grid file of a study stands in between, what it sets is set back.
    yield from size or (["dataset.image_size_px=null"] if published else [])
    yield from _small_pictures(spec)
    if isinstance(spec.settings, EvaluateSettings) and spec.settings.source.startswith("file:"):
        yield "phase.evaluate.checkpoint=FILE"
        if spec.settings.preprocess is not None:
            yield from _checkpoint_input(spec.settings.preprocess)
    elif _evaluated(spec) is None:
        weights = list(_weights(spec.backbones))
        yield from weights or (["weights=null"] if published else [])
    defaults: Any = Config()
    defaults.phase.probe.select_by = defaults.select_by  # as which null stands there
    for name in ("val_seed", "train_fraction", "shots"):  # of the run, but spelled with its data set
        if getattr(spec, name) not in (None, getattr(defaults.dataset, name)):
            yield f"dataset.{name}={hydra_value(getattr(spec, name))}"
    if spec.extract is not None:
        yield from _changed("phase.extract", spec.extract, defaults.phase.extract, everything=published)
    for run in _with_needs(spec, store):
        node = getattr(defaults.phase, run.phase)
        yield from _changed(f"phase.{run.phase}", run.settings, node, everything=published)


def _with_needs(spec: RunSpec, store: StorePaths) -> Iterator[RunSpec]:
    if _evaluated(spec) is None:
        for run_id in spec.needs:
            try:
                yield from _with_needs(from_dict(RunSpec, durable.read_json(store.run(run_id).spec)), store)
            except (OSError, ValueError, KeyError, TypeError):
                continue
    yield spec


def _changed(where: str, settings: Any, defaults: Any, *, everything: bool) -> Iterator[str]:
    """Each setting that is not the schema's default. `everything`: a grid file stands between, so all are told."""
    for f in fields(settings):
        value = getattr(settings, f.name)
        if not hasattr(defaults, f.name):
            continue  # told otherwise: image_size_px by the data set, source of an evaluation by what is evaluated
        if f.name in ("epochs", "batch_size") and not settings.takes_steps:
            continue  # a solved head has none
        default = getattr(defaults, f.name)
        default = tuple(default) if isinstance(default, list) else default
        if f.name in FROM_ABOVE:
            default = getattr(Config(), f.name)
        if everything or value != default:
            yield f"{where}.{f.name}={hydra_value(value)}"


def _checkpoint_input(fed: PreprocessSpec) -> Iterator[str]:
    """What an architecture's checkpoint is fed, which is spelled as the settings of its training."""
    defaults: Any = Config().phase.scratch
    for name in ("normalise", "mean", "std"):
        if hydra_value(getattr(fed, name)) != hydra_value(getattr(defaults, name)):
            yield f"phase.scratch.{name}={hydra_value(getattr(fed, name))}"


def _dataset(spec: RunSpec) -> Iterator[str]:
    chosen = spec.dataset
    imagenet = chosen.kind == "image_folder" and chosen.name == "imagenet"  # conf/dataset/imagenet.yaml
    yield f"dataset={'imagenet' if imagenet else chosen.kind}"
    if chosen.kind == "image_folder":
        yield "dataset.folder=FOLDER"
    if chosen.name != chosen.kind and not imagenet:
        yield f"dataset.name={hydra_value(chosen.name)}"
    if chosen.left_out:
        yield "dataset.skip_damaged=true"
    defaults: Any = Config().dataset
    for f in fields(chosen):
        value = getattr(chosen, f.name)
        if f.name == "orientation" and (imagenet or chosen.kind != "image_folder"):
            continue  # told by dataset=imagenet; and published data sets turn nothing
        if f.name not in _ALWAYS_NAMED and hasattr(defaults, f.name) and value != getattr(defaults, f.name):
            yield f"dataset.{f.name}={hydra_value(value)}"


def _image_size(spec: RunSpec) -> Iterator[str]:
    """dataset.image_size_px, where the size is not what images of this data set get without it."""
    try:
        native_px = None if spec.dataset.kind == "image_folder" else data.facts(spec.dataset.kind).image_size_px
    except GridError:
        native_px = None
    size_px = None
    if isinstance(spec.settings, ScratchSettings):
        size_px = spec.settings.image_size_px
    elif isinstance(spec.settings, EvaluateSettings) and spec.settings.preprocess is not None:
        size_px = spec.settings.preprocess.crop_px
    if size_px is not None and size_px != native_px:
        yield f"dataset.image_size_px={size_px}"
    direct = [b for b in spec.backbones if b.preprocess.mode == "direct"]
    if direct and any(not _by_default(b, native_px) for b in direct):
        yield f"dataset.image_size_px={direct[0].preprocess.crop_px}"


def _small_pictures(spec: RunSpec) -> Iterator[str]:
    """Where the weights' own transform was taken for pictures below the crop size; of a folder without such pictures
    this says nothing, and changes nothing."""
    fed = [b.preprocess for b in spec.backbones]
    if not fed or _evaluated(spec) is not None:
        return
    if spec.dataset.kind == "image_folder" and spec.dataset.name == "imagenet":  # whose file has recipe
        if any(f.small == "whole" for f in fed):
            yield "dataset.small_pictures=whole"
        return
    if not all(f.mode == "recipe" and f.small == "recipe" for f in fed):
        return
    if spec.dataset.kind != "image_folder":
        native_px = data.facts(spec.dataset.kind).image_size_px
        if native_px is None or native_px >= min(f.crop_px for f in fed):
            return
    yield "dataset.small_pictures=recipe"


def _by_default(backbone: BackboneSpec, native_px: int | None) -> bool:
    try:
        known = backbones.entry(backbone.name)
    except GridError:  # a timm network, whose description lies in a cache that a report does not know
        return False
    weights = known.weights.get(backbone.weights.label) or known.weights[known.default_weights]
    fed = preprocess_for(
        image_size_px=None,
        native_size_px=native_px,
        resize_px=weights.resize_px,
        crop_px=weights.crop_px,
        interpolation=weights.interpolation,
        mean=weights.mean,
        std=weights.std,
    )
    return fed == backbone.preprocess


def _weights(parts: Sequence[BackboneSpec]) -> Iterator[str]:
    files = [b for b in parts if b.weights.identity.startswith("file:")]
    others = [b for b in parts if b not in files]
    for part in files:
        yield "weights=FILE" if len(parts) == 1 else f"weights_files.{part.name}=FILE"
    labels = {b.weights.label for b in others}
    if len(labels) == 1 and any(b.weights.label != _default_weights(b.name) for b in others):
        yield f"weights={hydra_value(labels.pop())}"
    seeds = {b.weights.identity.rsplit(":", 1)[1] for b in others if b.weights.identity.startswith("random:")}
    yield from (f"weights_seed={seed}" for seed in sorted(seeds - {"0"}))


def _default_weights(name: str) -> str | None:
    try:
        return backbones.entry(name).default_weights
    except GridError:
        return None


def _to_fill_in(spec: RunSpec) -> tuple[str, ...]:
    texts = []
    if spec.dataset.kind == "image_folder":
        texts.append(
            f"FOLDER: the folder of {spec.dataset.name}, whose content has the hash {spec.dataset.fingerprint}"
        )
    for part in spec.backbones:
        if part.weights.identity.startswith("file:"):
            texts.append(f"FILE of {part.name}: the file with sha256 {part.weights.identity.removeprefix('file:')}")
    if isinstance(spec.settings, EvaluateSettings) and spec.settings.source.startswith("file:"):
        texts.append(f"FILE: the checkpoint with sha256 {spec.settings.source.removeprefix('file:')}")
    return tuple(dict.fromkeys(texts))
