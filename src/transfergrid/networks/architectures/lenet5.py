"""LeNet-5 for colour images of 32 px, as PyTorch's tutorial on CIFAR-10 has it.

After LeCun et al., "Gradient-Based Learning Applied to Document Recognition" (Proceedings of the IEEE, 1998,
https://doi.org/10.1109/5.726791): two 5x5 convolutions without padding and three linear layers of 120, 84 and
num_classes. Three colours in place of one, ReLU in place of tanh, max pooling in place of trained subsampling, every
map of the second convolution sees all of the first, no BatchNorm. The baseline of the study `scratch_cifar10`.
Shapes at 32 px: conv1 (N, 6, 28, 28), pooled to 14 px, conv2 (N, 16, 10, 10), pooled to 5 px, flattened (N, 400),
fc1 (N, 120), fc2 (N, 84), fc3 (N, 10). The maps of larger images are averaged to 5 px, so that the linear layers fit.
Weights start as PyTorch's constructors draw them, as there.
Images (N, 3, H, W) of at least 32 px -> logits (N, num_classes).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from transfergrid.networks.architectures._residual import average_to

MIN_SIZE_PX = 32
GFLOPS_AT_32_PX = 0.001303
PARAMETERS = 62_006
LAST_MAPS_PX = 5


def build(num_classes: int) -> nn.Module:
    return LeNet5(num_classes)


class LeNet5(nn.Module):
    """Convolutions have a bias, because no BatchNorm follows."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * LAST_MAPS_PX**2, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        maps_NDHW = F.max_pool2d(F.relu(self.conv1(images_NCHW)), 2)
        maps_NDHW = F.max_pool2d(F.relu(self.conv2(maps_NDHW)), 2)
        features_ND = average_to(maps_NDHW, side=LAST_MAPS_PX).flatten(1)
        features_ND = F.relu(self.fc2(F.relu(self.fc1(features_ND))))
        logits_NC: Tensor = self.fc3(features_ND)
        return logits_NC
