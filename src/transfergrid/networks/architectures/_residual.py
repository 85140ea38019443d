"""The residual network of basic blocks for small images, which several architectures share.

He et al., "Deep Residual Learning" (https://arxiv.org/abs/1512.03385), as its section 4.2 feeds it CIFAR: a 3x3 stem
without pooling, then four stages of basic blocks, the last three entered with stride 2.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (64, 128, 256, 512)  # of He et al.'s ResNet-18


class ResidualNetwork(nn.Module):
    """Weights as PyTorch's constructors draw them; convolutions have no bias, BatchNorm follows each.

    widths, blocks: channels and number of blocks of each of the four stages. shortcut_kernel: side of the convolution
    on the shortcuts that change shape. pooled_side: the last maps are averaged to pooled_side x pooled_side places,
    all of which the linear layer sees; 1 is the global average.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        blocks: tuple[int, ...],
        widths: tuple[int, ...] = WIDTHS,
        shortcut_kernel: int = 1,
        pooled_side: int = 1,
    ) -> None:
        super().__init__()
        self.pooled_side = pooled_side
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[0], blocks[0], stride=1, shortcut_kernel=shortcut_kernel)
        self.layer2 = _stage(widths[0], widths[1], blocks[1], stride=2, shortcut_kernel=shortcut_kernel)
        self.layer3 = _stage(widths[1], widths[2], blocks[2], stride=2, shortcut_kernel=shortcut_kernel)
        self.layer4 = _stage(widths[2], widths[3], blocks[3], stride=2, shortcut_kernel=shortcut_kernel)
        self.fc = nn.Linear(widths[3] * pooled_side**2, num_classes)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        maps = F.relu(self.bn1(self.conv1(images_NCHW)))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        if self.pooled_side == 1:
            features_ND = maps.mean(dim=(2, 3))
        else:
            features_ND = average_to(maps, side=self.pooled_side).flatten(1)
        logits_NC: Tensor = self.fc(features_ND)
        return logits_NC


class BasicBlock(nn.Module):
    """relu(conv(relu(conv(x))) + x), each convolution with BatchNorm; a convolved shortcut where the shape changes."""

    def __init__(self, width_in: int, width: int, *, stride: int, shortcut_kernel: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(
                *_shortcut_convolution(width_in, width, kernel=shortcut_kernel, stride=stride), nn.BatchNorm2d(width)
            )

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(maps)))))
        return F.relu(inner + self.shortcut(maps))


def _stage(width_in: int, width: int, blocks: int, *, stride: int, shortcut_kernel: int) -> nn.Sequential:
    first = BasicBlock(width_in, width, stride=stride, shortcut_kernel=shortcut_kernel)
    rest = (BasicBlock(width, width, stride=1, shortcut_kernel=shortcut_kernel) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def _shortcut_convolution(width_in: int, width: int, *, kernel: int, stride: int) -> tuple[nn.Module, ...]:
    """Padded so that its maps are as wide as the block's, ceil(width / stride), which needs kernel - 1 more pixels."""
    convolution = nn.Conv2d(width_in, width, kernel, stride=stride, padding=(kernel - 1) // 2, bias=False)
    if kernel % 2 == 1:
        return (convolution,)
    return nn.ZeroPad2d((0, 1, 0, 1)), convolution  # right and below; maps of even width never reach it at stride 2


def average_to(maps_NDHW: Tensor, *, side: int) -> Tensor:
    """(N, D, side, side), of square maps at least that wide; maps of exactly that width are returned unchanged.

    Windows of equal size, which overlap where the width is no multiple. Not adaptive_avg_pool2d: its gradient on a GPU
    adds up in no fixed order, and a run would not repeat.
    """
    stride = maps_NDHW.shape[-1] // side
    window = maps_NDHW.shape[-1] - (side - 1) * stride
    return F.avg_pool2d(maps_NDHW, window, stride)
