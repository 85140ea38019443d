"""What needs torch is asked of a child process, because this one must not import it: checks of inputs, and GPUs."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from typing import Any

from transfergrid.errors import GridError, one_line, remedy_of
from transfergrid.specs import Runtime

ENDING_S = 60.0  # for a child that has answered to end
PRELOADED = (
    "transfergrid.planning.job",
    "transfergrid.training.loop",
    "transfergrid.networks.joined",
    "transfergrid.data.batches",
    "torchvision",
)


@dataclass(frozen=True, slots=True)
class Answer:
    """value: what the function returned. error: its message on one line, where it raised or its process died. remedy:
    what helps then, where it said. details: its further lines."""

    value: Any = None
    error: str | None = None
    remedy: str = ""
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GpusHere:
    """visible: for each GPU that torch can compute on, what CUDA_VISIBLE_DEVICES must hold for a process to see it
    alone. problem: why torch can use none, or not all, in its own words; None where it can use all there are."""

    visible: tuple[str, ...] = ()
    problem: str | None = None


def ask(
    function: Callable[..., Any], arguments: tuple[object, ...], *, runs_follow: bool, timeout_s: float | None = None
) -> Answer:
    """Call a function in a child process. runs_follow: as a child of the forkserver, which imports torch for the runs
    anyway; otherwise the child imports only what the function needs. timeout_s: after which it is killed; it is, too,
    where it answers and then does not end."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    family: ForkServerContext | SpawnContext = context() if runs_follow else multiprocessing.get_context("spawn")
    process = family.Process(target=_answer, args=(function, arguments, sender), daemon=True)
    process.start()
    sender.close()
    if not receiver.poll(timeout_s):
        process.kill()
        process.join()
        return Answer(error=f"it did not end within {timeout_s:g} s")
    try:
        answer: Answer = receiver.recv()
    except EOFError:
        process.join()
        answer = Answer(error=f"the process that looked ended without a word (exit code {process.exitcode})")
    process.join(None if timeout_s is None else ENDING_S)
    process.kill()  # nothing, to one that has ended
    process.join()
    return answer


def context() -> ForkServerContext:
    """Of the children that carry out runs: their server has imported torch once."""
    # Threads that spin while they wait make a step 4 to 6 times slower as soon as anything else wants a core (measured:
    # tinynet, two threads on two cores beside another process, 360 to 400 ms a step against 55 to 70 ms).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    family = multiprocessing.get_context("forkserver")
    family.set_forkserver_preload(list(PRELOADED))
    if threading.current_thread() is threading.main_thread():
        # The server imports torch for seconds, and its children begin as it is: Ctrl-C, and what SLURM sends to every
        # process of a job, is this process's to hear, which then ends its children itself.
        before = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGUSR2)}
        try:
            forkserver.ensure_running()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return family


def gpus_for(runtime: Runtime) -> GpusHere:
    """GPUs that runs of this runtime may use here; none, and no problem, where they are to compute on the CPU."""
    return GpusHere() if runtime.device == "cpu" else _gpus_here(os.environ.get("CUDA_VISIBLE_DEVICES"))


@functools.cache
def _gpus_here(visible: str | None) -> GpusHere:
    """Asked once: a GPU does not come while the launcher runs, and one that goes is its run's to tell."""
    answer = ask(_usable_gpus, (), runs_follow=True)
    if answer.error is not None:
        return GpusHere(problem=answer.error)
    usable, problem = answer.value
    # CUDA counts the entries of the list; those that name nothing are none of its devices.
    names = None if visible is None else [entry.strip() for entry in visible.split(",") if entry.strip()]
    return GpusHere(tuple(str(i) if names is None else names[i] for i in usable), problem)


def _usable_gpus() -> tuple[tuple[int, ...], str | None]:
    from transfergrid.training.device import gpus  # torch

    here = gpus()
    return here.usable, here.problem


def _answer(function: Callable[..., Any], arguments: tuple[object, ...], sender: Connection) -> None:
    try:
        answer = Answer(function(*arguments))
    except Exception as error:  # whatever it is, the launcher must hear of it
        details = error.details if isinstance(error, GridError) else ()
        answer = Answer(error=one_line(error, with_remedy=False), remedy=remedy_of(error) or "", details=details)
    with contextlib.suppress(BrokenPipeError):  # the launcher was interrupted meanwhile
        sender.send(answer)
