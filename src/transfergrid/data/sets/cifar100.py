"""CIFAR-100 (Krizhevsky): 32 x 32 RGB, the 100 fine labels, in torchvision's folder cifar-100-python."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from transfergrid.data import _files
from transfergrid.data._images import ArrayImages, DatasetFacts
from transfergrid.data.sets import _cifar
from transfergrid.specs import Split

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
CHECKSUMS = {  # md5, as in torchvision
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
}
CLASS_NAMES = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
    """.split()
)
FACTS = DatasetFacts(
    kind="cifar100",
    fingerprint=_files.published_fingerprint("cifar100", CHECKSUMS),
    num_classes=100,
    class_names=CLASS_NAMES,
    image_size_px=32,
    mirror_ok=True,
    num_images={"train": 50_000, "test": 10_000},
    train_counts=(500,) * 100,
)


def load(*, split: Split, data_dir: Path, download: bool, checksums: Mapping[str, str] = CHECKSUMS) -> ArrayImages:
    files = FILES.read([(split,)], data_dir=data_dir, download=download, checksums=checksums)
    return _cifar.images_of(files, labels_key="fine_labels", class_names=FACTS.class_names)


def find(*, data_dir: Path, download: bool, checksums: Mapping[str, str] = CHECKSUMS) -> None:
    FILES.read([(name,) for name in CHECKSUMS], data_dir=data_dir, download=download, checksums=checksums)


def _fetch(data_dir: Path) -> None:
    from torchvision.datasets import CIFAR100

    CIFAR100(str(data_dir), download=True)


FILES = _files.Published(kind="cifar100", folder="cifar-100-python", url=URL, fetch=_fetch)
