"""What a weights file is, told by its content, whatever its name; and its identity. Needs no torch: the plan asks too.

A sharded model is its index file (`model.safetensors.index.json`) with the files that it names beside it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transfergrid.errors import DataError
from transfergrid.store import durable

logger = logging.getLogger(__name__)
HEADER_LARGEST_BYTES = 100_000_000  # of safetensors, by its own rules
LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # torch.save before 1.6: the first number in the file
_INDEX_LARGEST_BYTES = 50_000_000
_BEGINNINGS = (
    (b"version https://git-lfs", "a git-lfs pointer, not the weights; run `git lfs pull` where it comes from"),
    (b"\x1f\x8b", "compressed by gzip; unpack it first (gunzip)"),
    (b"BZh", "compressed by bzip2; unpack it first (bunzip2)"),
    (b"\xfd7zXZ\x00", "compressed by xz; unpack it first (unxz)"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it first (unzstd)"),
    (b"7z\xbc\xaf'\x1c", "a 7z archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras and TensorFlow write; torch's weights of the network are needed"),
    (b"\x93NUMPY", "one NumPy array, without names; save a state dict with torch.save"),
    (b"GGUF", "a GGUF file; torch's weights of the network are needed"),
    (b"%PDF", "a PDF document, not weights; download the file itself"),
)
_OTHERS_WEIGHTS = "torch's weights of the network are needed"
_MOST_NAMES = 3


@dataclass(frozen=True, slots=True)
class Taken:
    """What was taken of a weights file. Plain values: a process that looked hands it to one without torch.

    prefix: what stands before the network's names in the file, containers included; "" where they stand alone.
    names: how many were taken. others: prefixes under which the network's weights stand, too, and were not taken.
    not_used: further names that were left out.
    """

    file: str
    prefix: str
    names: int
    others: tuple[str, ...]
    not_used: tuple[str, ...]

    @property
    def is_plain(self) -> bool:
        """Whether the file holds the network and nothing else."""
        return not (self.prefix or self.others or self.not_used)

    @property
    def line(self) -> str:
        parts = [f"{self.names} names taken" + (f" from those under {self.prefix!r}" if self.prefix else "")]
        if self.others:
            parts.append(f"not from those under {', '.join(map(repr, self.others[:_MOST_NAMES]))}, which fit too")
        if self.not_used:
            parts.append(f"not used: {some(self.not_used)} ({len(self.not_used)})")
        return f"weights file {self.file}: {'; '.join(parts)}"

    @property
    def fields(self) -> dict[str, Any]:
        """As a record holds it; of the names that were left out, their number and the first."""
        first_names = list(self.not_used[:_MOST_NAMES])
        counted = {"others": list(self.others), "not_used": len(self.not_used), "first_not_used": first_names}
        return asdict(self) | counted


def weights_taken(files: Mapping[str, Taken]) -> dict[str, Any]:
    """By backbone, as a record's details hold it; each is logged."""
    for taken in files.values():
        logger.info("%s", taken.line)
    return {"weights_taken": {name: taken.fields for name, taken in files.items()}} if files else {}


def some(names: Sequence[str]) -> str:
    first_names = ", ".join(name if len(name) <= 48 else f"...{name[-45:]}" for name in names[:_MOST_NAMES])
    return first_names + (", ..." if len(names) > _MOST_NAMES else "")


def identity_of(path: Path) -> str:
    """sha256 of a file's content; of an index file, that of its own and its parts' digests. Raises DataError."""
    parts = parts_of(path)
    own = durable.sha256_of(path)
    if not parts:
        return own
    digests = [own, *(f"{part.name} {durable.sha256_of(part)}" for part in parts)]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def parts_of(path: Path) -> tuple[Path, ...]:
    """The files that an index file names, beside it; none for any other file. Raises DataError if one is missing."""
    with open(path, "rb") as file:
        if file.read(1) != b"{" or path.stat().st_size > _INDEX_LARGEST_BYTES:
            return ()
    try:
        names = json.loads(path.read_bytes())["weight_map"].values()
    except (ValueError, KeyError, TypeError, AttributeError):
        return ()
    parts = []
    for name in sorted({str(name) for name in names}):
        part = path.with_name(name) if Path(name).name == name else None
        if part is None:
            raise DataError(f"{path} names {name!r}; the parts of an index file lie beside it, in the same folder")
        if not part.is_file():
            raise DataError(f"{path} needs {name!r} beside it, which is not there; fetch all parts of the model")
        parts.append(part)
    return tuple(parts)


def is_safetensors(path: Path) -> bool:
    """By content: the length of a header, then the header, which is JSON."""
    with open(path, "rb") as file:
        begins = file.read(9)
    length = int.from_bytes(begins[:8], "little")
    return len(begins) == 9 and begins[8:] == b"{" and 2 <= length <= min(HEADER_LARGEST_BYTES, path.stat().st_size - 8)


def foreign(path: Path) -> str | None:
    """What a file is, and what to do, if it is known and no file of weights that torch.save or safetensors wrote."""
    with open(path, "rb") as file:
        begins = file.read(1024)
    if not begins:
        return "empty; fetch it again"
    text = begins.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page, not weights; download the file itself"
    for beginning, kind in _BEGINNINGS:
        if begins.startswith(beginning):
            return kind
    if begins.startswith(b"PK"):
        return _foreign_archive(path)
    if begins[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    if begins[4:8] == b"TFL3":
        return f"a TensorFlow Lite model; {_OTHERS_WEIGHTS}"
    if begins[:1] == b"\x08" and begins[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x3a", b"\x42"):
        kind = "a SavedModel of TensorFlow" if begins[1] == 1 else "an ONNX model"
        return f"{kind}; {_OTHERS_WEIGHTS}"
    if 0x81 <= begins[0] <= 0x8F and begins[1:2] and (0xA0 <= begins[1] <= 0xBF or begins[1] in (0xD9, 0xC4)):
        return f"a msgpack file, as Flax and JAX write; {_OTHERS_WEIGHTS}"
    if text.startswith((b"{", b"[")):
        return "JSON without a weight_map, so no index of weights; give the file of the weights"
    if begins[:1] == b"\x80" and LEGACY_MAGIC not in begins[:32]:
        return "a plain pickle, which could run code; save model.state_dict() with torch.save"
    return None


def _foreign_archive(path: Path) -> str | None:
    """A zip: torch.save writes one with a data.pkl; TorchScript has code beside it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return None  # cut short; reading it says so
    inside = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inside or any(name.startswith("code/") for name in inside):
        return "a TorchScript archive, which holds code; save model.state_dict() with torch.save"
    if "data.pkl" in inside:
        return None
    if any(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays (.npz); save a state dict with torch.save"
    if "model.weights.h5" in names:
        return f"a Keras model; {_OTHERS_WEIGHTS}"
    if "archive_format" in inside or any(name.endswith(".pt2") for name in names):
        return "a model of torch.export; save model.state_dict() with torch.save"
    return "a zip archive; unpack it first"
