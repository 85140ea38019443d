"""Names of classes and folders as people's disks have them: accents spelled in two ways, bytes that are no UTF-8."""

from __future__ import annotations

import io
import logging
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_runs import MACHINE, carry_out, request

from transfergrid.cli.cautions import inventories
from transfergrid.cli.launch import launch
from transfergrid.config import load_run
from transfergrid.data import DatasetFacts, facts
from transfergrid.data.sets.image_folder import load
from transfergrid.errors import DataError
from transfergrid.names import composed, existing, readable, readable_in, spelled_out
from transfergrid.networks.classes import match_classes
from transfergrid.paths import StorePaths
from transfergrid.report.analysis.comparison import read_comparison
from transfergrid.report.wandb_report import wandb_report_of
from transfergrid.report.write import write
from transfergrid.specs import Split
from transfergrid.store import durable
from transfergrid.store.records import write_grid
from transfergrid.tracking.description import Ending, describe

NFC, NFD = "café", "cafe\u0301"
SPLITS: tuple[Split, ...] = ("train", "test")
LATIN1 = os.fsdecode(b"caf\xe9")


def folder_of(root: Path, train: list[str], test: list[str], *, images: int = 6) -> Path:
    """Small pictures of noise."""
    for split, names in (("train", train), ("test", test)):
        for name in names:
            made = root / split / name
            made.mkdir(parents=True)
            for number in range(images):
                colour = np.random.default_rng([number, len(composed(name)), split == "test"]).integers(
                    0, 99, (8, 8, 3)
                )
                Image.fromarray((colour + 20 * len(composed(name))).astype(np.uint8)).save(made / f"{number}.png")
    return root


def known(folder: Path) -> DatasetFacts:
    return facts("image_folder", folder=folder, kept_hashes=None, keep=False)


# ------------------------------------------------------------------------------------------------------ two spellings
def test_a_class_spelled_in_two_ways_is_one_class_and_the_plan_says_it_once(tmp_path: Path) -> None:
    found = known(folder_of(tmp_path / "pets", [NFC, "zebra"], [NFD, "zebra"]))
    assert found.class_names == (NFC, "zebra") or found.class_names == ("zebra", NFC)
    ((sentence, _),) = inventories({"pets": found})
    told = "class folders spelled in two ways are one class (Unicode NFC): 'caf\\xe9' in train/, 'cafe\\u0301' in test/"
    assert sentence.count(told) == 1
    train, test = (load(split=split, folder=tmp_path / "pets") for split in SPLITS)
    assert train.class_names == test.class_names == found.class_names
    place = found.class_names.index(NFC)
    for images, spelled in ((train, NFC), (test, NFD)):
        of_class = zip(images.paths, images.labels_N, strict=True)
        assert {path.parent.name for path, label in of_class if label == place} == {spelled}


def test_both_spellings_in_one_split_are_refused_with_both_spelled_out(tmp_path: Path) -> None:
    folder_of(tmp_path / "pets", [NFC, NFD, "zebra"], [NFC, "zebra"])
    with pytest.raises(DataError) as caught:
        known(tmp_path / "pets")
    assert "train: the class folders 'cafe\\u0301' and 'caf\\xe9' look alike (café); merge them" in str(caught.value)


def test_a_folder_that_is_decomposed_throughout_keeps_identity_and_order(tmp_path: Path) -> None:
    """The order in which a release before this one read it: by the folders' own names, `café` before `cafz`."""
    names = [NFD, "cafz"]
    found = known(folder_of(tmp_path / "pets", names, names))
    assert found.class_names == (NFC, "cafz")
    assert found.inventory is not None and found.inventory.respelled == ()


def test_a_folder_without_such_names_has_the_identity_it_had(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    for split in ("train", "test"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            (root / split / name / "0.ppm").write_bytes(b"P6 1 1 255\n" + name.encode() * 3)
    assert known(root).fingerprint == "content:00d1e380ecc2d34a81cff8debe0a66ae"


@pytest.mark.parametrize(("made", "typed"), [(NFC, NFD), (NFD, NFC)])
def test_a_folder_is_found_and_named_alike_however_it_is_typed(made: str, typed: str, tmp_path: Path) -> None:
    folder_of(tmp_path / made, ["a", "bb"], ["a", "bb"])
    assert existing(tmp_path / typed) == tmp_path / made
    places = [f"store.dir={tmp_path / 'store'}", f"cache.dir={tmp_path / 'cache'}", "cluster=local", "dry_run=true"]
    by_hand = ["model=tinynet_cifar", "phase=probe", "dataset=image_folder", *places, *MACHINE]
    runs = [
        load_run([*by_hand, f"dataset.folder={tmp_path / name}", *more]).configurations[0].run
        for name in (made, typed)
        for more in ((), (f"dataset.name={NFD}",), (f"dataset.name={NFC}",))
    ]
    assert {run.run_id for run in runs} == {runs[0].run_id} and runs[0].dataset.name == NFC


def test_a_network_knows_the_classes_of_a_copy_with_the_other_spelling() -> None:
    assert match_classes(["zebra", NFC], [NFD, "zebra"], run_id="r", dataset="copy").tolist() == [1, 0]
    assert match_classes(["zebra", NFD], [NFC], run_id="r", dataset="copy").tolist() == [1]


# ----------------------------------------------------------------------------------------------------------- no UTF-8
def test_what_is_no_utf8_is_spelled_out_and_the_rest_stays() -> None:
    assert readable(LATIN1) == "caf\\xe9" and readable("café 猫") == "café 猫" and readable("\ud800") == "\\ud800"
    assert readable_in({LATIN1: [LATIN1, (1, None)]}) == {"caf\\xe9": ["caf\\xe9", (1, None)]}
    assert "猫".encode("ascii", spelled_out()) == b"\\u732b"


def test_a_log_takes_any_name(tmp_path: Path) -> None:
    handler = durable.LogFile(tmp_path / "log.txt")
    handler.emit(logging.LogRecord("x", logging.INFO, "", 0, f"class {LATIN1}", None, None))
    handler.close()
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "class caf\\xe9\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a run on a folder that is named so, with a class that is named so."""
    root = tmp_path_factory.mktemp("names")
    folder = folder_of(root / LATIN1, [LATIN1, "zebra"], [LATIN1, "zebra"])
    asked = request(root, "model=tinynet", "phase=scratch", "dataset=image_folder", f"dataset.folder={folder}", *SIZE)
    assert carry_out(asked) == "completed"
    write_grid(asked.store.grid("g"), grid="g", entries=asked.entries(), runtime=asked.runtime)
    return root


SIZE = ["dataset.image_size_px=16", "dataset.max_images=null"]


@pytest.mark.parametrize("figures", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_file_of_a_report_is_utf8(figures: bool, trained: Path) -> None:
    store = StorePaths(trained / "store")
    comparison = read_comparison("g", store)
    folder = write([comparison], figures=figures).parent
    written = [p for p in folder.rglob("*") if p.suffix in (".md", ".csv", ".tex", ".html", ".svg", ".json")]
    assert len(written) >= 4
    assert all("caf" in p.read_text(encoding="utf-8") for p in written if p.suffix in (".md", ".csv", ".html"))
    published = wandb_report_of([comparison], folder)
    for told in (published.rows, [t.rows for t in published.tables.values()], published.headline):
        str(told).encode()
    assert "caf\\xe9" in published.markdown_table


def test_wandb_is_told_what_it_can_hold(trained: Path) -> None:
    (root,) = (trained / "store" / "runs").iterdir()
    store = StorePaths(trained / "store")
    paths = store.run(root.name)
    from transfergrid.store.records import read_record

    record = read_record(paths)
    assert record is not None
    ending = Ending(record, paths, images=False, folder=trained / "copies")
    described = describe(record.spec, grid="g", variant="", record=record)
    for told in (described, ending.summary, ending.class_names):
        str(told).encode()
    assert described["config"]["dataset"] == "caf\\xe9" and "class_accuracy/caf\\xe9" in ending.summary


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_a_terminal_of_any_encoding_shows_the_plan(
    encoding: str, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    asked = ["grid=compare", "grid.models=[tinynet]", "grid.phases=[scratch]", "grid.seeds=[0]", "cluster=local"]
    asked += ["dry_run=true", "dataset=image_folder", f"dataset.folder={trained / LATIN1}", *MACHINE, SIZE[0]]
    assert launch([*asked, f"store.dir={trained / 'other'}", f"cache.dir={trained / 'cache'}"]) == 0
    sys.stdout.flush()
    said = written.getvalue().decode(encoding)
    assert "caf\\xe9: train 12 images" in said and "dry run: nothing was started" in said
