"""How a signal stops a run: it sets a flag, which the training loop reads at step boundaries."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class StopFlag:
    """Set by SIGTERM, SIGUSR2 or SIGINT, in the main process only.

    Nothing is saved inside a handler: a checkpoint taken between two steps is right, one taken within a step is not.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Inside the block the signals set the flag; afterwards they do again what they did before."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, self._set) for s in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _set(self, number: int, frame: object) -> None:
        self.signal = number
