"""Rules by which a torchvision network is described: where it is tapped, and its groups in depth order.

The generator and the description of timm networks write what these find into JSON; builders read that, not this.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

MAX_GROUPS = 6  # of the even split; the explicit families have as many as they have stages

Groups = list[tuple[str, list[str]]]

# First match of a builder's name. The node is named as torchvision's module is, or as the literature does (fc7).
TAPS = (
    ("alexnet", "fc7"),  # classifier[:-1]: 4,096 values after ReLU; dropout is the identity
    ("vgg", "fc7"),
    ("convnext", "classifier.0"),  # global average, then LayerNorm
    ("maxvit", "classifier.4"),  # global average, LayerNorm, linear, tanh
    ("mobilenet_v3", "classifier.1"),  # global average, linear, hardswish
    ("vit", "class_token"),  # after the encoder's LayerNorm
    ("", "avgpool"),
)


def tap_of(architecture: str) -> str:
    return next(tap for start, tap in TAPS if architecture.startswith(start))


def groups_of(architecture: str, trunk: nn.Module) -> Groups:
    """[group name, parameter-name prefixes] that part all of the trunk's parameters, in depth order."""
    children = [name for name, _ in trunk.named_children()]
    if architecture.startswith(("resnet", "resnext", "wide_resnet")):
        return [("stem", ["conv1", "bn1"]), *((f"layer{i}", [f"layer{i}"]) for i in range(1, 5))]
    if architecture == "tinynet":
        return [("stem", ["block1"]), *((f"stage{i - 1}", [f"block{i}"]) for i in range(2, 5))]
    if architecture.startswith("regnet"):
        return [("stem", ["stem"]), *((f"block{i}", [f"trunk_output.block{i}"]) for i in range(1, 5))]
    if architecture.startswith("shufflenet"):
        return [(name, [name]) for name in ("conv1", "stage2", "stage3", "stage4", "conv5")]
    if architecture.startswith("densenet"):
        blocks = [(f"denseblock{i}", [f"features.denseblock{i}", f"features.transition{i}"]) for i in range(1, 4)]
        last = ("denseblock4", ["features.denseblock4", "features.norm5"])
        return [("stem", ["features.conv0", "features.norm0"]), *blocks, last]
    if architecture == "googlenet":
        stages = [(f"inception{i}", [c for c in children if c.startswith(f"inception{i}")]) for i in (3, 4, 5)]
        return [("stem", ["conv1", "conv2", "conv3"]), *stages]
    if architecture == "inception_v3":
        stages = [(f"Mixed_{i}", [c for c in children if c.startswith(f"Mixed_{i}")]) for i in (5, 6, 7)]
        return [("stem", [c for c in children if c.startswith("Conv2d")]), *stages]
    if architecture.startswith(("vgg", "alexnet")):
        return _conv_blocks(trunk, one_each=architecture == "alexnet")
    if architecture.startswith(("convnext", "swin")):
        # A stage is entered by the layer that halves the resolution.
        stages = [(f"stage{i}", [f"features.{j}" for j in (2 * i - 2, 2 * i - 1) if j > 0]) for i in range(1, 5)]
        stages[-1][1].append("classifier.0" if architecture.startswith("convnext") else "norm")  # the closing norm
        return [("stem", ["features.0"]), *stages]
    containers = ("features", "encoder.layers", "blocks", "layers")
    return even_split(trunk, next(c for c in containers if _has(trunk, c)))


def _conv_blocks(trunk: nn.Module, *, one_each: bool) -> Groups:
    """VGG: the convolutions between two pooling layers are a block; AlexNet: each convolution is one."""
    groups: Groups = []
    open_block = False
    for index, layer in trunk.get_submodule("features").named_children():
        if isinstance(layer, nn.MaxPool2d):
            open_block = False
        elif list(layer.parameters()):
            if not open_block or one_each:
                groups.append((f"{'conv' if one_each else 'block'}{len(groups) + 1}", []))
                open_block = True
            groups[-1][1].append(f"features.{index}")
    classifier = trunk.get_submodule("classifier")
    dense = [index for index, layer in classifier.named_children() if isinstance(layer, nn.Linear)]
    return [*groups, *((f"fc{6 + i}", [f"classifier.{index}"]) for i, index in enumerate(dense))]


def even_split(trunk: nn.Module, container: str) -> Groups:
    """The first child of `container` and what comes before it is the stem; the others are split evenly in order.

    What comes after the container (a closing norm, a hidden layer of the classifier) joins the last group.
    """
    units: list[list[str]] = []
    before: list[str] = []
    for parameter, _ in trunk.named_parameters():
        if parameter.startswith(container + "."):
            prefix = ".".join(parameter.split(".")[: container.count(".") + 2])
            if not units or units[-1][0] != prefix:
                units.append([prefix])
        elif units:
            units[-1].append(parameter)
        else:
            before.append(parameter)
    if before:
        units.insert(0, before)
    return merged(units)


def merged(units: Sequence[Sequence[str]]) -> Groups:
    """Units in depth order -> `stem` (the first) and at most MAX_GROUPS - 1 stages of about as many units each."""
    rest = units[1:]
    count = min(MAX_GROUPS - 1, len(rest))
    groups: Groups = [("stem", list(units[0]))]
    for i in range(count):
        part = rest[i * len(rest) // count : (i + 1) * len(rest) // count]
        groups.append((f"stage{i + 1}", [prefix for unit in part for prefix in unit]))
    return groups


def parameter_groups(
    trunk: nn.Module, groups: Sequence[tuple[str, Sequence[str]]], *, ignored: tuple[str, ...] = ()
) -> list[list[str]]:
    """The parameter names of each group. Asserts that the groups part the trunk's parameters and that none is empty.

    ignored: the beginnings of names that are not the trunk's.
    """
    names = [name for name, _ in trunk.named_parameters() if not name.startswith(ignored)]
    names_of_groups: list[list[str]] = []
    for _, prefixes in groups:
        ends = tuple(prefix + "." for prefix in prefixes)
        whole = set(prefixes)
        names_of_groups.append([name for name in names if name in whole or name.startswith(ends)])
    flat = [name for group in names_of_groups for name in group]
    assert len(flat) == len(set(flat)) and set(flat) == set(names), sorted(set(names) ^ set(flat))[:3]
    assert all(names_of_groups), [name for (name, _), group in zip(groups, names_of_groups, strict=True) if not group]
    return names_of_groups


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True
