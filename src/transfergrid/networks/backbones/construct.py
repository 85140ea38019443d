"""Networks as their publishers construct them, and how their heads come off. Imports torch; for builders only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision import models
from torchvision.models.googlenet import GoogLeNet

Groups = list[tuple[str, list[str]]]  # name, beginnings of the names of its parameters
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # parameters of heads beside the trunk, in GoogLeNet and Inception v3


def construct(architecture: str, *, num_classes: int) -> nn.Module:
    """A whole classification network with its constructor's weights, from torch's global generator.

    architecture: a torchvision builder's name, `tinynet`, or `timm/<name>`. GoogLeNet and Inception v3 always keep
    `transform_input`, whatever weights follow: it belongs to the input they are fed (ImageNet mean and std), and
    torchvision's builders switch it on only for downloaded weights. Their auxiliary heads are never constructed.
    """
    if architecture.startswith("timm/"):
        import timm  # here, because it takes seconds

        network: nn.Module = timm.create_model(architecture.removeprefix("timm/"), num_classes=num_classes)
        return network
    if architecture == "tinynet":
        # Here, not above: of all backbones only the built-in ones share an architecture.
        from transfergrid.networks.architectures import tinynet

        return tinynet.build(num_classes)
    if architecture == "googlenet":
        return GoogLeNetWithHeads(num_classes, aux_logits=False, transform_input=True, init_weights=True)
    if architecture == "inception_v3":
        options = {"transform_input": True, "aux_logits": False, "init_weights": True}
        return cast(nn.Module, models.inception_v3(num_classes=num_classes, **options))
    return cast(nn.Module, models.get_model(architecture, weights=None, num_classes=num_classes))


class GoogLeNetWithHeads(GoogLeNet):  # type: ignore[misc]
    """torchvision's GoogLeNet; in training with auxiliary heads it returns (output, auxiliary 1, auxiliary 2)."""

    def forward(self, images_NCHW: Tensor) -> Any:
        output = super().forward(images_NCHW)
        if isinstance(output, tuple):
            features, second, first = output
            return features, first, second
        return output


class without_memory(TorchFunctionMode):
    """Networks constructed inside have parameters without values (device `meta`), to be assigned from a state dict.

    Only torch.empty is diverted, because some constructors compute with small tensors.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def last_linear(network: nn.Module) -> str | None:
    """Dotted name of the last linear layer in registration order, or None if the network does not end in one.

    A network ends in it if nothing but the container it stands in comes after.
    """
    leaves = [name for name, module in network.named_modules() if not list(module.children())]
    last = leaves[-1]
    return last if isinstance(network.get_submodule(last), nn.Linear) else None


def behead(network: nn.Module, name: str, head: str) -> nn.Module:
    """The trunk x -> features (N, D): the head becomes the identity, so whatever stands before it keeps its place.

    `vgg16_gap` loses the whole classifier: its features are the global average over the last pooling layer's output.
    """
    if name == "vgg16_gap":
        # flatten follows: the whole width of the maps, whatever the image's size
        network.avgpool = nn.AdaptiveAvgPool2d(1)
        network.classifier = nn.Identity()
    else:
        network.set_submodule(head, nn.Identity())
    return network


def group_parameters(
    module: nn.Module, groups: Sequence[tuple[str, Sequence[str]]]
) -> list[tuple[str, list[tuple[str, nn.Parameter]]]]:
    """(group, its named parameters) from the stem to the last stage; together all the trunk's, each once, and no group
    without any (asserted). Auxiliary heads belong to no group."""
    named = {name: p for name, p in module.named_parameters() if not name.startswith(AUXILIARY)}
    parts = []
    for group, prefixes in groups:
        beginnings = tuple(f"{prefix}." for prefix in prefixes)
        parts.append((group, [name for name in named if f"{name}.".startswith(beginnings)]))
    flat = [name for _, names in parts for name in names]
    assert len(flat) == len(set(flat)) and set(flat) == set(named), sorted(set(named) ^ set(flat))[:3]
    assert all(names for _, names in parts), [group for group, names in parts if not names]
    return [(group, [(name, named[name]) for name in names]) for group, names in parts]
