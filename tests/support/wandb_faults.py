"""What can go wrong at the stand-in W&B server, on demand."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Delay:
    """Answers rightly, but so much later."""

    seconds: float


@dataclass(frozen=True)
class Reset:
    """Breaks the connection (TCP RST) instead of answering."""


@dataclass(frozen=True)
class BlackHole:
    """Takes the request and keeps silent until the faults are cleared (then it answers) or the server stops."""


@dataclass(frozen=True)
class Garbage:
    """Answers 200 with a body that is not JSON."""


@dataclass(frozen=True)
class Die:
    """The server stops in the middle of the request and stays stopped."""


@dataclass(frozen=True)
class AfterThen:
    """Does the work, then answers this status, or breaks the connection: done, but the client cannot know."""

    answer: int | Reset


Fault = int | Delay | Reset | BlackHole | Garbage | Die | AfterThen


@dataclass
class _Rule:
    what: str
    how: Fault
    times: int | None
    after: int


class Faults:
    """The faults that are on. The first rule that fits a request and is not used up decides."""

    def __init__(self) -> None:
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()
        self.cleared = threading.Event()  # ends the silence of black holes; a new one after each end

    def add(self, what: str, how: Fault, *, times: int | None, after: int) -> None:
        with self._lock:
            self._rules.append(_Rule(what, how, times, after))

    def clear(self) -> None:
        with self._lock:
            self._rules.clear()
        self.wake()

    def wake(self) -> None:
        """Ends the black holes that hold a request."""
        ended, self.cleared = self.cleared, threading.Event()
        ended.set()

    def choose(self, kind: str, operation: str) -> Fault | None:
        """The fault for a request of this kind ("graphql", "file_stream", "storage", "other") and operation."""
        if not self._rules:
            return None
        with self._lock:
            for rule in self._rules:
                if rule.what not in ("*", kind, operation) or rule.times == 0:
                    continue
                if rule.after > 0:
                    rule.after -= 1
                    continue
                if rule.times is not None:
                    rule.times -= 1
                return rule.how
        return None


_BY_NAME = {"Delay": Delay, "Reset": Reset, "BlackHole": BlackHole, "Garbage": Garbage, "Die": Die}


def parsed(how: Any) -> Fault:
    """A fault from JSON: 503, "Reset", ["Delay", 2.5], ["AfterThen", 500] or ["AfterThen", "Reset"]."""
    if isinstance(how, int) and not isinstance(how, bool):
        return how
    name, *rest = how if isinstance(how, list) else [how]
    if name == "AfterThen" and len(rest) == 1:
        return AfterThen(Reset() if rest[0] == "Reset" else int(rest[0]))
    if name == "Delay" and len(rest) == 1:
        return Delay(float(rest[0]))
    if name in _BY_NAME and name != "Delay" and not rest:
        fault: Fault = _BY_NAME[name]()
        return fault
    raise ValueError(f"unknown fault {how!r}; known: a status, {', '.join(_BY_NAME)}, AfterThen")
