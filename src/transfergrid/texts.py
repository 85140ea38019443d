"""Names as they can be shown and compared: those of files are bytes, and letters with accents have two spellings."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any


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
    unfit = error.object[error.start : error.end]
    # Python reads a byte that is no UTF-8 as a letter from U+DC80 on (PEP 383).
    as_bytes = (f"\\x{ord(c) - 0xDC00:02x}" if 0xDC80 <= ord(c) <= 0xDCFF else ascii(c)[1:-1] for c in unfit)
    return "".join(as_bytes), error.end
