"""What accuracy costs: against parameters, size, FLOPs and seconds with the Pareto front, and bars of the sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.figures import style
from transfergrid.report.figures.material import Material, Sketch, group_name, row_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

PANEL_IN = 3.1
PHASE_MARKS = {"probe": ("o", style.SKY), "finetune": ("s", style.BLUE), "scratch": ("^", style.ORANGE)}
OTHER_MARK = ("D", style.GREY)
GPU_SECONDS = "GPU seconds of one seed, with what it needs"
Reading = Callable[[ComparisonRow], float | None]


def sketches(material: Material) -> Iterator[Sketch]:
    for dataset in material.datasets:
        rows = [row for row, _ in material.rows if row.dataset == dataset]
        measured = [row for row in rows if row.test_accuracy is not None]
        if measured:
            yield Sketch(
                name=group_name("pareto", dataset),
                title=f"Test accuracy on {dataset} against what it costs",
                caption="Each mark is a row of the table. The line is the Pareto front: no row that costs as little is "
                "as accurate. Its rows are named. GPU seconds cover one seed and all that it needs: "
                "its extractions, the probe that a fine-tuning starts from. Wall seconds are the row's own.",
                section="cost",
                rows=tuple(measured),
                draw=partial(draw_scatter, measured, title=dataset),
            )
        sized = _sized(rows)
        for number, page in enumerate(style.columns(sized, per_page=1, per_column=40)):
            yield Sketch(
                name=group_name("sizes", dataset) + style.page_suffix(number),
                title=f"Parameters and size of the models on {dataset}",
                caption="All parameters, frozen or not, with the head; size: 1e6 bytes of float32 parameters and "
                "buffers.",
                section="cost",
                rows=tuple(row for row, _ in page[0]),
                draw=partial(draw_sizes, page[0], title=dataset),
            )


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, gain) that no other point beats, cheapest first.

    A point is beaten by one that costs no more and gains no less, and is better in one of the two; of equal points the
    first stands.
    """
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i)):
        if not front or points[i][1] > points[front[-1]][1]:
            front.append(i)
    return front


# ------------------------------------------------------------------------------------------------------------- scatter
def draw_scatter(rows: Sequence[ComparisonRow], *, title: str) -> Figure:
    from matplotlib.lines import Line2D

    labels = style.shorten_all(row_labels(rows), 30)
    panels = [(_axis(name, rows, found), found) for name, read in _measures(rows) if (found := _points(rows, read))]
    if not panels:
        raise ValueError("no row has its cost recorded")
    lines = -(-len(panels) // 2)
    figure = style.new_figure(style.WIDE_IN, 0.7 + PANEL_IN * lines, style.shorten(title, 90))
    grid = figure.subplots(lines, 2, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes, (name, found) in zip(grid, panels, strict=False):
        _scatter(axes, rows, labels, found)
        axes.set_xlabel(name)
        axes.set_ylabel("test accuracy [%]")
    phases = dict.fromkeys(row.phase for row in rows)
    handles = [_mark(phase) for phase in phases]
    handles.append(Line2D([], [], color=style.BLACK, linewidth=1.0))
    style.legend_below(figure, handles, [*phases, "Pareto front"])
    return figure


def _axis(name: str, rows: Sequence[ComparisonRow], found: Sequence[tuple[int, float, float]]) -> str:
    """The axis' name, and what the panel does not show."""
    shown = {i for i, _, _ in found}
    left_out = [row for i, row in enumerate(rows) if i not in shown]
    if not left_out:
        return name
    counted = "1 row" if len(left_out) == 1 else f"{len(left_out)} rows"
    no_gpu = name == GPU_SECONDS and not any(row.gpu_s for row in left_out)
    why = "ran without a GPU" if no_gpu else "without this number"
    return f"{name}\n(not shown: {counted} {why})"


def _measures(rows: Sequence[ComparisonRow]) -> list[tuple[str, Reading]]:
    measures: list[tuple[str, Reading]] = [
        ("parameters", lambda row: row.parameters),
        ("size [MB]", lambda row: row.size_mb),
        ("GFLOPs per image", lambda row: row.gflops_per_image),
    ]
    if any(_gpu_seconds(row) for row in rows):
        return [*measures, (GPU_SECONDS, _gpu_seconds)]
    return [*measures, ("wall seconds of one seed (no GPU)", lambda row: row.wall_s)]


def _gpu_seconds(row: ComparisonRow) -> float | None:
    if not row.gpu_s or row.upstream_gpu_s is None:
        return None
    return row.gpu_s + row.upstream_gpu_s


def _points(rows: Sequence[ComparisonRow], read: Reading) -> list[tuple[int, float, float]]:
    """(row's number, cost, accuracy in percent) where the cost is known and can stand on a log axis."""
    found = [(i, read(row), row.test_accuracy) for i, row in enumerate(rows)]
    return [(i, cost, 100 * accuracy) for i, cost, accuracy in found if cost and accuracy is not None]


def _scatter(
    axes: Axes, rows: Sequence[ComparisonRow], labels: Sequence[str], found: Sequence[tuple[int, float, float]]
) -> None:
    for i, cost, accuracy in found:
        marker, colour = PHASE_MARKS.get(rows[i].phase, OTHER_MARK)
        axes.plot(
            cost,
            accuracy,
            marker,
            color=colour,
            markersize=5,
            markeredgecolor=style.BLACK,
            markeredgewidth=0.4,
            zorder=3,
        )
    costs = [cost for _, cost, _ in found]
    axes.set_xlim(min(costs) / 1.4, max(costs) * 1.4)
    style.count_axis(axes, log=True)
    # Three digits: a head of one output more is no other price.
    front = [found[i] for i in pareto_front([(float(f"{cost:.3g}"), accuracy) for _, cost, accuracy in found])]
    # Steps, because between two rows there is nothing to choose.
    corners = [(cost, accuracy) for _, cost, accuracy in front]
    axes.step(*zip(*corners, strict=True), where="post", color=style.BLACK, linewidth=1.0, zorder=2)
    axes.plot([corners[-1][0], axes.get_xlim()[1]], [corners[-1][1]] * 2, color=style.BLACK, linewidth=1.0, zorder=2)
    axes.set_ylim(axes.get_ylim())
    style.side_labels(axes, corners, [labels[i] for i, _, _ in front], height_in=PANEL_IN - 0.9)


def _mark(phase: str) -> Line2D:
    from matplotlib.lines import Line2D

    marker, colour = PHASE_MARKS.get(phase, OTHER_MARK)
    edge: dict[str, Any] = {"markeredgecolor": style.BLACK, "markeredgewidth": 0.4}
    return Line2D([], [], marker=marker, linestyle="", color=colour, markersize=5, **edge)


# ---------------------------------------------------------------------------------------------------------------- bars
def _sized(rows: Sequence[ComparisonRow]) -> list[tuple[ComparisonRow, str]]:
    """One row per network of its own size, largest first; its variant is named only where it makes another network."""
    networks: dict[tuple[str, int], ComparisonRow] = {}
    for row in rows:
        if row.parameters is not None and row.size_mb is not None:
            networks.setdefault((row.model, row.parameters), row)
    found = sorted(networks.values(), key=lambda row: -(row.parameters or 0))
    names = [row.model for row in found]
    texts = [row.model if names.count(row.model) == 1 else f"{row.model} · {row.variant}" for row in found]
    return list(zip(found, style.shorten_all(texts, 34), strict=True))


def draw_sizes(column: Sequence[tuple[ComparisonRow, str]], *, title: str) -> Figure:
    figure = style.new_figure(style.NARROW_IN, 1.1 + style.LINE_IN * max(2, len(column)), style.shorten(title, 80))
    panels = figure.subplots(1, 2, sharey=True)
    readings: tuple[tuple[str, Reading], ...] = (
        ("parameters", lambda row: row.parameters),
        ("size [MB]", lambda row: row.size_mb),
    )
    for axes, (name, read), hatch in zip(panels, readings, ("", "////"), strict=True):
        values = [float(read(row) or 0.0) for row, _ in column]
        axes.barh(
            range(len(values)),
            values,
            height=0.66,
            color=style.SKY,
            edgecolor=style.BLACK,
            linewidth=0.5,
            hatch=hatch,
        )
        for y, value in enumerate(values):
            axes.annotate(
                style.count_text(value), (value, y), (3, 0), textcoords="offset points", va="center", fontsize=7
            )
        axes.set_xlim(0, 1.22 * max(values))
        style.count_axis(axes)
        axes.set_xlabel(name)
    style.name_lines(panels[0], [label for _, label in column])
    panels[1].grid(visible=False, axis="y")
    panels[1].tick_params(axis="y", length=0)
    return figure
