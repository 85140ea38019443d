"""Of each class a training image, a test image that a network gets right, and one that it gets wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from transfergrid.data import LabeledImages
from transfergrid.report.figures import style
from transfergrid.report.figures.tiles import STEP_PX, strip
from transfergrid.store.records import Predictions
from transfergrid.training.evaluation import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 10  # classes
TILE_IN = 0.62
CAPTION = (
    " Bottom: the first image of a class, by its index, in the train split (of the best row), among the test images "
    "that the first seed gets right, and among those that it gets wrong, above the class that it takes it for."
)


@dataclass(frozen=True, slots=True)
class Samples:
    """classes: (K,) of them. lines: name and picture (STEP_PX, K STEP_PX, 3) of each. said: of each class what its
    wrong image was taken for, None where all are right."""

    classes: Sequence[int]
    lines: Sequence[tuple[str, Array]]
    said: Sequence[int | None]


def samples_of(
    classes: Sequence[int], predictions: Predictions, test: LabeledImages, train: LabeledImages | None
) -> Samples:
    """predictions: of one run, in order of the image index."""

    def firsts(label_N: Array, of: Array) -> list[int | None]:
        """Positions: of each class the first that `of` (N,) bool allows."""
        found = [np.flatnonzero((label_N == c) & of) for c in classes]
        return [int(positions[0]) if len(positions) else None for positions in found]

    def picture(images: LabeledImages, positions: Sequence[int | None], index_N: Array) -> Array:
        return strip(images, [None if p is None else int(index_N[p]) for p in positions])

    right_N = predictions.predicted_N == predictions.label_N
    right, wrong = firsts(predictions.label_N, right_N), firsts(predictions.label_N, ~right_N)
    lines = [
        ("right", picture(test, right, predictions.index_N)),
        ("wrong", picture(test, wrong, predictions.index_N)),
    ]
    if train is not None:
        every_N = np.arange(len(train))
        lines.insert(0, ("train split", picture(train, firsts(train.labels_N, every_N >= 0), every_N)))
    return Samples(classes, lines, [None if p is None else int(predictions.predicted_N[p]) for p in wrong])


def most_confused(counts_CC: Array) -> list[int]:
    """The classes, or of many those with the most errors, in their order. counts_CC: rows true."""
    errors_C = counts_CC.sum(axis=1) - counts_CC.diagonal()
    return sorted(int(c) for c in np.argsort(-errors_C, kind="stable")[:MOST])


def height_in(samples: Samples) -> float:
    return TILE_IN * len(samples.lines) + 0.9


def draw(axes: Axes, samples: Samples, labels: Sequence[str]) -> None:
    """labels: the name of each class of the data set."""
    axes.imshow(np.concatenate([picture for _, picture in samples.lines]), interpolation="nearest")
    places = [STEP_PX * (i + 0.5) for i in range(len(samples.classes))]
    axes.set_xticks(places, [style.wrap(labels[c], 12) for c in samples.classes])
    axes.xaxis.tick_top()
    axes.set_yticks([STEP_PX * (i + 0.5) for i in range(len(samples.lines))], [name for name, _ in samples.lines])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for place, said in zip(places, samples.said, strict=True):
        text = "none" if said is None else style.wrap(f"→ {labels[said]}", 12)
        axes.text(place, STEP_PX * len(samples.lines), text, ha="center", va="top", fontsize=style.TEXT_PT)
