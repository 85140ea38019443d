"""A picture of each model: its blocks with the shapes between them; for a join, its parts meeting in the head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.figures import style
from transfergrid.report.figures.layers import Block, Trunk, kinds_text, networks, shape_text, trace
from transfergrid.report.figures.material import Material, Sketch, group_name
from transfergrid.specs import RunSpec
from transfergrid.store.records import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PER_LINE = 6
JOIN_CHARACTERS = 38  # on a line of a box where columns stand side by side
Traced = dict[tuple[str, tuple[int, int, int]], Trunk]


def sketches(material: Material) -> Iterator[Sketch]:
    traced: Traced = {}
    seen: dict[tuple[object, ...], tuple[RunRecord, list[ComparisonRow]]] = {}
    for row, runs in material.rows:
        spec = runs[0].spec
        if spec.phase == "evaluate" and not spec.backbones:
            continue  # its training's own row shows the network
        size_px = getattr(spec.settings, "image_size_px", None)
        key: tuple[object, ...] = (
            spec.model,
            tuple(b.preprocess.crop_px for b in spec.backbones) or size_px,
            spec.dataset.num_classes,
        )
        seen.setdefault(key, (runs[0], []))[1].append(row)
    for key, (run, rows) in seen.items():
        yield Sketch(
            name=group_name("architecture", *(str(part) for part in key)),
            title=f"The blocks of {run.spec.model}",
            caption="Each box: its module, what it is made of, the shape of its output (channels x height x width) and "
            "its parameters. Neighbours of one shape share a box.",
            section="architecture",
            rows=tuple(rows),
            draw=partial(_draw, run.spec, traced),
        )


def _draw(spec: RunSpec, traced: Traced) -> Figure:
    trunks = []
    for name, network, input_shape in networks(spec):
        key = (name, input_shape)
        if key not in traced or not spec.backbones:
            traced[key] = trace(name, network, input_shape)
        trunks.append(traced[key])
    if not spec.backbones:
        return draw_line(trunks[0], None, title=spec.model)
    if len(trunks) == 1:
        return draw_line(trunks[0], spec.dataset.num_classes, title=spec.model)
    return draw_join(trunks, spec.dataset.num_classes, title=spec.model)


def head_block(feature_dim: int, num_classes: int) -> Block:
    return Block("head", ("Linear",), (num_classes,), (feature_dim + 1) * num_classes, is_leaf=True)


def feature_dim(trunk: Trunk) -> int:
    """A trunk ends in its features, one value each per channel once they are averaged or flattened."""
    return trunk.blocks[-1].shape[0]


# ------------------------------------------------------------------------------------------------------- one after one
def draw_line(trunk: Trunk, num_classes: int | None, *, title: str) -> Figure:
    """Boxes from left to right, line by line. num_classes: of the head put onto a trunk; None for a whole network."""
    blocks = list(trunk.blocks)
    if num_classes is not None:
        blocks.append(head_block(feature_dim(trunk), num_classes))
    texts = [("input", "image", shape_text(trunk.input_shape), ""), *(_texts(block) for block in blocks)]
    total = sum(block.parameters for block in blocks)
    place = _Place(width_in=1.45, height_in=0.86, box_w=0.9, box_h=0.74, characters=21)
    lines = -(-len(texts) // PER_LINE)
    figure, axes = _canvas(place, min(PER_LINE, len(texts)), lines, f"{title}: {total:,} parameters")
    half_w, half_h = place.box_w / 2, place.box_h / 2
    for number, text in enumerate(texts):
        x, y = number % PER_LINE, number // PER_LINE
        is_head = num_classes is not None and number == len(texts) - 1
        _box(axes, place, x, y, [t for t in text if t], look="head" if is_head else "trunk" if number else "input")
        if x:
            _arrow(axes, [(x - 1 + half_w, y), (x - half_w, y)])
        elif number:  # down between the lines and back to the left
            right = PER_LINE - 1
            _arrow(axes, [(right, y - 1 + half_h), (right, y - 0.5), (0, y - 0.5), (0, y - half_h)])
    return figure


# --------------------------------------------------------------------------------------------------------------- joined
def draw_join(trunks: Sequence[Trunk], num_classes: int, *, title: str) -> Figure:
    """One column per trunk from the top down, all meeting in the concatenation and the head."""
    columns = [[("input", "image", shape_text(t.input_shape), ""), *(_texts(b) for b in t.blocks)] for t in trunks]
    bottom = max(len(column) for column in columns)
    dims = [feature_dim(trunk) for trunk in trunks]
    head = head_block(sum(dims), num_classes)
    total = sum(block.parameters for trunk in trunks for block in trunk.blocks) + head.parameters
    place = _Place(width_in=2.5, height_in=0.52, box_w=0.9, box_h=0.66, characters=JOIN_CHARACTERS)
    figure, axes = _canvas(place, len(trunks), bottom + 2.3, f"{title}: {total:,} parameters", low=-0.95)
    half_h, middle = place.box_h / 2, (len(trunks) - 1) / 2
    for x, (trunk, column) in enumerate(zip(trunks, columns, strict=True)):
        axes.text(x, -0.5, style.shorten(trunk.name, 34), ha="center", va="bottom", fontsize=8, fontweight="bold")
        for y, text in enumerate(column):
            _box(axes, place, x, y, _two_lines(text), look="trunk" if y else "input")
            if y:
                _arrow(axes, [(x, y - 1 + half_h), (x, y - half_h)])
        # Side by side into the concatenation, so that each arrow is seen to arrive.
        into, above = middle + (x - middle) * place.box_w / (len(trunks) + 1), bottom - 0.4
        _arrow(axes, [(x, len(column) - 1 + half_h), (x, above), (into, above), (into, bottom + 0.3 - half_h)])
    joined = ("concatenation", " + ".join(map(str, dims)), shape_text((sum(dims),)), "")
    _box(axes, place, middle, bottom + 0.3, _two_lines(joined), look="head")
    _arrow(axes, [(middle, bottom + 0.3 + half_h), (middle, bottom + 1.3 - half_h)])
    _box(axes, place, middle, bottom + 1.3, _two_lines(_texts(head)), look="head")
    return figure


# --------------------------------------------------------------------------------------------------------------- pieces
@dataclass(frozen=True, slots=True)
class _Place:
    """One place in the grid of boxes, in inches; its box in shares of it; characters that fit on a line of the box."""

    width_in: float
    height_in: float
    box_w: float
    box_h: float
    characters: int


def _texts(block: Block) -> tuple[str, str, str, str]:
    count = f"{style.count_text(block.parameters)} parameters" if block.parameters else ""
    return block.name, kinds_text(block.kinds), shape_text(block.shape), count


def _two_lines(texts: tuple[str, str, str, str]) -> list[str]:
    name, kinds, shape, count = texts
    name = style.shorten(name, 21)
    return [
        f"{name}: {style.shorten(kinds, JOIN_CHARACTERS - 2 - len(name))}",
        " · ".join(filter(None, (shape, count))),
    ]


def _canvas(place: _Place, across: int, lines: float, title: str, *, low: float = -0.5) -> tuple[Figure, Axes]:
    """Places one unit wide and high, the first line at the top."""
    wanted_in = 0.3 + place.width_in * across
    width_in = max(4.5, wanted_in)
    height_in = 0.45 + place.height_in * (lines - 0.5 - low)
    figure = style.new_figure(width_in, height_in, style.shorten(title, int(13 * width_in)))
    axes = figure.subplots()
    axes.set_axis_off()
    spare = (width_in - wanted_in) / place.width_in / 2
    axes.set_xlim(-0.5 - spare, across - 0.5 + spare)
    axes.set_ylim(lines - 0.5, low)
    return figure, axes


def _box(axes: Axes, place: _Place, x: float, y: float, lines: Sequence[str], *, look: str) -> None:
    from matplotlib.patches import Rectangle

    faces = {"input": "#FFFFFF", "trunk": "#EAF3FA", "head": "#F7DFA8"}
    corner, line_width = (x - place.box_w / 2, y - place.box_h / 2), 1.4 if look == "head" else 0.7
    axes.add_patch(
        Rectangle(corner, place.box_w, place.box_h, facecolor=faces[look], edgecolor=style.BLACK, linewidth=line_width)
    )
    step = 0.142 / place.height_in
    for number, line in enumerate(lines):
        axes.text(
            x,
            y + (number - (len(lines) - 1) / 2) * step,
            style.shorten(line, place.characters),
            ha="center",
            va="center",
            fontsize=style.TEXT_PT,
            fontweight="bold" if number == 0 and len(lines) > 2 else "normal",
        )


def _arrow(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Straight pieces, with a head at the end of the last."""
    axes.plot(*zip(*points[:-1], strict=True), color=style.BLACK, linewidth=0.8)
    axes.annotate(
        "",
        xy=points[-1],
        xytext=points[-2],
        arrowprops={"arrowstyle": "-|>", "linewidth": 0.8, "color": style.BLACK, "shrinkA": 0, "shrinkB": 0},
    )
