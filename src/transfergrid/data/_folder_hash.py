"""Content of a folder of images: what each file holds, remembered together with its size and time of change.

Beside the hash stand size, depth, turn and extremes of the picture, so that a later plan needs no pixels.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from transfergrid import durable
from transfergrid.data._decode import Depth, PictureFacts, picture_facts
from transfergrid.data._formats import MAX_MEGAPIXELS
from transfergrid.data._image_size import unreadable
from transfergrid.data._threads import in_threads
from transfergrid.specs import digest, safe_name

VERSION = 2  # 1, of the first release, kept the size of a picture alone


def content_of(
    folder: Path,
    relative_paths: Sequence[str],
    *,
    kept_hashes: Path | None,
    keep: bool,
    progress: Callable[[int, int], None] | None,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> tuple[str, dict[str, PictureFacts], dict[str, str]]:
    """Fingerprint over sorted names and bytes; what is known of each picture; each file's SHA-256.

    Only files whose size or time of change differs from what is kept are read. Raises DamagedImage for a file that no
    image format recognises, or that is too large.
    """
    kept_file = None if kept_hashes is None else _kept_file(kept_hashes, folder)
    kept = _kept(kept_file)
    # The time is read before the content, so a file that changes meanwhile is read again next time.
    states = in_threads(lambda relative: _state(folder / relative), relative_paths)
    known = {
        relative: kept[relative]
        for relative, state in zip(relative_paths, states, strict=True)
        if kept.get(relative, "").startswith(state)
    }
    changed = zip(relative_paths, states, strict=True)
    unknown = [(relative, state) for relative, state in changed if relative not in known]
    if unknown:
        lines = in_threads(
            lambda entry: entry[1] + _content(folder / entry[0], max_megapixels), unknown, progress=progress
        )
        known |= dict(zip((relative for relative, _ in unknown), lines, strict=True))
    if keep and kept_file is not None and known != kept:
        durable.write_json(kept_file, {"version": VERSION, "folder": str(folder.resolve()), "files": known})

    whole = hashlib.sha256()
    pictures: dict[str, PictureFacts] = {}
    sha256_of: dict[str, str] = {}
    for relative in sorted(known):
        _, _, sha256_of[relative], *facts = known[relative].split()
        whole.update(os.fsencode(relative) + f"\0{sha256_of[relative]}\n".encode())
        pictures[relative] = _facts(*facts)
    return f"content:{whole.hexdigest()[:32]}", pictures, sha256_of


def _state(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns} "


def _content(path: Path, max_megapixels: float) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    found = picture_facts(path, content, max_megapixels=max_megapixels)
    extremes = "" if found.depth == "8-bit" else f" {found.low!r} {found.high!r}"
    size = f"{found.width_px}x{found.height_px} {found.depth} {'turned' if found.turned else 'upright'}"
    return f"{hashlib.sha256(content).hexdigest()} {size}{extremes}"


@lru_cache(maxsize=4096)  # most pictures of a folder are of a few kinds
def _facts(size: str, depth: Depth, turn: str, low: str = "0", high: str = "0") -> PictureFacts:
    width, height = size.split("x")
    return PictureFacts(int(width), int(height), depth, turn == "turned", float(low), float(high))


def _kept_file(kept_hashes: Path, folder: Path) -> Path:
    return kept_hashes / f"{safe_name(folder.name)[:60]}-{digest(str(folder.resolve()), 12)}.json"


def _kept(kept_file: Path | None) -> dict[str, str]:
    """Relative path -> `size mtime_ns sha256 WxH depth turn [low high]`; empty where none of this version is kept."""
    try:
        kept: Any = durable.read_json(kept_file) if kept_file is not None else {}
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return dict(kept["files"]) if kept.get("version") == VERSION else {}
