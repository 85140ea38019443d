"""Does a network know when it is wrong: accuracy against stated confidence, and the expected calibration error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from transfergrid.report.analysis.calibration import confidence, expected_calibration_error, reliability_bins
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.figures import style
from transfergrid.report.figures.material import Material, Sketch, group_name, row_labels
from transfergrid.store.records import RunRecord
from transfergrid.training.evaluation import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS_PER_LINE, LINES_PER_PAGE = 4, 4
BINS = 15


def sketches(material: Material) -> Iterator[Sketch]:
    for (dataset, phase), rows in material.groups().items():
        tested = [(row, runs) for row, runs in rows if row.test_accuracy is not None]
        tested.sort(key=lambda pair: -(pair[0].test_accuracy or 0.0))
        labels = style.shorten_all(row_labels([row for row, _ in tested]), 32)
        panels = [(row, runs, label) for (row, runs), label in zip(tested, labels, strict=True)]
        per_page = PANELS_PER_LINE * LINES_PER_PAGE
        for number in range(-(-len(panels) // per_page)):
            page = panels[number * per_page : (number + 1) * per_page]
            yield Sketch(
                name=group_name("reliability", dataset, phase) + style.page_suffix(number),
                title=f"Reliability of {dataset} · {phase}",
                caption=f"Accuracy of test images in {BINS} bins of equal width by confidence, all seeds together. The "
                "bars below show where the images lie. On the dashed line confidence equals accuracy; bars under it "
                "mean too much confidence. ECE is the expected calibration error, in percentage points.",
                section="calibration",
                rows=tuple(row for row, _, _ in page),
                draw=partial(_draw, material, page, title=f"{dataset} · {phase}"),
            )


def _draw(material: Material, page: Sequence[tuple[ComparisonRow, Sequence[RunRecord], str]], *, title: str) -> Figure:
    panels = []
    for _, runs, label in page:
        made = [material.test_predictions(run) for run in runs]
        confidence_N = np.concatenate([confidence(p) for p in made])
        correct_N = np.concatenate([p.predicted_N == p.label_N for p in made])
        panels.append((label, confidence_N, correct_N))
    return draw_reliability(panels, title=title)


def draw_reliability(panels: Sequence[tuple[str, Array, Array]], *, title: str) -> Figure:
    """panels: (label, confidence (N,) in [0, 1], correct (N,) bool)."""
    across = min(PANELS_PER_LINE, max(2, len(panels)))
    lines = -(-len(panels) // across)
    figure = style.new_figure(
        style.WIDE_IN if across > 2 else style.NARROW_IN, 0.6 + 2.35 * lines, style.shorten(title, 80)
    )
    grid = figure.subplots(lines, across, squeeze=False, sharex=True, sharey=True)
    for axes in grid.ravel()[len(panels) :]:
        axes.set_visible(False)
    for number, (axes, (label, confidence_N, correct_N)) in enumerate(zip(grid.ravel(), panels, strict=False)):
        _panel(axes, confidence_N, correct_N)
        axes.set_title(label, fontsize=7.5)
        if number % across == 0:
            axes.set_ylabel("accuracy [%]")
        if number + across >= len(panels):
            axes.set_xlabel("confidence [%]")
            axes.tick_params(labelbottom=True)
    return figure


def _panel(axes: Axes, confidence_N: Array, correct_N: Array) -> None:
    found = reliability_bins(confidence_N, correct_N, bins=BINS)
    error = expected_calibration_error(confidence_N, correct_N, bins=BINS)
    filled_B = found.images_B > 0
    width = 100 / BINS
    middle_B = 50 * (found.low_B + found.high_B)
    axes.bar(
        middle_B[filled_B],
        100 * found.accuracy_B[filled_B],
        width=0.92 * width,
        color=style.SKY,
        edgecolor=style.BLACK,
        linewidth=0.5,
    )
    axes.plot([0, 100], [0, 100], "--", color=style.BLACK, linewidth=1.0)
    share_B = found.images_B / max(found.images_B.sum(), 1)
    axes.bar(middle_B, -22 * share_B / max(share_B.max(), 1e-12), width=0.92 * width, color=style.GREY, linewidth=0)
    axes.axhline(0, color=style.BLACK, linewidth=0.6)
    axes.set_xlim(0, 100)
    axes.set_ylim(-25, 104)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.set_yticks([0, 25, 50, 75, 100])
    behind = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0}  # a bar may stand there
    axes.text(4, 93, f"ECE {100 * error:.1f}", fontsize=7.5, bbox=behind)
