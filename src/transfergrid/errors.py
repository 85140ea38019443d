"""Everything that can go wrong, as one tree.

GridError
├─ ConfigError (also a ValueError)   the request makes no sense: exit code 2, nothing submitted or written
├─ DataError                         images, labels or weights are missing, damaged or of another kind
│  └─ CorruptFeatures                a cached feature file does not validate
├─ MissingInput                      a run that this one needs has not finished: names the run to repeat
├─ MachineError                      this machine cannot do it: no usable GPU, no right to write
│  └─ StoreFull                      no space left where results or features are kept
├─ ParityError                       the assembled network does not reproduce what the probe stored
├─ TrainingDiverged                  the loss is not finite; carries the step
├─ AlreadyRunning                    another process holds this run's claim
├─ Lost                              its process or its job ended without a word; carries what is known of how
├─ Superseded                        a newer attempt of this run exists; this one must not publish
└─ Interrupted                       a signal asked the run to stop; the checkpoint stands

Each class carries the failure class that a record shows for it (see FAILURE_CLASSES and classify).
"""

from __future__ import annotations

import errno

FAILURE_CLASSES = (
    "host_oom",
    "cuda_oom",
    "timeout",
    "node_failure",
    "preempted",
    "cancelled",
    "blocked",
    "code",
    "environment",
    "data",
    "disk_full",
    "lost",
)

NEXT_STEP = {
    "host_oom": "give the run more memory (cluster.mem_gb=...) and launch again",
    "cuda_oom": "use a smaller phase.<name>.batch_size or a larger GPU, and launch again",
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


class GridError(Exception):
    """Root of the tree; `failure_class` is what a record shows."""

    failure_class = "code"


class ConfigError(GridError, ValueError):
    """A request that makes no sense. One line: what, got, allowed, next."""


class DataError(GridError):
    """Images, labels or weights are missing, damaged or of another kind."""

    failure_class = "data"


class CorruptFeatures(DataError):
    """A feature file in the cache does not validate; it is to be extracted again."""


class MissingInput(GridError):
    """Something this run is made from has not finished. The message names the run to repeat."""

    failure_class = "blocked"


class MachineError(GridError):
    """The machine cannot do what was asked: no usable GPU, no right to write, a missing program."""

    failure_class = "environment"


class StoreFull(MachineError):
    """No space left for results or features."""

    failure_class = "disk_full"


class ParityError(GridError):
    """The assembled network does not reproduce the logits its probe stored."""

    failure_class = "code"


class TrainingDiverged(GridError):
    """The loss is not finite. `step` counts optimizer steps from 1 over the whole run."""

    def __init__(self, *, step: int, loss: float) -> None:
        super().__init__(f"loss is {loss} at step {step}; a smaller learning rate is the usual remedy")
        self.step = step
        self.loss = loss


class AlreadyRunning(GridError):
    """Another process holds the claim on this run."""


class Lost(GridError):
    """A run's process or job ended without a record. `failure_class`: what the system or SLURM tells of how."""

    def __init__(self, message: str, failure_class: str = "lost") -> None:
        super().__init__(message)
        self.failure_class = failure_class


class Superseded(GridError):
    """A newer attempt of the same run exists; only the newest may write."""

    failure_class = "lost"


class Interrupted(GridError):
    """A signal asked the run to stop at a step boundary; its checkpoint is on disk."""

    failure_class = "cancelled"


def classify(error: BaseException) -> str:
    """The failure class (one of FAILURE_CLASSES) of an exception that ended a run."""
    if isinstance(error, GridError):
        return error.failure_class
    # torch.OutOfMemoryError without importing torch: planning must not load it.
    if type(error).__name__ == "OutOfMemoryError":
        return "cuda_oom"
    if isinstance(error, MemoryError):
        return "host_oom"
    if isinstance(error, KeyboardInterrupt):
        return "cancelled"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk_full"
    if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.EROFS):
        return "environment"
    return "code"


def one_line(error: BaseException) -> str:
    """The error's message on one line of at most 400 characters, with its type where the message alone says little."""
    text = " ".join(str(error).split())
    if not isinstance(error, GridError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= 400 else text[:397] + "..."
