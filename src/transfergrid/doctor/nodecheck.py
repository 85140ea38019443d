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
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transfergrid.errors import GridError, MachineError, one_line
from transfergrid.store import durable
from transfergrid.training.usage import host_name

LOOK_S = 0.2


def main() -> int:
    parser = argparse.ArgumentParser(prog="transfergrid.doctor.nodecheck")
    parser.add_argument("kind", choices=("node", "pair"))
    parser.add_argument("--folder", action="append", default=[], help="NAME=DIR, a folder that another machine offers")
    parser.add_argument("--visible-s", type=float, default=60.0, help="how long a file of another machine may take")
    parser.add_argument("--skip-gpu", action="store_true")
    given = parser.parse_args()
    folders = {name: Path(folder) for name, _, folder in (text.partition("=") for text in given.folder)}
    if given.kind == "pair":
        _pair(folders, given.visible_s)
    else:
        _node(folders, given.visible_s, skip_gpu=given.skip_gpu)
    return 0


def _node(folders: Mapping[str, Path], visible_s: float, *, skip_gpu: bool) -> None:
    tell(host=host_name(), time_s=time.time(), python=platform.python_version(), cores=len(os.sched_getaffinity(0)))
    tell(memory_gib=_free_memory_gib(), ulimits=_ulimits())
    tell(commands={name: shutil.which(name) is not None for name in ("squeue", "scontrol")})
    tell(folders=_examined(folders, visible_s))
    tell(code=_outcome(_code))
    tell(torch=_outcome(_torch))
    if not skip_gpu:
        tell(gpu=_outcome(_gpu))


def _pair(folders: Mapping[str, Path], visible_s: float) -> None:
    """Two tasks of one job on two nodes: the first offers, the second examines."""
    if os.environ.get("SLURM_PROCID", "0") != "0":
        tell(second=host_name(), pair=_examined(folders, visible_s))
        return
    with contextlib.ExitStack() as held:
        for folder in folders.values():
            held.enter_context(offered(folder))
        deadline = time.monotonic() + 2 * visible_s
        answers = {name: answered(folder, deadline - time.monotonic()) for name, folder in folders.items()}
    tell(first=host_name(), answers=answers)


def tell(**findings: Any) -> None:
    """One write of one line, so that two tasks' lines do not mix."""
    sys.stdout.write(json.dumps(findings) + "\n")
    sys.stdout.flush()


# ------------------------------------------------------------------------------------------------------ shared folders
@contextlib.contextmanager
def offered(folder: Path) -> Iterator[None]:
    """Put what another machine is to find into a new folder, and hold a lock on a file there meanwhile."""
    durable.make_folder(folder)
    with durable.lock(folder / "lock", wait=True):
        durable.claim(folder / "claim", b"first")
        durable.write_bytes(folder / "value", b"first")
        with open(folder / "exclusive", "xb"):
            pass
        durable.write_bytes(folder / "offered", host_name().encode())  # last: the rest is there when this is seen
        yield


def examine(folder: Path, wait_s: float) -> dict[str, Any]:
    """What this machine sees of what another one offers, and an answer to it.

    seen: whether it showed within wait_s, with seconds. lock, claim, exclusive: whether the other's lock, its claim by
    hard link and its O_EXCL file are respected here. value: whether what it had written is read. kernel_locks: whether
    files there are locked by the kernel, or by hard links.
    """
    started = time.monotonic()
    if not _shows(folder, "offered", wait_s):
        return {"seen": False}
    return {
        "seen": True,
        "seconds": time.monotonic() - started,
        "lock": durable.is_locked(folder / "lock"),
        "claim": not durable.claim(folder / "claim", b"second"),
        "exclusive": _is_refused(folder / "exclusive"),
        "value": (folder / "value").read_bytes() == b"first",
        "answered": _answer(folder),
        "kernel_locks": durable.has_kernel_locks(folder),
    }


def answered(folder: Path, wait_s: float) -> bool:
    """Whether what examine() replaced on the other machine is read here."""
    deadline = time.monotonic() + wait_s
    while True:
        with contextlib.suppress(OSError):
            os.listdir(folder)  # a network file system then asks its server again
            if (folder / "value").read_bytes() == b"second":
                return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(LOOK_S)


def _examined(folders: Mapping[str, Path], visible_s: float) -> dict[str, Any]:
    """One deadline for all of them: a job has little time."""
    deadline = time.monotonic() + visible_s
    found: dict[str, Any] = {}
    for name, folder in folders.items():
        try:
            found[name] = examine(folder, deadline - time.monotonic())
        except (OSError, GridError) as error:
            found[name] = {"seen": True, "error": one_line(error)}
    return found


def _shows(folder: Path, name: str, wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while True:
        with contextlib.suppress(OSError):
            if name in os.listdir(folder):
                return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(LOOK_S)


def _is_refused(path: Path) -> bool:
    try:
        with open(path, "xb"):
            return False
    except FileExistsError:
        return True


def _answer(folder: Path) -> bool:
    durable.write_bytes(folder / "value", b"second")
    return True


# --------------------------------------------------------------------------------------------------------- the machine
def _outcome(look: Any) -> dict[str, Any]:
    """What look() found, or the error it ended with: a broken driver raises whatever it likes."""
    try:
        found: dict[str, Any] = look()
        return found
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
    """Names of the GPUs torch can use; each has multiplied a matrix. problem: why it cannot use all there are."""
    import torch

    from transfergrid.training.device import gpus

    found = gpus()
    if not found.usable:
        raise MachineError(found.problem or "torch sees no GPU")
    names = []
    for index in found.usable:
        ones = torch.ones(64, 64, device=f"cuda:{index}")
        assert float((ones @ ones).sum()) == 64.0**3
        names.append(torch.cuda.get_device_name(index))
    return {"names": names, "problem": found.problem}


def _ulimits() -> dict[str, int]:
    """Soft limits of this process that a run may meet, as `ulimit` names and counts them; those that are set."""
    kinds = {"t": (resource.RLIMIT_CPU, 1), "f": (resource.RLIMIT_FSIZE, 1024), "v": (resource.RLIMIT_AS, 1024)}
    kinds |= {"n": (resource.RLIMIT_NOFILE, 1)}
    limits = {name: (resource.getrlimit(which)[0], unit) for name, (which, unit) in kinds.items()}
    return {name: limit // unit for name, (limit, unit) in limits.items() if limit != resource.RLIM_INFINITY}


def _free_memory_gib() -> float:
    """What Linux could give to new processes, in GiB."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 2**20
    return 0.0


if __name__ == "__main__":
    sys.exit(main())
