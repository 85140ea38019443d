"""Tiny files in the format of each published data set, and what they hold."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from transfergrid.data.sets import _idx

U8 = NDArray[np.uint8]


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def random_images(*shape: int, seed: int = 0) -> U8:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def idx_bytes(array: U8) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder: Path, *, zipped: bool) -> dict[str, str]:
    """Twelve training and ten test images of MNIST's format; returns their checksums."""
    folder.mkdir(parents=True)
    checksums: dict[str, str] = {}
    for num_images, ((images_name, _), (labels_name, _)) in zip((12, 10), _idx.FILES.values(), strict=True):
        labels_N = (np.arange(num_images) % 10).astype(np.uint8)
        for name, array in ((images_name, random_images(num_images, 28, 28)), (labels_name, labels_N)):
            content = idx_bytes(array)
            if zipped:
                name, content = f"{name}.gz", gzip.compress(content, mtime=0)
            (folder / name).write_bytes(content)
            checksums[name] = md5(content)
    return checksums


class Python2Pickler(pickle._Pickler):
    """Writes byte strings as Python 2's str, as the published CIFAR batches hold them."""

    def save_str2(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)  # type: ignore[attr-defined]

    dispatch = {**pickle._Pickler.dispatch, bytes: save_str2}  # type: ignore[dict-item]


def cifar_bytes(images_NHWC: U8, labels: list[int], *, labels_key: str) -> bytes:
    planes = np.ascontiguousarray(images_NHWC.transpose(0, 3, 1, 2)).reshape(len(labels), 3072)
    file = io.BytesIO()
    batch = {b"data": planes, labels_key.encode(): labels, b"batch_label": b"training batch 1 of 5"}
    Python2Pickler(file, protocol=2).dump(batch)
    # numpy 2 writes its new module's name; the published batches carry the old one.
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def write_cifar(folder: Path, names: dict[str, int], *, labels_key: str, num_classes: int) -> dict[str, str]:
    """`names`: file -> number of images; labels count up over each file. Returns the checksums."""
    folder.mkdir(parents=True)
    checksums: dict[str, str] = {}
    for seed, (name, num_images) in enumerate(names.items()):
        labels = [(seed + i) % num_classes for i in range(num_images)]
        content = cifar_bytes(random_images(num_images, 32, 32, 3, seed=seed), labels, labels_key=labels_key)
        (folder / name).write_bytes(content)
        checksums[name] = md5(content)
    return checksums


def write_svhn(folder: Path) -> dict[str, str]:
    from scipy.io import savemat

    checksums: dict[str, str] = {}
    for split, num_images in (("train", 11), ("test", 5)):
        labels_N1 = (np.arange(num_images) % 10 + 1).astype(np.uint8)[:, None]
        images_HWCN = random_images(num_images, 32, 32, 3).transpose(1, 2, 3, 0)
        path = folder / f"{split}_32x32.mat"
        savemat(path, {"X": images_HWCN, "y": labels_N1}, do_compression=True)
        checksums[path.name] = md5(path.read_bytes())
    return checksums


def save_image(path: Path, image: U8 | Image.Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)
    return path


def write_folder(
    folder: Path, *, sizes_px: tuple[int, ...] = (8,), splits: tuple[str, ...] = ("train", "test")
) -> Path:
    """Two classes with three PNG images each per split; image i is a square of the i-th size, taken in turn."""
    for s, split in enumerate(splits):
        for c, name in enumerate(("cat", "dog")):
            for i in range(3):
                side_px = sizes_px[i % len(sizes_px)]
                image = random_images(side_px, side_px, 3, seed=100 * s + 10 * c + i)
                save_image(folder / split / name / f"{i}.png", image)
    return folder
