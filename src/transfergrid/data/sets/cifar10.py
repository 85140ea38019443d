"""CIFAR-10 (Krizhevsky): 32 x 32 RGB, in torchvision's folder cifar-10-batches-py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from transfergrid.data import _files
from transfergrid.data._images import ArrayImages, DatasetFacts
from transfergrid.data.sets import _cifar
from transfergrid.specs import Split

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CHECKSUMS = {  # md5, as in torchvision
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
BATCHES = {"train": tuple(name for name in CHECKSUMS if name != "test_batch"), "test": ("test_batch",)}
FACTS = DatasetFacts(
    kind="cifar10",
    fingerprint=_files.published_fingerprint("cifar10", CHECKSUMS),
    num_classes=10,
    class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    image_size_px=32,
    mirror_ok=True,
    num_images={"train": 50_000, "test": 10_000},
    train_counts=(5_000,) * 10,
)


def load(*, split: Split, data_dir: Path, download: bool, checksums: Mapping[str, str] = CHECKSUMS) -> ArrayImages:
    wanted = [(name,) for name in BATCHES[split]]
    files = FILES.read(wanted, data_dir=data_dir, download=download, checksums=checksums)
    return _cifar.images_of(files, labels_key="labels", class_names=FACTS.class_names)


def find(*, data_dir: Path, download: bool, checksums: Mapping[str, str] = CHECKSUMS) -> None:
    FILES.read([(name,) for name in CHECKSUMS], data_dir=data_dir, download=download, checksums=checksums)


def _fetch(data_dir: Path) -> None:
    from torchvision.datasets import CIFAR10

    CIFAR10(str(data_dir), download=True)


FILES = _files.Published(kind="cifar10", folder="cifar-10-batches-py", url=URL, fetch=_fetch)
