"""A block diagram of each model: input, stages with the shape of their output and their parameters, head.

Shapes alone are computed, on torch's device `meta`: the largest network takes a second and no memory, and its weights
need not be there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from transfergrid.networks import architectures, backbones
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.figures import style
from transfergrid.report.figures.material import Material, Sketch, group_name
from transfergrid.specs import RunSpec, ScratchSettings
from transfergrid.store.records import RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

COLUMN_IN, LINE_IN = 2.9, 0.36  # of one network, and of one of its stages
TABLE_DEPTH = 3  # of torchinfo's table
UNFOLDED_ABOVE = 6  # children of a Sequential, such as VGG's `features`: as one stage it would say nothing


@dataclass(frozen=True, slots=True)
class Stage:
    """Neighbouring modules whose outputs have one shape: (C, H, W), or (D,). name: the module's, or `first .. last`."""

    name: str
    shape: tuple[int, ...]
    parameters: int

    @property
    def text(self) -> str:
        count = style.count_text(self.parameters) if self.parameters else ""
        parts = (self.name, " × ".join(map(str, self.shape)), count)
        return " · ".join(part for part in parts if part)


def sketches(material: Material) -> Iterator[Sketch]:
    rows_by_network: dict[tuple[object, ...], tuple[RunRecord, list[ComparisonRow]]] = {}
    for row, runs in material.rows:
        spec = runs[0].spec
        if spec.phase == "evaluate" and not spec.backbones:
            continue  # its training's own row shows the network
        sizes_px = tuple(b.preprocess.crop_px for b in spec.backbones) or getattr(spec.settings, "image_size_px", None)
        key: tuple[object, ...] = (spec.model, sizes_px, spec.dataset.num_classes)
        rows_by_network.setdefault(key, (runs[0], []))[1].append(row)
    for key, (run, rows) in rows_by_network.items():
        yield Sketch(
            name=group_name("architecture", *(str(part) for part in key)),
            title=f"What does {run.spec.model} consist of?",
            caption="Each box: a stage of the network, the shape of its output (channels x height x width) and how "
            "many parameters it has. Neighbours of one shape share a box.",
            section="architecture",
            rows=tuple(rows),
            panels=partial(draw, run.spec),
        )


# ------------------------------------------------------------------------------------------------------------ networks
def networks(spec: RunSpec) -> list[tuple[str, nn.Module, tuple[int, int, int]]]:
    """(name, network without values, input shape): an architecture, or each backbone of a model without its head."""
    from transfergrid.networks.backbones.construct import without_memory

    if spec.backbones:
        sizes_px = [b.preprocess.crop_px for b in spec.backbones]
        return [(b.name, _trunk(b.name), (3, px, px)) for b, px in zip(spec.backbones, sizes_px, strict=True)]
    size_px = spec.settings.image_size_px if isinstance(spec.settings, ScratchSettings) else 32
    with without_memory():
        network = architectures.build(spec.model, spec.dataset.num_classes, 0)
    return [(spec.model, network.to("meta").eval(), (3, size_px, size_px))]


def _trunk(name: str) -> nn.Module:
    from transfergrid.networks.backbones.construct import behead, construct, without_memory

    with without_memory():
        if name.startswith("timm/"):
            network = construct(name.partition(".")[0], num_classes=0)
        else:
            known = backbones.entry(name)
            network = behead(construct(known.architecture, num_classes=1), name, known.head)
    return network.to("meta").eval()


def stages(network: nn.Module, input_shape: tuple[int, int, int]) -> list[Stage]:
    """In the order in which an image meets them."""
    import torch

    merged: list[Stage] = []
    counted: set[nn.Module] = set()

    def hook(name: str, module: nn.Module, _: Any, output: Any) -> None:
        shape = tuple((output[0] if isinstance(output, tuple) else output).shape[1:])
        parameters = 0 if module in counted else sum(p.numel() for p in module.parameters())
        counted.add(module)
        if merged and merged[-1].shape == shape:
            first = merged[-1].name.partition(" .. ")[0]
            merged[-1] = Stage(f"{first} .. {name.rpartition('.')[2]}", shape, merged[-1].parameters + parameters)
        else:
            merged.append(Stage(name, shape, parameters))

    handles = [module.register_forward_hook(partial(hook, name)) for name, module in _modules(network)]
    with torch.no_grad():
        network(torch.zeros(1, *input_shape, device="meta"))
    for handle in handles:
        handle.remove()
    return merged


def _modules(network: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Top-level children; long Sequentials are unfolded, and what passes its input on is left out."""
    from torch import nn

    for name, child in network.named_children():
        if isinstance(child, nn.Sequential) and len(child) > UNFOLDED_ABOVE:
            yield from _modules(child, f"{prefix}{name}.")
        elif not isinstance(child, nn.Identity):
            yield f"{prefix}{name}", child


def table(spec: RunSpec) -> str:
    """The same as text: torchinfo's table of each of a model's networks, three levels deep."""
    import torch
    import torchinfo

    parts = []
    for name, network, input_shape in networks(spec):
        image = torch.zeros(1, *input_shape, device="meta")
        names = ("output_size", "num_params")
        text = torchinfo.summary(
            network, input_data=image, depth=TABLE_DEPTH, col_names=names, device="meta", verbose=0
        )
        parts.append(f"{name}\n{text}")
    return "\n\n".join(parts)


# ------------------------------------------------------------------------------------------------------------- drawing
def draw(spec: RunSpec) -> Figure:
    """One column per network from the top down; the columns of a join meet in one head."""
    columns = [(name, [Stage("input", shape, 0), *stages(network, shape)]) for name, network, shape in networks(spec)]
    last = max(len(column) for _, column in columns)
    dim = sum(column[-1].shape[0] for _, column in columns)
    classes = spec.dataset.num_classes
    head = Stage("head", (classes,), (dim + 1) * classes) if spec.backbones else None
    total = sum(stage.parameters for _, column in columns for stage in column) + (head.parameters if head else 0)
    height_in = 1.2 + LINE_IN * (last + (1.6 if head else 0))
    figure = style.new_figure(max(4.5, 0.3 + COLUMN_IN * len(columns)), height_in)
    axes = figure.subplots()
    axes.set_title(f"{total:,} parameters")
    axes.set_axis_off()
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(last + (1.2 if head else -0.4), -1.2)

    def box(x: float, y: float, text: str, face: str) -> None:
        edge = {"boxstyle": "square,pad=0.4", "facecolor": face, "edgecolor": style.BLACK, "linewidth": 0.7}
        axes.text(x, y, text, ha="center", va="center", fontsize=style.TEXT_PT, bbox=edge)

    def arrow(start: tuple[float, float], end: tuple[float, float]) -> None:
        look = {"arrowstyle": "-|>", "linewidth": 0.8, "color": style.BLACK, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", xy=end, xytext=start, arrowprops=look, zorder=2)

    middle = (len(columns) - 1) / 2
    for x, (name, column) in enumerate(columns):
        if len(columns) > 1:
            axes.text(x, -0.7, style.wrap(name, 40), ha="center", va="bottom", fontsize=8, fontweight="bold")
        for y, stage in enumerate(column):
            box(x, y, style.wrap(stage.text, 52), "#EAF3FA" if y else "#FFFFFF")
            if y:
                arrow((x, y - 0.7), (x, y - 0.3))
        if head is not None:
            arrow((x, len(column) - 0.7), (middle + (x - middle) * 0.2, last + 0.2))
    if head is not None:
        dims = " + ".join(str(column[-1].shape[0]) for _, column in columns)
        box(middle, last + 0.5, replace(head, name=f"head on {dims}").text, "#F7DFA8")
    return figure
