"""Where a row errs: its confusion matrix, scores per class, the most confused pairs, and images right and wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from transfergrid.data import LabeledImages
from transfergrid.errors import ConfigError
from transfergrid.report.analysis.per_class import Pair, class_names, confused_pairs, confusion_of
from transfergrid.report.analysis.worth import winners
from transfergrid.report.figures import samples, style
from transfergrid.report.figures.material import Material, Sketch, class_labels, row_name, row_title
from transfergrid.report.figures.samples import Samples, samples_of
from transfergrid.report.figures.tiles import put_beside, strip
from transfergrid.store.records import Predictions, RunRecord
from transfergrid.training.evaluation import Array, ClassScores, class_scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# C classes, N test images
MOST_CLASSES = 100  # of a matrix; beyond it only the pairs and the worst classes are shown
WRITTEN_CLASSES = 20  # up to which the cells hold their counts
WRITTEN_NAME = 14  # characters of a class name at the matrix; with longer ones it has their numbers
LISTED_CLASSES = 25
MATRIX_IN = 3.6
PAIRS, EXAMPLES = 6, 4
Strip = Array | None


def sketches(material: Material) -> Iterator[Sketch]:
    best = {material.comparison.runs[winner.first[0]][0].run_id for winner in winners(material.comparison)}
    for row, runs in material.rows:
        if row.test_accuracy is not None:
            yield Sketch(
                name=row_name("errors", row),
                title=f"Which classes does {row_title(row)} confuse?",
                caption=_caption(runs),
                section="errors",
                rows=(row,),
                panels=partial(_draw, material, runs, is_best=runs[0].run_id in best),
            )


def _caption(runs: Sequence[RunRecord]) -> str:
    names, labels = class_names(runs[0]), class_labels(runs[0])
    seeds = f"{len(runs)} seed{'s' * (len(runs) > 1)}"
    text = f"Test images, summed over {seeds}."
    if len(labels) <= MOST_CLASSES:
        text += " Left: images of each true class (row) by predicted class (column); the shade is the square root of "
        text += "the share of the true class, so that few errors show."
    listed = f" (the {LISTED_CLASSES} with the lowest F1 of {len(labels)})" if len(labels) > LISTED_CLASSES else ""
    text += f" Precision, recall and F1 of each class{listed}. Below: the pairs confused most often, with images of the"
    text += " first seed where they are at hand." + samples.CAPTION
    if any(not style.is_drawable(name) for name in names):
        text += " A number stands for a class whose name no font here can show: its place in the order of the classes."
    return text


# -------------------------------------------------------------------------------------------------------------- drawing
def _draw(material: Material, runs: Sequence[RunRecord], *, is_best: bool) -> Figure:
    run, counts_CC = runs[0], confusion_of(runs, material.comparison.stored).counts_CC
    pairs = confused_pairs(counts_CC, most=PAIRS)
    test = _test_images(material, run)
    if test is None:
        return draw(counts_CC, class_labels(run), pairs)
    predictions = material.test_predictions(run)
    # An evaluated network may name the classes in another order than the data set does.
    train = material.images(run.spec.dataset, "train") if is_best and run.spec.phase != "evaluate" else None
    shown = samples_of(samples.most_confused(counts_CC), predictions, test, train)
    return draw(counts_CC, class_labels(run), pairs, _strips(test, predictions, pairs), shown)


def draw(
    counts_CC: Array,
    labels: Sequence[str],
    pairs: Sequence[Pair],
    strips: Sequence[Strip] = (),
    shown: Samples | None = None,
) -> Figure:
    """counts_CC: rows true. strips: images beside each of the pairs, shown: below them; without where none are at
    hand."""
    scores = class_scores(counts_CC)
    num_classes, has_matrix = len(labels), len(labels) <= MOST_CLASSES
    is_numbered = has_matrix and max(map(len, labels)) > WRITTEN_NAME
    worst_first_C = np.argsort(scores.f1_C, kind="stable")
    classes = worst_first_C[:LISTED_CLASSES] if num_classes > LISTED_CLASSES else np.arange(num_classes)
    names = [style.wrap(f"{i}: {labels[i]}" if is_numbered else labels[i], 26) for i in classes]
    pair_names = [style.wrap(f"{labels[true]} → {labels[predicted]}", 30) for true, predicted, _ in pairs]

    above_in = max(MATRIX_IN if has_matrix else 2.0, 0.9 * style.LINE_IN * sum(style.line_heights(names)))
    below_in = style.LINE_IN * sum(style.line_heights(pair_names, least=2.0))
    heights_in = [0.9 + above_in, *([0.8 + below_in] if pairs else []), *([samples.height_in(shown)] if shown else [])]
    figure = style.new_figure(style.WIDE_IN, 0.4 + sum(heights_in))
    upper, *lower = figure.subfigures(len(heights_in), 1, squeeze=False, height_ratios=heights_in)[:, 0]
    if shown is not None:
        samples.draw(lower.pop().subplots(), shown, [str(i) for i in range(num_classes)] if is_numbered else labels)
    *left, right = upper.subplots(1, 1 + has_matrix, squeeze=False, width_ratios=(1.1, 1)[-1 - has_matrix :])[0]
    for axes in left:
        _matrix(axes, counts_CC, [str(i) for i in range(num_classes)] if is_numbered else labels)
    _class_dots(right, scores, classes, names)
    for part in lower:
        bars, *beside = part.subplots(1, 1 + bool(strips), squeeze=False, width_ratios=(2, 1)[: 1 + bool(strips)])[0]
        places = _pair_bars(bars, pairs, pair_names)
        for axes in beside:
            _examples(axes, strips, places, bars.get_ylim())
    return figure


def _matrix(axes: Axes, counts_CC: Array, labels: Sequence[str]) -> None:
    num_classes = len(labels)
    share_CC = counts_CC / np.maximum(counts_CC.sum(axis=1, keepdims=True), 1)
    axes.imshow(np.sqrt(share_CC), cmap="Greys", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    axes.set_box_aspect(1)
    every = max(1, -(-num_classes // 26))  # what fits without touching
    ticks = range(0, num_classes, every)
    texts = labels[::every]
    axes.set_xticks(ticks, texts, rotation=90 if max(map(len, texts)) > 2 or num_classes > 12 else 0)
    axes.set_yticks(ticks, texts)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(f"{100 * counts_CC.trace() / max(counts_CC.sum(), 1):.2f} % of {counts_CC.sum():,} predictions")
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


def _class_dots(axes: Axes, scores: ClassScores, classes: Array, names: Sequence[str]) -> None:
    places = style.name_lines(axes, names)
    for y, i in zip(places, classes, strict=True):
        pair = (100 * scores.precision_C[i], 100 * scores.recall_C[i])
        axes.plot(pair, (y, y), "-", color=style.PALE, linewidth=1.2, zorder=1)
    looks = (
        ("precision", scores.precision_C, "^", style.ORANGE, 4.5),
        ("recall", scores.recall_C, "s", style.SKY, 4.0),
        ("F1", scores.f1_C, "|", style.BLACK, 8.0),
    )
    for label, values_C, marker, colour, size in looks:
        edge = {"markeredgecolor": style.BLACK, "markeredgewidth": 1.5 if marker == "|" else 0.4}
        look: dict[str, Any] = {"linestyle": "", "marker": marker, "color": colour, "markersize": size, **edge}
        axes.plot(100 * values_C[classes], places, label=label, **look)
    lowest = 100 * min(float(values_C[classes].min()) for _, values_C, *_ in looks)
    low = lowest - 0.5 - 0.05 * (100 - lowest) if lowest < 100 else 98.0
    axes.set_xlim(low, 100 + 0.05 * (100 - low))  # no tick stands above 100 %
    axes.set_xlabel("precision, recall and F1 of each class [%]")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, handletextpad=0.2, columnspacing=1.0)


def _pair_bars(axes: Axes, pairs: Sequence[Pair], names: Sequence[str]) -> list[float]:
    places = style.name_lines(axes, names, least=2.0)
    counts = [count for _, _, count in pairs]
    axes.barh(places, counts, height=1.2, color=style.PALE, edgecolor=style.BLACK, linewidth=0.5)
    for y, count in zip(places, counts, strict=True):
        axes.annotate(str(count), (count, y), (3, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_xlim(0, 1.2 * max(counts))
    style.whole_numbers(axes, 6)
    axes.set_xlabel("images taken for the other class")
    axes.set_title("true → predicted", fontsize=8)
    return places


def _test_images(material: Material, run: RunRecord) -> LabeledImages | None:
    images = material.images(run.spec.dataset, "test")
    if images is not None and len(images) <= material.test_predictions(run).index_N.max():
        raise ConfigError(f"{run.run_id} was evaluated on more images than {run.spec.dataset.name} has now")
    return images


def _strips(images: LabeledImages, predictions: Predictions, pairs: Sequence[Pair]) -> list[Strip]:
    """Beside each pair the first images of this run's errors, by their index."""
    strips: list[Strip] = []
    for true, predicted, _ in pairs:
        is_pair_N = (predictions.label_N == true) & (predictions.predicted_N == predicted)
        indices = np.sort(predictions.index_N[is_pair_N])[:EXAMPLES]
        strips.append(strip(images, [int(i) for i in indices]) if len(indices) else None)
    return strips


def _examples(axes: Axes, strips: Sequence[Strip], places: Sequence[float], limits: tuple[float, float]) -> None:
    axes.set_axis_off()
    for y, strip_HWC in zip(places, strips, strict=True):
        if strip_HWC is not None:
            put_beside(axes, y, strip_HWC, height_in=2 * style.LINE_IN)
    axes.set_ylim(limits)
    axes.set_title("images, first seed", fontsize=8, loc="left")
