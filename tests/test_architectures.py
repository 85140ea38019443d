"""Networks trained from scratch: their sizes are what their files say, and their weights follow the seed."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from transfergrid import architectures, backbones
from transfergrid.errors import ConfigError

PARAMETERS = {"baseline_cnn": 242_474, "resnet18_5m": 4_994_298, "tinynet": 61_338}


def test_every_architecture_has_the_parameters_its_file_states() -> None:
    assert set(architectures.names()) >= set(PARAMETERS)
    for name, stated in PARAMETERS.items():
        network = architectures.build(name, 10, 0)
        assert sum(p.numel() for p in network.parameters()) == stated, name
        assert f"{stated:,} parameters for 10 classes" in (architectures.FOLDER / f"{name}.py").read_text()


def test_resnet18_5m_is_within_five_million_and_has_two_blocks_a_stage() -> None:
    from transfergrid.architectures.resnet18_5m import BasicBlock

    network = architectures.build("resnet18_5m", 10, 0)
    assert sum(p.numel() for p in network.parameters()) <= 5_000_000
    assert sum(isinstance(module, BasicBlock) for module in network.modules()) == 8
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) + 1 == 18  # with the linear layer


def test_resnet18_5m_with_the_published_widths_is_the_published_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from transfergrid.architectures import resnet18_5m

    monkeypatch.setattr(resnet18_5m, "WIDTHS", (64, 128, 256, 512))
    assert sum(p.numel() for p in resnet18_5m.build(10).parameters()) == 11_173_962


@pytest.mark.parametrize("name", architectures.names())
def test_every_architecture_takes_its_smallest_image_and_gives_one_logit_a_class(name: str) -> None:
    network = architectures.build(name, 7, 0).eval()
    for size_px in (architectures.entry(name).min_size_px, 32):
        logits_NC = network(torch.rand(2, 3, size_px, size_px))
        assert logits_NC.shape == (2, 7) and bool(logits_NC.isfinite().all())


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
        "import sys; from transfergrid import architectures as a;"
        "[a.entry(n) for n in a.names()]; print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
    assert not {*architectures.names()} & {*backbones.names(), "tinynet_mnist", "tinynet_cifar"}


def test_wrong_names_and_sizes_are_refused_with_the_right_ones() -> None:
    with pytest.raises(ConfigError, match="unknown architecture 'baseline-cnn'; nearest: baseline_cnn"):
        architectures.build("baseline-cnn", 10, 0)
    with pytest.raises(ConfigError, match="tinynet takes images of at least 16 px, not 8"):
        architectures.check_image_size("tinynet", 8)
