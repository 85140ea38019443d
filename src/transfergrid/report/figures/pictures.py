"""The images themselves: samples of every class, and a grid of predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from transfergrid.data import LabeledImages
from transfergrid.errors import DataError
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.analysis.selection import best_on_val, val_score
from transfergrid.report.figures import style
from transfergrid.report.figures.material import Material, Rows, Sketch, class_names, group_name, row_title
from transfergrid.report.figures.tiles import tiles
from transfergrid.specs import DatasetSpec, Split
from transfergrid.store.records import RunRecord
from transfergrid.training.evaluation import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES, MOST_CLASSES = 10, 40  # images of a class; classes of a figure
SIDE = 4  # of the grid of predictions
ERRORS_SHOWN = 6


def sketches(material: Material) -> Iterator[Sketch]:
    for dataset in material.datasets:
        rows = [(row, runs) for row, runs in material.rows if row.dataset == dataset]
        run = rows[0][1][0]
        yield Sketch(
            name=group_name("samples", dataset),
            title=f"Training images of {dataset}",
            caption=f"The first {SAMPLES} training images of each class"
            + (f", for {MOST_CLASSES} classes of {len(class_names(run))}." if _too_many(run) else "."),
            section="data",
            rows=tuple(row for row, _ in rows),
            draw=partial(_draw_samples, material, run),
        )
        best = best_by_val(rows)
        if best is not None:
            row, runs = best
            how = "best on val" if val_score(row) is not None else "the first row, since nothing was chosen on val"
            yield Sketch(
                name=group_name("predictions", dataset),
                title=f"Predictions of {row_title(row)}",
                caption=f"Test images with their true class, {how}, first seed: up to {ERRORS_SHOWN} errors, and "
                "others drawn at random, by index. Green ✓: right. Red ✗: wrong, with the predicted class after the "
                "arrow.",
                section="errors",
                rows=(row,),
                draw=partial(_draw_predictions, material, runs[0], row_title(row)),
            )


def best_by_val(rows: Rows) -> tuple[ComparisonRow, tuple[RunRecord, ...]] | None:
    """The row that is best on val; the first that was tested, where no row has a score there (protocol `published`)."""
    tested = [(row, runs) for row, runs in rows if row.test_accuracy is not None]
    best = best_on_val([row for row, _ in tested])
    return tested[best or 0] if tested else None


def _too_many(run: RunRecord) -> bool:
    return len(class_names(run)) > MOST_CLASSES


def _images(material: Material, dataset: DatasetSpec, split: Split) -> LabeledImages:
    images = material.images(dataset, split)
    if images is None:
        raise DataError(
            f"the {split} images of {dataset.name} are not at hand; set TRANSFERGRID_DATA_DIR to their folder"
        )
    return images


# ------------------------------------------------------------------------------------------------------------- samples
def _draw_samples(material: Material, run: RunRecord) -> Figure:
    images = _images(material, run.spec.dataset, "train")
    # The data set's own names: an evaluated network may have others, in another order.
    return draw_samples(images, images.class_names, title=f"{run.spec.dataset.name}, training images")


def draw_samples(images: LabeledImages, names: Sequence[str], *, title: str) -> Figure:
    shown = min(len(names), MOST_CLASSES)
    lines = [[int(i) for i in np.flatnonzero(images.labels_N == c)[:SAMPLES]] for c in range(shown)]
    height_in = 0.5 + 0.4 * shown
    figure = style.new_figure(style.NARROW_IN - 0.8, height_in, style.shorten(title, 80))
    axes = figure.subplots()
    tiles(axes, images, lines, columns=SAMPLES)
    style.name_lines(axes, style.shorten_all(names[:shown], 22))
    axes.set_ylim(shown - 0.5, -0.5)
    axes.set_xticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


# --------------------------------------------------------------------------------------------------------- predictions
def _draw_predictions(material: Material, run: RunRecord, title: str) -> Figure:
    predictions = material.test_predictions(run)
    images = _images(material, run.spec.dataset, "test")
    chosen = chosen_examples(predictions.label_N != predictions.predicted_N, total=SIDE * SIDE)
    chosen = chosen[np.argsort(predictions.index_N[chosen], kind="stable")]
    names = class_names(run)
    return draw_predictions(
        images,
        predictions.index_N[chosen],
        [(names[predictions.label_N[i]], names[predictions.predicted_N[i]]) for i in chosen],
        title=title,
    )


def chosen_examples(wrong_N: Array, *, total: int) -> Array:
    """Positions of up to ERRORS_SHOWN errors, and of others at random (seed 0) to make up `total`, sorted."""
    generator = np.random.default_rng(0)
    errors = generator.permutation(np.flatnonzero(wrong_N))[:ERRORS_SHOWN]
    others = np.setdiff1d(np.arange(len(wrong_N)), errors)
    drawn: Array = np.sort(np.concatenate([errors, generator.permutation(others)[: total - len(errors)]]))
    return drawn


def draw_predictions(
    images: LabeledImages, index_N: Array, classes: Sequence[tuple[str, str]], *, title: str
) -> Figure:
    """classes: (true, predicted) of each image. Four a line, each with what it is and what it was taken for."""
    lines = [[int(i) for i in index_N[start : start + SIDE]] for start in range(0, len(index_N), SIDE)]
    figure = style.new_figure(style.NARROW_IN - 1.5, 0.5 + 1.55 * len(lines), style.shorten(title, 70))
    grid = figure.subplots(len(lines), SIDE, squeeze=False)
    for axes in grid.ravel():
        axes.set_axis_off()
    for number, (axes, (true, said)) in enumerate(zip(grid.ravel(), classes, strict=False)):
        right = true == said
        tiles(axes, images, [[lines[number // SIDE][number % SIDE]]], columns=1)
        mark, colour = ("✓", "#00735A") if right else ("✗", "#B03A00")
        text = f"{mark} {style.shorten(true, 16)}" + ("" if right else f"\n→ {style.shorten(said, 16)}")
        axes.set_title(text, fontsize=7.5, color=colour, pad=3)
    return figure
