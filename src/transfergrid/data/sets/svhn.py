"""SVHN, cropped digits (Netzer et al.): 32 x 32 RGB house numbers, train_32x32.mat and test_32x32.mat."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from transfergrid.data.images import ArrayImages
from transfergrid.data.published import PublishedSet, by_torchvision
from transfergrid.errors import DataError

CHECKSUMS = {  # md5, as in torchvision
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}


def images_of(files: list[tuple[Path, bytes]], *, class_names: tuple[str, ...]) -> ArrayImages:
    [(path, content)] = files
    try:
        images_NHWC, labels_N = parse(content)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    return ArrayImages(images_NHWC, labels_N, class_names=class_names)


def parse(content: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, 32, 32, 3) and labels; the file's class 10 is the digit 0. Raises ValueError for anything else."""
    from scipy.io import loadmat  # half a second, and only this data set needs it

    try:
        variables = loadmat(io.BytesIO(content), variable_names=("X", "y"))
        images_HWCN, labels_N = variables["X"], variables["y"].astype(np.int64).reshape(-1)
    except (KeyError, TypeError, NotImplementedError, OSError) as error:
        raise ValueError(f"not an SVHN file: {type(error).__name__}: {error}") from error
    if images_HWCN.dtype != np.uint8 or images_HWCN.shape != (32, 32, 3, len(labels_N)):
        raise ValueError(f"X is {images_HWCN.dtype} {images_HWCN.shape}, wanted uint8 (32, 32, 3, {len(labels_N)})")
    if labels_N.size and not 1 <= labels_N.min() <= labels_N.max() <= 10:
        raise ValueError(f"labels from {labels_N.min()} to {labels_N.max()}, wanted 1 to 10")
    return np.ascontiguousarray(images_HWCN.transpose(3, 0, 1, 2)), labels_N % 10


SET = PublishedSet(
    kind="svhn",
    folder=".",
    url="http://ufldl.stanford.edu/housenumbers/",
    checksums=CHECKSUMS,
    files={"train": [("train_32x32.mat",)], "test": [("test_32x32.mat",)]},
    parse=images_of,
    fetch=by_torchvision("SVHN", {"split": "train"}, {"split": "test"}),
    class_names=tuple("0123456789"),
    image_size_px=32,
    mirror_ok=False,
    num_images={"train": 73_257, "test": 26_032},
    train_counts=(4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659),
)
FACTS, load, find = SET.facts, SET.load, SET.find
