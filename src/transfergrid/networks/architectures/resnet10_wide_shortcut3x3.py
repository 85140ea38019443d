"""The ten-layer residual network with 3x3 convolutions on its shortcuts.

He et al., "Deep Residual Learning" (https://arxiv.org/abs/1512.03385): `resnet10_wide` whose three shortcuts between
stages are 3x3 in place of 1x1, a shape that the study `small_resnet18` counted. The study counted it only: its
shortcuts had no padding, gave maps of 15 px beside 16 px, and could not be added. Here they are padded by one pixel.
Shapes at 32 px: conv1 (N, 64, 32, 32), layer1 (N, 64, 32, 32), layer2 (N, 128, 16, 16), layer3 (N, 256, 8, 8),
layer4 (N, 512, 4, 4), the global average (N, 512), fc (N, 10).
Images (N, 3, H, W) of at least 8 px -> logits (N, num_classes).
"""

from functools import partial

from transfergrid.networks.architectures._residual import ResidualNetwork

MIN_SIZE_PX = 8
GFLOPS_AT_32_PX = 0.6075
PARAMETERS = 6_279_498

build = partial(ResidualNetwork, blocks=(1, 1, 1, 1), shortcut_kernel=3)
