"""The tiny network of the built-in backbones: a state dict in float32 stays under 300 KB.

Four convolution-BatchNorm-ReLU blocks of 16, 32, 64 and 64 channels, the last three with stride 2, then the global
average; after Springenberg et al., "Striving for Simplicity" (https://arxiv.org/abs/1412.6806): strides, no pooling.
Shapes at 32 px: block1 (N, 16, 32, 32), block2 (N, 32, 16, 16), block3 (N, 64, 8, 8), block4 (N, 64, 4, 4), the global
average (N, 64), fc (N, 10).
Images (N, 3, H, W) of at least 16 px -> features (N, 64) -> logits (N, num_classes).
"""

from __future__ import annotations

from torch import Tensor, nn

MIN_SIZE_PX = 16
GFLOPS_AT_32_PX = 0.006784
PARAMETERS = 61_338
FEATURE_DIM = 64


def build(num_classes: int) -> nn.Module:
    return TinyNet(num_classes)


class TinyNet(nn.Module):
    """`fc` is the last layer; without it the output is the features."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.block1 = _block(3, 16, stride=1)
        self.block2 = _block(16, 32, stride=2)
        self.block3 = _block(32, 64, stride=2)
        self.block4 = _block(64, FEATURE_DIM, stride=2)
        self.fc: nn.Module = nn.Linear(FEATURE_DIM, num_classes)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        maps_NDHW: Tensor = self.block4(self.block3(self.block2(self.block1(images_NCHW))))
        logits_NC: Tensor = self.fc(maps_NDHW.mean(dim=(2, 3)))
        return logits_NC


def _block(channels_in: int, channels_out: int, *, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True))
