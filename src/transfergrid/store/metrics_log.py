"""metrics.jsonl: numbered lines per step and per epoch, written by training, followed by whoever shows a run.

A line: {"line": n, "kind": "step"|"epoch", "epoch": 1.., "step": 1.., "time": ISO UTC, "train/loss": ..., ...}.
What a relaunch takes back are whole lines, down to what its checkpoint covers; lines written again have other times.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from transfergrid.errors import DataError, one_line
from transfergrid.store import durable

# Never equal between two runs.
TIMING_FIELDS = frozenset({"time", "elapsed_s", "images_per_s", "gpu/utilisation", "gpu/memory_mib"}) | {
    "gpu/memory_mb"  # MiB all the same, in runs of earlier releases
}


class MetricsLog(contextlib.AbstractContextManager["MetricsLog"]):
    """Appends numbered lines. lines_kept: a resumed run truncates to what its checkpoint covers."""

    def __init__(self, path: Path, *, lines_kept: int) -> None:
        durable.make_folder(path.parent)
        with durable.explained(path):
            self._file: io.BufferedRandom | Any = open(path, "ab+")  # closed by close()
            durable.share(self._file.fileno(), path.parent)
        self._file.seek(0)
        for number in range(1, lines_kept + 1):
            if not self._file.readline().endswith(b"\n"):
                self._file.close()
                raise DataError(f"{path} has {number - 1} whole lines, but its checkpoint covers {lines_kept}")
        self._file.truncate(self._file.tell())
        self._file.seek(0, os.SEEK_END)
        self.lines = lines_kept

    def write(self, kind: Literal["step", "epoch"], **values: Any) -> None:
        self.lines += 1
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"line": self.lines, "kind": kind, **values, "time": now}
        with durable.explained(Path(self._file.name)):
            self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")

    def flush(self) -> None:
        with durable.explained(Path(self._file.name)):
            self._file.flush()

    def fsync(self) -> None:
        with durable.explained(Path(self._file.name)):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        try:
            self.fsync()
        finally:
            with contextlib.suppress(OSError):  # of what it could not write, as told
                self._file.close()

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        self.close()


class MetricsTail:
    """Reads a metrics file onward while it grows, each line once, so that a look costs no more in a long run."""

    def __init__(self, path: Path, *, after: int) -> None:
        """after: the number of lines that are passed over. Raises DataError where the file has fewer."""
        self._path = path
        self._lines, self._end, self._last = 0, 0, b""
        self._read_on(after)
        if self._lines < after:
            raise DataError(f"{path} has {self._lines} whole lines, but {after} lines should be skipped")

    @property
    def is_intact(self) -> bool:
        """Whether what was read still stands there: a run that goes back further than that writes other times."""
        if not self._last:
            return True
        with contextlib.suppress(FileNotFoundError), open(self._path, "rb") as file:
            file.seek(self._end - len(self._last))
            return file.read(len(self._last)) == self._last
        return False

    def read(self, upto: int | None = None) -> list[dict[str, Any]]:
        """The whole lines that follow, up to this number. Raises DataError where one is none that a run writes."""
        first = self._lines + 1
        return [_parsed(self._path, number, line) for number, line in enumerate(self._read_on(upto), start=first)]

    def _read_on(self, upto: int | None) -> list[bytes]:
        lines: list[bytes] = []
        with contextlib.suppress(FileNotFoundError), open(self._path, "rb") as file:
            file.seek(self._end)
            while (upto is None or self._lines < upto) and (line := file.readline()).endswith(b"\n"):
                lines.append(line)
                self._lines, self._end, self._last = self._lines + 1, self._end + len(line), line
        return lines


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file, in order; a torn last line is left out; a missing file has none. Raises
    DataError where a line is not one that a run writes."""
    return MetricsTail(path, after=0).read()


def _parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(line)
        values["kind"]
        return values
    except (ValueError, KeyError, TypeError) as error:
        what = f"{path}: line {number} is damaged ({one_line(error)})"
        raise DataError(what, remedy="launch the run again") from error
