"""Content of a folder of images: what each file holds, remembered together with its size and time of change.

Every file is decoded once, so that all that cannot be used is known before anything is computed. Beside the hash stand
size, depth, turn and extremes of the picture, so that a later plan needs no pixels.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import PIL

from transfergrid.data._decode import PictureFacts, picture_facts
from transfergrid.data._formats import MAX_MEGAPIXELS, decoders, too_large
from transfergrid.data._image_size import unreadable
from transfergrid.data._threads import in_threads
from transfergrid.data.damaged import DamagedImage
from transfergrid.specs import digest, safe_name
from transfergrid.store import durable

VERSION = 3  # 1, of the first release, kept the size of a picture alone; 2 did not decode it
_AT_ONCE_BYTES = 2**24  # a larger file is read piece by piece

State = tuple[int, int]
# bytes, time of change in ns, SHA-256; then width, height, depth, turned, low, high of a picture, or a reason.
_Entry = tuple[Any, ...]
_facts = lru_cache(maxsize=4096)(PictureFacts)  # most pictures of a folder are of a few kinds


@dataclass(frozen=True, slots=True)
class Content:
    """pictures: what is known of each that can be used. damaged: those that cannot, by path. sha256_of: of each file
    that was read. state_of: its size in bytes and its time of change in ns when it was."""

    pictures: Mapping[str, PictureFacts]
    damaged: Mapping[str, DamagedImage]
    sha256_of: Mapping[str, str]
    state_of: Mapping[str, State]


def fingerprint(paths: Iterable[str], sha256_of: Mapping[str, str]) -> str:
    """Over sorted names and bytes."""
    whole = hashlib.sha256()
    for path in sorted(paths):
        whole.update(os.fsencode(path) + f"\0{sha256_of[path]}\n".encode())
    return f"content:{whole.hexdigest()[:32]}"


def state(path: Path) -> State:
    """Raises DamagedImage for what is no file. The message of an OSError is the system's."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        if path.is_symlink():
            raise DamagedImage(path, "is a broken link") from error
        raise
    if not stat.S_ISREG(status.st_mode):
        raise DamagedImage(path, "is a pipe, a device or a folder")
    return status.st_size, status.st_mtime_ns


def content_of(
    folder: Path,
    relative_paths: Sequence[str],
    *,
    kept_hashes: Path | None,
    keep: bool,
    progress: Callable[[int, int], None] | None,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> Content:
    """Only files whose size or time of change differs from what is kept are read, and only bytes that no folder has
    had before are decoded."""
    hash_file = None if kept_hashes is None else _hash_file(kept_hashes, folder)
    reader = _Reader(folder, kept_hashes, hash_file, max_megapixels)
    entries: dict[str, Any] = dict(zip(relative_paths, in_threads(reader.unchanged, relative_paths), strict=True))
    unread = [path for path, entry in entries.items() if entry is None]
    if unread:
        entries |= dict(zip(unread, in_threads(reader.read, unread, progress=progress), strict=True))
    damaged = {path: entry for path, entry in entries.items() if isinstance(entry, DamagedImage)}
    remembered = {path: entry for path, entry in entries.items() if not isinstance(entry, DamagedImage)}
    if keep and hash_file is not None and remembered != reader.entries:
        _write_entries(hash_file, folder, remembered)
    pictures: dict[str, PictureFacts] = {}
    for path, entry in sorted(remembered.items()):
        if len(entry) == _DAMAGED:
            damaged[path] = DamagedImage(folder / path, *entry[3:])
        else:
            pictures[path] = _facts(*entry[3:])
            large = too_large(pictures[path].width_px, pictures[path].height_px, max_megapixels)
            if large is not None:  # it was read under another limit
                damaged[path] = DamagedImage(folder / path, *large)
                del pictures[path]
    return Content(
        pictures=pictures,
        damaged=dict(sorted(damaged.items())),
        sha256_of={path: entry[2] for path, entry in remembered.items()},
        state_of={path: (entry[0], entry[1]) for path, entry in remembered.items()},
    )


_DAMAGED = 5  # so many parts has an entry that ends with a reason and its advice


class _Reader:
    """One folder's files, by path; what is kept of them is asked first."""

    def __init__(self, folder: Path, kept_hashes: Path | None, hash_file: Path | None, max_megapixels: float) -> None:
        self.folder = folder
        self.entries = _read_entries(hash_file) if hash_file is not None else {}
        self._kept_hashes = kept_hashes
        self._max_megapixels = max_megapixels

    def unchanged(self, relative: str) -> _Entry | None:
        """What is kept of the file, where it still has the size and time that it had."""
        try:
            entry = self.entries.get(relative)
            return entry if entry is not None and entry[:2] == state(self.folder / relative) else None
        except (OSError, DamagedImage):
            return None

    def read(self, relative: str) -> _Entry | DamagedImage:
        """What is known of the file. A DamagedImage is one that is not remembered: the system's word, or a limit's."""
        path = self.folder / relative
        try:
            # The time is read before the content, so a file that changes meanwhile is read again next time.
            now = state(path)
            return (*now, *self._content(path, now[0]))
        except DamagedImage as damaged:
            return damaged
        except OSError as error:
            return unreadable(path, error)
        except MemoryError:
            return DamagedImage(path, "does not fit into memory", may_pass=True)

    def _content(self, path: Path, size: int) -> _Entry:
        source: Path | bytes = path if size > _AT_ONCE_BYTES else path.read_bytes()
        sha256 = durable.sha256_of(path) if isinstance(source, Path) else hashlib.sha256(source).hexdigest()
        return (sha256, *(self.by_content.get(sha256) or self._checked(path, source)))

    def _checked(self, path: Path, source: Path | bytes) -> _Entry:
        try:
            picture = picture_facts(path, source, max_megapixels=self._max_megapixels)
        except DamagedImage as damaged:
            if damaged.may_pass or damaged.has_own_advice:  # not of the bytes alone
                raise
            return damaged.reason, damaged.remedy
        return picture.width_px, picture.height_px, picture.depth, picture.turned, picture.low, picture.high

    @cached_property
    def by_content(self) -> Mapping[str, _Entry]:
        """SHA-256 -> what stands behind it, of every folder whose contents are kept beside this one's."""
        files = [] if self._kept_hashes is None else sorted(self._kept_hashes.glob("*.json"))
        return {entry[2]: entry[3:] for file in files for entry in _read_entries(file).values()}


def _hash_file(kept_hashes: Path, folder: Path) -> Path:
    return kept_hashes / f"{safe_name(folder.name)[:60]}-{digest(str(folder.resolve()), 12)}.json"


def _write_entries(hash_file: Path, folder: Path, entries: Mapping[str, _Entry]) -> None:
    content = {"version": VERSION, "reader": _reader(), "folder": str(folder.resolve()), "files": entries}
    durable.write_bytes(hash_file, json.dumps(content, separators=(",", ":")).encode())


def _read_entries(hash_file: Path) -> dict[str, _Entry]:
    """Empty where none of this version is kept; without what another Pillow found to be damaged."""
    try:
        content: Any = durable.read_json(hash_file)
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    if content.get("version") != VERSION:
        return {}
    same = content["reader"] == _reader()
    return {path: tuple(entry) for path, entry in content["files"].items() if same or len(entry) != _DAMAGED}


def _reader() -> str:
    return " ".join((PIL.__version__, *decoders()))
