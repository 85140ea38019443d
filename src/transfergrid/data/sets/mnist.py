"""MNIST (LeCun, Cortes, Burges): 28 x 28 grey digits, in torchvision's folder MNIST/raw, plain or gzipped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from transfergrid.data import _files
from transfergrid.data._images import ArrayImages, DatasetFacts
from transfergrid.data.sets import _idx
from transfergrid.specs import Split

URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
CHECKSUMS = {  # md5; the gzipped ones are torchvision's
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
FACTS = DatasetFacts(
    kind="mnist",
    fingerprint=_files.published_fingerprint("mnist", CHECKSUMS),
    num_classes=10,
    class_names=tuple("0123456789"),
    image_size_px=28,
    mirror_ok=False,
    num_images={"train": 60_000, "test": 10_000},
    train_counts=(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
)


def load(*, split: Split, data_dir: Path, download: bool, checksums: Mapping[str, str] = CHECKSUMS) -> ArrayImages:
    files = FILES.read(_idx.names((split,), checksums), data_dir=data_dir, download=download, checksums=checksums)
    return _idx.images_of(files, class_names=FACTS.class_names)


def find(*, data_dir: Path, download: bool, checksums: Mapping[str, str] = CHECKSUMS) -> None:
    FILES.read(_idx.names(("train", "test"), checksums), data_dir=data_dir, download=download, checksums=checksums)


def _fetch(data_dir: Path) -> None:
    from torchvision.datasets import MNIST

    MNIST(str(data_dir), download=True)


FILES = _files.Published(kind="mnist", folder="MNIST/raw", url=URL, fetch=_fetch)
