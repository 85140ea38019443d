"""DenseNet-121 for 32 px images.

Huang et al., "Densely Connected Convolutional Networks" (https://arxiv.org/abs/1608.06993): growth rate 32, dense
blocks of 6, 12, 24 and 16 layers, transitions that halve the channels. A 3x3 stem without pooling in place of 7x7 with
stride 2 and pooling, as kuangliu/pytorch-cifar has it and the study `scratch_cifar10` trained it.
Shapes at 32 px: features.conv1 (N, 64, 32, 32), features.dense1 (N, 256, 32, 32),
features.transition1 (N, 128, 16, 16), features.dense2 (N, 512, 16, 16), features.transition2 (N, 256, 8, 8),
features.dense3 (N, 1024, 8, 8), features.transition3 (N, 512, 4, 4), features.dense4 (N, 1024, 4, 4), the global
average (N, 1024), fc (N, 10).
Images (N, 3, H, W) of at least 8 px -> logits (N, num_classes).
"""

from functools import partial

from transfergrid.networks.architectures._dense import DenseNet

MIN_SIZE_PX = 8
GFLOPS_AT_32_PX = 1.777
PARAMETERS = 6_956_298

build = partial(DenseNet, blocks=(6, 12, 24, 16), growth=32)
