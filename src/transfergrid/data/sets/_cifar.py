"""The pickled batches of CIFAR-10 and CIFAR-100, read without running anything that a pickle may ask for."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfergrid.data.images import ArrayImages
from transfergrid.errors import DataError

SIZE_PX = 32


class _ArraysOnly(pickle.Unpickler):
    """Admits what numpy arrays and byte strings are made of, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        # The batches were written by numpy 1, whose module of this name has moved since.
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.empty(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: text.encode(encoding)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which an image batch does not need")


def parse(content: bytes, *, labels_key: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, 32, 32, 3) and labels of one batch. Raises ValueError where the content is not such a batch."""
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
        planes = np.asarray(batch["data"])
        labels_N = np.asarray(batch[labels_key], dtype=np.int64)
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"not a CIFAR batch: {type(error).__name__}: {error}") from error
    if planes.dtype != np.uint8 or planes.shape != (len(labels_N), 3 * SIZE_PX * SIZE_PX):
        raise ValueError(f"data is {planes.dtype} {planes.shape}, wanted uint8 ({len(labels_N)}, 3072)")
    return planes.reshape(-1, 3, SIZE_PX, SIZE_PX).transpose(0, 2, 3, 1), labels_N


def images_of(files: list[tuple[Path, bytes]], *, labels_key: str, class_names: tuple[str, ...]) -> ArrayImages:
    """All batches of one split, in the order given. Raises DataError naming the file that does not fit."""
    batches = []
    for path, content in files:
        try:
            images_NHWC, labels_N = parse(content, labels_key=labels_key)
            if labels_N.size and not 0 <= labels_N.min() <= labels_N.max() < len(class_names):
                raise ValueError(f"labels {labels_N.min()} to {labels_N.max()}, wanted 0 to {len(class_names) - 1}")
        except ValueError as error:
            raise DataError(f"{path}: {error}") from error
        batches.append((images_NHWC, labels_N))
    images_NHWC = np.ascontiguousarray(np.concatenate([images for images, _ in batches]))
    return ArrayImages(images_NHWC, np.concatenate([labels for _, labels in batches]), class_names=class_names)
