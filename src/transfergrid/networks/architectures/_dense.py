"""DenseNet-BC for small images, which two architectures share.

Huang et al., "Densely Connected Convolutional Networks" (https://arxiv.org/abs/1608.06993): each layer sees the maps of
all layers before it in its block. "B": a 1x1 convolution to four times the growth rate stands before each 3x3 one; "C":
a transition between blocks halves the channels, and the maps' width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BOTTLENECK = 4  # times the growth rate


class DenseNet(nn.Module):
    """Weights as PyTorch's constructors draw them; convolutions have no bias, BatchNorm and ReLU stand before each.

    blocks: number of layers in each dense block. growth: channels that a layer adds; the 3x3 stem, without pooling, has
    twice as many.
    """

    def __init__(self, num_classes: int, *, blocks: tuple[int, ...], growth: int) -> None:
        super().__init__()
        width = 2 * growth
        self.features = nn.Sequential()
        self.features.add_module("conv1", nn.Conv2d(3, width, 3, padding=1, bias=False))
        for number, layers in enumerate(blocks, start=1):
            self.features.add_module(f"dense{number}", _dense_block(width, growth, layers))
            width += layers * growth
            if number < len(blocks):
                self.features.add_module(f"transition{number}", _transition(width, width // 2))
                width //= 2
        self.features.add_module("bn", nn.BatchNorm2d(width))
        self.fc = nn.Linear(width, num_classes)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        maps_NDHW = F.relu(self.features(images_NCHW))
        logits_NC: Tensor = self.fc(maps_NDHW.mean(dim=(2, 3)))
        return logits_NC


class DenseLayer(nn.Module):
    """The maps it is given, and `growth` new ones behind them."""

    def __init__(self, width_in: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, BOTTLENECK * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(BOTTLENECK * growth)
        self.conv2 = nn.Conv2d(BOTTLENECK * growth, growth, 3, padding=1, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.conv1(F.relu(self.bn1(maps)))
        new = self.conv2(F.relu(self.bn2(inner)))
        return torch.cat((maps, new), dim=1)


def _dense_block(width_in: int, growth: int, layers: int) -> nn.Sequential:
    return nn.Sequential(*(DenseLayer(width_in + layer * growth, growth) for layer in range(layers)))


def _transition(width_in: int, width: int) -> nn.Sequential:
    convolution = nn.Conv2d(width_in, width, 1, bias=False)
    return nn.Sequential(nn.BatchNorm2d(width_in), nn.ReLU(inplace=True), convolution, nn.AvgPool2d(2))
