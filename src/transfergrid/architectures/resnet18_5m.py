"""ResNet-18 for 32 px images within five million parameters.

He et al., "Deep Residual Learning" (https://arxiv.org/abs/1512.03385), as its section 4.2 feeds it CIFAR: a 3x3 stem
without pooling, then four stages of two basic blocks, the last three entered with stride 2. Widths 64, 128, 232 and 268
in place of 64, 128, 256 and 512 (which has 11,173,962 parameters).
Images (N, 3, H, W) of at least 8 px -> logits (N, num_classes). 4,994,298 parameters for 10 classes.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

MIN_SIZE_PX = 8
GFLOPS_AT_32_PX = 0.8799
WIDTHS = (64, 128, 232, 268)
BLOCKS = (2, 2, 2, 2)


def build(num_classes: int) -> nn.Module:
    """With weights from torch's global generator."""
    return ResNet18(num_classes)


class ResNet18(nn.Module):
    """At 32 px the maps are 32, 16, 8 and 4 px wide after the four stages."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], BLOCKS[0], stride=1)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], BLOCKS[1], stride=2)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], BLOCKS[2], stride=2)
        self.layer4 = _stage(WIDTHS[2], WIDTHS[3], BLOCKS[3], stride=2)
        self.fc = nn.Linear(WIDTHS[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_NCHW: Tensor) -> Tensor:
        maps = F.relu(self.bn1(self.conv1(images_NCHW)))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        logits_NC: Tensor = self.fc(maps.mean(dim=(2, 3)))
        return logits_NC


class BasicBlock(nn.Module):
    """relu(conv(relu(conv(x))) + x), each convolution with BatchNorm; a 1x1 projection where the shape changes."""

    def __init__(self, width_in: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width_in, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(maps)))))
        return F.relu(inner + self.shortcut(maps))


def _stage(width_in: int, width: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = BasicBlock(width_in, width, stride=stride)
    return nn.Sequential(first, *(BasicBlock(width, width, stride=1) for _ in range(blocks - 1)))
