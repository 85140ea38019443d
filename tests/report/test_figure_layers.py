"""A network's blocks, from shapes alone."""

from __future__ import annotations

import pytest
from report_cases import spec

from transfergrid.networks import backbones
from transfergrid.report.figures.layers import Block, kinds_text, merged, networks, summary, trace


def leaf(name: str, kind: str, shape: tuple[int, ...], parameters: int = 0) -> Block:
    return Block(name, (kind,), shape, parameters, is_leaf=True)


@pytest.mark.parametrize("name", ["resnet18", "vgg16", "googlenet", "regnet_y_400mf", "vit_b_16"])
def test_blocks_hold_all_parameters_but_those_outside_modules(name: str) -> None:
    [(_, network, input_shape)] = networks(spec("probe", name))
    trunk = trace(name, network, input_shape)
    known = backbones.entry(name)
    assert trunk.parameters == known.parameters
    # A transformer's class token belongs to no module.
    assert sum(block.parameters for block in trunk.blocks) == known.parameters - (768 if name == "vit_b_16" else 0)
    assert trunk.blocks[-1].shape[0] == known.feature_dim


def test_resnet18_has_the_shapes_of_its_paper() -> None:
    [(_, network, input_shape)] = networks(spec("probe", "resnet18"))
    blocks = trace("resnet18", network, input_shape).blocks
    assert [(b.name, kinds_text(b.kinds), b.shape) for b in blocks] == [
        ("conv1 .. relu", "Conv, BatchNorm, ReLU", (64, 112, 112)),
        ("maxpool", "MaxPool", (64, 56, 56)),
        ("layer1", "2 BasicBlock", (64, 56, 56)),
        ("layer2", "2 BasicBlock", (128, 28, 28)),
        ("layer3", "2 BasicBlock", (256, 14, 14)),
        ("layer4", "2 BasicBlock", (512, 7, 7)),
        ("avgpool", "AvgPool", (512, 1, 1)),
    ]


def test_an_architecture_ends_in_its_classes_at_the_size_it_was_trained_at() -> None:
    [(_, network, input_shape)] = networks(spec("scratch", "resnet18_5m", image_size_px=32))
    trunk = trace("resnet18_5m", network, input_shape)
    assert trunk.input_shape == (3, 32, 32) and trunk.blocks[-1].shape == (10,)


def test_neighbours_of_one_shape_share_a_box_unless_one_pools() -> None:
    blocks = [
        leaf("features.0", "Conv2d", (8, 4, 4), 10),
        leaf("features.1", "ReLU", (8, 4, 4)),
        leaf("features.2", "MaxPool2d", (8, 2, 2)),
        leaf("features.3", "Conv2d", (8, 2, 2), 20),
        Block("stage4a", ("Stage",), (8, 2, 2), 1, is_leaf=False),
        Block("stage4b", ("Stage",), (8, 2, 2), 2, is_leaf=False),
    ]
    assert [(b.name, b.parameters) for b in merged(blocks)] == [
        ("features.0 .. 1", 10),
        ("features.2", 0),
        ("features.3", 20),
        ("stage4a .. 4b", 3),
    ]


def test_the_summary_is_a_table_per_network() -> None:
    text = summary(spec("probe", "tinynet_mnist+tinynet_cifar"))
    assert text.count("Output Shape") == 2 and text.startswith("tinynet_mnist\n")
    assert "Total params: 60,688" in text
