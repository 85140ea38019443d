"""Fashion-MNIST (Zalando): 28 x 28 grey articles of clothing, in torchvision's folder FashionMNIST/raw, gzipped.

Only the gzipped files have published checksums, so only they are read; torchvision's own download keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from transfergrid.data import _files
from transfergrid.data._images import ArrayImages, DatasetFacts
from transfergrid.data.sets import _idx
from transfergrid.specs import Split

URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
CHECKSUMS = {  # md5, as in torchvision
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
FACTS = DatasetFacts(
    kind="fashion_mnist",
    fingerprint=_files.published_fingerprint("fashion_mnist", CHECKSUMS),
    num_classes=10,
    class_names=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    image_size_px=28,
    mirror_ok=True,
    num_images={"train": 60_000, "test": 10_000},
    train_counts=(6_000,) * 10,
)


def load(*, split: Split, data_dir: Path, download: bool, checksums: Mapping[str, str] = CHECKSUMS) -> ArrayImages:
    files = FILES.read(_idx.names((split,), checksums), data_dir=data_dir, download=download, checksums=checksums)
    return _idx.images_of(files, class_names=FACTS.class_names)


def find(*, data_dir: Path, download: bool, checksums: Mapping[str, str] = CHECKSUMS) -> None:
    FILES.read(_idx.names(("train", "test"), checksums), data_dir=data_dir, download=download, checksums=checksums)


def _fetch(data_dir: Path) -> None:
    from torchvision.datasets import FashionMNIST

    FashionMNIST(str(data_dir), download=True)


FILES = _files.Published(kind="fashion_mnist", folder="FashionMNIST/raw", url=URL, fetch=_fetch)
