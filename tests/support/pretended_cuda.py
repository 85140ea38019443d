"""A CUDA device that is not there: tensors that say `cuda:0` and hold their numbers on the CPU.

It applies the rule that real kernels apply to mixed devices, counts kernel launches, and notes every wait of the host
for the device with the lines of this project that caused it. It knows neither time nor memory.

For C++ the tensors lie on the CPU: so autograd needs no driver, and composite operations (dropout, BatchNorm) are those
of the CPU. A launch is one aten operation that computes; an operation on a list of tensors is one for each PER_LAUNCH
of them, as torch's multi-tensor kernels take about so many.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import transfergrid

SOURCE = str(Path(transfergrid.__file__).parent)
PER_LAUNCH = 36
CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
# What makes the host wait on a real device although it copies nothing: sizes that depend on values, error checks.
WAITS = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "_linalg_check_errors", "equal"}
WAITS |= {"is_nonzero", "_local_scalar_dense", "repeat_interleave", "bincount", "_linalg_eigh", "_linalg_svd"}
NO_KERNEL = {"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh"}
ONE_DEVICE_EVEN_FOR_SCALARS = {"cat", "stack"}


@dataclass(frozen=True)
class Wait:
    """The host waited for the device. frames: (file below src/transfergrid, line, function), innermost first."""

    what: str
    frames: tuple[tuple[str, int, str], ...]

    @property
    def functions(self) -> set[str]:
        return {function for _, _, function in self.frames}

    def __str__(self) -> str:
        file, line, function = self.frames[0] if self.frames else ("outside", 0, "")
        return f"{self.what} at {file}:{line} in {function}"


@dataclass
class Device:
    """What has happened on the device so far. sent: copies to it that nobody waited for."""

    waits: list[Wait] = field(default_factory=list)
    launches: int = 0
    sent: int = 0
    pinned: dict[int, Tensor] = field(default_factory=dict)  # by address, which is not used again while it is here

    def wait(self, what: str) -> None:
        frames, frame = [], sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_filename.startswith(SOURCE):
                file = str(Path(frame.f_code.co_filename).relative_to(SOURCE))
                frames.append((file, frame.f_lineno, frame.f_code.co_name))
            frame = frame.f_back  # type: ignore[assignment]
        self.waits.append(Wait(what, tuple(frames)))

    def copy_in(self, host: Tensor, held: Tensor, *, non_blocking: bool) -> Tensor:
        if non_blocking and is_pinned(host):
            self.sent += 1
        else:
            self.wait("copy from host")
        return CudaTensor(held)


device = Device()


class CudaTensor(Tensor):
    """`held` has the numbers."""

    held: Tensor
    device = CUDA
    is_cuda, is_cpu = True, False

    @staticmethod
    def __new__(cls, held: Tensor) -> CudaTensor:
        made: CudaTensor = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=torch.device("cpu")
        )
        made.held = held
        return made

    def __init__(self, held: Tensor) -> None:
        pass

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"CudaTensor({self.held})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        copied._is_param = getattr(self, "_is_param", False)
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        device.wait("copy to host")
        return self.held.__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name == "to" and isinstance(args[0], CudaTensor):
            target, dtype, _, _ = torch._C._nn._parse_to(*args[1:], **_without(kwargs, "copy"))
            if target is not None and target.type == "cpu":
                return to_host(args[0]).to(dtype or args[0].dtype)
            if target is not None:  # it is there already
                more = {key: kwargs[key] for key in ("copy", "memory_format") if key in kwargs}
                with torch._C.DisableTorchFunctionSubclass():
                    return args[0].to(dtype or args[0].dtype, **more)
        if name == "cpu":
            return to_host(args[0])
        if name == "cuda":
            return args[0]
        if name == "tolist":
            return to_host(args[0]).tolist()
        if name in ("numpy", "__array__"):
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory"
            )
        with torch._C.DisableTorchFunctionSubclass():  # the usual way would make a CudaTensor of every result
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return run(func, args, kwargs or {})


def to_host(tensor: CudaTensor) -> Tensor:
    assert not (tensor.requires_grad and torch.is_grad_enabled()), "a graph does not go over to the host here"
    device.wait("copy to host")
    return tensor.held.detach().clone()


def _without(options: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != name}


def is_pinned(tensor: Tensor) -> bool:
    return tensor.untyped_storage().data_ptr() in device.pinned


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One aten operation, on the numbers that the tensors hold."""
    name = func._schema.name.removeprefix("aten::")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    ours = [t for t in tensors if isinstance(t, CudaTensor)]
    asked = kwargs.get("device")
    if not ours and (asked is None or torch.device(asked).type != "cuda"):
        return func(*args, **kwargs)
    kwargs = {**kwargs, **({"device": torch.device("cpu")} if asked is not None else {})}
    if ours and func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
        with _Dispatch():  # type: ignore[no-untyped-call]  # in inference mode they come whole
            return func.decompose(*args, **kwargs)
    if name == "_to_copy" and not ours:
        return device.copy_in(args[0], func(*args, **kwargs), non_blocking=kwargs.get("non_blocking", False))
    if name == "copy_" and len(ours) == 1:
        return _copy_across(func, args)
    _assert_one_device(name, args, kwargs, ours, tensors)
    _count(func, name, args, tensors)
    outer = {id(t.held): t for t in ours}
    out = func(*_held(args), **_held(kwargs))
    made: Callable[[Tensor], Tensor] = CudaTensor
    if _is_view(func) and not ours[0].is_inference():  # nor is a view of it, also in inference mode
        made = _outside_inference_mode
    if name in ("_local_scalar_dense", "equal", "is_nonzero"):
        return out
    return tree_map_only(Tensor, lambda t: outer.get(id(t)) if id(t) in outer else made(t), out)


@torch.inference_mode(False)
def _outside_inference_mode(held: Tensor) -> Tensor:
    return CudaTensor(held)


def _sent(tensor: Tensor, dtype: Any = None, non_blocking: bool = False, layout: Any = None) -> Any:
    options = {"dtype": dtype, "device": CUDA, "non_blocking": non_blocking, "memory_format": layout}
    return run(aten._to_copy.default, (tensor,), {key: value for key, value in options.items() if value is not None})


def _held(tree: Any) -> Any:
    return tree_map_only(CudaTensor, lambda t: t.held, tree)


def _copy_across(func: Any, args: tuple[Any, ...]) -> Any:
    target, source = args[:2]
    func(*_held(args))
    if isinstance(target, CudaTensor):
        if source.ndim:  # a number is an argument of the kernel
            device.copy_in(source, target.held, non_blocking=len(args) > 2 and args[2])
        else:
            device.launches += 1
    else:
        device.wait("copy to host")
    return target


def _assert_one_device(name: str, args: Any, kwargs: Any, ours: list[CudaTensor], tensors: list[Tensor]) -> None:
    others = [t for t in tensors if not isinstance(t, CudaTensor)]
    if name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"):
        if not isinstance(args[0], CudaTensor):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        on_host = [i for i in args[1] if isinstance(i, Tensor) and not isinstance(i, CudaTensor)]
        for _ in on_host:
            device.wait("copy of an index from host")
        others = [t for t in others if not any(t is i for i in on_host)]
        if any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            device.wait("index by a mask")
    if any(t.ndim or name in ONE_DEVICE_EVEN_FOR_SCALARS for t in others):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({name})"
        )


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _count(func: Any, name: str, args: Any, tensors: list[Tensor]) -> None:
    if name in WAITS:
        device.wait(name)
    if _is_view(func) or name in NO_KERNEL or name == "_local_scalar_dense":
        return
    many = len(args[0]) if name.startswith("_foreach") else 1
    device.launches += -(-many // PER_LAUNCH)


class _Dispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What takes other ways than aten's operations."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            made = func(*args, **_without(kwargs, "device"))
            return _sent(made) if torch.device(kwargs["device"]).type == "cuda" else made
        if func in (Tensor.to, Tensor.cuda) and not isinstance(args[0], CudaTensor):
            # C++ would ask the driver which of its devices `cuda` is.
            how: Any
            target, *how = torch._C._nn._parse_to(*args[1:], **_without(kwargs, "copy"))
            if target is not None and target.type == "cuda":
                return _sent(args[0], *how)
        if func is Tensor.pin_memory:
            pinned = args[0].clone()
            device.pinned[pinned.untyped_storage().data_ptr()] = pinned
            return pinned
        return func(*args, **kwargs)


def _grouped(lists: list[list[Any]], with_indices: bool = False) -> dict[Any, Any]:
    """torch._C's, by the device that the tensors say."""
    groups: dict[Any, Any] = {}
    for i, first in enumerate(lists[0]):
        held, indices = groups.setdefault((first.device, first.dtype), ([[] for _ in lists], []))
        for into, tensors in zip(held, lists, strict=True):
            if tensors:
                into.append(tensors[i])
        indices.append(i)
    return groups


class _Autocast(torch.autocast):
    """For C++ the tensors lie on the CPU."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu", *args, **kwargs)


@contextlib.contextmanager
def pretended_cuda(patch: pytest.MonkeyPatch) -> Iterator[Device]:
    """Inside the block `device=cuda` is there, with one GPU; in this thread and in those that read images."""
    from transfergrid.data import augment, preprocess
    from transfergrid.training.device import gpus

    device.__init__()  # type: ignore[misc]
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_capability": lambda index=0: (9, 0),
        "get_device_name": lambda index=0: "pretended",
        "get_arch_list": lambda: ["sm_90"],
        "is_bf16_supported": lambda including_emulation=True: True,
        "max_memory_allocated": lambda index=0: 0,
        "get_device_properties": lambda index=0: SimpleNamespace(uuid="00000000-0000-0000-0000-000000000000"),
        "mem_get_info": lambda index=0: (70 * 2**30, 80 * 2**30),
        "init": lambda: None,
        "_lazy_init": lambda: None,
        "get_rng_state": lambda index=0: torch.get_rng_state(),
        "set_rng_state": lambda state, index=0: None,
        "manual_seed_all": lambda seed: None,
        "synchronize": lambda index=None: device.wait("synchronize"),
        "default_generators": (torch.Generator(),),
    }
    for name, answer in answers.items():
        patch.setattr(torch.cuda, name, answer)
    patch.setattr(torch, "autocast", _Autocast)
    patch.setattr(torch._C, "_group_tensors_by_device_and_dtype", _grouped)
    for module in (_foreach_utils, importlib.import_module("torch.optim.optimizer")):
        patch.setattr(module, "_foreach_supported_types", [*module._foreach_supported_types, CudaTensor])

    def enter() -> None:
        for mode in (_Functions(), _Dispatch()):  # type: ignore[no-untyped-call]
            mode.__enter__()  # type: ignore[no-untyped-call]

    def reader(workers: int) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(workers, initializer=enter)

    patch.setattr(preprocess, "ThreadPoolExecutor", reader)
    patch.setattr(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda _: None, raising=False)
    patch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
    gpus.cache_clear()
    try:
        with _Functions(), _Dispatch():  # type: ignore[no-untyped-call]
            yield device
    finally:
        for cached in (gpus, preprocess._per_channel, preprocess._taps, augment._corners, augment._counted):
            cached.cache_clear()
