"""All rows of a data set on one axis: accuracy with intervals and published values, and the gap to training images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from transfergrid.report.analysis.cells import accuracy_with_interval
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.analysis.worth import Winner, winners
from transfergrid.report.figures import style
from transfergrid.report.figures.material import Material, Sketch, group_name, row_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEAN: dict[str, Any] = {"color": style.BLUE, "marker": "o", "markersize": 5}
PUBLISHED: dict[str, Any] = {"color": style.RED, "marker": "D", "markersize": 5, "linestyle": "", "fillstyle": "none"}
BEST: dict[str, Any] = {"color": style.ORANGE, "marker": "*", "markersize": 11, "markeredgecolor": style.BLACK}


def sketches(material: Material) -> Iterator[Sketch]:
    winner_of = {winner.dataset: winner for winner in winners(material.comparison)}
    for dataset in material.datasets:
        rows = tuple(row for row, _ in material.tested(dataset))
        if not rows:
            continue
        winner = winner_of.get(dataset)
        best = [material.comparison.rows[i] for i in winner.first] if winner else []
        yield Sketch(
            name=group_name("accuracy", dataset),
            title=f"Which row is most accurate on {dataset}?",
            caption=_caption(rows, winner),
            section="accuracy",
            rows=rows,
            panels=partial(draw, rows, best, chosen_on="test" if winner and winner.on_test else "val"),
        )


def _caption(rows: Sequence[ComparisonRow], winner: Winner | None) -> str:
    text = "Mean over seeds with its 95 % interval (one seed: Wilson's, over test images; several: Student's t, over "
    text += "seeds), the highest first."
    if any(row.test_groups for row in rows):
        text = "Mean over seeds with its 95 % interval by group of test images, the highest first."
    if winner is not None:
        rows_named = "row is the best" if len(winner.first) == 1 else "rows are tied for the best"
        chosen = "test, because nothing is chosen on val" if winner.on_test else "val"
        text += f" The marked {rows_named} on {chosen}."
    if any(row.published_accuracy is not None for row in rows):
        text += " The open diamond is the published value; the table says what differs from the study."
    if any(row.train_accuracy is not None for row in rows):
        text += " Right: accuracy on the training images minus accuracy on test, both without augmentation."
    unfinished = [row for row in rows if row.status != "completed"]
    labels = zip(unfinished, row_labels(unfinished), strict=True)
    statuses = [f"{label} ({row.status})" for row, label in labels]
    return text + (f" Not of all seeds: {', '.join(statuses)}." if statuses else "")


# -------------------------------------------------------------------------------------------------------------- drawing
def draw(rows: Sequence[ComparisonRow], best: Sequence[ComparisonRow], *, chosen_on: str) -> Figure:
    """best: of the rows, those that are marked, as the best on this split."""
    from matplotlib.lines import Line2D

    names = [style.wrap(label, 40) for label in row_labels(rows)]
    has_gap = any(row.train_accuracy is not None for row in rows)
    height_in = 1.3 + style.LINE_IN * sum(style.line_heights(names))
    figure = style.new_figure(style.WIDE_IN if has_gap else style.NARROW_IN, height_in)
    axes, *others = figure.subplots(1, 1 + has_gap, sharey=True, squeeze=False, width_ratios=(3, 1)[: 1 + has_gap])[0]
    places = style.name_lines(axes, names)
    for y, row, name in zip(places, rows, axes.get_yticklabels(), strict=True):
        _interval(axes, y, row, is_best=row in best)
        name.set_fontweight("bold" if row in best else "normal")
    axes.set_xlim(*_span(rows))
    axes.set_xlabel("test accuracy [%]")
    for gap_axes in others:
        _gaps(gap_axes, places, rows)
    legend = [("mean and 95 % interval", MEAN)]
    legend += [(f"best on {chosen_on}", BEST | {"linestyle": ""})] if best else []
    legend += [("published", PUBLISHED)] if any(row.published_accuracy is not None for row in rows) else []
    style.legend_below(figure, [Line2D([], [], **look) for _, look in legend], [text for text, _ in legend])
    return figure


def _interval(axes: Axes, y: float, row: ComparisonRow, *, is_best: bool) -> None:
    assert row.test_accuracy is not None
    if row.ci95_low is not None and row.ci95_high is not None:
        axes.plot([100 * row.ci95_low, 100 * row.ci95_high], [y, y], "-|", color=style.BLUE, markersize=6)
    axes.plot(100 * row.test_accuracy, y, **(BEST if is_best else MEAN))
    if row.published_accuracy is not None:
        axes.plot(100 * row.published_accuracy, y, **PUBLISHED)
    axes.text(1.02, y, accuracy_with_interval(row), va="center", fontsize=7, transform=axes.get_yaxis_transform())


def _gaps(axes: Axes, places: Sequence[float], rows: Sequence[ComparisonRow]) -> None:
    for y, row in zip(places, rows, strict=True):
        if row.train_accuracy is not None and row.test_accuracy is not None:
            gap = 100 * (row.train_accuracy - row.test_accuracy)
            axes.plot([0, gap], [y, y], color=style.GREY, linewidth=1.0)
            axes.plot(gap, y, "s", color=style.GREY)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, -0.5), max(high, 0.5))
    axes.axvline(0, color=style.BLACK, linewidth=0.8)
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("train minus test [points]")


def _span(rows: Sequence[ComparisonRow]) -> tuple[float, float]:
    """Limits in percent around all that the figure holds."""
    all_values = [v for r in rows for v in (r.test_accuracy, r.ci95_low, r.ci95_high, r.published_accuracy)]
    values = [value for value in all_values if value is not None]
    margin = max(0.003, 0.06 * (max(values) - min(values)))
    return max(-2.0, 100 * (min(values) - margin)), min(102.0, 100 * (max(values) + margin))
