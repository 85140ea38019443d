"""Names that people and programs gave to files: any bytes but `/` and NUL, on a terminal and in a CSV file."""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from _csv import _writer

# Control characters, line and paragraph ends, marks that turn the direction of writing, bytes that are no UTF-8.
_UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class _Writable(Protocol):
    def write(self, text: str, /) -> object: ...


class _Rows:
    def __init__(self, file: _Writable) -> None:
        self._file = file

    def write(self, row: str) -> object:
        return self._file.write(row.removesuffix("\r\n") + "\n")


def shown(text: str) -> str:
    r"""In a message: what a terminal would obey, or could not print, is escaped (`\n`, `\x1b`, `\u202e`, `\xe9`)."""
    return _UNSHOWN.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    as_byte = 0xDC80 <= code <= 0xDCFF  # how Python keeps a byte of a name that is no UTF-8
    return f"\\x{code - 0xDC00:02x}" if as_byte else found[0].encode("unicode_escape", "surrogatepass").decode()


def csv_rows(file: _Writable) -> _writer:
    r"""Rows end with `\n`. Python quotes a cell only for the ends of lines that it writes itself, and reads others too:
    a name with `\r` would come back as two rows."""
    return csv.writer(_Rows(file), lineterminator="\r\n")
