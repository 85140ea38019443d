"""A plain convolutional network to measure others against, quick enough for two CPU cores.

Four convolution-BatchNorm-ReLU layers of 32, 64, 128 and 128 channels, max pooling after the first three, then the
global average: VGG's 3x3 layers (Simonyan and Zisserman, https://arxiv.org/abs/1409.1556) with BatchNorm
(https://arxiv.org/abs/1502.03167) and without fully connected layers but the last.
Shapes at 32 px: features.2 (N, 32, 32, 32), features.6 (N, 64, 16, 16), features.10 (N, 128, 8, 8),
features (N, 128, 4, 4), the global average (N, 128), fc (N, 10).
Images (N, 3, H, W) of at least 8 px -> logits (N, num_classes).
"""

from __future__ import annotations

from torch import Tensor, nn

MIN_SIZE_PX = 8
GFLOPS_AT_32_PX = 0.02536
PARAMETERS = 242_474


def build(num_classes: int) -> nn.Module:
    return BaselineCNN(num_classes)


class BaselineCNN(nn.Module):
    """At 32 px the maps are 32, 16, 8 and 4 px wide."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_layer(3, 32),
            nn.MaxPool2d(2),
            *_layer(32, 64),
            nn.MaxPool2d(2),
            *_layer(64, 128),
            nn.MaxPool2d(2),
            *_layer(128, 128),
        )
        self.fc = nn.Linear(128, num_classes)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        maps_NDHW: Tensor = self.features(images_NCHW)
        logits_NC: Tensor = self.fc(maps_NDHW.mean(dim=(2, 3)))
        return logits_NC


def _layer(channels_in: int, channels_out: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)
