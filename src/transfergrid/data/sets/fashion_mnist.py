"""Fashion-MNIST (Zalando): 28 x 28 grey articles of clothing, in torchvision's folder FashionMNIST/raw, gzipped.

Only the gzipped files have published checksums, so only they are read; torchvision's own download keeps them.
"""

from __future__ import annotations

from transfergrid.data.published import PublishedSet, by_torchvision
from transfergrid.data.sets import _idx

CHECKSUMS = {  # md5, as in torchvision
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
SET = PublishedSet(
    kind="fashion_mnist",
    folder="FashionMNIST/raw",
    url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    checksums=CHECKSUMS,
    files=_idx.FILES,
    parse=_idx.images_of,
    fetch=by_torchvision("FashionMNIST"),
    class_names=tuple("T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(",")),
    image_size_px=28,
    mirror_ok=True,
    num_images={"train": 60_000, "test": 10_000},
    train_counts=(6_000,) * 10,
)
FACTS, load, find = SET.facts, SET.load, SET.find
