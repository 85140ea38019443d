"""What every kind of data set promises. A new kind joins by itself, read from where its files lie; to test it without
them add tiny ones to TINY."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny_data

from transfergrid import data
from transfergrid.data import DatasetFacts, LabeledImages
from transfergrid.data.sets import cifar10, cifar100, fashion_mnist, mnist, svhn
from transfergrid.errors import DataError

Load = Callable[..., LabeledImages]


def _digits(folder: Path) -> tuple[DatasetFacts, Load]:
    return data.facts("digits"), partial(data.load, "digits", data_dir=folder)


def _mnist(folder: Path) -> tuple[DatasetFacts, Load]:
    checksums = tiny_data.write_idx(folder / "MNIST" / "raw", zipped=False)
    load = partial(mnist.load, data_dir=folder, download=False, checksums=checksums)
    return data.facts("mnist"), load


def _fashion_mnist(folder: Path) -> tuple[DatasetFacts, Load]:
    checksums = tiny_data.write_idx(folder / "FashionMNIST" / "raw", zipped=True)
    load = partial(fashion_mnist.load, data_dir=folder, download=False, checksums=checksums)
    return data.facts("fashion_mnist"), load


def _cifar10(folder: Path) -> tuple[DatasetFacts, Load]:
    names = {name: 2 for name in cifar10.CHECKSUMS}
    checksums = tiny_data.write_cifar(folder / "cifar-10-batches-py", names, labels_key="labels", num_classes=10)
    load = partial(cifar10.load, data_dir=folder, download=False, checksums=checksums)
    return data.facts("cifar10"), load


def _cifar100(folder: Path) -> tuple[DatasetFacts, Load]:
    names = {"train": 100, "test": 5}
    checksums = tiny_data.write_cifar(folder / "cifar-100-python", names, labels_key="fine_labels", num_classes=100)
    load = partial(cifar100.load, data_dir=folder, download=False, checksums=checksums)
    return data.facts("cifar100"), load


def _svhn(folder: Path) -> tuple[DatasetFacts, Load]:
    checksums = tiny_data.write_svhn(folder)
    load = partial(svhn.load, data_dir=folder, download=False, checksums=checksums)
    return data.facts("svhn"), load


def _image_folder(folder: Path) -> tuple[DatasetFacts, Load]:
    tiny_data.write_folder(folder, sizes_px=(12,), splits=("train", "val", "test"))
    facts = data.facts("image_folder", folder=folder)
    return facts, partial(data.load, "image_folder", data_dir=folder, folder=folder)


TINY: dict[str, Callable[[Path], tuple[DatasetFacts, Load]]] = {
    "digits": _digits,
    "mnist": _mnist,
    "fashion_mnist": _fashion_mnist,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "svhn": _svhn,
    "image_folder": _image_folder,
}


def opened(kind: str, folder: Path) -> tuple[DatasetFacts, Load]:
    """Facts and loader, over tiny files where this file can write them, else over the published ones."""
    if kind in TINY:
        return TINY[kind](folder)
    data_dir = Path(os.environ.get("TRANSFERGRID_DATA_DIR", "cache/data"))
    try:
        data.find(kind, data_dir=data_dir, download=False)
    except DataError as error:
        pytest.skip(str(error))
    return data.facts(kind), partial(data.load, kind, data_dir=data_dir, download=False)


KINDS = data.kinds()


def test_every_kind_is_held_to_the_contract() -> None:
    """Those with tiny files all exist. One whose files lie nowhere keeps what its FACTS say."""
    assert set(TINY) <= set(KINDS)
    for kind in set(KINDS) - {"image_folder"}:
        facts = data.facts(kind)
        assert (facts.kind, len(facts.class_names)) == (kind, facts.num_classes)
        assert sum(facts.train_counts) == facts.num_images["train"] and len(facts.train_counts) == facts.num_classes


@pytest.mark.parametrize("kind", KINDS)
def test_facts_describe_the_classes_and_the_splits(kind: str, tmp_path: Path) -> None:
    facts, _ = opened(kind, tmp_path)
    assert facts.kind == kind
    assert len(facts.class_names) == len(set(facts.class_names)) == facts.num_classes
    assert tuple(facts.num_images) in (("train", "test"), ("train", "val", "test"))
    assert min(facts.num_images.values()) > 0
    assert facts.fingerprint.split(":")[0] in ("published", "content")
    assert len(facts.fingerprint.split(":")[1]) == 32


@pytest.mark.parametrize("kind", KINDS)
def test_every_split_gives_labels_in_range_and_uint8_images_of_the_size_in_the_facts(kind: str, tmp_path: Path) -> None:
    facts, load = opened(kind, tmp_path)
    for split in facts.num_images:
        images = load(split=split)
        assert images.class_names == facts.class_names
        assert images.image_size_px == facts.image_size_px
        assert images.labels_N.dtype == np.int64
        assert images.labels_N.shape == (len(images),)
        assert 0 <= images.labels_N.min() <= images.labels_N.max() < facts.num_classes
        read = np.asarray(images.read([1, 0, 1]))
        assert read.dtype == np.uint8
        assert read.shape[:3] == (3, facts.image_size_px, facts.image_size_px)
        assert read.shape[3] in (1, 3)
        assert np.array_equal(read[0], read[2])
        assert not np.array_equal(read[0], read[1])


@pytest.mark.parametrize("kind", KINDS)
def test_reading_all_images_reading_some_and_loading_again_give_the_same_pixels(kind: str, tmp_path: Path) -> None:
    _, load = opened(kind, tmp_path)
    images, again = load(split="train"), load(split="train")
    everything = images.array()
    assert everything.shape[0] == len(images)
    assert np.array_equal(images.read(range(len(images))), everything)
    assert np.array_equal(images.read(np.array([3, 1])), everything[[3, 1]])
    assert np.array_equal(again.array(), everything)
    assert np.array_equal(again.labels_N, images.labels_N)
    assert len(images.read([])) == 0
