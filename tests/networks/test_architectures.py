"""Networks trained from scratch: their sizes are what their files say, and their weights follow the seed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from transfergrid.errors import ConfigError
from transfergrid.networks import architectures, backbones
from transfergrid.networks.architectures._residual import BasicBlock, average_to
from transfergrid.networks.size import describe

PARAMETERS = {
    "baseline_cnn": 242_474,
    "cifar_densenet121": 6_956_298,
    "cifar_resnet18": 11_173_962,
    "cifar_resnext29_32x4d": 4_774_218,
    "densenet_bc_100_12": 769_162,
    "lenet5": 62_006,
    "resnet10_wide": 4_903_242,
    "resnet10_wide_pool2": 4_918_602,
    "resnet10_wide_shortcut2x2": 5_419_338,
    "resnet10_wide_shortcut3x3": 6_279_498,
    "resnet18_5m": 4_994_298,
    "resnet18_shortcut3x3": 12_550_218,
    "tinynet": 61_338,
}
# A CIFAR network of torchvision's own modules that computes the same: class, arguments.
TORCHVISION: dict[str, tuple[str, dict[str, Any]]] = {
    "cifar_resnet18": ("ResNet", {"layers": [2, 2, 2, 2]}),
    "resnet10_wide": ("ResNet", {"layers": [1, 1, 1, 1]}),
    "cifar_densenet121": ("DenseNet", {}),
    "densenet_bc_100_12": (
        "DenseNet",
        {"growth_rate": 12, "block_config": (16, 16, 16), "num_init_features": 24},
    ),
}
ROOT = Path(__file__).parents[2]
NAMES = architectures.names()  # a new file joins by itself


@cache
def built(name: str) -> torch.nn.Module:
    """For 10 classes, from seed 0, in eval mode, without gradients; no test changes it."""
    return architectures.build(name, 10, 0).eval().requires_grad_(False)


def docstring(name: str) -> str:
    text = ast.get_docstring(ast.parse(architectures.text_of(name)))
    assert text is not None, name
    return text


# -------------------------------------------------------------------------------------------------------- every network
def test_every_architecture_counted_here_is_there() -> None:
    assert set(PARAMETERS) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_has_the_parameters_and_the_cost_its_file_states(name: str) -> None:
    size = describe(built(name), [(3, 32, 32)])
    assert size.parameters == PARAMETERS.get(name, size.parameters)
    assert architectures.entry(name).parameters == size.parameters
    assert architectures.entry(name).gflops_at_32_px == pytest.approx(size.gflops_per_image, rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_names_its_paper(name: str) -> None:
    assert re.search(r"https://(arxiv\.org/abs/\d{4}\.\d{4,5}|doi\.org/10\.\d+/\S+)\)", docstring(name))


@pytest.mark.parametrize("name", NAMES)
def test_every_shape_in_a_docstring_is_what_the_layer_gives(name: str) -> None:
    network = built(name)
    layers = dict(network.named_modules())
    shapes = dict(re.findall(r"([\w.]+)\s\(N, ([\d, ]+)\)", docstring(name).replace("\n", " ")))
    stated = {layer: shape for layer, shape in shapes.items() if layer in layers}
    assert len(stated) >= 4 and "10" in stated.values()  # the stages, and the logits
    assert {*shapes} - {*layers} <= {"average", "averages", "flattened", "features"}
    seen: dict[str, str] = {}

    def listen(layer: str) -> torch.utils.hooks.RemovableHandle:
        def note(_module: torch.nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[layer] = ", ".join(str(length) for length in output.shape[1:])

        handle: torch.utils.hooks.RemovableHandle = layers[layer].register_forward_hook(note)
        return handle

    hooks = [listen(layer) for layer in stated]
    network(torch.rand(2, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    assert seen == stated


@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_takes_its_smallest_image_and_gives_one_logit_a_class(name: str) -> None:
    network = architectures.build(name, 7, 0).eval()
    for size_px in (architectures.entry(name).min_size_px, 32, 45):
        logits_NC = network(torch.rand(2, 3, size_px, size_px))
        assert logits_NC.shape == (2, 7) and bool(logits_NC.isfinite().all())


@pytest.mark.parametrize("name", NAMES)
def test_an_image_of_one_pixel_less_is_refused(name: str) -> None:
    smallest_px = architectures.entry(name).min_size_px
    architectures.check_image_size(name, smallest_px)
    with pytest.raises(ConfigError, match=f"{name} takes images of at least {smallest_px} px, not {smallest_px - 1}"):
        architectures.check_image_size(name, smallest_px - 1)


@pytest.mark.parametrize("name", ["baseline_cnn", "cifar_densenet121", "densenet_bc_100_12", "lenet5"])
def test_nothing_would_be_left_of_an_image_of_one_pixel_less(name: str) -> None:
    size_px = architectures.entry(name).min_size_px - 1
    with pytest.raises(RuntimeError, match="Output size is too small|stride should not be zero"):
        built(name)(torch.rand(2, 3, size_px, size_px))


@pytest.mark.parametrize("name", NAMES)
def test_only_convolutions_without_batch_norm_have_a_bias(name: str) -> None:
    modules = list(built(name).modules())
    normed = any(isinstance(module, torch.nn.BatchNorm2d) for module in modules)
    assert normed == (name != "lenet5") or name not in PARAMETERS
    biased = {module.bias is not None for module in modules if isinstance(module, torch.nn.Conv2d)}
    assert biased == {not normed}


def test_the_documents_list_every_architecture_with_its_parameters_and_its_cost() -> None:
    table, readme = (ROOT / "docs/adding.md").read_text(), (ROOT / "README.md").read_text()
    for name, parameters in PARAMETERS.items():
        entry = architectures.entry(name)
        assert f"| `{name}` | {parameters:,} | {entry.gflops_at_32_px:.4g} | {entry.min_size_px} |" in table
        assert f"`{name}`" in readme


# ------------------------------------------------------------------------------------------ the networks of the studies
@pytest.mark.parametrize("name", TORCHVISION)
def test_a_network_computes_what_torchvisions_with_a_stem_for_small_images_computes(name: str) -> None:
    kind, arguments = TORCHVISION[name]
    network, reference = built(name), torchvision_network(kind, arguments)
    ours, theirs = list(network.state_dict().values()), reference.state_dict()
    assert [value.shape for value in ours] == [value.shape for value in theirs.values()]
    reference.load_state_dict(dict(zip(theirs, ours, strict=True)))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(images), reference.eval()(images), rtol=1e-5, atol=1e-6)


def torchvision_network(kind: str, arguments: dict[str, Any]) -> torch.nn.Module:
    from torchvision.models import densenet, resnet

    network: torch.nn.Module
    if kind == "ResNet":
        network = resnet.ResNet(resnet.BasicBlock, num_classes=10, **arguments)
        network.set_submodule("conv1", torch.nn.Conv2d(3, 64, 3, padding=1, bias=False))
        network.set_submodule("maxpool", torch.nn.Identity())
        return network
    network = densenet.DenseNet(num_classes=10, **arguments)
    width = network.get_parameter("features.conv0.weight").shape[0]
    network.set_submodule("features.conv0", torch.nn.Conv2d(3, width, 3, padding=1, bias=False))
    for removed in ("norm0", "relu0", "pool0"):
        network.set_submodule(f"features.{removed}", torch.nn.Identity())
    return network


def test_resnext29_has_32_groups_of_4_8_and_16_channels() -> None:
    grouped = [m for m in built("cifar_resnext29_32x4d").modules() if isinstance(m, torch.nn.Conv2d) and m.groups > 1]
    assert [(m.groups, m.in_channels // m.groups, m.stride[0]) for m in grouped] == [
        *[(32, 4, 1)] * 3,
        *[(32, 8, 2), (32, 8, 1), (32, 8, 1)],
        *[(32, 16, 2), (32, 16, 1), (32, 16, 1)],
    ]


def test_resnet18_5m_is_within_five_million_and_has_two_blocks_a_stage() -> None:
    network = built("resnet18_5m")
    assert sum(p.numel() for p in network.parameters()) <= 5_000_000
    assert sum(isinstance(module, BasicBlock) for module in network.modules()) == 8
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) + 1 == 18  # with the linear layer


def test_resnet10_wide_has_ten_layers_and_resnet18s_widths() -> None:
    blocks = [module for module in built("resnet10_wide").modules() if isinstance(module, BasicBlock)]
    assert [block.conv2.out_channels for block in blocks] == [64, 128, 256, 512]
    assert 1 + 2 * len(blocks) + 1 == 10


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("cifar_resnet18", 1),
        ("resnet18_shortcut3x3", 3),
        ("resnet10_wide", 1),
        ("resnet10_wide_shortcut2x2", 2),
        ("resnet10_wide_shortcut3x3", 3),
    ],
)
def test_the_shapes_of_the_study_differ_in_the_kernels_of_their_three_shortcuts(name: str, kernel: int) -> None:
    shortcuts = [m.shortcut for m in built(name).modules() if isinstance(m, BasicBlock) and len(m.shortcut) > 0]
    kernels = [m.kernel_size for shortcut in shortcuts for m in shortcut if isinstance(m, torch.nn.Conv2d)]
    assert kernels == [(kernel, kernel)] * 3


@pytest.mark.parametrize("width_px", [7, 8])
def test_a_2x2_shortcut_is_as_wide_as_its_block_and_unpadded_where_the_width_is_even(width_px: int) -> None:
    block = BasicBlock(4, 8, stride=2, shortcut_kernel=2).eval()
    maps = torch.rand(2, 4, width_px, width_px)
    assert block(maps).shape == (2, 8, 4, 4)
    if width_px == 8:
        pad, convolution, norm = block.shortcut
        assert torch.equal(block.shortcut(maps), norm(convolution(maps)))
        assert pad(maps).shape[-1] == 9


def test_resnet10_wide_pool2_averages_over_2x2_pixels_at_32_px() -> None:
    seen: dict[str, Tensor] = {}
    network = built("resnet10_wide_pool2")
    layers = (network.get_submodule("layer4"), network.get_submodule("fc"))
    hooks = [
        layers[0].register_forward_hook(lambda _module, _inputs, output: seen.update(maps=output)),
        layers[1].register_forward_pre_hook(lambda _module, inputs: seen.update(features=inputs[0])),
    ]
    network(torch.rand(2, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    assert torch.equal(seen["features"], torch.nn.functional.avg_pool2d(seen["maps"], 2).flatten(1))
    assert seen["features"].shape == (2, 2048)


@pytest.mark.parametrize(("width_px", "side"), [(5, 5), (10, 5), (4, 2), (6, 3)])
def test_pooling_to_a_side_is_the_mean_of_equal_windows(width_px: int, side: int) -> None:
    maps = torch.rand(2, 3, width_px, width_px)
    pooled = average_to(maps, side=side)
    window = width_px // side
    expected = maps.reshape(2, 3, side, window, side, window).mean(dim=(3, 5))
    torch.testing.assert_close(pooled, expected)
    assert width_px != side or torch.equal(pooled, maps)


@pytest.mark.parametrize("width_px", range(5, 60))
def test_pooling_gives_the_side_asked_for_and_reaches_the_last_pixel(width_px: int) -> None:
    maps = torch.zeros(1, 1, width_px, width_px)
    maps[..., -1, -1] = 1.0
    pooled = average_to(maps, side=5)
    assert pooled.shape == (1, 1, 5, 5) and float(pooled[0, 0, 4, 4]) > 0


def test_weights_start_as_in_the_originals() -> None:
    """Standard deviations of the last stage's 3x3 convolutions: PyTorch's uniform draw, or normal by fan-out."""
    default, he = built("cifar_resnet18"), built("resnet18_5m")
    bound = (9 * 512) ** -0.5
    weight = default.get_parameter("layer4.1.conv2.weight")
    assert float(weight.abs().max()) <= bound
    assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.01)
    assert float(he.get_parameter("layer4.1.conv2.weight").std()) == pytest.approx((2 / (9 * 268)) ** 0.5, rel=0.01)
    dense = built("densenet_bc_100_12")
    assert float(dense.get_parameter("features.dense3.15.conv1.weight").std()) == pytest.approx(
        (2 / 48) ** 0.5, rel=0.02
    )
    assert float(dense.get_parameter("fc.bias").abs().max()) == 0.0


# --------------------------------------------------------------------------------------------------- building by a name
def test_resnet18_5m_starts_from_the_weights_it_always_had() -> None:
    network = built("resnet18_5m")
    assert sum(value.numel() for value in network.state_dict().values()) == 5_001_238
    first, last = network.get_parameter("conv1.weight"), network.get_parameter("fc.weight")
    assert first[0, 0, 0].tolist() == pytest.approx([-0.0193303, 0.0757274, 0.0260247], abs=1e-6)
    assert last[0, :3].tolist() == pytest.approx([-0.0389223, -0.0354065, -0.0519455], abs=1e-6)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (architectures.build("baseline_cnn", 10, seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    assert not torch.equal(first.get_parameter("fc.weight"), other.get_parameter("fc.weight"))


def test_a_tinynet_state_dict_stays_under_300_kb() -> None:
    network = architectures.build("tinynet", 10, 0)
    assert sum(t.numel() * t.element_size() for t in network.state_dict().values()) < 250_000
    assert isinstance(network.get_submodule("fc"), torch.nn.Linear)


def test_baseline_cnn_learns_a_task_that_needs_more_than_colour() -> None:
    torch.manual_seed(0)
    network = architectures.build("baseline_cnn", 2, 0)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    noise = torch.rand(64, 3, 16, 1).expand(64, 3, 16, 16)
    labels_N = torch.arange(64) % 2
    images = torch.where(labels_N.view(-1, 1, 1, 1) == 0, noise, noise.transpose(2, 3))  # stripes across or along
    for _ in range(15):
        loss = torch.nn.functional.cross_entropy(network(images), labels_N)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    assert (network(images).argmax(1) == labels_N).float().mean() == 1.0


def test_names_are_read_without_torch_and_share_nothing_with_backbones() -> None:
    code = (
        "import sys; from transfergrid.networks import architectures as a;"
        "[a.entry(n) for n in a.names()]; print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
    assert not {*architectures.names()} & {*backbones.names(), "tinynet_mnist", "tinynet_cifar"}


def test_wrong_names_and_sizes_are_refused_with_the_right_ones() -> None:
    with pytest.raises(ConfigError, match="unknown architecture 'baseline-cnn'; nearest: baseline_cnn"):
        architectures.build("baseline-cnn", 10, 0)
    with pytest.raises(ConfigError, match="tinynet takes images of at least 16 px, not 8"):
        architectures.check_image_size("tinynet", 8)
