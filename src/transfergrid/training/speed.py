"""How fast a machine computes, as far as a plan must know: assumed, or measured in some seconds. Imports no torch.

FLOP: 2 x multiply-accumulate. A step: one forward and backward pass of a batch, and its update.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from transfergrid.specs import Runtime

TRAINING = 3  # forward passes that a forward and a backward pass cost
# Measured, CPU: one thread of an AMD EPYC in float32 reached 60e9 (baseline_cnn, tinynet) to 95e9 FLOP/s
# (resnet18_5m) at 32 px, 41e9 to 73e9 in googlenet, resnet50 and resnet18 at 128 and 224 px. In bfloat16 it was up to
# twice as fast, having that in hardware; others have not, so nothing is assumed of it. A step costs 3 to 6 ms a network
# beyond its FLOPs, and 3 to 4 ns a parameter in AdamW and about as much in reading the weights (resnet18, googlenet,
# vgg16_bn at 32 px); reading, resizing and augmenting an image 0.27 to 0.41 ms. A head on cached features costs 0.2 to
# 0.5 ms a step beyond its products, and those run at 10e9 FLOP/s with 10 classes, as L-BFGS's do.
# Assumed, GPU: 15 % of an A100's dense peak in bfloat16 (312e12) and in TF32 (156e12), 40 % of its float32 peak without
# TF32 (19.5e12); published ResNets train at 19 to 25 % of the first. Some hundred kernels are launched in a step.
MEASURED_S = 1.5  # of each workload, of which there are three, on a GPU four
MOST_STEPS = 12
SMALL, LARGE = "tinynet", "resnet18_5m"
SIZE_PX = 32


@dataclass(frozen=True, slots=True)
class Speed:
    """flop_per_s: by precision, of all the threads or the GPU that a run gets. Of a step, beyond its FLOPs: step_s per
    network, parameter_s per parameter that is trained. image_s: of preparing one image. head_flop_per_s, head_step_s:
    of heads on cached features."""

    flop_per_s: Mapping[str, float]
    step_s: float
    parameter_s: float
    image_s: float
    head_flop_per_s: float
    head_step_s: float


def assumed_speed(*, cores: int, on_gpu: bool) -> Speed:
    """Of a machine that nobody has measured. cores: threads of a run without a GPU."""
    if on_gpu:
        rates = {"fp32": 8e12, "tf32": 23e12, "bf16": 47e12}
        return Speed(rates, 10e-3, 0.02e-9, 0.01e-3, 0.5e12, 0.5e-3)
    rates = dict.fromkeys(("fp32", "tf32", "bf16"), 60e9 * cores)
    return Speed(rates, 5e-3, 5e-9, 0.3e-3 / cores, 8e9 * cores, 0.5e-3)


def measure_speed(runtime: Runtime) -> Speed:
    """Of this machine as it is now, by training steps of a small and of a large network; at most ten seconds. What is
    not measured is as much faster or slower than assumed as the large network is. Loads torch: call it in a child."""
    import torch

    from transfergrid.networks import architectures
    from transfergrid.training.device import device_of, prepare_process

    prepare_process(runtime)
    device = device_of(runtime)
    on_gpu = device.type == "cuda"
    assumed = assumed_speed(cores=torch.get_num_threads(), on_gpu=on_gpu)
    batch = {SMALL: 32, LARGE: 128 if on_gpu else 8}
    flop = {n: TRAINING * b * architectures.entry(n).gflops_at_32_px * 1e9 for n, b in batch.items()}
    precisions = ("fp32", "tf32", "bf16") if on_gpu else ("fp32", "bf16")
    rates = {p: flop[LARGE] / _median_s(_step(LARGE, batch[LARGE], p, device)) for p in precisions}
    small_s = _median_s(_step(SMALL, batch[SMALL], "fp32", device))
    faster = rates["fp32"] / assumed.flop_per_s["fp32"]
    return Speed(
        flop_per_s={"tf32": rates["fp32"]} | rates,
        step_s=max(0.0, small_s - flop[SMALL] / rates["fp32"]),
        parameter_s=assumed.parameter_s / faster,
        image_s=assumed.image_s / faster,
        head_flop_per_s=assumed.head_flop_per_s * faster,
        head_step_s=assumed.head_step_s,
    )


def _step(name: str, batch: int, precision: str, device: Any) -> Callable[[], None]:
    """One step of this architecture on so many random images, to its end on the device."""
    import torch
    from torch.nn import functional

    from transfergrid.networks import architectures
    from transfergrid.training.device import on_device
    from transfergrid.training.on_images import autocast

    network = on_device(architectures.build(name, 10, 0), device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    images = torch.zeros(batch, 3, SIZE_PX, SIZE_PX, device=device).to(memory_format=torch.channels_last)
    labels_B = torch.zeros(batch, dtype=torch.long, device=device)

    def step() -> None:
        with autocast(device, precision):
            loss = functional.cross_entropy(network(images).float(), labels_B)
            torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def _median_s(step: Callable[[], None], *, clock: Callable[[], float] = time.monotonic) -> float:
    """Of steps for MEASURED_S, MOST_STEPS at most; the first, which sets things up, counts only where it took all."""
    began = clock()
    step()
    seconds = [clock() - began]
    while clock() - began < MEASURED_S and len(seconds) <= MOST_STEPS:
        at = clock()
        step()
        seconds.append(clock() - at)
    return median(seconds[1:] or seconds)
