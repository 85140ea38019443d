"""Names that people and programs gave to files, shown, compared and written.

They hold any bytes but `/` and NUL, and letters with accents have two spellings.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

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


def printable(text: str) -> str:
    r"""In a message: what a terminal would obey, or could not print, is escaped (`\n`, `\x1b`, `\u202e`, `\xe9`)."""
    return _UNSHOWN.sub(lambda match: _spelled(match[0]), text)


def _spelled(char: str) -> str:
    """Python keeps a byte of a name that is no UTF-8 as a letter from U+DC80 on (PEP 383)."""
    code = ord(char)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else ascii(char)[1:-1]


def csv_rows(file: _Writable) -> _writer:
    r"""Rows end with `\n`. Python quotes a cell only for the ends of lines that it writes itself, and reads others too:
    a name with `\r` would come back as two rows."""
    return csv.writer(_Rows(file), lineterminator="\r\n")


@cache
def spelled_out() -> str:
    """The name of an error handler of codecs: text.encode(encoding, spelled_out()) never fails."""
    codecs.register_error(name := "transfergrid-spelled-out", _spelled_out)
    return name


def readable(text: str) -> str:
    r"""The text as UTF-8 can hold it. What a name holds that is no UTF-8 is spelled out: `caf\xe9`."""
    return text.encode("utf-8", spelled_out()).decode()


def readable_in(value: Any) -> Any:
    """The value with every text in its dictionaries, lists and tuples readable, names included."""
    if isinstance(value, str):
        return readable(value)
    if isinstance(value, Mapping):
        return {readable_in(name): readable_in(v) for name, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(readable_in, value))
    return value


def utf8(text: str) -> bytes:
    """The content of a file for people and their programs."""
    return text.encode("utf-8", spelled_out())


def closest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The known name that was probably meant, whatever the case it was typed in; None where none is close."""
    by_lower = {other.lower(): other for other in known}
    return next((by_lower[close] for close in difflib.get_close_matches(name.lower(), by_lower, 1, cutoff)), None)


def fitting(part: str, names: Iterable[str]) -> list[str]:
    """Which names a part may mean: that whole name; else those that begin with it, else end with it, else hold it."""
    names = list(names)
    if part in names:
        return [part]
    kinds = ([name for name in names if fits(name, part)] for fits in (str.startswith, str.endswith, str.__contains__))
    return next(filter(None, kinds), [])


def some(names: Sequence[object], most: int, noun: str = "") -> str:
    """`a, b and 3 more`, with a noun `and 3 more models`."""
    more = f" and {len(names) - most} more{' ' if noun else ''}{noun}" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def composed(name: str) -> str:
    """The one spelling of names that look alike: NFC. Copies made by macOS are decomposed, `e` and its accent apart."""
    return unicodedata.normalize("NFC", name)


def existing(path: Path) -> Path:
    """The path as the file system spells it, where the one given is not there and another spelling of it is."""
    others = (unicodedata.normalize("NFC", str(path)), unicodedata.normalize("NFD", str(path)))
    return next((p for p in (path, *map(Path, others)) if p.exists()), path)


def _spelled_out(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_spelled, error.object[error.start : error.end])), error.end
