"""Published figures beside our rows, from a hand-written mapping (`published.csv`), and what differs between the two.

published.csv, one line per figure: the row of ours it belongs to (grid, dataset, model, phase, variant); metric and
value (accuracies and errors in [0, 1], losses in nats, wall_s in seconds); rule; `stands` = `yes` for the one figure
that the table's `published_accuracy` shows; epochs the study trained, and the epoch the figure belongs to, both
counted from 1; the row that replays it, see settings.py; what differs whatever our settings; source; where it was read.
Which figure stands: the study's own rule in grids that replay it, the last epoch in `individual_vs_parallel`.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, cast

from transfergrid.report.studies.settings import StudySettings, study
from transfergrid.specs import RunSpec, TrainSettings

Rule = Literal["best_on_test", "last", "study_choice", "as_stated", "corrected"]
_CONDITIONAL = frozenset({"momentum", "decay_norm_and_bias"})
NO_MATTER = frozenset({"weights file"})  # the only listed difference that leaves a delta meaningful


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFigure:
    """One figure as its study printed it.

    rule: `best_on_test` and `last` epoch; `study_choice`: an epoch the study picked by a rule it does not state;
    `as_stated` by the study about someone else's network, and its `corrected` value.
    epochs: how long the study trained; epoch: which of them (from 1) the figure belongs to; None where unknown.
    differs: what no setting of ours can change in this row. source_row: where the value was read.
    """

    grid: str
    dataset: str
    model: str
    phase: str
    variant: str
    metric: str
    value: float
    rule: Rule
    stands: bool
    epochs: int | None
    epoch: int | None
    study: StudySettings | None
    differs: tuple[str, ...]
    source: str
    source_row: str
    note: str


KEY = attrgetter("grid", "dataset", "model", "phase", "variant")  # of the row of ours that a figure belongs to


def lookup(grid: str, dataset: str, model: str, phase: str, variant: str) -> PublishedFigure | None:
    """The published test accuracy of one row, or None; another dataset name (`cifar10-jpeg`) is another dataset."""
    key = (grid, dataset, model, phase, variant)
    return next((figure for figure in figures() if figure.stands and KEY(figure) == key), None)


@lru_cache(maxsize=1)
def figures() -> tuple[PublishedFigure, ...]:
    """All published figures, in the order of published.csv."""
    with open(Path(__file__).with_name("published.csv"), encoding="utf-8", newline="") as file:
        return tuple(_figure(line) for line in csv.DictReader(file))


def _figure(line: dict[str, str]) -> PublishedFigure:
    at_epoch = line.pop("at_epoch")
    values: dict[str, Any] = line | {
        "value": float(line["value"]),
        "stands": line["stands"] == "yes",
        "epochs": int(line["epochs"]) if line["epochs"] else None,
        "epoch": int(at_epoch) if at_epoch else None,
        "study": study(line["study"]) if line["study"] else None,
        "differs": tuple(line["differs"].split(";")) if line["differs"] else (),
    }
    return PublishedFigure(**values)


# -------------------------------------------------------------------------------------------------------- differences
def differs(figure: PublishedFigure, spec: RunSpec, *, probe: RunSpec | None = None) -> tuple[str, ...]:
    """Names of what differs between a run and the figure's training, in a fixed order; empty if nothing does.

    Hardware and the seed are not listed. `weights file`: the same network from a file of the user's. probe: what a
    fine-tuning started from; `its probe` where that differs from the study's in what the fine-tuning does not.
    """
    if figure.study is None:
        return figure.differs
    names = list(figure.differs)
    names += [] if spec.protocol == "published" else ["protocol"]
    names += [] if spec.dataset.max_images is None else ["max_images"]
    names += [] if spec.train_fraction is None and spec.shots is None else ["share of the training images"]
    if spec.is_solved:
        names.append("solver")  # a solved head has no epochs and no rates to compare
    elif figure.study.settings is not None and isinstance(spec.settings, TrainSettings):
        theirs = figure.study.settings
        if figure.rule in ("best_on_test", "last"):
            theirs = replace(theirs, selection=cast(Any, figure.rule))
        elif figure.rule == "study_choice":
            names.append("selection")
            theirs = replace(theirs, selection=spec.settings.selection)
        our_values, their_values = (
            _effective(spec.settings),
            _effective(replace(theirs, epochs=figure.epochs or 0)),
        )
        for name, value in their_values.items():
            # Momentum matters between two SGDs only; where one is Adam, `optimizer` has said it.
            if our_values[name] != value and (name not in _CONDITIONAL or None not in (value, our_values[name])):
                names.append(name)
    elif isinstance(spec.settings, TrainSettings) and spec.settings.epochs != figure.epochs:
        names.append("epochs")
    names += _input_differs(figure.study, spec)
    own = None if probe is None else lookup(*KEY(replace(figure, phase="probe")))
    if own is not None and probe is not None and not {*names, *figure.study.beyond_options} >= set(differs(own, probe)):
        names.append("its probe")
    if figure.study.settings is not None and isinstance(spec.settings, TrainSettings):
        # Both draw rows with replacement: ours augments an image twice alike in one epoch, theirs anew each time.
        is_replaced = figure.study.settings.sampling == spec.settings.sampling == "replacement"
        if is_replaced and _effective(spec.settings)["augmentation"] is not None:
            names.append("augmentation of an image drawn twice in an epoch")
    return (*names, *figure.study.beyond_options)


def _input_differs(study: StudySettings, spec: RunSpec) -> list[str]:
    """What differs in a backbone's input and weights. The studies resize straight to a square, bilinear, on PIL, and
    start from the weights' own BatchNorm statistics."""
    inputs, weights = [b.preprocess for b in spec.backbones], [b.weights for b in spec.backbones]
    differences = {
        "image_size_px": any(p.mode != "direct" or p.crop_px != study.image_size_px for p in inputs),
        "interpolation": any(p.interpolation != "bilinear" or not p.antialias for p in inputs),
        "weights": study.weights is not None and any(w.label != study.weights for w in weights if not w.is_file),
        "bn_statistics": spec.extract is not None and spec.extract.bn_statistics != "imagenet",
        "weights file": any(w.is_file for w in weights),
    }
    return [name for name, is_different in differences.items() if is_different]


def _effective(settings: TrainSettings) -> dict[str, Any]:
    """A phase's settings by the name a reader knows, without what has no effect (momentum under Adam)."""
    values = {f.name: getattr(settings, f.name) for f in fields(settings)}
    for name in ("lbfgs", "cs"):
        values.pop(name, None)  # of what is reported beside the probe; it changes nothing in it
    decays = values.get("weight_decays", (values.get("weight_decay", 0.0),))

    def take(*names: str) -> tuple[Any, ...]:
        return tuple(values.pop(name) for name in names)

    momentum, spares_norm = take("momentum", "nesterov"), take("decay_norm_and_bias")
    lookahead, schedule = take("lookahead_k", "lookahead_alpha"), take("step_epochs", "step_gamma", "final_lr_fraction")
    warmup, augment_at = take("warmup_fraction"), take("augment_at")
    update = take("lr_update", "cosine_epochs")
    augmentation = take("flip", "alternate_flip", "shift_px", "cutout_px")
    perspective = take("perspective", "perspective_share")
    rotation = take("rotation_deg", "rotation_expand", "rotation_fill")
    augmentation += (perspective if perspective[0] else None, rotation if rotation[0] else None)
    normalise = take("normalise", "mean", "std") if "normalise" in values else ("constants",)
    micro_batch = values["micro_batch"] or settings.batch_size
    return values | {
        "micro_batch": micro_batch if micro_batch < settings.batch_size else None,
        "momentum": momentum if settings.optimizer == "sgd" else None,
        "decay_norm_and_bias": spares_norm if any(decays) else None,
        "lookahead": lookahead if settings.lookahead else None,
        "schedule": (settings.schedule, *warmup, *(() if settings.schedule == "constant" else (*schedule, *update))),
        "normalise": normalise[:1] if normalise[0] == "image" else normalise,
        "augmentation": (*augmentation, *augment_at) if any(augmentation) else None,
    }
