"""Average pooling to a given number of places, whatever the size of the maps."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def average_to(maps_NDHW: Tensor, *, side: int) -> Tensor:
    """(N, D, side, side), of square maps at least that wide; maps of exactly that width are returned unchanged.

    Windows of equal size, which overlap where the width is no multiple. Not adaptive_avg_pool2d: its gradient on a GPU
    adds up in no fixed order, and a run would not repeat.
    """
    stride = maps_NDHW.shape[-1] // side
    window = maps_NDHW.shape[-1] - (side - 1) * stride
    return F.avg_pool2d(maps_NDHW, window, stride)
