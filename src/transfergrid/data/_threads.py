"""Many small files at once: chunks of a list over a few threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

MAX_CHUNK = 64
MAX_THREADS = 16


def num_threads() -> int:
    return min(MAX_THREADS, len(os.sched_getaffinity(0)) * 2)


def in_threads(
    function: Callable[[T], R], items: Sequence[T], *, progress: Callable[[int, int], None] | None = None
) -> list[R]:
    """[function(item) for item in items], in order; the first error ends it. progress(done, total) per chunk."""
    # Large enough to make little of a thread's turn, small enough that each thread gets several.
    chunk = max(1, min(MAX_CHUNK, len(items) // (4 * num_threads())))

    def run(start: int) -> list[R]:
        return [function(item) for item in items[start : start + chunk]]

    results: list[R] = []
    pool = ThreadPoolExecutor(num_threads())
    try:
        for part in pool.map(run, range(0, len(items), chunk)):
            results.extend(part)
            if progress is not None:
                progress(len(results), len(items))
    finally:
        pool.shutdown(cancel_futures=True)
    return results
