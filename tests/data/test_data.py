from __future__ import annotations

import gzip
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import tiny_data

from transfergrid import data
from transfergrid.data import published
from transfergrid.data.sets import _cifar, _idx, cifar10, cifar100, digits, fashion_mnist, mnist, svhn
from transfergrid.errors import ConfigError, DataError, one_line
from transfergrid.specs import Split
from transfergrid.store.network import why_silent

PUBLISHED_SPLITS: tuple[Split, ...] = ("train", "test")
PUBLISHED = [kind for kind in data.kinds() if kind != "image_folder"]


# ------------------------------------------------------------------------------------------------------------- facts
def test_facts_of_published_data_come_without_any_heavy_import() -> None:
    heavy = {"torch", "torchvision", "sklearn", "pandas", "scipy", "PIL"}
    program = (
        "import sys; from transfergrid import data; [data.facts(k) for k in data.kinds() if k != 'image_folder'];"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


def test_fingerprints_stay_what_they_are_because_cached_features_are_named_by_them() -> None:
    named = {kind: data.facts(kind).fingerprint.removeprefix("published:")[:8] for kind in PUBLISHED}
    assert named == named | {
        "cifar10": "2067bfd5",
        "cifar100": "d362d247",
        "digits": "efaedfa9",
        "fashion_mnist": "47db62e1",
        "mnist": "563fd124",
        "svhn": "985aca0e",
    }


def test_a_flip_keeps_the_class_of_photographs_and_clothes_but_not_of_digits() -> None:
    mirrored = {kind: data.facts(kind).mirror_ok for kind in PUBLISHED}
    photographs = dict.fromkeys(("cifar10", "cifar100", "fashion_mnist"), True)
    assert mirrored == mirrored | photographs | dict.fromkeys(("digits", "mnist", "svhn"), False)


def test_checksums_and_class_names_are_torchvisions_own() -> None:
    from torchvision import datasets

    zipped = {name: md5 for name, md5 in mnist.CHECKSUMS.items() if name.endswith(".gz")}
    assert list(zipped.items()) == datasets.MNIST.resources
    assert list(fashion_mnist.CHECKSUMS.items()) == datasets.FashionMNIST.resources
    assert list(fashion_mnist.FACTS.class_names) == datasets.FashionMNIST.classes
    for module, theirs in ((cifar10, datasets.CIFAR10), (cifar100, datasets.CIFAR100)):
        assert list(module.CHECKSUMS.items()) == [tuple(entry) for entry in theirs.train_list + theirs.test_list]
        assert module.SET.url == theirs.url
    published = [datasets.SVHN.split_list[split] for split in ("train", "test")]
    assert list(svhn.CHECKSUMS.items()) == [(name, md5) for _, name, md5 in published]


def test_a_kind_that_does_not_exist_and_a_folder_given_to_the_wrong_kind_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown kind of data set 'minst'; known: cifar10, .*, svhn$"):
        data.facts("minst")
    with pytest.raises(ConfigError, match=r"'mnist' does not take a folder \(got pets\); give data.dir= instead"):
        data.facts("mnist", folder=Path("pets"))
    with pytest.raises(ConfigError, match=r"'image_folder' needs dataset.folder="):
        data.facts("image_folder")


def test_published_data_have_no_val_split_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"digits has no split 'val'; it has: train, test"):
        data.load("digits", split="val", data_dir=tmp_path)


# ------------------------------------------------------------------------------------------------------------ digits
def test_digits_are_scikit_learns_images_scaled_to_255_each_in_exactly_one_split(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    theirs = load_digits()
    scaled = np.round(theirs.images * (255 / 16)).astype(np.uint8)
    images_NHWC, labels_N = digits.parse(digits._path().read_bytes())
    assert np.array_equal(images_NHWC[..., 0], scaled)
    assert np.array_equal(labels_N, theirs.target)
    assert (images_NHWC.min(), images_NHWC.max()) == (0, 255)

    parts = [data.load("digits", split=split, data_dir=tmp_path) for split in PUBLISHED_SPLITS]
    assert [len(part) for part in parts] == [1437, 360] == list(data.facts("digits").num_images.values())
    together = sorted(image.tobytes() for part in parts for image in part.array())
    assert together == sorted(image.tobytes() for image in images_NHWC)
    shares_C = np.bincount(parts[1].labels_N) / np.bincount(labels_N)
    assert abs(shares_C - 360 / 1797).max() < 1 / 174


# ------------------------------------------------------------------------------------------------------------- MNIST
def test_mnist_reads_plain_and_gzipped_files_alike(tmp_path: Path) -> None:
    images = []
    for zipped in (False, True):
        data_dir = tmp_path / str(zipped)
        checksums = tiny_data.write_idx(data_dir / "MNIST" / "raw", zipped=zipped)
        images.append(mnist.load(split="test", data_dir=data_dir, download=False, checksums=checksums))
    assert np.array_equal(images[0].array(), images[1].array())
    assert np.array_equal(images[0].array()[..., 0], tiny_data.random_images(10, 28, 28))
    assert images[0].labels_N.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_a_file_with_another_checksum_is_refused_by_name(tmp_path: Path) -> None:
    checksums = tiny_data.write_idx(tmp_path / "MNIST" / "raw", zipped=False)
    path = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        mnist.load(split="test", data_dir=tmp_path, download=False, checksums=checksums)
    got, wanted = tiny_data.md5(bytes(content)), checksums[path.name]
    assert f"{path} is not the published file: md5 {got}, wanted {wanted}" in str(caught.value)
    mnist.load(split="train", data_dir=tmp_path, download=False, checksums=checksums)


def test_find_verifies_both_splits(tmp_path: Path) -> None:
    checksums = tiny_data.write_idx(tmp_path / "MNIST" / "raw", zipped=True)
    mnist.find(data_dir=tmp_path, download=False, checksums=checksums)
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").write_bytes(b"")
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte.gz is not the published file"):
        mnist.find(data_dir=tmp_path, download=False, checksums=checksums)


@pytest.mark.parametrize("kind", [kind for kind in PUBLISHED if kind != "digits"])
def test_missing_files_are_named_on_one_line_with_the_folder_and_the_remedy(kind: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        data.find(kind, data_dir=tmp_path, download=False)
    message = str(caught.value)
    assert message.count("\n") == 0
    assert all(word in message for word in (kind, str(tmp_path), "data.dir=", "TRANSFERGRID_DATA_DIR"))
    first_file = {"mnist": "train-images-idx3-ubyte(.gz), train-labels", "svhn": "train_32x32.mat"}
    assert first_file.get(kind, "") in message


def test_fashion_mnist_wants_the_gzipped_files_because_only_those_can_be_verified(tmp_path: Path) -> None:
    tiny_data.write_idx(tmp_path / "FashionMNIST" / "raw", zipped=False)
    with pytest.raises(DataError, match=r"fashion_mnist: t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz not f"):
        data.load("fashion_mnist", split="test", data_dir=tmp_path, download=False)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"GIF89a....", "not an IDX file of unsigned bytes: it starts with 47494638"),
        (tiny_data.idx_bytes(tiny_data.random_images(3, 2, 2))[:-1], r"shape \(3, 2, 2\) holds 11 bytes, wanted 12"),
    ],
)
def test_what_is_no_idx_file_is_refused(content: bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        _idx.parse(content)
    with pytest.raises(ValueError, match=complaint):
        _idx.parse(gzip.compress(content))


def test_labels_that_do_not_fit_the_images_are_refused(tmp_path: Path) -> None:
    images = tiny_data.idx_bytes(tiny_data.random_images(3, 28, 28))
    for labels in ([1, 2], [1, 2, 10]):
        files = [(tmp_path / "i", images), (tmp_path / "l", tiny_data.idx_bytes(np.array(labels, dtype=np.uint8)))]
        with pytest.raises(DataError, match=r"wanted \(N, H, W\) and \(N,\) below 10"):
            _idx.images_of(files, class_names=tuple("0123456789"))


# ------------------------------------------------------------------------------------------------------------- CIFAR
def test_a_cifar_batch_written_by_python_2_becomes_rgb_images_in_its_order() -> None:
    images_NHWC = tiny_data.random_images(3, 32, 32, 3)
    content = tiny_data.cifar_bytes(images_NHWC, [9, 0, 4], labels_key="labels")
    assert b"numpy.core.multiarray" in content
    parsed_NHWC, labels_N = _cifar.parse(content, labels_key="labels")
    assert np.array_equal(parsed_NHWC, images_NHWC)
    assert labels_N.tolist() == [9, 0, 4]


def test_cifar10_training_images_are_the_five_batches_in_turn(tmp_path: Path) -> None:
    names = {name: 2 for name in cifar10.CHECKSUMS}
    folder = tmp_path / "cifar-10-batches-py"
    checksums = tiny_data.write_cifar(folder, names, labels_key="labels", num_classes=10)
    images = cifar10.load(split="train", data_dir=tmp_path, download=False, checksums=checksums)
    assert images.labels_N.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert np.array_equal(images.array()[8:], tiny_data.random_images(2, 32, 32, 3, seed=4))


def test_a_pickle_that_asks_for_more_than_arrays_is_refused_and_nothing_in_it_runs(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    for protocol in (2, 5):
        with pytest.raises(ValueError, match=r"it asks for posix.mkdir, which an image batch does not need"):
            _cifar.parse(pickle.dumps({"data": Malicious()}, protocol=protocol), labels_key="labels")
    assert not (tmp_path / "ran").exists()


def test_a_damaged_batch_is_named(tmp_path: Path) -> None:
    content = tiny_data.cifar_bytes(tiny_data.random_images(3, 32, 32, 3), [1, 2, 11], labels_key="labels")
    names = tuple("0123456789")
    with pytest.raises(DataError, match=r"data_batch_1: labels 1 to 11, wanted 0 to 9"):
        _cifar.images_of([(tmp_path / "data_batch_1", content)], labels_key="labels", class_names=names)
    for damaged in (content[:-2000], content.replace(b"data", b"dada"), pickle.dumps([1]), b""):
        with pytest.raises(DataError, match=r"data_batch_1: not a CIFAR batch: "):
            _cifar.images_of([(tmp_path / "data_batch_1", damaged)], labels_key="labels", class_names=names)


# -------------------------------------------------------------------------------------------------------------- SVHN
def test_svhn_puts_images_first_and_reads_its_class_10_as_the_digit_0(tmp_path: Path) -> None:
    checksums = tiny_data.write_svhn(tmp_path)
    images = svhn.load(split="train", data_dir=tmp_path, download=False, checksums=checksums)
    assert images.labels_N.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert np.array_equal(images.array(), tiny_data.random_images(11, 32, 32, 3))


def test_what_is_no_svhn_file_is_refused() -> None:
    with pytest.raises(ValueError):
        svhn.parse(b"not a mat file" * 100)


# ---------------------------------------------------------------------------------------------------------- fetching
class _Refuses(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_error(403)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def answering_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with HTTPServer(("127.0.0.1", 0), _Refuses) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_a_server_that_answers_anything_is_reachable(answering_url: str) -> None:
    assert why_silent(answering_url, timeout_s=5) is None


def test_a_silent_server_and_a_closed_port_are_not_and_that_is_known_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        start = time.monotonic()
        assert why_silent(f"http://127.0.0.1:{port}/", timeout_s=0.2)
        assert time.monotonic() - start < 2
    assert why_silent(f"http://127.0.0.1:{port}/", timeout_s=0.2)


def test_a_missing_file_is_fetched_quietly_once_and_found(
    answering_url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fetched: list[Path] = []

    def fetch(data_dir: Path) -> None:
        print("100%|####", file=sys.stderr)
        print("Downloading")
        assert socket.getdefaulttimeout() == published.STALL_TIMEOUT_S
        fetched.append(data_dir)
        (data_dir / "b.mat").write_bytes(b"b")

    for _ in range(2):
        files = replace(svhn.SET, url=answering_url, fetch=fetch)
        found = files.locate([("a.mat", "b.mat")], data_dir=tmp_path / "new", download=True)
        assert found == [tmp_path / "new" / "b.mat"]
    assert fetched == [tmp_path / "new"]
    assert socket.getdefaulttimeout() is None
    assert capfd.readouterr() == ("", "")


def test_a_download_that_fails_says_why_on_the_line_that_names_the_files(answering_url: str, tmp_path: Path) -> None:
    def fetch(data_dir: Path) -> None:
        raise RuntimeError("Error downloading\n a.mat")

    files = replace(svhn.SET, url=answering_url, fetch=fetch)
    with pytest.raises(
        DataError, match=r"svhn: a.mat not found in .* \(the download failed: RuntimeError: Error downloading a.mat\)"
    ):
        files.locate([("a.mat",)], data_dir=tmp_path, download=True)


def test_where_there_is_no_network_the_whole_remedy_stands_on_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(published, "why_silent", lambda url, *, timeout_s: "no route")
    for kind in PUBLISHED:
        if kind == "digits":  # inside scikit-learn
            continue
        with pytest.raises(DataError) as raised:
            data.find(kind, data_dir=Path("cache/data"))
        assert one_line(raised.value).endswith("as data.dir= or in TRANSFERGRID_DATA_DIR")


# --------------------------------------------------------------------------------------------------------- real data
@pytest.mark.realdata
def test_the_real_mnist_verifies_and_has_the_published_counts(real_data_dir: Path) -> None:
    data.find("mnist", data_dir=real_data_dir, download=False)
    published_counts = (
        [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    )
    for split, counts in zip(PUBLISHED_SPLITS, published_counts, strict=True):
        images = mnist.load(split=split, data_dir=real_data_dir, download=False)
        assert np.bincount(images.labels_N).tolist() == counts
        assert images.array().shape == (sum(counts), 28, 28, 1)


@pytest.mark.realdata
def test_the_cifar10_jpeg_folder_is_hashed_in_seconds_once_and_only_looked_at_afterwards(
    real_data_dir: Path, tmp_path: Path
) -> None:
    folder = real_data_dir / "cifar10-jpeg"
    calls: list[tuple[int, int]] = []
    facts = data.facts("image_folder", folder=folder, kept_hashes=tmp_path, progress=lambda *c: calls.append(c))
    assert facts.class_names == cifar10.FACTS.class_names
    assert facts.num_images == cifar10.FACTS.num_images
    assert facts.image_size_px == 32
    assert calls[-1] == (60_000, 60_000)
    calls.clear()
    start = time.monotonic()
    again = data.facts("image_folder", folder=folder, kept_hashes=tmp_path, progress=lambda *c: calls.append(c))
    assert again == facts
    assert calls == []
    assert time.monotonic() - start < 5
    images = data.load("image_folder", split="test", data_dir=tmp_path, folder=folder)
    assert np.bincount(images.labels_N).tolist() == [1000] * 10
    assert images.array().shape == (10_000, 32, 32, 3)
