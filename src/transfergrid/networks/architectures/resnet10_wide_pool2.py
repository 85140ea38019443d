"""The ten-layer residual network that averages its last maps over 2x2 pixels, not over all of them.

He et al., "Deep Residual Learning" (https://arxiv.org/abs/1512.03385): `resnet10_wide` whose linear layer sees the four
quarters of the image apart (2,048 features in place of 512). The study `small_resnet18` counted its network with pools
of 2, 4, 8 and 16 px and found 4,903,242 parameters each time; only 4, the global average, fits its linear layer of 512
inputs and its maps of 4 px. This is what a pool of 2 px needs to run; 8 and 16 px are wider than the maps.
Shapes at 32 px: conv1 (N, 64, 32, 32), layer1 (N, 64, 32, 32), layer2 (N, 128, 16, 16), layer3 (N, 256, 8, 8),
layer4 (N, 512, 4, 4), the quarters' averages (N, 2048), fc (N, 10). Larger images are averaged to 2x2 places as well.
Images (N, 3, H, W) of at least 16 px -> logits (N, num_classes).
"""

from functools import partial

from transfergrid.networks.architectures._residual import ResidualNetwork

MIN_SIZE_PX = 16
GFLOPS_AT_32_PX = 0.5069
PARAMETERS = 4_918_602

build = partial(ResidualNetwork, blocks=(1, 1, 1, 1), pooled_side=2)
