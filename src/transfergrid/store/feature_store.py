"""One FeatureKey <-> one HDF5 file. The only module that knows h5py.

Layout: `features` (N, D) contiguous, float16 or float32, rows in data-set order; `labels` (N,) int64; `index` (N,)
int64 (the images' positions in the published split); `block_crc32` uint32, one over each 4096 rows, then one over
labels and index. Attributes: `key` (canonical JSON), `provenance` (canonical JSON), `complete` (set to 1 last).

All space is allocated before the first row, so rows are written with pwrite at a known offset and read at raw file
speed. A final name is a whole file; two writers of one key end in one valid file. Readers take no locks.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from transfergrid.errors import CorruptFeatures, DataError, one_line
from transfergrid.paths import ASIDE, CachePaths
from transfergrid.specs import FeatureKey, canonical_json, from_dict
from transfergrid.store import durable

BLOCK_ROWS = 4096
CONTAINER_BYTES = 128 * 1024  # more than HDF5 writes of its own accord: headers, attributes, alignment
FLOAT16_MAX = 65504.0
FLOAT16_TINY = 2.0**-24  # the smallest positive float16: what is smaller than half of it becomes zero
FLOAT16_COARSE = 2.0**-10  # below this even the largest values keep fewer than 11 significant bits
UNDERFLOW_SHARE = 0.01
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Features:
    """features_ND as stored (cast on the device), labels_N int64, index_N int64: positions in the published split."""

    features_ND: Array
    labels_N: Array
    index_N: Array


class FeatureWriter:
    """Receives rows in any order; obtained from writing(). Casting, range checks and checksums happen here."""

    def __init__(self, descriptor: int, offset: int, shape: tuple[int, int], storage: str) -> None:
        self._descriptor = descriptor
        self._offset = offset
        self._storage = storage
        self._num_values = self._num_vanished = 0
        self._largest = 0.0
        self._written_N = np.zeros(shape[0], dtype=bool)
        self.shape = shape

    def write(self, first_row: int, features_ND: Array) -> None:
        """Store float32 rows from `first_row` on. Raises DataError where a value is not finite or overflows float16."""
        num_rows = len(features_ND)
        assert features_ND.shape[1] == self.shape[1] and first_row + num_rows <= self.shape[0]
        if not np.isfinite(features_ND).all():
            last_row = first_row + num_rows - 1
            raise DataError(f"features of rows {first_row} to {last_row} are not finite; check the weights")
        if self._storage == "float16":
            self._check_float16(features_ND)
        stored_ND = np.ascontiguousarray(features_ND.astype(self._storage))
        buffer = stored_ND.data.cast("B")
        position = self._offset + first_row * self.shape[1] * stored_ND.itemsize
        while buffer:
            count = os.pwrite(self._descriptor, buffer, position)
            buffer, position = buffer[count:], position + count
        self._written_N[first_row : first_row + num_rows] = True

    def _check_float16(self, features_ND: Array) -> None:
        magnitude_ND = np.abs(features_ND)
        largest = float(magnitude_ND.max(initial=0.0))
        if largest > FLOAT16_MAX:
            raise DataError(f"a feature of {largest:.3g} overflows float16; use phase.extract.storage=float32")
        self._largest = max(self._largest, largest)
        self._num_values += int(np.count_nonzero(magnitude_ND))
        self._num_vanished += int(np.count_nonzero((magnitude_ND > 0) & (magnitude_ND <= FLOAT16_TINY / 2)))

    def assert_complete(self) -> None:
        missing = int(np.count_nonzero(~self._written_N))
        assert missing == 0, f"{missing} of {len(self._written_N)} rows were never written"
        if self._storage != "float16":
            return
        share = self._num_vanished / max(self._num_values, 1)
        if share > UNDERFLOW_SHARE or 0 < self._largest < FLOAT16_COARSE:
            what = f"{share:.1%} of the features vanish in float16, the largest is {self._largest:.2g}"
            raise DataError(f"{what}; use phase.extract.storage=float32")


@contextlib.contextmanager
def writing(
    paths: CachePaths,
    key: FeatureKey,
    *,
    feature_dim: int,
    labels_N: Array,
    index_N: Array,
    provenance: Mapping[str, Any],
) -> Iterator[FeatureWriter]:
    """A writer whose rows become the final file of `key` when the block ends well; otherwise nothing is left. Raises
    StoreFull where there is no room (the whole file is allocated first), DataError as FeatureWriter.write does."""
    final, shape = paths.features(key), (len(labels_N), feature_dim)
    durable.sweep(final.parent)
    with durable.temporary_for(final) as temporary:
        # First the container's room, then all the rows': a full disk is told before hours of forward passes.
        _assert_room(temporary, CONTAINER_BYTES + labels_N.size * 16)
        offset = _create(temporary, key, shape, labels_N, index_N, canonical_json(provenance))
        descriptor = os.open(temporary, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.posix_fallocate(descriptor, 0, os.fstat(descriptor).st_size)
            writer = FeatureWriter(descriptor, offset, shape, key.storage)
            yield writer
            writer.assert_complete()
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _finish(temporary)  # the mark of completeness comes after the rows are on the disk
        durable.publish(temporary, final)
    _about_damage(final).unlink(missing_ok=True)


def _assert_room(path: Path, num_bytes: int) -> None:
    """Raise OSError unless so much can be reserved: HDF5 crashes the interpreter where its own writes fail."""
    with open(path, "xb") as file:
        os.posix_fallocate(file.fileno(), 0, num_bytes)
    path.unlink()


def _create(
    path: Path, key: FeatureKey, shape: tuple[int, int], labels_N: Array, index_N: Array, provenance: str
) -> int:
    """Write the container around the rows and checksums to come; returns the byte offset of row 0."""
    with h5py.File(
        path,
        "x",
        locking=False,  # its name is this process's alone
        libver=("v110", "v114"),
        rdcc_nbytes=0,
        alignment_threshold=4096,
        alignment_interval=4096,
    ) as file:
        # Of fixed length: these lie in checksummed headers; in the heap of other strings a flipped bit can hang HDF5.
        file.attrs["key"] = np.bytes_(canonical_json(key).encode())
        file.attrs["provenance"] = np.bytes_(provenance.encode())
        file.attrs["complete"] = np.uint8(0)
        rows = _allocate(file, "features", shape, key.storage)
        _allocate(file, "block_crc32", (_num_checksums(shape[0]),), "uint32")
        file.create_dataset("labels", data=labels_N.astype(np.int64))
        file.create_dataset("index", data=index_N.astype(np.int64))
        offset = rows.get_offset()
        assert offset is not None, "HDF5 did not allocate the rows early"
        return int(offset)


def _allocate(file: h5py.File, name: str, shape: tuple[int, ...], kind: str) -> h5py.h5d.DatasetID:
    """A data set whose place in the file is fixed now and whose values come later."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple(shape)
    return h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(np.dtype(kind)), space, dcpl=creation)


def _finish(path: Path) -> None:
    """Fill in the checksums, then set the mark of completeness; needs no more room than the file has."""
    with h5py.File(path, "r+", locking=False) as file:
        features = _rows(path, file)
        file["block_crc32"][...] = _checksums(features, file["labels"][...], file["index"][...])
        file.flush()
        file.attrs.modify("complete", np.uint8(1))


def _num_checksums(num_rows: int) -> int:
    return math.ceil(num_rows / BLOCK_ROWS) + 1


def _checksums(features_ND: Array, labels_N: Array, index_N: Array) -> Array:
    blocks = [features_ND[first : first + BLOCK_ROWS] for first in range(0, len(features_ND), BLOCK_ROWS)]
    sums = [zlib.crc32(np.ascontiguousarray(block).data.cast("B")) for block in blocks]
    sums.append(zlib.crc32(index_N.tobytes(), zlib.crc32(labels_N.tobytes())))
    return np.array(sums, dtype=np.uint32)


def _rows(path: Path, file: h5py.File) -> Array:
    """The feature rows read at raw file speed from their known offset."""
    dataset = file["features"]
    num_rows, feature_dim = dataset.shape
    count = num_rows * feature_dim
    rows = np.fromfile(path, dtype=dataset.dtype, count=count, offset=dataset.id.get_offset())
    return rows.reshape(num_rows, feature_dim)


# ------------------------------------------------------------------------------------------------------------- reading
def find(paths: CachePaths, key: FeatureKey, *, also_read: tuple[str, ...] = ()) -> Path | None:
    """Where the features of `key` lie, in this cache or a read-only shared one; None if they are nowhere. Trusts name,
    `complete`, shape and size, as planning does; read() verifies checksums."""
    own = paths.features(key)
    shared = [CachePaths(Path(folder)).features(key) for folder in also_read]
    for path in (own, *(path for path in shared if str(path) != _set_aside(own).get("path"))):
        if path.is_file() and _damage(path, key) is None:
            return path
    return None


def damage(paths: CachePaths, key: FeatureKey) -> str | None:
    """What is wrong with the features of `key` that this cache has or had; None where it never had any. Reads headers
    alone; what a reader found in the rows is known from set_aside()."""
    path = paths.features(key)
    if os.path.lexists(path):
        return _damage(path, key)
    return _set_aside(path).get("reason")


def set_aside(paths: CachePaths, key: FeatureKey, path: Path, reason: str, *, seen: os.stat_result) -> Path:
    """Move the damaged file at `path` to the same name with `.damaged`, whose place is returned; find() will not find
    it. One of another's cache stays where it is, and is no longer read. Nothing is done where the file is no longer
    the one that was `seen`: it has been made again meanwhile."""
    own, place = paths.features(key), path
    with contextlib.suppress(FileNotFoundError):
        now = os.lstat(path)
        if (now.st_ino, now.st_mtime_ns) != (seen.st_ino, seen.st_mtime_ns):
            return path
        durable.write_json(_about_damage(own), {"path": str(path), "reason": reason})
        if path == own:
            place = path.with_name(path.name + ASIDE)
            os.replace(path, place)
            durable.fsync_folder(path.parent)
    return place


def _about_damage(path: Path) -> Path:
    return path.with_name(f"{path.name}{ASIDE}.json")


def _set_aside(path: Path) -> dict[str, str]:
    """path, reason: of the file that was last set aside for this name."""
    with contextlib.suppress(OSError, json.JSONDecodeError):
        content: dict[str, str] = durable.read_json(_about_damage(path))
        return content
    return {}


def _damage(path: Path, key: FeatureKey) -> str | None:
    """Why a file is not taken; None where it is whole, as far as its headers tell."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            _assert_whole(path, file, key)
    except OSError as error:
        return os.strerror(error.errno) if error.errno else one_line(error)[:120]
    except Exception as error:  # h5py raises half a dozen kinds for damaged files
        return one_line(error)[:200]
    return None


def _assert_whole(path: Path, file: h5py.File, key: FeatureKey) -> None:
    """Raises CorruptFeatures unless the file is complete, of this key, and as long as its shapes say."""
    if file.attrs.get("complete", 0) != 1:
        raise CorruptFeatures(f"{path} is not complete")
    if file.attrs.get("key") != canonical_json(key).encode():
        raise CorruptFeatures(f"{path} holds the features of another key")
    size = os.path.getsize(path)
    for name in ("features", "labels", "index", "block_crc32"):
        if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(file[name], h5py.Dataset):
            raise CorruptFeatures(f"{path}: {name} is not a data set of this file")
        if file[name].external or file[name].is_virtual:
            raise CorruptFeatures(f"{path}: {name} lies outside this file")
        offset = file[name].id.get_offset()
        if offset is None or size < offset + file[name].nbytes:
            raise CorruptFeatures(f"{path} is truncated")
    features = file["features"]
    num_rows = len(features)
    whole = features.ndim == 2 and features.dtype == np.dtype(key.storage)
    if not whole or file["labels"].shape != (num_rows,) or file["index"].shape != (num_rows,):
        raise CorruptFeatures(f"{path}: shapes or types do not belong together")
    if file["block_crc32"].shape != (_num_checksums(num_rows),):
        raise CorruptFeatures(f"{path}: checksums are missing")


def read(path: Path, key: FeatureKey) -> Features:
    """All rows, checksums verified. Raises CorruptFeatures if the file is damaged or of another key."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            _assert_whole(path, file, key)
            features_ND = _rows(path, file)
            labels_N, index_N = file["labels"][...], file["index"][...]
            expected = file["block_crc32"][...]
    except CorruptFeatures:
        raise
    except Exception as error:  # h5py raises half a dozen kinds for damaged files
        raise CorruptFeatures(f"{path} cannot be read ({one_line(error)})") from error
    wrong = np.flatnonzero(_checksums(features_ND, labels_N, index_N) != expected)
    if len(wrong):
        raise CorruptFeatures(f"{path}: block {wrong[0]} does not match its checksum")
    return Features(features_ND, labels_N, index_N)


def provenance_of(path: Path) -> str:
    """The canonical JSON text that its writer gave."""
    with h5py.File(path, "r", locking=False) as file:
        return str(file.attrs["provenance"].decode())


def assert_sound(paths: CachePaths, path: Path) -> None:
    """Read a file of this cache whole. Raises CorruptFeatures where it is damaged, or lies under another key's name."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            key = from_dict(FeatureKey, json.loads(file.attrs["key"].decode()))
    except Exception as error:  # h5py raises half a dozen kinds for damaged files
        raise CorruptFeatures(f"{path} cannot be read ({one_line(error)})") from error
    if paths.features(key) != path:
        raise CorruptFeatures(f"{path} holds the features of another name")
    read(path, key)
