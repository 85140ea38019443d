"""The IDX format of MNIST and its relatives, plain or gzipped."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from transfergrid.data.images import ArrayImages
from transfergrid.errors import DataError

FILES = {  # images and labels of each split, in that order, plain or gzipped
    split: [
        (f"{start}-images-idx3-ubyte", f"{start}-images-idx3-ubyte.gz"),
        (f"{start}-labels-idx1-ubyte", f"{start}-labels-idx1-ubyte.gz"),
    ]
    for split, start in (("train", "train"), ("test", "t10k"))
}


def parse(content: bytes) -> NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes. Raises ValueError for anything else."""
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    zeros, kind, num_axes = struct.unpack_from(">HBB", content)
    if (zeros, kind) != (0, 8):
        raise ValueError(f"not an IDX file of unsigned bytes: it starts with {content[:4].hex()}, wanted 000008..")
    shape = struct.unpack_from(f">{num_axes}I", content, 4)
    start = 4 + 4 * num_axes
    if len(content) - start != math.prod(shape):
        raise ValueError(f"IDX file of shape {shape} holds {len(content) - start} bytes, wanted {math.prod(shape)}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy()


def images_of(files: list[tuple[Path, bytes]], *, class_names: tuple[str, ...]) -> ArrayImages:
    """Grey images (N, H, W, 1) and labels from one split's two files. Raises DataError where they do not fit."""
    (images_path, images), (labels_path, labels) = files
    try:
        images_NHW, labels_N = parse(images), parse(labels)
    except (ValueError, struct.error, OSError, EOFError) as error:
        raise DataError(f"{images_path} or {labels_path.name}: {error}") from error
    if images_NHW.ndim != 3 or labels_N.shape != images_NHW.shape[:1] or labels_N.max(initial=0) >= len(class_names):
        raise DataError(
            f"{images_path} holds {images_NHW.shape} and {labels_path.name} {labels_N.shape} with labels up to "
            f"{labels_N.max(initial=0)}; wanted (N, H, W) and (N,) below {len(class_names)}"
        )
    return ArrayImages(images_NHW[..., None], labels_N.astype(np.int64), class_names=class_names)
