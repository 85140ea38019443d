"""How large a network is and what a forward pass costs: the figures of a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSize:
    """size_mb: 1e6 bytes of parameters and buffers in float32.

    gflops_per_image: of a forward pass in eval mode, 1e9 x 2 x multiply-accumulate in convolutions, matrix products
    and attention; what is done per element (activations, norms) does not count.
    """

    parameters: int
    size_mb: float
    gflops_per_image: float


def describe(module: nn.Module, input_shapes: Sequence[tuple[int, ...]]) -> NetworkSize:
    """input_shapes: of one image (3, H, W), one for each input that forward() takes. Modes are restored."""
    parameters = list(module.parameters())
    buffers = [b for b in module.buffers() if b.is_floating_point()]
    device = parameters[0].device if parameters else torch.device("cpu")
    inputs = [torch.zeros(1, *shape, device=device) for shape in input_shapes]
    modes = [(m, m.training) for m in module.modules()]
    for m, _ in modes:
        m.training = False
    # Torch's fused attention hides its products from the counter.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(*inputs)
    torch.backends.mha.set_fastpath_enabled(fused)
    for m, mode in modes:
        m.training = mode
    return NetworkSize(
        parameters=sum(p.numel() for p in parameters),
        size_mb=4 * sum(t.numel() for t in (*parameters, *buffers)) / 1e6,
        gflops_per_image=counter.get_total_flops() / 1e9,
    )
