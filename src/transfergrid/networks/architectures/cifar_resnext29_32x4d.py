"""ResNeXt-29 (32x4d) for 32 px images.

Xie et al., "Aggregated Residual Transformations" (https://arxiv.org/abs/1611.05431), as kuangliu/pytorch-cifar has it
and the study `scratch_cifar10` trained it: three stages of three bottleneck blocks, the last two entered with stride 2.
Their 3x3 convolutions have 32 groups of 4, 8 and 16 channels, and a block's output has twice as many channels (the
paper's four times). The stem is a 1x1 convolution; the paper's is 3x3.
Shapes at 32 px: conv1 (N, 64, 32, 32), layer1 (N, 256, 32, 32), layer2 (N, 512, 16, 16), layer3 (N, 1024, 8, 8), the
global average (N, 1024), fc (N, 10).
Weights start as PyTorch's constructors draw them, as there.
Images (N, 3, H, W) of at least 4 px -> logits (N, num_classes).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

MIN_SIZE_PX = 4
GFLOPS_AT_32_PX = 1.545
PARAMETERS = 4_774_218
GROUPS = 32
GROUP_WIDTHS = (4, 8, 16)
EXPANSION = 2
BLOCKS = 3


def build(num_classes: int) -> nn.Module:
    return ResNeXt29(num_classes)


class ResNeXt29(nn.Module):
    """At 32 px the maps are 32, 16 and 8 px wide after the three stages."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        inner = [GROUPS * width for width in GROUP_WIDTHS]
        self.conv1 = nn.Conv2d(3, 64, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, inner[0], stride=1)
        self.layer2 = _stage(EXPANSION * inner[0], inner[1], stride=2)
        self.layer3 = _stage(EXPANSION * inner[1], inner[2], stride=2)
        self.fc = nn.Linear(EXPANSION * inner[2], num_classes)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        maps = F.relu(self.bn1(self.conv1(images_NCHW)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        logits_NC: Tensor = self.fc(maps.mean(dim=(2, 3)))
        return logits_NC


class Bottleneck(nn.Module):
    """1x1 to `inner` channels, 3x3 in groups, 1x1 to EXPANSION x inner, added to x; each convolution with BatchNorm."""

    def __init__(self, width_in: int, inner: int, *, stride: int) -> None:
        super().__init__()
        width = EXPANSION * inner
        self.conv1 = nn.Conv2d(width_in, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=GROUPS, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width_in, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, maps: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(maps)))
        inner = F.relu(self.bn2(self.conv2(inner)))
        return F.relu(self.bn3(self.conv3(inner)) + self.shortcut(maps))


def _stage(width_in: int, inner: int, *, stride: int) -> nn.Sequential:
    first = Bottleneck(width_in, inner, stride=stride)
    return nn.Sequential(first, *(Bottleneck(EXPANSION * inner, inner, stride=1) for _ in range(BLOCKS - 1)))
