"""A network's blocks, found by sending one image of no content through it: shapes alone are computed, on torch's device
`meta`, so the largest network takes a second and no memory. Needs torch; its weights need not be there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from transfergrid.networks import architectures, backbones
from transfergrid.specs import RunSpec, ScratchSettings

if TYPE_CHECKING:
    from torch import nn

# D feature dimension, C classes
UNFOLDED_ABOVE = 6  # children of a Sequential, such as VGG's `features`: as one box it would say nothing
DEPTH = 3  # of torchinfo's table


@dataclass(frozen=True, slots=True)
class Block:
    """One box. name: of its module, or `first .. last`. kinds: class names, in order. shape: of its output, (C, H, W)
    or (D,). parameters: its own, in all."""

    name: str
    kinds: tuple[str, ...]
    shape: tuple[int, ...]
    parameters: int
    is_leaf: bool


@dataclass(frozen=True, slots=True)
class Trunk:
    """A backbone without its head, or a whole architecture. input_shape: (3, H, W); output: features or classes."""

    name: str
    input_shape: tuple[int, int, int]
    blocks: tuple[Block, ...]
    parameters: int


# ------------------------------------------------------------------------------------------------------------ networks
def networks(spec: RunSpec) -> list[tuple[str, nn.Module, tuple[int, int, int]]]:
    """(name, network without values, input shape): an architecture, or each backbone of a model without its head."""
    from transfergrid.networks.backbones.construct import without_memory

    if not spec.backbones:
        size_px = spec.settings.image_size_px if isinstance(spec.settings, ScratchSettings) else 32
        with without_memory():
            network = architectures.build(spec.model, spec.dataset.num_classes, 0)
        return [(spec.model, network.to("meta").eval(), (3, size_px, size_px))]
    made = []
    for backbone in spec.backbones:
        size_px = backbone.preprocess.crop_px
        made.append((backbone.name, _trunk(backbone.name), (3, size_px, size_px)))
    return made


def _trunk(name: str) -> nn.Module:
    from transfergrid.networks.backbones.construct import behead, construct, without_memory

    with without_memory():
        if name.startswith("timm/"):
            network = construct(name.partition(".")[0], num_classes=0)
        else:
            known = backbones.entry(name)
            network = behead(construct(known.architecture, num_classes=1), name, known.head)
    return network.to("meta").eval()


def trace(name: str, network: nn.Module, input_shape: tuple[int, int, int]) -> Trunk:
    """The blocks in the order in which an image meets them."""
    import torch

    met: list[Block] = []
    hooks = []
    for path, module in _boxes(network):

        def hook(module: nn.Module, inputs: Any, output: Any, path: str = path) -> None:
            shown = output[0] if isinstance(output, tuple) else output
            if all(block.name != path for block in met):
                met.append(_block(path, module, tuple(shown.shape[1:])))

        hooks.append(module.register_forward_hook(hook))
    with torch.no_grad():
        network(torch.zeros(1, *input_shape, device="meta"))
    for handle in hooks:
        handle.remove()
    parameters = sum(p.numel() for p in network.parameters())
    return Trunk(name, input_shape, tuple(merged(met)), parameters)


def _boxes(network: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Top-level children; long Sequentials are unfolded, and what passes its input on is left out."""
    from torch import nn

    for name, child in network.named_children():
        if isinstance(child, nn.Sequential) and len(child) > UNFOLDED_ABOVE:
            yield from _boxes(child, f"{prefix}{name}.")
        elif not isinstance(child, nn.Identity):
            yield f"{prefix}{name}", child


def _block(path: str, module: nn.Module, shape: tuple[int, ...]) -> Block:
    from torch import nn

    children = [type(child).__name__ for child in module.children()]
    unfolded = isinstance(module, nn.Sequential) and bool(children)
    kinds = tuple(children) if unfolded else (type(module).__name__,)
    return Block(path, kinds, shape, sum(p.numel() for p in module.parameters()), is_leaf=not children)


def merged(blocks: list[Block]) -> list[Block]:
    """Neighbours of one shape become one box: a convolution with its norm and activation, or equal blocks in a row."""
    made: list[Block] = []
    for block in blocks:
        last = made[-1] if made else None
        if last is None or not _belong_together(last, block):
            made.append(block)
            continue
        name = f"{last.name.partition(' .. ')[0]} .. {_end_of_range(last.name, block.name)}"
        kinds, parameters = last.kinds + block.kinds, last.parameters + block.parameters
        made[-1] = replace(last, name=name, kinds=kinds, parameters=parameters)
    return made


def _belong_together(last: Block, block: Block) -> bool:
    if last.shape != block.shape:
        return False
    leaves = last.is_leaf and block.is_leaf and "Pool" not in last.kinds[-1]
    return leaves or set(last.kinds) == set(block.kinds)


def _end_of_range(first: str, last: str) -> str:
    """What of the last name the first does not say: `3` for `layers.0` and `layers.3`, `4c` for `part4a`, `part4c`."""
    short = last.rpartition(".")[2]
    same = os.path.commonprefix([first.partition(" .. ")[0].rpartition(".")[2], short]).rstrip("0123456789")
    return short[len(same) :] if len(same) >= 4 else short


# --------------------------------------------------------------------------------------------------------------- texts
def kinds_text(kinds: tuple[str, ...]) -> str:
    """`2 BasicBlock`; `3 Conv, 2 ReLU`: how many of each kind, in the order they first occur."""
    short = [kind.removeprefix("Adaptive").removesuffix("2d") for kind in kinds]
    counted = {kind: short.count(kind) for kind in short}
    return ", ".join(kind if count == 1 else f"{count} {kind}" for kind, count in counted.items())


def shape_text(shape: tuple[int, ...]) -> str:
    return " × ".join(str(size) for size in shape) if shape else "1"


def summary(spec: RunSpec) -> str:
    """torchinfo's table of each of a model's networks, without their weights, three levels deep."""
    import torch
    import torchinfo

    parts = []
    for name, network, input_shape in networks(spec):
        table = torchinfo.summary(
            network,
            input_data=torch.zeros(1, *input_shape, device="meta"),
            depth=DEPTH,
            col_names=("output_size", "num_params"),
            device="meta",
            verbose=0,
        )
        parts.append(f"{name}\n{table}")
    return "\n\n".join(parts)
