"""Cached features: whole, verified, shared; every kind of damage is found, no writer leaves a wrong file."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from transfergrid.errors import CorruptFeatures, DataError, StoreFull
from transfergrid.paths import CachePaths
from transfergrid.specs import BackboneSpec, DatasetSpec, FeatureKey, PreprocessSpec, WeightsSpec, canonical_json
from transfergrid.store import feature_store
from transfergrid.store.feature_store import BLOCK_ROWS, Features

FORK = multiprocessing.get_context("fork")
Array = np.ndarray[Any, Any]

KEY = FeatureKey(
    backbone=BackboneSpec(
        name="resnet18",
        tap="global_average",
        weights=WeightsSpec(label="random", identity="random:v1:0"),
        preprocess=PreprocessSpec(
            mode="direct",
            resize_px=32,
            crop_px=32,
            interpolation="bilinear",
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
        ),
    ),
    dataset=DatasetSpec(name="digits", kind="digits", fingerprint="abc", num_classes=10),
    split="train",
    bn_statistics="imagenet",
    precision="fp32",
    storage="float16",
)
NUM_ROWS, FEATURE_DIM = BLOCK_ROWS + 100, 8


def some_features(num_rows: int = NUM_ROWS, *, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(num_rows, FEATURE_DIM)).astype(np.float32)


def labels_of(num_rows: int) -> Array:
    return np.arange(num_rows) % 10


def write(
    cache: CachePaths, features_ND: Array, key: FeatureKey = KEY, *, batch: int = 1000, pause_s: float = 0.0
) -> Path:
    num_rows, feature_dim = features_ND.shape
    index_N = np.arange(num_rows) * 2
    with feature_store.writing(
        cache, key, feature_dim=feature_dim, labels_N=labels_of(num_rows), index_N=index_N, provenance={"by": "a test"}
    ) as writer:
        for first in range(0, num_rows, batch):
            writer.write(first, features_ND[first : first + batch])
            time.sleep(pause_s)
    return cache.features(key)


def assert_holds(found: Features, features_ND: Array) -> None:
    assert np.array_equal(found.features_ND, features_ND.astype(found.features_ND.dtype))
    assert np.array_equal(found.labels_N, labels_of(len(features_ND)))
    assert np.array_equal(found.index_N, np.arange(len(features_ND)) * 2)


def left_in(cache: CachePaths) -> list[str]:
    return sorted(p.name for p in cache.root.rglob("*") if p.is_file())


@pytest.fixture
def cache(tmp_path: Path) -> CachePaths:
    return CachePaths(tmp_path / "cache")


# -------------------------------------------------------------------------------------------------------- round trip
@pytest.mark.parametrize("storage", ["float16", "float32"])
def test_features_come_back_as_stored(cache: CachePaths, storage: Any) -> None:
    key = replace(KEY, storage=storage)
    path = write(cache, some_features(), key)
    assert feature_store.find(cache, key) == path
    found = feature_store.read(path, key)
    assert found.features_ND.dtype == np.dtype(storage) and found.labels_N.dtype == found.index_N.dtype == np.int64
    assert_holds(found, some_features())
    assert feature_store.provenance_of(path) == '{"by":"a test"}'
    assert left_in(cache) == [path.name]


def test_rows_may_arrive_in_any_order_and_twice(cache: CachePaths) -> None:
    features_ND = some_features(50)
    with feature_store.writing(
        cache, KEY, feature_dim=FEATURE_DIM, labels_N=labels_of(50), index_N=np.arange(50) * 2, provenance={}
    ) as writer:
        for first in (40, 0, 20, 30, 20, 10):
            writer.write(first, features_ND[first : first + 10])
    assert_holds(feature_store.read(cache.features(KEY), KEY), features_ND)


def test_a_row_that_was_never_written_is_a_programming_error_and_leaves_nothing(cache: CachePaths) -> None:
    with (
        pytest.raises(AssertionError, match="1 of 50 rows were never written"),
        feature_store.writing(
            cache, KEY, feature_dim=FEATURE_DIM, labels_N=labels_of(50), index_N=np.arange(50), provenance={}
        ) as writer,
    ):
        writer.write(0, some_features(49))
    assert left_in(cache) == []


def test_the_file_is_plain_hdf5_contiguous_aligned_and_at_a_known_offset(cache: CachePaths) -> None:
    path = write(cache, some_features())
    with h5py.File(path, "r") as file:
        assert np.array_equal(file["features"][...], some_features().astype(np.float16))
        assert sorted(file) == ["block_crc32", "features", "index", "labels"]
        assert all(file[name].chunks is None and file[name].compression is None for name in file)
        offset = file["features"].id.get_offset()
        assert len(file["block_crc32"]) == 3 and file.attrs["complete"] == 1
        assert file.attrs["key"].decode() == canonical_json(KEY)
    assert offset % 4096 == 0
    assert b"GCOL" not in path.read_bytes()  # HDF5's heap: without checksums, and a flipped bit in it can hang HDF5
    raw = np.fromfile(path, dtype=np.float16, count=NUM_ROWS * FEATURE_DIM, offset=offset)
    assert np.array_equal(raw.reshape(NUM_ROWS, FEATURE_DIM), some_features().astype(np.float16))


# ------------------------------------------------------------------------------------------------------------- range
def test_an_overflow_of_float16_names_the_remedy(cache: CachePaths) -> None:
    features_ND = some_features(50)
    features_ND[3, 3] = -7e4
    with pytest.raises(DataError, match="7e.04 overflows float16; use phase.extract.storage=float32"):
        write(cache, features_ND)
    assert left_in(cache) == []
    float32 = replace(KEY, storage="float32")
    assert_holds(feature_store.read(write(cache, features_ND, float32), float32), features_ND)


def test_more_than_one_percent_of_vanishing_values_is_refused(cache: CachePaths) -> None:
    features_ND = some_features(100)
    features_ND[0, :] = 1e-8  # 1 % of the values: allowed
    write(cache, features_ND)
    features_ND[1, 0] = 1e-8
    with pytest.raises(DataError, match="1.1% of the features vanish in float16, .*storage=float32"):
        write(cache, features_ND, replace(KEY, split="test"))
    assert not cache.features(replace(KEY, split="test")).exists()
    features_ND[:50] = 0.0  # what is zero already cannot vanish
    write(cache, features_ND, replace(KEY, split="val"))


def test_features_that_are_all_tiny_are_refused(cache: CachePaths) -> None:
    with pytest.raises(DataError, match="the largest is .*; use phase.extract.storage=float32"):
        write(cache, some_features(50) * 1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("storage", ["float16", "float32"])
def test_what_is_not_finite_is_refused_with_its_rows(cache: CachePaths, value: float, storage: Any) -> None:
    features_ND = some_features(50)
    features_ND[33, 1] = value
    with pytest.raises(DataError, match="rows 30 to 39 are not finite"):
        write(cache, features_ND, replace(KEY, storage=storage), batch=10)
    assert left_in(cache) == []


# ------------------------------------------------------------------------------------------------------------ damage
def read_or_none(path: Path) -> Features | None:
    """None where the damage is found; any other exception is a failure of the test."""
    found = feature_store.find(CachePaths(path.parents[3]), KEY)
    assert found in (None, path)
    try:
        return feature_store.read(path, KEY)
    except CorruptFeatures:
        return None


@pytest.mark.slow
def test_flipped_bits_are_found_or_change_nothing(cache: CachePaths) -> None:
    features_ND = some_features(500)
    path = write(cache, features_ND)
    content = path.read_bytes()
    with h5py.File(path) as file:
        extents = [(file[name].id.get_offset(), file[name].nbytes) for name in file]
    rng = np.random.default_rng(0)
    for bit in [*rng.integers(0, 8 * len(content), 300), *rng.integers(0, 8 * 4096, 100)]:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(flipped)
        found = read_or_none(path)
        if found is not None:  # the bit was in padding
            assert_holds(found, features_ND)
            assert not any(first <= bit // 8 < first + num_bytes for first, num_bytes in extents)


def test_a_flipped_bit_in_any_feature_names_its_block(cache: CachePaths) -> None:
    path = write(cache, some_features())
    with h5py.File(path) as file:
        offset = file["features"].id.get_offset()
    for row, block in ((0, 0), (BLOCK_ROWS - 1, 0), (BLOCK_ROWS, 1), (NUM_ROWS - 1, 1)):
        content = bytearray(path.read_bytes())
        content[offset + row * FEATURE_DIM * 2] ^= 1
        damaged = path.with_name("damaged.h5")
        damaged.write_bytes(content)
        with pytest.raises(CorruptFeatures, match=f"block {block} does not match its checksum"):
            feature_store.read(damaged, KEY)


def test_truncated_files_are_not_found_and_not_read(cache: CachePaths) -> None:
    path = write(cache, some_features(500))
    content = path.read_bytes()
    for length in np.linspace(0, len(content) - 1, 60).astype(int):
        path.write_bytes(content[:length])
        assert read_or_none(path) is None and feature_store.find(cache, KEY) is None


def test_a_file_without_its_mark_or_of_another_key_is_not_taken(cache: CachePaths) -> None:
    path = write(cache, some_features(50))
    other = replace(KEY, split="test")
    cache.features(other).parent.mkdir()
    cache.features(other).write_bytes(path.read_bytes())
    assert feature_store.find(cache, other) is None
    with pytest.raises(CorruptFeatures, match="holds the features of another key"):
        feature_store.read(cache.features(other), other)
    with h5py.File(path, "r+") as file:
        file.attrs["complete"] = np.uint8(0)
    with pytest.raises(CorruptFeatures, match="is not complete"):
        feature_store.read(path, KEY)
    with h5py.File(path, "r+") as file:
        del file.attrs["complete"]
    assert feature_store.find(cache, KEY) is None and read_or_none(path) is None


@pytest.mark.parametrize("kind", ["external_storage", "virtual", "external_link", "soft_link", "group", "wrong_shape"])
@pytest.mark.parametrize("name", ["features", "labels", "index", "block_crc32"])
def test_what_points_outside_the_file_is_refused(cache: CachePaths, tmp_path: Path, kind: str, name: str) -> None:
    path = write(cache, some_features(50))
    secret = tmp_path / "secret.bin"
    with h5py.File(path, "r") as file:
        kept = file[name][...]
    secret.write_bytes(kept.tobytes())
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["kept"] = kept
    with h5py.File(path, "r+") as file:
        del file[name]
        if kind == "external_storage":
            file.create_dataset(name, kept.shape, kept.dtype, external=[(str(secret), 0, kept.nbytes)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout(kept.shape, kept.dtype)
            layout[...] = h5py.VirtualSource(str(tmp_path / "other.h5"), "kept", kept.shape)
            file.create_virtual_dataset(name, layout)
        elif kind == "external_link":
            file[name] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/kept")
        elif kind == "soft_link":
            file["aside"] = kept
            file[name] = h5py.SoftLink("/aside")
        elif kind == "group":
            file.create_group(name)
        else:
            file[name] = kept[:-1] if name != "features" else kept.reshape(-1)
    assert feature_store.find(cache, KEY) is None
    with pytest.raises(CorruptFeatures):
        feature_store.read(path, KEY)


def test_a_small_file_that_declares_terabytes_is_refused(cache: CachePaths) -> None:
    path = write(cache, some_features(50))
    with h5py.File(path, "r+") as file:
        del file["features"]
        file.create_dataset("features", (2**40, 2), np.float16)
        for name in ("labels", "index"):
            del file[name]
            file.create_dataset(name, (2**40,), np.int64)
        del file["block_crc32"]
        file.create_dataset("block_crc32", (2**28 + 1,), np.uint32)
    assert path.stat().st_size < 1e6
    assert feature_store.find(cache, KEY) is None and read_or_none(path) is None


# ------------------------------------------------------------------------------------------------------ killed writers
@pytest.mark.slow
def test_killed_writers_leave_no_wrong_file_and_the_next_one_succeeds(cache: CachePaths) -> None:
    features_ND = some_features(300)
    path = cache.features(KEY)
    rng = np.random.default_rng(0)
    survived = 0
    for delay_s in [0.0, *rng.uniform(0.0, 0.02, 40)]:
        child = FORK.Process(target=write, args=(cache, features_ND), kwargs={"batch": 20, "pause_s": 3e-4})
        child.start()
        time.sleep(delay_s)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        if path.exists():
            survived += 1
            assert_holds(feature_store.read(path, KEY), features_ND)
            path.unlink()
    assert survived < 41
    assert_holds(feature_store.read(write(cache, features_ND), KEY), features_ND)
    assert left_in(cache) == [path.name]


@pytest.mark.slow
def test_concurrent_writers_of_one_key_end_in_one_whole_file(cache: CachePaths) -> None:
    features_ND = some_features(300)
    for _ in range(4):
        cache.features(KEY).unlink(missing_ok=True)
        barrier = FORK.Barrier(8)

        def write_at_once(barrier: Any = barrier) -> None:
            barrier.wait()
            write(cache, features_ND, batch=50)

        children = [FORK.Process(target=write_at_once) for _ in range(8)]
        for child in children:
            child.start()
        for child in children:
            child.join(60)
            assert child.exitcode == 0
        assert_holds(feature_store.read(cache.features(KEY), KEY), features_ND)
        assert left_in(cache) == [cache.features(KEY).name]


# ------------------------------------------------------------------------------------------------------- no space left
@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """4 MB of memory as a file system of its own."""
    folder = tmp_path / "small_disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_features_without_room_are_refused_in_one_line_and_leave_nothing(small_disk: Path) -> None:
    cache = CachePaths(small_disk / "cache")
    with pytest.raises(StoreFull, match=r"no space left for .*\(. MB free\); free some space and launch again"):
        write(cache, some_features(300_000))
    assert left_in(cache) == []
    write(cache, some_features(300))
    assert feature_store.find(cache, KEY) is not None


@pytest.mark.slow
def test_a_disk_filled_to_any_degree_never_crashes_the_writer_nor_leaves_a_wrong_file(small_disk: Path) -> None:
    cache = CachePaths(small_disk / "cache")
    cache.features(KEY).parent.mkdir(parents=True)
    features_ND = some_features(3000)
    ballast = small_disk / "ballast"
    endings = set()
    for kept_free in (0, 1, 4, 8, 16, 32, 48, 64, 80, 96, 104, 112, 116, 120, 124, 128, 132, 136, 140, 144, 160, 256):
        with open(ballast, "wb") as file:
            while True:
                try:
                    os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size + 4096)
                except OSError:
                    break
            os.truncate(ballast, max(0, ballast.stat().st_size - kept_free * 1024))
        child = FORK.Process(target=_write_quietly, args=(cache, features_ND))
        child.start()
        child.join(60)
        endings.add(child.exitcode)
        assert child.exitcode in (0, 3), f"{kept_free} KB free: exit code {child.exitcode}"
        assert left_in(cache) == ([cache.features(KEY).name] if child.exitcode == 0 else [])
        if child.exitcode == 0:
            assert_holds(feature_store.read(cache.features(KEY), KEY), features_ND)
            cache.features(KEY).unlink()
        ballast.unlink()
    assert endings == {0, 3}


def _write_quietly(cache: CachePaths, features_ND: Array) -> None:
    try:
        write(cache, features_ND)
    except StoreFull:
        os._exit(3)
    os._exit(0)


# ------------------------------------------------------------------------------------------------------------- sharing
def test_features_of_a_shared_cache_are_found_after_ones_own(cache: CachePaths, tmp_path: Path) -> None:
    shared = CachePaths(tmp_path / "lab")
    theirs = write(shared, some_features(50))
    also_read = (str(tmp_path / "never_made"), str(shared.root))
    assert feature_store.find(cache, KEY) is None
    assert feature_store.find(cache, KEY, also_read=also_read) == theirs
    theirs.write_bytes(theirs.read_bytes()[:-5000])
    assert feature_store.find(cache, KEY, also_read=also_read) is None
    mine = write(cache, some_features(50))
    assert feature_store.find(cache, KEY, also_read=also_read) == mine


def test_readers_take_no_lock_and_wait_for_none(cache: CachePaths) -> None:
    path = write(cache, some_features(50))
    path.chmod(0o444)
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert feature_store.find(cache, KEY) == path
        assert_holds(feature_store.read(path, KEY), some_features(50))
    with open(path, "rb") as file, h5py.File(path, "r", locking=False):
        feature_store.read(path, KEY)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
