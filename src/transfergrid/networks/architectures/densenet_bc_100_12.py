"""DenseNet-BC of 100 layers with growth rate 12, for 32 px images.

Huang et al., "Densely Connected Convolutional Networks" (https://arxiv.org/abs/1608.06993), the smallest DenseNet-BC of
its table 2 ("0.8M"; 4.51 % error on CIFAR-10 with shift and flip): three dense blocks of (100 - 4) / 3 / 2 = 16 layers,
transitions that halve the channels.
Shapes at 32 px: features.conv1 (N, 24, 32, 32), features.dense1 (N, 216, 32, 32),
features.transition1 (N, 108, 16, 16), features.dense2 (N, 300, 16, 16), features.transition2 (N, 150, 8, 8),
features.dense3 (N, 342, 8, 8), the global average (N, 342), fc (N, 10).
By hand, a layer on c channels has 50 c + 5,280 parameters: stem 648, blocks 175,680 + 242,880 + 276,480, transitions
23,760 + 45,600, last BatchNorm 684, linear layer 3,430.
Weights start as in the authors' code: convolutions normal with variance 2 / fan-out, the linear layer's bias 0.
Images (N, 3, H, W) of at least 4 px -> logits (N, num_classes).
"""

from __future__ import annotations

from torch import nn

from transfergrid.networks.architectures._dense import DenseNet

MIN_SIZE_PX = 4
GFLOPS_AT_32_PX = 0.5759
PARAMETERS = 769_162
BLOCKS = (16, 16, 16)
GROWTH = 12


def build(num_classes: int) -> nn.Module:
    network = DenseNet(num_classes, blocks=BLOCKS, growth=GROWTH)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(network.fc.bias)
    return network
