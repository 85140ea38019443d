"""A network's stages, from shapes alone."""

from __future__ import annotations

import pytest
from report_cases import spec

from transfergrid.networks import backbones
from transfergrid.report.figures.architecture import networks, stages, table


@pytest.mark.parametrize("name", ["resnet18", "vgg16", "googlenet", "regnet_y_400mf", "vit_b_16"])
def test_stages_hold_all_parameters_but_those_outside_modules(name: str) -> None:
    [(_, network, input_shape)] = networks(spec("probe", name))
    met = stages(network, input_shape)
    known = backbones.entry(name)
    # A transformer's class token belongs to no module.
    assert sum(stage.parameters for stage in met) == known.parameters - (768 if name == "vit_b_16" else 0)
    assert met[-1].shape[0] == known.feature_dim


def test_resnet18_has_the_shapes_of_its_paper() -> None:
    [(_, network, input_shape)] = networks(spec("probe", "resnet18"))
    assert [stage.text for stage in stages(network, input_shape)] == [
        "conv1 .. relu · 64 × 112 × 112 · 9.54k",
        "maxpool .. layer1 · 64 × 56 × 56 · 148k",
        "layer2 · 128 × 28 × 28 · 526k",
        "layer3 · 256 × 14 × 14 · 2.1M",
        "layer4 · 512 × 7 × 7 · 8.39M",
        "avgpool · 512 × 1 × 1",
    ]


def test_a_long_sequential_is_unfolded_and_neighbours_of_one_shape_are_one_stage() -> None:
    [(_, network, input_shape)] = networks(spec("probe", "vgg16"))
    met = stages(network, input_shape)
    assert [stage.name for stage in met[:3]] == ["features.0 .. 3", "features.4", "features.5 .. 8"]


def test_an_architecture_ends_in_its_classes_at_the_size_it_was_trained_at() -> None:
    [(_, network, input_shape)] = networks(spec("scratch", "resnet18_5m", image_size_px=32))
    assert input_shape == (3, 32, 32) and stages(network, input_shape)[-1].shape == (10,)


def test_the_table_is_one_per_network() -> None:
    text = table(spec("probe", "tinynet_mnist+tinynet_cifar"))
    assert text.count("Output Shape") == 2 and text.startswith("tinynet_mnist\n")
    assert "Total params: 60,688" in text
