"""Does a network know when it is wrong: accuracy against stated confidence, and the expected calibration error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from transfergrid.report.analysis.calibration import confidence, expected_calibration_error, reliability_bins
from transfergrid.report.figures import style
from transfergrid.report.figures.material import Material, Sketch, group_name, pages, row_labels
from transfergrid.store.records import RunRecord
from transfergrid.training.evaluation import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PER_PAGE = 15
PANEL_IN = 1.75
BINS = 15


def sketches(material: Material) -> Iterator[Sketch]:
    for dataset in material.datasets:
        tested = material.tested(dataset)
        labels = row_labels([row for row, _ in tested])
        for suffix, page in pages(list(zip(tested, labels, strict=True)), PER_PAGE):
            yield Sketch(
                name=group_name("reliability", dataset) + suffix,
                title=f"Can the stated confidence on {dataset} be trusted?",
                caption=f"Accuracy of test images in {BINS} bins of equal width by confidence, all seeds together. "
                "Below: the share of the images in each bin. On the dashed line confidence equals accuracy; bars under "
                "it mean too much confidence. ECE is the expected calibration error, in percentage points.",
                section="calibration",
                rows=tuple(row for (row, _), _ in page),
                panels=partial(_draw, material, [(label, runs) for (_, runs), label in page]),
            )


def _draw(material: Material, page: Sequence[tuple[str, Sequence[RunRecord]]]) -> Figure:
    panels = []
    for label, runs in page:
        predictions = [material.test_predictions(run) for run in runs]
        confidence_N = np.concatenate([confidence(p) for p in predictions])
        correct_N = np.concatenate([p.predicted_N == p.label_N for p in predictions])
        panels.append((label, confidence_N, correct_N))
    return draw(panels)


def draw(panels: Sequence[tuple[str, Array, Array]]) -> Figure:
    """panels: (label, confidence (N,) in [0, 1], correct (N,) bool)."""
    across = len(panels) if len(panels) <= 5 else min((5, 4, 3), key=lambda across: -len(panels) % across)
    lines = -(-len(panels) // across)
    figure = style.new_figure(max(4.5, PANEL_IN * across + 0.3), 0.6 + 2.6 * lines)
    grid = figure.subplots(2 * lines, across, squeeze=False, sharex=True, sharey="row", height_ratios=(3, 1) * lines)
    for number in range(lines * across):
        upper, lower = grid[2 * (number // across) : 2 * (number // across) + 2, number % across]
        if number >= len(panels):
            upper.remove()
            lower.remove()
            continue
        label, confidence_N, correct_N = panels[number]
        _panel(upper, lower, confidence_N, correct_N)
        upper.set_title(style.wrap(label, 26), fontsize=7)
        lower.tick_params(labelbottom=True)
        lower.set_xlabel("confidence [%]")
        if number % across == 0:
            upper.set_ylabel("accuracy [%]")
            lower.set_ylabel("images [%]")
    return figure


def _panel(upper: Axes, lower: Axes, confidence_N: Array, correct_N: Array) -> None:
    """Accuracy by confidence, and under it how many of the images lie where, both in percent."""
    reliability = reliability_bins(confidence_N, correct_N, bins=BINS)
    error = expected_calibration_error(confidence_N, correct_N, bins=BINS)
    middle_B, width = 50 * (reliability.low_B + reliability.high_B), 92 / BINS
    accuracy_B = 100 * np.nan_to_num(reliability.accuracy_B)
    upper.bar(middle_B, accuracy_B, width=width, color=style.SKY, edgecolor=style.BLACK, linewidth=0.5)
    upper.plot([0, 100], [0, 100], "--", color=style.BLACK, linewidth=1.0)
    upper.set_xlim(0, 100)
    upper.set_ylim(0, 104)
    upper.set_xticks([0, 25, 50, 75, 100])
    upper.set_yticks([0, 25, 50, 75, 100])
    lower.bar(middle_B, 100 * reliability.images_B / len(confidence_N), width=width, color=style.GREY, linewidth=0)
    behind = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0}  # a bar may stand there
    upper.text(4, 93, f"ECE {100 * error:.1f}", fontsize=7.5, bbox=behind)
