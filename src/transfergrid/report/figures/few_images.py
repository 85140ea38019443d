"""Accuracy against the number of images trained on, where a grid trains the same models on several numbers of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.analysis.selection import is_share
from transfergrid.report.figures import style
from transfergrid.report.figures.material import Material, Sketch, group_name, pages

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEWEST_NUMBERS = 3  # of images, before a line means something
CAPTION = (
    "Mean over seeds, each with images of its own, and the 95 % interval. Val is the same for all, so the choices made "
    "on it saw more labels than the smallest sets have."
)
MOST_LINES = 8  # that can be told apart in one figure


def sketches(material: Material) -> Iterator[Sketch]:
    for (dataset, phase), rows in material.groups().items():
        lines = by_model([row for row, _ in rows])
        for suffix, page in pages(list(lines.items()), MOST_LINES):
            yield Sketch(
                name=group_name("images", dataset, phase) + suffix,
                title=f"How many training images does {phase} on {dataset} need?",
                caption=CAPTION,
                section="few images",
                rows=tuple(row for _, points in page for row in points),
                panels=partial(draw, dict(page)),
            )


def by_model(rows: Sequence[ComparisonRow]) -> dict[str, list[ComparisonRow]]:
    """Model -> its rows that differ in the images trained on, fewest first; models with too few of them are left out.

    A row counts if its variant says nothing but the share: `shots_*`, `fraction_*`, or no variant at all. Of several
    weights, protocols or grids each is a line of its own, and its name says which.
    """
    plain = [row for row in rows if row.n_train is not None and row.test_accuracy is not None and _says_share(row)]
    apart = [name for name in ("weights", "protocol", "grid") if _several(plain, name)]
    lines: dict[str, list[ComparisonRow]] = {}
    for row in plain:
        lines.setdefault(" · ".join((row.model, *(getattr(row, name) for name in apart))), []).append(row)
    sorted_rows = {model: sorted(points, key=lambda r: r.n_train or 0) for model, points in lines.items()}
    return {m: points for m, points in sorted_rows.items() if len({r.n_train for r in points}) >= FEWEST_NUMBERS}


def _says_share(row: ComparisonRow) -> bool:
    variant = row.variant if row.own_variant is None else row.own_variant
    return variant == "" or is_share(variant)


def _several(rows: Sequence[ComparisonRow], name: str) -> bool:
    """Whether some model has rows that differ in this column."""
    return len({(row.model, getattr(row, name)) for row in rows}) > len({row.model for row in rows})


def draw(lines: Mapping[str, Sequence[ComparisonRow]]) -> Figure:
    figure = style.new_figure(style.NARROW_IN, 4.2)
    axes = figure.subplots()
    handles = []
    for number, points in enumerate(lines.values()):
        colour, dashes, marker = style.line_look(number)
        # Side by side, not on top of each other: every model has the same numbers of images.
        aside = 1.03 ** (number - (len(lines) - 1) / 2)
        x = [(row.n_train or 0) * aside for row in points]
        y = [100 * (row.test_accuracy or 0.0) for row in points]
        handles += axes.plot(x, y, dashes, color=colour, marker=marker)
        for x_of_row, row in zip(x, points, strict=True):
            if row.ci95_low is not None and row.ci95_high is not None:
                axes.plot([x_of_row, x_of_row], [100 * row.ci95_low, 100 * row.ci95_high], color=colour, linewidth=0.8)
    axes.set_xscale("log")
    ticks = sorted({row.n_train or 0 for points in lines.values() for row in points})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("images trained on")
    axes.set_ylabel("test accuracy [%]")
    style.legend_below(figure, handles, [style.wrap(name, 40) for name in lines])
    return figure
