"""ResNet-18's widths with one block in each stage: ten layers.

He et al., "Deep Residual Learning" (https://arxiv.org/abs/1512.03385): `cifar_resnet18` with one basic block in each of
the four stages in place of two, 1x1 shortcuts. The network that the study `small_resnet18` trained and called a
ResNet-18.
Shapes at 32 px: conv1 (N, 64, 32, 32), layer1 (N, 64, 32, 32), layer2 (N, 128, 16, 16), layer3 (N, 256, 8, 8),
layer4 (N, 512, 4, 4), the global average (N, 512), fc (N, 10).
Images (N, 3, H, W) of at least 8 px -> logits (N, num_classes).
"""

from functools import partial

from transfergrid.networks.architectures._residual import ResidualNetwork

MIN_SIZE_PX = 8
GFLOPS_AT_32_PX = 0.5069
PARAMETERS = 4_903_242

build = partial(ResidualNetwork, blocks=(1, 1, 1, 1))
