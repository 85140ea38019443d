"""Everything that can go wrong, as one tree.

GridError
├─ ConfigError (also a ValueError)   the request makes no sense: exit code 2, nothing submitted or written
├─ DataError                         images, labels or weights are missing, damaged or of another kind
│  ├─ MissingFiles                   files of a published data set are not here, and were not fetched
│  ├─ MissingWeights                 a file of published weights is not here, and was not fetched
│  ├─ UnusableWeights                several files of weights in one message
│  └─ CorruptFeatures                a cached feature file does not validate
├─ MissingInput                      a run that this one needs has not finished: names the run to repeat
│  └─ LostFeatures                   its features were there and are damaged or gone: they are extracted again
├─ MachineError                      this machine cannot do it: no usable GPU, no right to write
│  └─ StoreFull                      no space left where results or features are kept
├─ ParityError                       the assembled network does not reproduce what the probe stored
├─ TrainingDiverged                  the loss is not finite; carries the step
├─ AlreadyRunning                    another process holds this run's claim
├─ Lost                              its process or its job ended without a word; carries what is known of how
├─ Superseded                        a newer attempt of this run exists; this one must not publish
└─ Interrupted                       a signal asked the run to stop; the checkpoint stands

Each class carries the failure class that a record shows for it (see FAILURE_CLASSES and classify). What is decided
about an error follows from its class and its fields: no sentence of this project is cut, searched or compared.
"""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transfergrid.names import closest, printable, some

NEXT_STEP = {
    "host_oom": "give the run more memory (cluster.mem_gb=...) and launch again",
    "cuda_oom": "use a smaller data.resident_gb (no number changes), phase.<name>.micro_batch or batch_size, or a"
    " larger GPU, and launch again; evaluation takes 256 images at once",
    "timeout": "launch again: it continues from its checkpoint",
    "node_failure": "launch again: it continues from its checkpoint",
    "preempted": "launch again: it continues from its checkpoint",
    "cancelled": "launch again: it continues from its checkpoint",
    "blocked": "repair the run it waits for, and launch again",
    "code": "read the run's log.txt; it is not tried again until code or settings change",
    "environment": "mend the machine as the message says, and launch again",
    "data": "mend the file that the message names; it is tried again once code, settings or data change",
    "disk_full": "free space in the store or the cache, and launch again",
    "lost": "launch again: it continues from its checkpoint",
}
FAILURE_CLASSES = tuple(NEXT_STEP)
FILES_NAMED = 4  # of missing weights, in a message that has room for 400 characters


def next_step(failure_class: str | None, remedy: str | None = None) -> str:
    """What to do about a failure: its own remedy, else that of its class. Empty: the message says it already, as those
    of earlier releases' records do."""
    return NEXT_STEP.get(failure_class or "lost", "read its log.txt") if remedy is None else remedy


def hints(name: str, known: Iterable[str]) -> dict[str, Any]:
    """The name that is close as a remedy, else all that are known: `raise ConfigError(what, **hints(name, known))`."""
    names = list(known)
    close = closest(name, names)
    return {"remedy": f"did you mean {close!r}?"} if close is not None else {"known": names}


class GridError(Exception):
    """Root of the tree.

    what: what happened, and with what. known: what could stand in its place. remedy: what helps in this very case;
    where it is empty, what helps its class. str() is all three, on one line. failure_class: what a record shows.
    """

    failure_class = "code"

    def __init__(self, what: object = "", *, remedy: str = "", known: Sequence[str] = ()) -> None:
        super().__init__(what)
        self.what = str(what)
        self.remedy = remedy
        self.known = tuple(known)

    @property
    def fact(self) -> str:
        """All but the remedy."""
        return f"{self.what}; known: {', '.join(self.known)}" if self.known else self.what

    def __str__(self) -> str:
        return f"{self.fact}; {self.remedy}" if self.remedy else self.fact

    @property
    def details(self) -> tuple[str, ...]:
        """Further lines, for a terminal: the message alone says what happened."""
        return ()


class ConfigError(GridError, ValueError):
    """A request that makes no sense. One line: what, got, allowed, next."""


class DataError(GridError):
    """Images, labels or weights are missing, damaged or of another kind."""

    failure_class = "data"


class MissingFiles(DataError):
    """Files of a published data set are not here, and could not be fetched or were not to be."""


class MissingWeights(DataError):
    """A file of published weights is not here, and could not be fetched or was not to be. file: its name. folder: where
    it is looked for. url: where it is published; empty where that is not known."""

    def __init__(self, what: str, *, file: str, folder: Path, url: str = "") -> None:
        published = f" (it is published at {url})" if url else ""
        super().__init__(what, remedy=f"put {file} into {folder}, or give its folder as weights_dir={published}")
        self.file = file
        self.folder = folder
        self.url = url


class UnusableWeights(DataError):
    """Several files of weights, missing or of another kind, told in one message. errors: one for each, at least two."""

    def __init__(self, errors: Sequence[DataError]) -> None:
        self.missing = [error for error in errors if isinstance(error, MissingWeights)]
        facts, remedy = [error.fact for error in errors if error not in self.missing], ""
        if self.missing:
            names = some([error.file for error in self.missing], FILES_NAMED)
            facts = [self.missing[0].fact, f"not there: {names}", *facts]
            places = {error.url.rpartition("/")[0] for error in self.missing}
            published = f" (published at {place})" if len(places) == 1 and (place := max(places)) else ""
            remedy = f"put them into {self.missing[0].folder}, or give their folder as weights_dir={published}"
        super().__init__("; ".join(facts), remedy=remedy)

    @property
    def details(self) -> tuple[str, ...]:
        """Each missing file, where there are more than the message names."""
        lines = (f"  {error.file} {error.url}".rstrip() for error in self.missing)
        return tuple(lines) if len(self.missing) > FILES_NAMED else ()


class CorruptFeatures(DataError):
    """A feature file in the cache does not validate; it is to be extracted again."""


class MissingInput(GridError):
    """Something this run is made from has not finished. The message names the run to repeat."""

    failure_class = "blocked"


class LostFeatures(MissingInput):
    """Features that were extracted are damaged, and set aside, or gone. Extracting them again heals it."""


class MachineError(GridError):
    """The machine cannot do what was asked: no usable GPU, no right to write, a missing program."""

    failure_class = "environment"


class StoreFull(MachineError):
    """No space left for results or features."""

    failure_class = "disk_full"


class ParityError(GridError):
    """The assembled network does not reproduce the logits its probe stored."""


class TrainingDiverged(GridError):
    """The loss is not finite. `step` counts optimizer steps from 1 over the whole run."""

    def __init__(self, *, step: int, loss: float) -> None:
        super().__init__(f"loss is {loss} at step {step}", remedy="a smaller learning rate is the usual remedy")
        self.step = step
        self.loss = loss


class AlreadyRunning(GridError):
    """Another process holds the claim on this run."""


class Lost(GridError):
    """A run's process or job ended without a record. `failure_class`: what the system or SLURM tells of how.
    `signal`: the one that ended it, where it was one."""

    def __init__(
        self, what: str, failure_class: str = "lost", remedy: str | None = None, *, signal: int | None = None
    ) -> None:
        super().__init__(what, remedy=remedy or "")
        self.failure_class = failure_class
        self.signal = signal


class Superseded(GridError):
    """A newer attempt of the same run exists; only the newest may write."""

    failure_class = "lost"


class Interrupted(GridError):
    """A signal asked the run to stop at a step boundary; its checkpoint is on disk."""

    failure_class = "cancelled"


# What torch raises as a RuntimeError for what a device, its driver, one of its libraries or an allocator did: words of
# the message's first line -> failure class; the first that fits holds. Those of _DEVICE must begin it.
_A_BUG = ("device-side assert triggered", "illegal memory access", "misaligned address")
_HOST_MEMORY = ("DefaultCPUAllocator", "enforce fail at alloc_cpu", "HOST_ALLOCATION_FAILED", "std::bad_alloc")
_DEVICE_MEMORY = ("CUDA error: out of memory", "CUDA out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED")
_DEVICE = (
    *("CUDA error", "CUDA driver", "CUDA unknown error", "CUDA initialization", "Unexpected error from cuda"),
    *("cuDNN", "CUDNN_", "cuBLAS", "CUBLAS_", "cublas", "cusolver error", "cuFFT error", "NCCL", "NVML"),
    *("GET was unable", "FIND was unable", "Unable to find a valid cuDNN"),
    *("Found no NVIDIA driver", "The NVIDIA driver on your system", "No CUDA GPUs are available"),
)
# torch.AcceleratorError carries CUDA's own number: cudaErrorMemoryAllocation, then illegal address, assert, misaligned.
_CUDA_CODES = {2: "cuda_oom", 700: "code", 710: "code", 716: "code"}
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last: of ulimit -f, or of a file system
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of a file system
_OF_MACHINE = (errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, *NO_LOCKS)
_ERRNOS = {
    **dict.fromkeys(DISK_FULL, "disk_full"),
    **dict.fromkeys(_OF_MACHINE, "environment"),
    errno.ENOMEM: "host_oom",
}
_NO_ROOM_TO_MAP = ("failed to map segment", "cannot allocate memory", "Cannot allocate memory")
_NATIVE = (*_NO_ROOM_TO_MAP, "cannot open shared object", "undefined symbol", "version `")  # of what an import loads
_NO_THREAD = "can't start new thread"
OF_ULIMIT = (
    "raise that limit before you launch, or give cluster.sbatch={propagate: NONE}, so that jobs have the node's own"
    " limits, and launch again"
)


def classify(error: BaseException) -> str:
    """The failure class (one of FAILURE_CLASSES) of an exception that ended a run; where it tells nothing by itself,
    that of the exception it was raised from."""
    name = next((c for c in map(_class_of, _causes(error)) if c is not None), "code")
    return "environment" if name in ("host_oom", "code") and ulimit_behind(error) is not None else name


def remedy_of(error: BaseException) -> str | None:
    """The remedy that an exception carries, or that of the limit behind it; None where its class's own holds."""
    carried = next((c.remedy for c in _causes(error) if isinstance(c, GridError) and c.remedy), None)
    return carried if carried is not None or ulimit_behind(error) is None else OF_ULIMIT


def ulimit_behind(error: BaseException) -> str | None:
    """`ulimit -v is 3000000`: the limit of this process by which such an error comes about; None where none is set."""
    for cause in _causes(error):
        number, message = getattr(cause, "errno", None), str(cause)
        of_memory = isinstance(cause, MemoryError) or _has(message, (*_HOST_MEMORY, *_NO_ROOM_TO_MAP))
        no_thread = isinstance(cause, RuntimeError) and _NO_THREAD in message
        for flag, which, unit, fits in (
            ("f", resource.RLIMIT_FSIZE, 1024, number == errno.EFBIG),
            ("n", resource.RLIMIT_NOFILE, 1, number == errno.EMFILE),
            ("v", resource.RLIMIT_AS, 1024, of_memory or no_thread),
            ("u", resource.RLIMIT_NPROC, 1, no_thread),
        ):
            limit = resource.getrlimit(which)[0]
            if fits and limit != resource.RLIM_INFINITY:
                return f"ulimit -{flag} is {limit // unit}"
    return None


def _causes(error: BaseException) -> list[BaseException]:
    """The exception and those it was raised from."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and all(cause is not known for known in chain):
        chain.append(cause)
        cause = cause.__cause__
    return chain


def _has(message: str, words: tuple[str, ...]) -> bool:
    return any(word in message for word in words)


def is_of_the_machine(error: BaseException) -> bool:
    """Whether a library or the system raised it for what the machine did, so its message names no machine."""
    return not isinstance(error, GridError) and classify(error) in ("environment", "cuda_oom", "host_oom")


def _class_of(error: BaseException) -> str | None:
    """By type and number first, then by words; None where none of them tells."""
    if isinstance(error, GridError):
        return error.failure_class
    kinds = {kind.__name__ for kind in type(error).__mro__}  # torch's, without importing it: planning must not load it
    if "OutOfMemoryError" in kinds:
        return "cuda_oom"
    if isinstance(error, MemoryError):
        return "host_oom"
    if isinstance(error, KeyboardInterrupt):
        return "cancelled"
    if isinstance(error, PermissionError):
        return "environment"
    if isinstance(error, OSError):
        return _ERRNOS.get(error.errno or 0)
    if isinstance(error, ImportError):
        return "environment" if _has(str(error), _NATIVE) else None
    if not isinstance(error, RuntimeError):
        return None
    code = getattr(error, "error_code", None)
    if code in _CUDA_CODES:
        return _CUDA_CODES[code]
    line = str(error).lstrip().partition("\n")[0]  # what follows is advice, and names errors of other kinds
    for words, failure_class in ((_A_BUG, "code"), (_HOST_MEMORY, "host_oom"), (_DEVICE_MEMORY, "cuda_oom")):
        if _has(line, words):
            return failure_class
    return "environment" if "AcceleratorError" in kinds or line.startswith(_DEVICE) else None


def one_line(error: BaseException, *, with_remedy: bool = True) -> str:
    """The error's message on one line of at most 400 characters, with its type where the message alone says little.

    Nothing in it is obeyed by a terminal. with_remedy: False where the remedy is told beside it.
    """
    text = error.fact if isinstance(error, GridError) and not with_remedy else str(error)
    text = printable(" ".join(text.split()))
    if not isinstance(error, GridError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= 400 else text[:397] + "..."
