"""Where a row errs: confusion matrices, scores per class, and the most confused pairs with their images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from transfergrid.errors import ConfigError
from transfergrid.report.figures import style
from transfergrid.report.figures.material import (
    Material,
    Sketch,
    class_names,
    row_name,
    row_title,
    train_confusion,
)
from transfergrid.report.figures.tiles import tiles_beside
from transfergrid.store.records import RunRecord
from transfergrid.training.evaluation import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# C classes, N test images
MOST_CLASSES = 100  # of a matrix; beyond it only the pairs and the worst classes are shown
WRITTEN_CLASSES = 20  # up to which the cells hold their counts
LISTED_CLASSES = 25
PAIRS, EXAMPLES = 8, 4
TILE_IN = 0.42


@dataclass(frozen=True, slots=True)
class ClassScores:
    """Per class (C,): precision, recall and F1 in [0, 1]; 0 where nothing was predicted or there is nothing true."""

    precision_C: Array
    recall_C: Array
    f1_C: Array


def sketches(material: Material) -> Iterator[Sketch]:
    for row, runs in material.rows:
        if row.test_accuracy is None:
            continue
        title, seeds = row_title(row), f"{len(runs)} seed{'s' * (len(runs) > 1)}"
        if len(class_names(runs[0])) <= MOST_CLASSES:
            yield Sketch(
                name=row_name("confusion", row),
                title=f"Confusion matrices of {title}",
                caption=f"Images of each true class (row) by predicted class (column), summed over {seeds}. "
                "Shade: share of the true class, by its square root, so that few errors show.",
                section="errors",
                rows=(row,),
                draw=partial(_draw_matrices, material, runs, title),
            )
        yield Sketch(
            name=row_name("errors", row),
            title=f"Classes and most confused pairs of {title}",
            caption=f"Test images, summed over {seeds}. Left: precision, recall and F1 of each class"
            f"{_which_classes(runs[0])}. Right: the pairs confused most often, with the images of the first seed where "
            "they are at hand.",
            section="errors",
            rows=(row,),
            draw=partial(_draw_errors, material, runs, title),
        )


def _which_classes(run: RunRecord) -> str:
    total = len(class_names(run))
    return "" if total <= LISTED_CLASSES else f" (the {LISTED_CLASSES} with the lowest F1 of {total})"


def class_scores(counts_CC: Array) -> ClassScores:
    correct_C = counts_CC.diagonal().astype(np.float64)
    precision_C = correct_C / np.maximum(counts_CC.sum(axis=0), 1)
    recall_C = correct_C / np.maximum(counts_CC.sum(axis=1), 1)
    f1_C = 2 * precision_C * recall_C / np.maximum(precision_C + recall_C, 1e-300)
    return ClassScores(precision_C, recall_C, f1_C)


def confused_pairs(counts_CC: Array, *, most: int) -> list[tuple[int, int, int]]:
    """(true class, predicted class, images), most images first; ties by class."""
    errors_CC = counts_CC.copy()
    np.fill_diagonal(errors_CC, 0)
    order = np.argsort(-errors_CC, axis=None, kind="stable")[:most]
    pairs = [(int(flat) // len(counts_CC), int(flat) % len(counts_CC)) for flat in order]
    return [
        (true, predicted, int(errors_CC[true, predicted])) for true, predicted in pairs if errors_CC[true, predicted]
    ]


# ------------------------------------------------------------------------------------------------------------ matrices
def _draw_matrices(material: Material, runs: Sequence[RunRecord], title: str) -> Figure:
    names = class_names(runs[0])
    matrices = [("test", material.test_confusion(runs))]
    if (counts_CC := train_confusion(runs)) is not None:
        matrices.insert(0, ("train", counts_CC))
    return draw_matrices(matrices, names, title=title)


def draw_matrices(matrices: Sequence[tuple[str, Array]], names: Sequence[str], *, title: str) -> Figure:
    """Side by side; (C, C) counts, rows true."""
    width_in = style.WIDE_IN if len(matrices) > 1 else style.NARROW_IN - 1.5
    figure = style.new_figure(width_in, 4.9, style.shorten(title, 90))
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    for axes, (split, counts_CC) in zip(panels, matrices, strict=True):
        _matrix(axes, counts_CC, names)
        accuracy = counts_CC.trace() / max(counts_CC.sum(), 1)
        axes.set_title(f"{split}: {100 * accuracy:.2f} % of {counts_CC.sum():,} images")
    panels[0].set_ylabel("true class")
    return figure


def _matrix(axes: Axes, counts_CC: Array, names: Sequence[str]) -> None:
    num_classes = len(names)
    share_CC = counts_CC / np.maximum(counts_CC.sum(axis=1, keepdims=True), 1)
    axes.imshow(np.sqrt(share_CC), cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
    every = max(1, -(-num_classes // 26))  # what fits without touching
    ticks = range(0, num_classes, every)
    short = [style.shorten(names[i], 14) for i in ticks]
    axes.set_xticks(ticks, short, rotation=90 if max(map(len, short)) > 2 or num_classes > 12 else 0)
    axes.set_yticks(ticks, short)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.set_xlabel("predicted class")
    if num_classes > WRITTEN_CLASSES or counts_CC.max() > (99_999 if num_classes <= 10 else 999):
        return
    for true, predicted in zip(*np.nonzero(counts_CC), strict=True):
        dark = share_CC[true, predicted] > 0.25
        axes.text(
            predicted,
            true,
            str(counts_CC[true, predicted]),
            ha="center",
            va="center",
            fontsize=7,
            color="white" if dark else style.BLACK,
            in_layout=False,  # it stands inside of the axes, and a hundred of them take a while to measure
        )


# -------------------------------------------------------------------------------------------------- classes and pairs
def _draw_errors(material: Material, runs: Sequence[RunRecord], title: str) -> Figure:
    names = class_names(runs[0])
    counts_CC = material.test_confusion(runs)
    pairs = confused_pairs(counts_CC, most=PAIRS)
    shown = np.argsort(class_scores(counts_CC).f1_C, kind="stable")[:LISTED_CLASSES]
    if len(names) <= LISTED_CLASSES:
        shown = np.arange(len(names))
    height_in = 1.3 + max(0.19 * len(shown), TILE_IN * max(len(pairs), 3))
    figure = style.new_figure(style.WIDE_IN, height_in, style.shorten(title, 90))
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.0, 0.7, 0.8))
    _class_dots(left, class_scores(counts_CC), shown, names)
    _pair_bars(middle, pairs, names)
    _pair_examples(right, material, runs[0], pairs)
    return figure


def _class_dots(axes: Axes, scores: ClassScores, shown: Array, names: Sequence[str]) -> None:
    style.name_lines(axes, style.shorten_all([names[i] for i in shown], 22))
    looks = (
        ("precision", scores.precision_C, "^", style.ORANGE, 4.5),
        ("recall", scores.recall_C, "s", style.SKY, 4.0),
        ("F1", scores.f1_C, "|", style.BLACK, 8.0),
    )
    for y, i in enumerate(shown):
        pair = (100 * scores.precision_C[i], 100 * scores.recall_C[i])
        axes.plot(pair, (y, y), "-", color=style.PALE, linewidth=1.2, zorder=1)
    for label, values_C, marker, colour, size in looks:
        edge = style.BLACK if marker != "|" else colour
        axes.plot(
            100 * values_C[shown],
            range(len(shown)),
            linestyle="",
            marker=marker,
            color=colour,
            markersize=size,
            markeredgecolor=edge,
            markeredgewidth=0.4 if marker != "|" else 1.5,
            label=label,
        )
    lowest = 100 * min(float(values_C[shown].min()) for _, values_C, *_ in looks)
    margin = 0.5 + 0.05 * (100 - lowest)
    axes.set_xlim(lowest - margin, 100 + margin)
    axes.set_xlabel("of the class [%]")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, handletextpad=0.2, columnspacing=1.0)


def _pair_bars(axes: Axes, pairs: Sequence[tuple[int, int, int]], names: Sequence[str]) -> None:
    if not pairs:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no errors", transform=axes.transAxes, ha="center")
        return
    texts = [f"{style.shorten(names[true], 14)} → {style.shorten(names[said], 14)}" for true, said, _ in pairs]
    style.name_lines(axes, texts)
    counts = [count for _, _, count in pairs]
    axes.barh(range(len(pairs)), counts, height=0.6, color=style.PALE, edgecolor=style.BLACK, linewidth=0.5)
    for y, count in enumerate(counts):
        axes.annotate(str(count), (count, y), (3, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_xlim(0, 1.2 * max(counts))
    style.whole_numbers(axes, 6)
    axes.set_xlabel("images taken for the other class")
    axes.set_title("true → predicted", fontsize=8)


def _pair_examples(axes: Axes, material: Material, run: RunRecord, pairs: Sequence[tuple[int, int, int]]) -> None:
    """A line of images beside each bar, of the first seed's errors by their index."""
    axes.set_axis_off()
    if not pairs:
        return
    predictions = material.test_predictions(run)
    images = material.images(run.spec.dataset, "test")
    if images is None:
        axes.text(0.5, 0.5, "images are not at hand", transform=axes.transAxes, ha="center", color=style.GREY)
        return
    if len(images) <= predictions.index_N.max():
        raise ConfigError(f"{run.run_id} was evaluated on more images than {run.spec.dataset.name} has now")
    label_N, predicted_N = predictions.label_N, predictions.predicted_N
    for y, (true, said, _) in enumerate(pairs):
        found_N = np.sort(predictions.index_N[(label_N == true) & (predicted_N == said)])[:EXAMPLES]
        if len(found_N):
            tiles_beside(axes, y, images, [int(i) for i in found_N], tile_in=TILE_IN - 0.03)
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.set_title("images, first seed", fontsize=8, loc="left")
