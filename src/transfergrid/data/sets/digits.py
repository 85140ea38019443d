"""The handwritten digits inside scikit-learn (UCI optical digits, test part): 8 x 8 grey, 1,797 images.

They have no published split; ours is stratified under a fixed seed: 1,437 to train on and 360 to test.
"""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from transfergrid.data import published, splits
from transfergrid.data.images import ArrayImages, DatasetFacts
from transfergrid.errors import DataError
from transfergrid.specs import Split

FILE = "digits.csv.gz"
SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
SPLIT_SEED = 0
NUM_TEST = 360
FACTS = DatasetFacts(
    kind="digits",
    fingerprint=published.fingerprint_of("digits", {FILE: SHA256, "split": f"stratified-{SPLIT_SEED}-{NUM_TEST}"}),
    num_classes=10,
    class_names=tuple("0123456789"),
    image_size_px=8,
    mirror_ok=False,
    num_images={"train": 1_437, "test": NUM_TEST},
    train_counts=(142, 145, 142, 146, 145, 146, 145, 143, 139, 144),
)


def load(*, split: Split, data_dir: Path, download: bool) -> ArrayImages:
    images_NHWC, labels_N = parse(published.verified(_path(), checksum=SHA256))
    test = splits.stratified_subset(labels_N, max_images=NUM_TEST, seed=SPLIT_SEED)
    rows = test if split == "test" else np.setdiff1d(np.arange(len(labels_N)), test)
    return ArrayImages(images_NHWC[rows], labels_N[rows], class_names=FACTS.class_names)


def find(*, data_dir: Path, download: bool) -> None:
    published.verified(_path(), checksum=SHA256)


def parse(content: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, 8, 8, 1), the file's 0..16 as 0..255, and labels."""
    lines = gzip.decompress(content).decode().split()
    rows = np.array([line.split(",") for line in lines], dtype=np.float64)
    images_NHWC = np.round(rows[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return images_NHWC, rows[:, 64].astype(np.int64)


def _path() -> Path:
    # Found without importing scikit-learn, which takes two seconds.
    spec = importlib.util.find_spec("sklearn")
    for location in (spec.submodule_search_locations or []) if spec else []:
        path = Path(location) / "datasets" / "data" / FILE
        if path.is_file():
            return path
    raise DataError(f"digits: {FILE} not found inside scikit-learn", remedy="install scikit-learn (uv sync)")
