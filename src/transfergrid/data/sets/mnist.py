"""MNIST (LeCun, Cortes, Burges): 28 x 28 grey digits, in torchvision's folder MNIST/raw, plain or gzipped."""

from __future__ import annotations

from transfergrid.data.published import PublishedSet, by_torchvision
from transfergrid.data.sets import _idx

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
SET = PublishedSet(
    kind="mnist",
    folder="MNIST/raw",
    url="https://ossci-datasets.s3.amazonaws.com/mnist/",
    checksums=CHECKSUMS,
    files=_idx.FILES,
    parse=_idx.images_of,
    fetch=by_torchvision("MNIST"),
    class_names=tuple("0123456789"),
    image_size_px=28,
    mirror_ok=False,
    num_images={"train": 60_000, "test": 10_000},
    train_counts=(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
)
FACTS, load, find = SET.facts, SET.load, SET.find
