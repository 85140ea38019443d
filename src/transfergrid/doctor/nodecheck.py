"""What a machine says of itself for jobs/doctor.py: `python -m transfergrid.doctor.nodecheck node|pair ...`.

It prints one JSON object per finding and at once, so that whatever ends it, what was found before is known. What it
looks at is imported where it is looked at: a machine that lacks it must still be able to say so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transfergrid.errors import GridError, MachineError, one_line
from transfergrid.store import durable
from transfergrid.training.usage import host_name

LOOK_S = 0.2


def main() -> int:
    parser = argparse.ArgumentParser(prog="transfergrid.doctor.nodecheck")
    parser.add_argument("kind", choices=("node", "pair"))
    parser.add_argument("--folder", action="append", default=[], help="NAME=DIR, which another machine tries as well")
    parser.add_argument("--visible-s", type=float, default=60.0, help="how long a file of another machine may take")
    parser.add_argument("--skip-gpu", action="store_true")
    options = parser.parse_args()
    folders = {name: Path(folder) for name, _, folder in (text.partition("=") for text in options.folder)}
    if options.kind == "pair":
        _pair(folders, options.visible_s)
    else:
        _node(folders, options.visible_s, skip_gpu=options.skip_gpu)
    return 0


def _node(folders: Mapping[str, Path], visible_s: float, *, skip_gpu: bool) -> None:
    tell(host=host_name(), time_s=time.time(), python=platform.python_version(), cores=len(os.sched_getaffinity(0)))
    tell(memory_gib=_free_memory_gib(), ulimits=_ulimits())
    tell(commands={name: shutil.which(name) is not None for name in ("squeue", "scontrol")})
    tell(folders=_met(folders, "node", "here", visible_s))
    tell(code=_outcome(_code))
    tell(torch=_outcome(_torch))
    if not skip_gpu:
        tell(gpu=_outcome(_gpu))


def _pair(folders: Mapping[str, Path], visible_s: float) -> None:
    """One of the two tasks of a job on two nodes; both do the same."""
    names = ("first", "second") if os.environ.get("SLURM_PROCID", "0") == "0" else ("second", "first")
    tell(**{names[0]: {"host": host_name(), "folders": _met(folders, *names, visible_s)}})


def tell(**findings: Any) -> None:
    """One write of one line, so that two tasks' lines do not mix."""
    sys.stdout.write(json.dumps(findings) + "\n")
    sys.stdout.flush()


# ------------------------------------------------------------------------------------------------------ shared folders
@contextlib.contextmanager
def tried(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """Try for the lock and the claim of a folder, and then say so by a file `name`; the lock is held inside."""
    with durable.lock(folder / "lock", wait=False) as has_lock:
        has_claim = durable.claim(folder / "claim", name.encode())
        durable.write_bytes(folder / name, b"")
        yield {"lock": has_lock, "claim": has_claim, "kernel_locks": durable.has_kernel_locks(folder)}


def meet(folder: Path, name: str, other: str, wait_s: float) -> dict[str, Any]:
    """Two machines try for one lock and one claim in a folder that is there: one of them must get each.

    seen: whether the other's file showed within wait_s, after seconds. lock, claim: whether this machine got them.
    kernel_locks: whether files there are locked by the kernel, or by hard links.
    """
    started = time.monotonic()
    if not shows(folder, wait_s):  # nothing is written where another folder of that name may be
        return {"seen": False}
    with tried(folder, name) as got:
        seen = shows(folder / other, wait_s + started - time.monotonic())
        return got | {"seen": seen, "seconds": time.monotonic() - started}


def shows(path: Path, wait_s: float) -> bool:
    """Whether a file or folder that another machine made shows here in time."""
    deadline = time.monotonic() + wait_s
    while True:
        with contextlib.suppress(OSError):
            if path.name in os.listdir(path.parent):  # a network file system then asks its server again
                return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(LOOK_S)


def _met(folders: Mapping[str, Path], name: str, other: str, visible_s: float) -> dict[str, Any]:
    """One deadline for all of them: a job has little time."""
    deadline = time.monotonic() + visible_s
    outcomes: dict[str, Any] = {}
    for key, folder in folders.items():
        try:
            outcomes[key] = meet(folder, name, other, deadline - time.monotonic())
        except (OSError, GridError) as error:
            outcomes[key] = {"seen": True, "error": one_line(error)}
    return outcomes


# --------------------------------------------------------------------------------------------------------- the machine
def _outcome(look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What look() found, or the error it ended with: a broken driver raises whatever it likes."""
    try:
        return look()
    except Exception as error:
        return {"error": one_line(error)}


def _code() -> dict[str, Any]:
    """Whether everything a job needs can be imported, and which code it is."""
    import transfergrid.planning.job
    from transfergrid.store.provenance import PACKAGE, code_hash

    return {"hash": code_hash(), "folder": str(PACKAGE), "module": transfergrid.planning.job.__name__}


def _torch() -> dict[str, Any]:
    import torch
    import torchvision

    return {"version": torch.__version__, "torchvision": torchvision.__version__, "cuda": torch.version.cuda}


def _gpu() -> dict[str, Any]:
    """Names of the GPUs torch can use; each has convolved some pictures, in bfloat16 too where it computes in that.
    problem: why torch cannot use all there are, for one that it is not built for an architecture."""
    import torch

    from transfergrid.training.device import gpus
    from transfergrid.training.usage import driver_version

    here, driver = gpus(), driver_version()
    if not here.usable:
        raise MachineError(f"{here.problem or 'torch sees no GPU'}{f' (driver {driver})' if driver else ''}")
    names, without_bf16, free_gib, total_gib = [], [], [], []
    for index in here.usable:
        names.append(torch.cuda.get_device_name(index))
        has_bf16 = torch.cuda.get_device_capability(index) >= (8, 0)
        without_bf16 += [] if has_bf16 else [names[-1]]
        for dtype, bound in ((torch.float32, 1e-2), (torch.bfloat16, 1e-1))[: 1 + has_bf16]:
            _convolve(torch.device("cuda", index), dtype, bound)
        sizes_gib = [size / 2**30 for size in torch.cuda.mem_get_info(index)]
        free_gib.append(sizes_gib[0])
        total_gib.append(sizes_gib[1])
    found = {"names": names, "problem": here.problem, "driver": driver, "without_bf16": without_bf16}
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]  # torch gives it no types
    return found | {"free_gib": free_gib, "total_gib": total_gib, "cudnn": cudnn}


def _convolve(device: Any, dtype: Any, bound: float) -> None:
    """As a network's layer does it, through cuDNN. Raises MachineError where the CPU's numbers are others by more than
    this share of the largest."""
    import torch

    generator = torch.Generator().manual_seed(0)
    images_BCHW, kernels = (torch.randn(8, 8, size, size, generator=generator) for size in (16, 3))
    expected_BCHW = torch.conv2d(images_BCHW, kernels, padding=1)
    found_BCHW = torch.conv2d(images_BCHW.to(device, dtype), kernels.to(device, dtype), padding=1).cpu().float()
    error = float((found_BCHW - expected_BCHW).abs().max() / expected_BCHW.abs().max())
    if not error <= bound:  # NaN too
        name = torch.cuda.get_device_name(device)
        raise MachineError(f"{name}: a convolution in {dtype} is off by {error:.1g} of its largest number")


def _ulimits() -> dict[str, int]:
    """Soft limits of this process that a run may meet, as `ulimit` names and counts them; those that are set."""
    kinds = {"t": (resource.RLIMIT_CPU, 1), "f": (resource.RLIMIT_FSIZE, 1024), "v": (resource.RLIMIT_AS, 1024)}
    kinds |= {"n": (resource.RLIMIT_NOFILE, 1)}
    limits = {name: (resource.getrlimit(which)[0], unit) for name, (which, unit) in kinds.items()}
    return {name: limit // unit for name, (limit, unit) in limits.items() if limit != resource.RLIM_INFINITY}


def _free_memory_gib() -> float:
    """What Linux could give to new processes, in GiB."""
    available = re.search(r"^MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return 0.0 if available is None else int(available[1]) / 2**20


if __name__ == "__main__":
    sys.exit(main())
