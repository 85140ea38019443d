"""The device, threads and arithmetic of a run's process."""

from __future__ import annotations

import functools
import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.nn import Module

from transfergrid.errors import MachineError, one_line
from transfergrid.specs import Runtime
from transfergrid.training.usage import cpu_threads, host_name

logger = logging.getLogger(__name__)
M = TypeVar("M", bound=Module)


@dataclass(frozen=True, slots=True)
class Gpus:
    """usable: indices of the GPUs that this build of torch can compute on, as torch counts them. problem: why it can
    use none, or not all, in torch's own words; None where it can use all there are."""

    usable: tuple[int, ...]
    problem: str | None


def prepare_process(runtime: Runtime) -> None:
    """Threads and arithmetic of this process. Raises MachineError where device=cuda was asked for and is not there."""
    torch.set_num_threads(cpu_threads(runtime))
    # fp32 means fp32: TensorFloat-32 keeps 10 bits of mantissa.
    _allow_tf32(False)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    if runtime.device == "cpu":
        return
    available = gpus()
    if runtime.device == "cuda" and not available.usable:
        raise MachineError(
            f"device=cuda is set, but torch cannot use a GPU on {host_name()}: {available.problem}; use device=cpu"
        )
    if available.problem is not None:
        logger.warning(
            "%s: %s", "not every GPU is used" if available.usable else "computing on the CPU", available.problem
        )
    for index in available.usable[:1]:
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            name = torch.cuda.get_device_name(index)
            logger.warning("%s only emulates bfloat16, which is slow; precision=fp32 is faster there", name)


def device_of(runtime: Runtime) -> torch.device:
    """Where runs of this runtime compute."""
    if runtime.device == "cpu" or (runtime.device == "auto" and not gpus().usable):
        return torch.device("cpu")
    first = gpus().usable[:1]
    return torch.device("cuda", *first) if first != (0,) else torch.device("cuda")


def device_name(device: torch.device) -> str:
    """The kind of GPU as its driver names it, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def gpus_given(device: torch.device) -> tuple[str, ...]:
    """UUIDs of the GPUs that this process was given, as the driver's library names them; of a machine's GPUs that
    nobody has shared out, only the one that is computed on. Empty on a CPU."""
    if device.type != "cuda":
        return ()
    is_shared_out = "CUDA_VISIBLE_DEVICES" in os.environ
    indices = range(torch.cuda.device_count()) if is_shared_out else (device.index or 0,)
    uuids = [str(torch.cuda.get_device_properties(index).uuid) for index in indices]
    slices = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.startswith("MIG-")]
    return tuple(slices or (f"GPU-{uuid}" for uuid in uuids))


def seed_draws(seed: int, device: torch.device) -> None:
    """What a network draws next, as dropout does. torch.manual_seed() does the same for every kind of device there is,
    and takes 0.3 ms of each step for it."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)


def on_device(module: M, device: torch.device) -> M:
    """There, its weights laid out as convolutions read them fastest."""
    # torch's stubs do not know that a module takes a layout.
    placed: M = module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed


@functools.cache
def gpus() -> Gpus:
    """Asked once a process: the driver does not change while it runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch warns of here is what problem tells
        if not torch.cuda.is_available():
            return Gpus((), _why_none())
        try:
            capabilities = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
        except (RuntimeError, AssertionError) as error:
            return Gpus((), one_line(error))
    built_for = torch.cuda.get_arch_list()
    usable = tuple(i for i, capability in enumerate(capabilities) if _runs_on(capability, built_for))
    refused = [i for i in range(len(capabilities)) if i not in usable]
    if not refused:
        return Gpus(usable, None)
    name, (major, minor) = torch.cuda.get_device_name(refused[0]), capabilities[refused[0]]
    # torch's own warning, without its four lines of advice.
    return Gpus(
        usable,
        f"{name} with CUDA capability sm_{major}{minor} is not compatible with the current PyTorch installation, which"
        f" supports {' '.join(built_for)}",
    )


def has_tf32(device: torch.device) -> bool:
    """TensorFloat-32 is there from Ampere on (compute capability 8.0)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """float32 matrix products and convolutions on a GPU in TensorFloat-32 inside the block where precision is `tf32`,
    in IEEE float32 where it is not; restored afterwards. On a CPU both are float32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    _allow_tf32(precision == "tf32")
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def _allow_tf32(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def _why_none() -> str:
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]  # says why, as an error
    except Exception as error:  # a broken driver raises whatever it likes
        return " ".join(str(error).split())
    return "torch sees no GPU"


def _runs_on(capability: tuple[int, int], built_for: Sequence[str]) -> bool:
    """Whether kernels built for these architectures run on a GPU of this compute capability: a binary (sm_) within its
    major version from its minor version on, portable code (compute_) on whatever is newer; sm_90a on 9.0 alone."""
    builds = [build for name in built_for if (build := re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name))]
    for kind, major, minor, exact in (build.groups() for build in builds):
        of = (int(major), int(minor))
        if of == capability or (not exact and of <= capability and (kind == "compute" or of[0] == capability[0])):
            return True
    return not builds  # as on ROCm, whose names are others
