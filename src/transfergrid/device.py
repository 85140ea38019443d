"""The device, threads and arithmetic of a run's process."""

from __future__ import annotations

import os
import socket

import torch

from transfergrid.errors import MachineError
from transfergrid.specs import Runtime
from transfergrid.usage import slurm_cpus


def prepare_process(runtime: Runtime) -> None:
    """Threads and arithmetic of this process. Raises MachineError where device=cuda was asked for and is not there."""
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(runtime.num_threads or min(cores, slurm_cpus() or cores))
    # fp32 means fp32: TensorFloat-32 keeps 10 bits of mantissa.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise MachineError(
            f"device=cuda, but torch sees no usable GPU on {socket.gethostname()}; check the driver or use device=cpu"
        )


def device_of(runtime: Runtime) -> torch.device:
    """Where runs of this runtime compute."""
    use_cuda = runtime.device == "cuda" or (runtime.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_cuda else "cpu")
