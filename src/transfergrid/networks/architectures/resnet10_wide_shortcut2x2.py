"""The ten-layer residual network with 2x2 convolutions on its shortcuts.

He et al., "Deep Residual Learning" (https://arxiv.org/abs/1512.03385): `resnet10_wide` whose three shortcuts between
stages are 2x2 in place of 1x1, so that none of the pixels is skipped; a shape that the study `small_resnet18` counted.
Maps of odd width are padded on the right and below; the study's, of even width, need no padding.
Shapes at 32 px: conv1 (N, 64, 32, 32), layer1 (N, 64, 32, 32), layer2 (N, 128, 16, 16), layer3 (N, 256, 8, 8),
layer4 (N, 512, 4, 4), the global average (N, 512), fc (N, 10).
Images (N, 3, H, W) of at least 8 px -> logits (N, num_classes).
"""

from functools import partial

from transfergrid.networks.architectures._residual import ResidualNetwork

MIN_SIZE_PX = 8
GFLOPS_AT_32_PX = 0.5446
PARAMETERS = 5_419_338

build = partial(ResidualNetwork, blocks=(1, 1, 1, 1), shortcut_kernel=2)
