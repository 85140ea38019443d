"""ResNet-18 for 32 px images, at its full widths.

He et al., "Deep Residual Learning" (https://arxiv.org/abs/1512.03385), with the 3x3 stem without pooling that its
section 4.2 gives small images: four stages of two basic blocks, the last three entered with stride 2 through a 1x1
shortcut. The network of kuangliu/pytorch-cifar, which the study `scratch_cifar10` trained.
Shapes at 32 px: conv1 (N, 64, 32, 32), layer1 (N, 64, 32, 32), layer2 (N, 128, 16, 16), layer3 (N, 256, 8, 8),
layer4 (N, 512, 4, 4), the global average (N, 512), fc (N, 10).
Images (N, 3, H, W) of at least 8 px -> logits (N, num_classes).
"""

from functools import partial

from transfergrid.networks.architectures._residual import ResidualNetwork

MIN_SIZE_PX = 8
GFLOPS_AT_32_PX = 1.111
PARAMETERS = 11_173_962

build = partial(ResidualNetwork, blocks=(2, 2, 2, 2))
