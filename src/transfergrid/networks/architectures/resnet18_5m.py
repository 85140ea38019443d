"""ResNet-18 for 32 px images within five million parameters.

He et al., "Deep Residual Learning" (https://arxiv.org/abs/1512.03385), as its section 4.2 feeds it CIFAR: a 3x3 stem
without pooling, then four stages of two basic blocks, the last three entered with stride 2. Widths 64, 128, 232 and 268
in place of 64, 128, 256 and 512 (`cifar_resnet18`, 11,173,962 parameters).
Shapes at 32 px: conv1 (N, 64, 32, 32), layer1 (N, 64, 32, 32), layer2 (N, 128, 16, 16), layer3 (N, 232, 8, 8),
layer4 (N, 268, 4, 4), the global average (N, 268), fc (N, 10).
Convolutions start normal with variance 2 / fan-out (https://arxiv.org/abs/1502.01852).
Images (N, 3, H, W) of at least 8 px -> logits (N, num_classes).
"""

from __future__ import annotations

from torch import nn

from transfergrid.networks.architectures._residual import ResidualNetwork

MIN_SIZE_PX = 8
GFLOPS_AT_32_PX = 0.8799
PARAMETERS = 4_994_298
WIDTHS = (64, 128, 232, 268)
BLOCKS = (2, 2, 2, 2)


def build(num_classes: int) -> nn.Module:
    network = ResidualNetwork(num_classes, blocks=BLOCKS, widths=WIDTHS)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
