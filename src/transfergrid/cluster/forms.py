"""What SLURM's commands print, read by form: only lines that have it count.

Sites wrap these commands, and their plugins print notes of their own among the answer, in whatever encoding.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

SEPARATOR = "|"
JOB_ID = r"\d+(?:\+\d+|_\d+|_\[[^\]]*\])?"  # `123`, `123_4`, `123_[5-9%2]` of waiting tasks, `123+0` of a joint job
NUMBER, MAYBE_NUMBER, WORD, ANY = r"\d+", r"\d*", r"[^\s|]+", r".*"
_OF_EVERY_COMMAND = re.compile(r"\s*|CLUSTER: \S+")  # which `-M` prints above its rows
_commands_noted: set[str] = set()


def rows(command: str, text: str, forms: Sequence[str]) -> list[list[str]]:
    """Of each line that has so many cells, each of its form (a regular expression), the cells; the last may hold
    separators. What else the command printed is said once."""
    read, unread = [], []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(SEPARATOR, len(forms) - 1)]
        if len(cells) == len(forms) and all(re.fullmatch(f, c) for f, c in zip(forms, cells, strict=True)):
            read.append(cells)
        else:
            unread.append(line)
    say_unread(command, unread)
    return read


def say_unread(command: str, lines: Iterable[str]) -> None:
    """On the standard error, once for each command of this process; empty lines are nothing to say."""
    unread = [line for line in lines if not _OF_EVERY_COMMAND.fullmatch(line)]
    if unread and command not in _commands_noted:
        _commands_noted.add(command)
        first = "".join(c if c.isprintable() else "?" for c in unread[0].strip()[:100])
        print(f"note: {command} printed what is no row of its answer, and is passed over: {first}", file=sys.stderr)


# -------------------------------------------------------------------------------------------------------------- values
def when(text: str) -> datetime | None:
    """`2026-11-20T13:00:00`, in UTC since environment() says so; None for N/A, Unknown or nothing."""
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError:
        return None


def time_of(text: object) -> datetime | None:
    """A time as our own files hold it, with its zone; None for anything else."""
    try:
        return datetime.fromisoformat(str(text)).astimezone(UTC)
    except ValueError:
        return None


def duration_s(text: str) -> float | None:
    """`1-02:03:04`, `02:03:04`, `03:04`, `03:04.567` in seconds; None for UNLIMITED, INVALID or nothing."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)", text.strip())
    if match is None:
        return None
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def mebibytes(text: str) -> float | None:
    """`1024K`, `16G`, `8Gn` in MiB; None for nothing."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)[nc]?", text.strip())
    if match is None:
        return None
    return float(match[1]) * {"": 1 / 1024 / 1024, "K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1024.0 * 1024}[match[2]]


def tres_of(text: str) -> dict[str, float]:
    """`cpu=4,gres/gpu:a100=2,mem=16G` -> what is counted, by its name; memory in MiB."""
    parts = re.findall(r"([^=,]+)=(\d+(?:\.\d+)?)([KMGT]?)", text)
    return {
        name: mebibytes(f"{count}{unit or 'M'}") or 0 if name == "mem" else float(count) for name, count, unit in parts
    }
