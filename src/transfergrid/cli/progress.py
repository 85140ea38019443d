"""What a person sees while runs are carried out: bars on a terminal, plain lines in a log."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console

from transfergrid.cli.console import duration, say
from transfergrid.cluster.local import Ended, Watcher
from transfergrid.paths import StorePaths
from transfergrid.planning.plan import PlannedRun
from transfergrid.planning.wall import Expected, remaining_s
from transfergrid.store.records import read_record

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

REFRESH_S = 0.5
BESIDE_NAME = 52  # columns for a bar, its count, the time, loss and accuracy


@contextmanager
def watching(console: Console, store: StorePaths, total: int, expected: Expected | None = None) -> Iterator[Watcher]:
    """The watcher for this output. expected: from which a terminal is told how long it still takes."""
    if not console.is_terminal:
        yield LineWatcher(console, store, total)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[figures]}"), console=console, transient=True) as progress:
        yield BarWatcher(progress, store, total, expected)


def ended_line(ended: Ended, store: StorePaths) -> str:
    """One line for a run that ended: how, which, seconds, test accuracy."""
    line = f"{ended.ending:<11} {ended.run.run_id}"
    if ended.ending == "completed":
        record = read_record(store.run(ended.run.run_id))
        assert record is not None
        line += f"  {record.phase_s:.1f} s"
        accuracy = record.metrics.get("test_accuracy")
        line += "" if accuracy is None else f"  test accuracy {accuracy:.2%}"
    elif ended.reason:
        line += f"  ({ended.failure_class}) {ended.reason}" if ended.failure_class else f"  {ended.reason}"
    return line


@dataclass
class LineWatcher(Watcher):
    """One line per start and per end."""

    _console: Console
    _store: StorePaths
    _total: int
    _done: int = 0

    def started(self, planned: PlannedRun) -> None:
        self._print(f"started     {planned.run.run_id}")

    def waiting(self, planned: PlannedRun) -> None:
        self._print(f"waiting     {planned.run.run_id}  another process is running it")

    def again(self, planned: PlannedRun) -> None:
        self._total += 1
        self._print(f"again       {planned.run.run_id}  {planned.why}")

    def ended(self, ended: Ended) -> None:
        self._done += 1
        self._print(ended_line(ended, self._store))

    def _print(self, text: str) -> None:
        say(self._console, f"[{self._done}/{self._total}] {text}")


class BarWatcher(Watcher):
    """A bar over all runs, and one per run at work, counted in epochs."""

    def __init__(self, progress: Progress, store: StorePaths, total: int, expected: Expected | None = None) -> None:
        self._progress = progress
        self._store = store
        self._total = total
        self._all = progress.add_task("runs", total=total, figures="")
        self._tasks: dict[str, TaskID] = {}
        self._looked = 0.0
        self._expected = expected
        self._began: dict[str, float] = {}
        self._took: dict[str, float | None] = {}

    def started(self, planned: PlannedRun) -> None:
        run = planned.run
        self._began[run.run_id] = time.monotonic()
        if run.run_id in self._tasks:  # it was found held by another process, and is looked at again
            return
        name = shortened(run.slug, max(self._progress.console.width - BESIDE_NAME, 20))
        self._tasks[run.run_id] = self._progress.add_task(name, total=run.epochs or 1, figures="")

    def running(self, planned: Iterable[PlannedRun]) -> None:
        now = time.monotonic()
        if now - self._looked < REFRESH_S:
            return
        self._looked = now
        if self._expected is not None:
            running = {run_id: now - began for run_id, began in self._began.items()}
            to_go_s = remaining_s(self._expected, self._took, running)
            self._progress.update(self._all, figures=f"about {duration(to_go_s)} to go")
        for p in planned:
            line = last_line(self._store, p.run.run_id)
            if line is not None:
                done = line["epoch"] if line["kind"] == "epoch" else line["epoch"] - 1
                self._progress.update(self._tasks[p.run.run_id], completed=done, figures=_figures(line))

    def waiting(self, planned: PlannedRun) -> None:
        self._began.pop(planned.run.run_id, None)
        self._progress.update(self._tasks[planned.run.run_id], figures="another process is running it")

    def again(self, planned: PlannedRun) -> None:
        self._total += 1
        self._took.pop(planned.run.run_id, None)
        self._progress.update(self._all, total=self._total)
        say(self._progress.console, f"again       {planned.run.run_id}  {planned.why}")

    def ended(self, ended: Ended) -> None:
        run_id = ended.run.run_id
        began = self._began.pop(run_id, None)
        took_s = None if began is None else time.monotonic() - began
        self._took[run_id] = took_s if ended.ending == "completed" else None
        task = self._tasks.pop(run_id, None)
        if task is not None:
            self._progress.remove_task(task)
        self._progress.advance(self._all)
        say(self._progress.console, ended_line(ended, self._store))


def shortened(name: str, width: int) -> str:
    """At most `width` characters, from both ends: a run's name begins with its data set, and phase and seed end it."""
    if len(name) <= width:
        return name
    end = (2 * width) // 3
    return f"{name[: width - 1 - end]}…{name[-end:]}"


def last_line(store: StorePaths, run_id: str) -> dict[str, Any] | None:
    """The newest whole line of a run's metrics, from the end of the file."""
    try:
        with open(store.run(run_id).metrics, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return None
    for text in reversed(lines[:-1]):
        try:
            line: dict[str, Any] = json.loads(text)
        except ValueError:
            continue
        return line
    return None


def _figures(line: dict[str, Any]) -> str:
    figures = {"loss": line.get("train/loss"), "val": line.get("val/accuracy")}
    return "  ".join(f"{name} {value:.3f}" for name, value in figures.items() if value is not None)
