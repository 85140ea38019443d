"""What accuracy costs: against parameters, FLOPs and seconds, with the Pareto front."""

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

MOST_NAMED = 12  # marks; of more, those of the Pareto front are named
PHASE_MARKS = {"probe": ("o", style.SKY), "finetune": ("s", style.BLUE), "scratch": ("^", style.ORANGE)}
OTHER_MARK = ("D", style.GREY)
MADE_FROM = "with all that it is made from"
GPU_SECONDS = f"full GPU seconds: one seed, {MADE_FROM}"
WALL_SECONDS = f"full wall seconds: one seed, {MADE_FROM} (no GPU)"
Reading = Callable[[ComparisonRow], float | None]
Point = tuple[int, float, float]  # the row's number, its cost, its accuracy in percent


def sketches(material: Material) -> Iterator[Sketch]:
    for dataset in material.datasets:
        rows = tuple(row for row, _ in material.tested(dataset))
        if len(rows) > 1:  # one row alone has nothing to be cheaper than
            named = "All are named." if len(rows) <= MOST_NAMED else "Its rows are named."
            yield Sketch(
                name=group_name("pareto", dataset),
                title=f"What does accuracy on {dataset} cost?",
                caption="Each mark is a row of the table. The line is the Pareto front: no row that costs as little is "
                f"as accurate. {named} Seconds are the full ones of the table: of one seed, {MADE_FROM}, as its "
                "extractions and the probe that a fine-tuning starts from.",
                section="cost",
                rows=rows,
                panels=partial(draw, rows),
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


# -------------------------------------------------------------------------------------------------------------- drawing
def draw(rows: Sequence[ComparisonRow]) -> Figure:
    """One panel below the other for each cost that is known of some row."""
    from matplotlib.lines import Line2D

    labels = [style.wrap(label, 40) for label in row_labels(rows)]
    panels = [(_axis(name, rows, points), points) for name, read in _measures(rows) if (points := _points(rows, read))]
    if not panels:
        raise ValueError("no row has its cost recorded")
    named = [points if len(rows) <= MOST_NAMED else _front(points) for _, points in panels]
    axes_in = max(1.7, *(sum(style.labels_in([labels[i] for i, _, _ in points])) for points in named))
    figure = style.new_figure(style.WIDE_IN, 0.7 + (axes_in + 0.75) * len(panels))
    grid = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axes, (name, points), with_name in zip(grid, panels, named, strict=True):
        _scatter(axes, rows, points)
        ends = [(cost, accuracy) for _, cost, accuracy in with_name]
        style.side_labels(axes, ends, [labels[i] for i, _, _ in with_name], height_in=axes_in)
        axes.set_xlabel(name)
        axes.set_ylabel("test accuracy [%]")
    phases = dict.fromkeys(row.phase for row in rows)
    handles = [Line2D([], [], linestyle="", **_mark(phase)) for phase in phases]
    texts = [*phases]
    if any(len(_front(points)) > 1 for _, points in panels):
        handles.append(Line2D([], [], color=style.BLACK, linewidth=1.0))
        texts.append("Pareto front")
    style.legend_below(figure, handles, texts)
    return figure


def _axis(name: str, rows: Sequence[ComparisonRow], points: Sequence[Point]) -> str:
    """The axis' name, and what the panel does not show."""
    positions = {i for i, _, _ in points}
    left_out = [row for i, row in enumerate(rows) if i not in positions]
    if not left_out:
        return name
    counted = "1 row" if len(left_out) == 1 else f"{len(left_out)} rows"
    no_gpu = name == GPU_SECONDS and not any(row.full_gpu_s or row.gpu_s for row in left_out)
    why = "ran without a GPU" if no_gpu else "without this number"
    return f"{name}\n(not shown: {counted} {why})"


def _measures(rows: Sequence[ComparisonRow]) -> list[tuple[str, Reading]]:
    measures: list[tuple[str, Reading]] = [
        ("parameters (4 bytes each in float32)", lambda row: row.parameters),
        ("GFLOPs per image", lambda row: row.gflops_per_image),
    ]
    if any(row.gpu_s or row.full_gpu_s for row in rows):
        return [*measures, (GPU_SECONDS, lambda row: row.full_gpu_s)]
    return [*measures, (WALL_SECONDS, lambda row: row.full_wall_s)]


def _points(rows: Sequence[ComparisonRow], read: Reading) -> list[Point]:
    """Where the cost is known and can stand on a log axis."""
    read_ones = [(i, read(row), row.test_accuracy) for i, row in enumerate(rows)]
    return [(i, cost, 100 * accuracy) for i, cost, accuracy in read_ones if cost and accuracy is not None]


def _front(points: Sequence[Point]) -> list[Point]:
    # Three digits: a head of one output more is no other price.
    return [points[i] for i in pareto_front([(float(f"{cost:.3g}"), accuracy) for _, cost, accuracy in points])]


def _scatter(axes: Axes, rows: Sequence[ComparisonRow], points: Sequence[Point]) -> None:
    for i, cost, accuracy in points:
        axes.plot(cost, accuracy, zorder=3, **_mark(rows[i].phase))
    costs = [cost for _, cost, _ in points]
    axes.set_xlim(min(costs) / 1.4, max(costs) * 1.4)
    style.log_counts(axes)
    front = _front(points)
    if len(front) > 1:
        # Steps, because between two rows there is nothing to choose.
        steps = [(cost, accuracy) for _, cost, accuracy in front] + [(axes.get_xlim()[1], front[-1][2])]
        axes.step(*zip(*steps, strict=True), where="post", color=style.BLACK, linewidth=1.0, zorder=2)
    low, high = axes.get_ylim()
    axes.set_ylim(low, min(high, 100.5))  # no tick stands above 100 %


def _mark(phase: str) -> dict[str, Any]:
    marker, colour = PHASE_MARKS.get(phase, OTHER_MARK)
    edge = {"markeredgecolor": style.BLACK, "markeredgewidth": 0.4}
    return {"marker": marker, "color": colour, "markersize": 5, **edge}
