"""Accuracy per model: with intervals beside the published value, and on the training images beside the test images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from transfergrid.report.analysis.cells import accuracy_with_interval, percent
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.figures import style
from transfergrid.report.figures.material import Material, Sketch, group_name, row_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Labelled = tuple[ComparisonRow, str]


def sketches(material: Material) -> Iterator[Sketch]:
    for (dataset, phase), rows in material.groups().items():
        measured = [row for row, _ in rows if row.test_accuracy is not None]
        measured.sort(key=lambda row: -(row.test_accuracy or 0.0))
        labelled = list(zip(measured, style.shorten_all(row_labels(measured), 30), strict=True))
        for number, page in enumerate(style.columns(labelled)):
            shown = tuple(row for column in page for row, _ in column)
            title = f"{dataset} · {phase}"
            yield Sketch(
                name=group_name("accuracy", dataset, phase) + style.page_suffix(number),
                title=f"Test accuracy of {title}",
                caption=_caption(shown),
                section="accuracy",
                rows=shown,
                draw=partial(draw_intervals, page, title=title),
            )
        both = [(row, label) for row, label in labelled if row.train_accuracy is not None]
        for number, page in enumerate(style.columns(both)):
            yield Sketch(
                name=group_name("train-test", dataset, phase) + style.page_suffix(number),
                title=f"Accuracy on training and test images of {dataset} · {phase}",
                caption="Both evaluated after training, without augmentation; sorted by accuracy on test.",
                section="accuracy",
                rows=tuple(row for column in page for row, _ in column),
                draw=partial(draw_train_test, page, title=f"{dataset} · {phase}"),
            )


def _caption(rows: Sequence[ComparisonRow]) -> str:
    text = "Mean over seeds with its 95 % interval (one seed: Wilson's, over test images; several: Student's t, over "
    text += "seeds), best first."
    if any(row.test_groups for row in rows):
        text = "Mean over seeds with its 95 % interval by group of test images, best first."
    if any(row.published_accuracy is not None for row in rows):
        text += " The open diamond is the published value; the table says what differs from the study."
    partly = [row for row in rows if row.n_seeds and row.status != "completed"]
    named = [f"{label} ({row.status})" for row, label in zip(partly, row_labels(partly), strict=True)]
    return text + (f" Not of all seeds: {', '.join(named)}." if named else "")


# -------------------------------------------------------------------------------------------------------------- drawing
def draw_intervals(page: Sequence[Sequence[Labelled]], *, title: str) -> Figure:
    from matplotlib.lines import Line2D

    figure, panels = _panels(page, title, line_in=style.LINE_IN)
    low, high = _span([row for column in page for row, _ in column])
    for axes, column in zip(panels, page, strict=True):
        style.name_lines(axes, [label for _, label in column])
        for y, (row, _) in enumerate(column):
            assert row.test_accuracy is not None
            if row.ci95_low is not None and row.ci95_high is not None:
                axes.plot([100 * row.ci95_low, 100 * row.ci95_high], [y, y], "-|", color=style.BLUE, markersize=6)
            axes.plot(100 * row.test_accuracy, y, "o", color=style.BLUE, markersize=5)
            if row.published_accuracy is not None:
                axes.plot(
                    100 * row.published_accuracy,
                    y,
                    "D",
                    markerfacecolor="white",
                    markeredgecolor=style.RED,
                    markersize=5,
                    markeredgewidth=1.3,
                )
            axes.text(
                1.02, y, accuracy_with_interval(row), va="center", fontsize=7, transform=axes.get_yaxis_transform()
            )
        axes.set_xlim(low, high)
        axes.set_xlabel("test accuracy [%]")
    handles = [Line2D([], [], color=style.BLUE, marker="o", markersize=5)]
    texts = ["mean and 95 % interval"]
    if any(row.published_accuracy is not None for column in page for row, _ in column):
        handles.append(
            Line2D([], [], marker="D", linestyle="", markerfacecolor="white", markeredgecolor=style.RED, markersize=5)
        )
        texts.append("published")
    style.legend_below(figure, handles, texts)
    return figure


def draw_train_test(page: Sequence[Sequence[Labelled]], *, title: str) -> Figure:
    from matplotlib.patches import Patch

    figure, panels = _panels(page, title, line_in=1.5 * style.LINE_IN)
    looks: tuple[tuple[str, dict[str, Any]], ...] = (
        ("train", {"facecolor": style.PALE, "edgecolor": style.GREY, "hatch": "////"}),
        ("test", {"facecolor": style.BLUE, "edgecolor": style.BLUE}),
    )
    for axes, column in zip(panels, page, strict=True):
        style.name_lines(axes, [label for _, label in column])
        for offset, (split, look) in zip((-0.2, 0.2), looks, strict=True):
            for y, (row, _) in enumerate(column):
                value = getattr(row, f"{split}_accuracy")
                axes.barh(y + offset, 100 * value, height=0.36, **look)
                axes.text(100 * value + 1, y + offset, percent(value), va="center", fontsize=7)
        axes.set_xlim(0, 112)
        axes.set_xticks([0, 20, 40, 60, 80, 100])
        axes.set_xlabel("accuracy [%]")
    style.legend_below(figure, [Patch(**look) for _, look in looks], [split for split, _ in looks])
    return figure


def _panels(page: Sequence[Sequence[Labelled]], title: str, *, line_in: float) -> tuple[Figure, list[Axes]]:
    """One panel per column of names; the height follows the longest."""
    height_in = 1.25 + line_in * max(2, max(len(column) for column in page))
    figure = style.new_figure(style.NARROW_IN if len(page) == 1 else style.WIDE_IN, height_in, style.shorten(title, 80))
    panels = figure.subplots(1, len(page), squeeze=False)[0]
    return figure, list(panels)


def _span(rows: Sequence[ComparisonRow]) -> tuple[float, float]:
    """Limits in percent around all that is shown, the same for all panels."""
    shown = [v for r in rows for v in (r.test_accuracy, r.ci95_low, r.ci95_high, r.published_accuracy) if v is not None]
    margin = max(0.003, 0.06 * (max(shown) - min(shown)))
    return max(-2.0, 100 * (min(shown) - margin)), min(102.0, 100 * (max(shown) + margin))
