"""Published heads on folders of ImageNet's classes, named by wnids or numbers, all of them or some."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbone_files import reference
from small_runs import carry_out, final_run, paths_of, record_of, request, rows_of_csv
from tiny_data import save_image

from transfergrid.config import Request
from transfergrid.errors import ConfigError
from transfergrid.networks.classes import imagenet_wnids, name_logits
from transfergrid.store.records import read_predictions


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return imagenet_like(tmp_path_factory.mktemp("imagenet") / "any name", num_classes=1000)


def imagenet_like(folder: Path, *, num_classes: int) -> Path:
    """val/<wnid>/*.JPEG, one picture of mixed size per class."""
    noise = np.random.default_rng(0)
    for label in range(num_classes):
        width_px, height_px = (int(side) for side in noise.integers(20, 60, 2))
        picture = noise.integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)
        save_image(folder / "val" / imagenet_wnids()[label] / "ILSVRC2012_val.JPEG", picture)
    return folder


@pytest.mark.slow
def test_published_weights_on_an_imagenet_folder_stand_beside_what_is_stated_and_what_is_right(
    imagenet: Path, tmp_path: Path
) -> None:
    """Random weights here, and one square crop of a 1,000-class head: the machinery, not the accuracy."""
    from transfergrid.cli.console import make_console
    from transfergrid.cli.grid_file import write_grid_of
    from transfergrid.report.analysis.comparison import read_comparison
    from transfergrid.report.analysis.top_errors import section, top_errors
    from transfergrid.report.markdown import section_text

    named = ["model=resnet50", "weights=random", "dataset=imagenet", f"dataset.folder={imagenet}"]
    asked = request(tmp_path, "phase=evaluate", *named, "dataset.max_images=null", "dataset.image_size_px=32")
    assert carry_out(asked) == "completed"
    run = final_run(asked)
    assert (run.dataset.name, run.dataset.num_classes, run.dataset.max_images) == ("imagenet", 1000, None)
    write_grid_of(make_console(), asked)
    top1, top5 = top_errors(read_comparison("adhoc", asked.store))
    stored = read_predictions(paths_of(run, asked.runtime))["test"]
    assert stored.classes_NC is not None
    assert top1.measured == (stored.classes_NC[:, 0] != stored.label_N).mean()
    assert top5.measured == 1 - (stored.classes_NC[:, :5] == stored.label_N[:, None]).any(1).mean()
    assert [(e.images, e.published["as_stated"].value, e.published["corrected"].value) for e in (top1, top5)] == [
        (1000, 0.2356, 0.2387),
        (1000, 0.0357, 0.07138),
    ]
    assert top1.differs == ("weights", "image_size_px")
    markdown = section_text(section(read_comparison("adhoc", asked.store)))
    assert "| 3.57 | 7.14 |" in markdown and "an ensemble of residual networks" in markdown


def test_published_weights_get_their_published_transform(imagenet: Path, tmp_path: Path) -> None:
    named = ["model=resnet50", "weights=IMAGENET1K_V1", "dataset=imagenet", f"dataset.folder={imagenet}"]
    asked = request(tmp_path, "phase=evaluate", *named, "dataset.image_size_px=null", "dataset.max_images=null")
    fed = final_run(asked).backbones[0].preprocess
    assert (fed.mode, fed.resize_px, fed.crop_px, fed.interpolation) == ("recipe", 256, 224, "bilinear")
    assert fed.small == "recipe"  # though these pictures are smaller than 224 pixels


def test_imagenet_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dataset=imagenet needs dataset.folder=DIR"):
        request(tmp_path, "phase=evaluate", "model=resnet50", "dataset=imagenet")


def answering(path: Path, place: int) -> Path:
    """A ResNet-18 of 1,000 classes that takes every picture for the class of this place, then for those that follow."""
    network: Any = reference("resnet18")
    with torch.no_grad():
        network.fc.weight.zero_()
        network.fc.bias.copy_(-((torch.arange(1000) - place) % 1000).float())
    torch.save(network.state_dict(), path)
    return path


def own_head(tmp_path: Path, folder: Path, weights: Path, *more: str) -> Request:
    named = ["phase=evaluate", "model=resnet18", f"weights={weights}", f"dataset.folder={folder}"]
    size = ["dataset.image_size_px=32", "dataset.max_images=null"]
    return request(tmp_path, *named, *size, *(more or ("dataset=imagenet",)))


def one_picture_each(folder: Path, names: Iterable[str]) -> Path:
    for name in names:
        save_image(folder / "val" / name / "0.png", np.full((8, 8, 3), 128, dtype=np.uint8))
    return folder


@pytest.mark.slow
def test_folders_0_to_999_are_imagenets_classes_as_numbers_not_as_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = one_picture_each(tmp_path / "v2", map(str, range(1000)))
    asked = own_head(tmp_path, folder, answering(tmp_path / "two.pth", 2))
    assert final_run(asked).rules == 2  # the first release sorted them as text, under the same name
    with caplog.at_level("INFO"):
        assert carry_out(asked) == "completed", record_of(final_run(asked), asked.runtime).error
    rows = rows_of_csv(asked)
    assert [(row["label"], row["predicted"]) for row in rows if row["label"] in ("2", "10")] == [
        ("10", "2"),
        ("2", "2"),
    ]
    record = record_of(final_run(asked), asked.runtime)
    assert record.metrics["test_accuracy"] == 0.001
    assert record.details["class_names"] == [str(i) for i in range(1000)]
    assert "imagenet: folders 0 to 999 are taken as numbers" in caplog.text
    stored = read_predictions(paths_of(final_run(asked), asked.runtime))["test"]
    assert stored.label_N.tolist() == [int(row["label"]) for row in rows]


def test_some_of_imagenets_classes_are_told_apart_among_themselves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten folders: the network's answer is class 2, which is not among them, and 217 the first that is."""
    places = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]  # Imagenette
    folder = one_picture_each(tmp_path / "imagenette", [imagenet_wnids()[place] for place in places])
    weights = answering(tmp_path / "two.pth", 2)
    own = own_head(tmp_path, folder, weights)
    # A checkpoint of all 1,000 classes on the same folder, as a folder of the user's.
    file = request(
        tmp_path,
        *("phase=evaluate", "model=resnet18", f"phase.evaluate.checkpoint={weights}"),
        *folder_of(folder),
    )
    for asked, dataset in ((own, "imagenet"), (file, "imagenette")):
        with caplog.at_level("INFO"):
            assert carry_out(asked) == "completed", record_of(final_run(asked), asked.runtime).error
        assert {row["predicted"] for row in rows_of_csv(asked)} == {imagenet_wnids()[217]} == {"n02102040"}
        record = record_of(final_run(asked), asked.runtime)
        assert record.metrics["test_accuracy"] == 0.1 and record.details["classes_compared"] == 10
        assert record.details["class_names"] == [imagenet_wnids()[place] for place in places]
        assert f"{dataset} has 10 of ImageNet's 1000 classes: only their logits are compared" in caplog.text


def folder_of(folder: Path) -> list[str]:
    where = ["dataset=image_folder", f"dataset.folder={folder}"]
    return [*where, "dataset.image_size_px=32", "dataset.max_images=null"]


@pytest.mark.parametrize("names", [["cat", "dog"], [str(i) for i in range(1, 1001)], ["n01440764", "n00000001"]])
def test_folders_that_are_not_named_as_imagenets_classes_are_refused_in_one_line(
    names: list[str], tmp_path: Path
) -> None:
    folder = one_picture_each(tmp_path / "odd", names)
    weights = answering(tmp_path / "two.pth", 2)
    wanted = rf"{len(names)} folders are not named as ImageNet's classes; wanted wnids .* or 0 to 999; got '"
    for more, dataset in ((("dataset=imagenet",), "imagenet"), (("dataset=image_folder",), "odd")):
        with pytest.raises(ConfigError, match=f"{dataset}: its {wanted}"):
            own_head(tmp_path, folder, weights, *more)


def test_a_head_of_ten_classes_is_not_taken_for_ten_others(tmp_path: Path) -> None:
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    same = one_picture_each(tmp_path / "same", names)
    other = one_picture_each(tmp_path / "other", [*names[:9], "van"])
    named = ["phase=evaluate", "model=tinynet_cifar"]
    with pytest.raises(ConfigError, match="own head tells the classes of cifar10 apart; other has .van."):
        request(tmp_path, *named, *folder_of(other))
    with pytest.raises(ConfigError, match="own head tells the classes of cifar10 apart; digits has .0."):
        request(tmp_path, *named)
    assert final_run(request(tmp_path, *named, *folder_of(same))).rules == 1
    assert final_run(request(tmp_path, "phase=evaluate", "model=tinynet_mnist")).rules == 1  # digits


def test_the_list_of_wnids_is_that_of_ilsvrc_2012_and_sorted_whatever_timm_is_installed() -> None:
    wnids = imagenet_wnids()
    assert list(wnids) == sorted(wnids) and len(set(wnids)) == 1000
    assert hashlib.sha256("\n".join(wnids).encode()).hexdigest() == (
        "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"
    )


def test_a_thousand_classes_of_ones_own_keep_their_stored_order() -> None:
    names = sorted(f"kind {i}" for i in range(1000))
    named = name_logits(names, 1000, model="resnet18", dataset="mine", kind="image_folder")
    assert named.class_names == tuple(names) and named.columns is None and named.note is None
    assert named.place_S.tolist() == list(range(1000))
