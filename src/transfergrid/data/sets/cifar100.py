"""CIFAR-100 (Krizhevsky): 32 x 32 RGB, the 100 fine labels, in torchvision's folder cifar-100-python."""

from __future__ import annotations

from functools import partial

from transfergrid.data.published import PublishedSet, by_torchvision
from transfergrid.data.sets import _cifar

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
SET = PublishedSet(
    kind="cifar100",
    folder="cifar-100-python",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    checksums=CHECKSUMS,
    files={"train": [("train",)], "test": [("test",)]},
    parse=partial(_cifar.images_of, labels_key="fine_labels"),
    fetch=by_torchvision("CIFAR100"),
    class_names=CLASS_NAMES,
    image_size_px=32,
    mirror_ok=True,
    num_images={"train": 50_000, "test": 10_000},
    train_counts=(500,) * 100,
)
FACTS, load, find = SET.facts, SET.load, SET.find
