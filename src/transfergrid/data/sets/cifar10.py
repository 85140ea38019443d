"""CIFAR-10 (Krizhevsky): 32 x 32 RGB, in torchvision's folder cifar-10-batches-py."""

from __future__ import annotations

from functools import partial

from transfergrid.data.published import PublishedSet, by_torchvision
from transfergrid.data.sets import _cifar

CHECKSUMS = {  # md5, as in torchvision
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
SET = PublishedSet(
    kind="cifar10",
    folder="cifar-10-batches-py",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    checksums=CHECKSUMS,
    files={"train": [(name,) for name in CHECKSUMS if name != "test_batch"], "test": [("test_batch",)]},
    parse=partial(_cifar.images_of, labels_key="labels"),
    fetch=by_torchvision("CIFAR10"),
    class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    image_size_px=32,
    mirror_ok=True,
    num_images={"train": 50_000, "test": 10_000},
    train_counts=(5_000,) * 10,
)
FACTS, load, find = SET.facts, SET.load, SET.find
