"""Picture files -> 8-bit RGB: depth, range of values, and EXIF orientation, from the file to the record."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_data
import torch
from numpy.typing import NDArray
from picture_files import decode, png16, save_8_bits, save_16_bits, tiff, two_classes
from PIL import Image
from small_runs import carry_out, final_run, record_of, request

from transfergrid import data
from transfergrid.cli import predict
from transfergrid.config import Request, load_run
from transfergrid.data._decode import PictureRules, picture_facts
from transfergrid.data._folder_hash import _hash_file
from transfergrid.errors import ConfigError, DataError
from transfergrid.export.inference import predict_files
from transfergrid.networks.finished import network_of_run, picture_rules_of, reading_of
from transfergrid.paths import CachePaths, store_paths
from transfergrid.specs import to_dict

NOISE = np.random.default_rng(0)
TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def by_pillow(path: Path, values: NDArray[Any]) -> Path:
    Image.fromarray(values).save(path)
    return path


def expected(values: NDArray[Any], low: float, high: float) -> NDArray[Any]:
    levels = np.clip(np.rint((values.astype(np.float64) - low) / (high - low) * 255), 0, 255).astype(np.uint8)
    return levels if levels.ndim == 3 else np.repeat(levels[..., None], 3, 2)


def folder_arguments(folder: Path, *more: str) -> list[str]:
    return ["dataset=image_folder", f"dataset.folder={folder}", "dataset.max_images=null", *more]


def asked_for(tmp_path: Path, folder: Path, *more: str) -> Request:
    common = ["model=tinynet_cifar", "phase=probe", "dataset.image_size_px=null"]
    return request(tmp_path, *common, *folder_arguments(folder, *more))


# -------------------------------------------------------------------------------------------------------------- depth
GREY = NOISE.integers(0, 65536, (5, 7), dtype=np.uint16)
COLOUR = NOISE.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
ALPHA = NOISE.integers(0, 65536, (5, 7, 4), dtype=np.uint16)
SIGNED = NOISE.integers(-(10**6), 10**6, (5, 7), dtype=np.int32)
UNSIGNED = NOISE.integers(0, 2**32, (5, 7), dtype=np.uint32)
FLOAT = NOISE.random((5, 7), dtype=np.float32)


@pytest.mark.parametrize(
    ("name", "values", "write"),
    [
        ("grey.png", GREY, by_pillow),
        ("grey.tif", GREY, by_pillow),
        ("grey.pgm", GREY, by_pillow),
        ("big endian.tif", GREY, lambda path, values: tiff(path, values, order=">")),
        ("colour.png", COLOUR, png16),
        ("colour with alpha.png", ALPHA, png16),
        ("colour.tif", COLOUR, tiff),
        ("colour, big endian.tif", COLOUR, lambda path, values: tiff(path, values, order=">")),
        ("int32.tif", SIGNED, by_pillow),
        ("uint32.tif", UNSIGNED, tiff),
        ("float.tif", FLOAT, by_pillow),
    ],
)
def test_values_deeper_than_8_bits_keep_their_levels_within_one_range(
    name: str, values: NDArray[Any], write: Any, tmp_path: Path
) -> None:
    path = write(tmp_path / name, values)
    found = picture_facts(path, path.read_bytes())
    kept = values[..., :3] if values.ndim == 3 else values
    assert (found.depth, found.width_px, found.height_px) == ("float" if "float" in name else "integer", 7, 5)
    assert (found.low, found.high) == (kept.min(), kept.max())
    low, high = found.low, found.high / 2
    assert np.array_equal(decode(path, PictureRules((low, high))), expected(kept, low, high))
    with pytest.raises(DataError, match=r"is deeper than 8 bits, and no range of values is known; convert it"):
        decode(path)


def test_one_value_of_16_bits_is_grey_not_white(tmp_path: Path) -> None:
    path = by_pillow(tmp_path / "x.png", np.full((8, 8), 40000, np.uint16))
    assert np.unique(decode(path, PictureRules((2000.0, 60000.0)))).tolist() == [167]  # 38,000 / 58,000 of 255


def test_12_bits_in_16_bit_files_keep_256_levels(tmp_path: Path) -> None:
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    for path in (by_pillow(tmp_path / "grey.png", ramp), png16(tmp_path / "rgb.png", np.stack([ramp] * 3, 2))):
        assert len(np.unique(decode(path, PictureRules((0.0, 4095.0))))) == 256


def test_what_is_no_number_becomes_black_and_no_extreme(tmp_path: Path) -> None:
    values = np.array([[np.nan, -np.inf, 0.25], [np.inf, 0.5, 1.0]], dtype=np.float32)
    path = by_pillow(tmp_path / "x.tif", values)
    found = picture_facts(path, path.read_bytes())
    assert (found.low, found.high) == (0.25, 1.0)
    assert decode(path, PictureRules((0.0, 1.0)))[..., 0].tolist() == [[0, 0, 64], [255, 128, 255]]


def test_16_bit_grey_with_alpha_is_named_instead_of_halved(tmp_path: Path) -> None:
    path = png16(tmp_path / "x.png", ALPHA[..., :2])
    with pytest.raises(DataError, match=r"x.png cannot be read as an image .*save it without alpha"):
        picture_facts(path, path.read_bytes())


# ------------------------------------------------------------------------------------------------------ one range, kept
@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Request]:
    """A finished probe on 16-bit pictures of two classes."""
    place = tmp_path_factory.mktemp("deep")
    asked = asked_for(place, two_classes(place / "pictures16", save_16_bits))
    assert carry_out(asked) == "completed", record_of(final_run(asked), asked.runtime).error
    return place, asked


def test_two_classes_of_16_bit_values_are_told_apart_as_with_8_bits(deep: tuple[Path, Request], tmp_path: Path) -> None:
    place, asked = deep
    run = final_run(asked)
    plain = asked_for(tmp_path, two_classes(tmp_path / "pictures8", save_8_bits))
    assert carry_out(plain) == "completed"
    assert [record_of(final_run(a), a.runtime).metrics["test_accuracy"] for a in (asked, plain)] == [1.0, 1.0]
    assert run.dataset.value_range is not None
    low, high = run.dataset.value_range
    files = (place / "pictures16" / "train").rglob("*.png")
    stored = np.concatenate([np.asarray(Image.open(f)).ravel() for f in files])
    assert (low, high) == (stored.min(), stored.max())
    assert 1900 < low < 2100 and 60_000 < high < 60_400
    assert to_dict(record_of(run, asked.runtime).spec)["dataset"]["value_range"] == [low, high]
    assert asked.notes[0] == (
        f"pictures16: pictures deeper than 8 bits: 60; values {low:.0f} to {high:.0f} become 0 to 255"
        " (dataset.value_range)"
    )
    # Of 8 bits: nothing is said, and nothing of it is in the identity.
    assert plain.notes == () and not {"value_range", "orientation"} & set(to_dict(final_run(plain).dataset))


def test_a_later_plan_reads_no_pixels_and_finds_the_same_range(deep: tuple[Path, Request]) -> None:
    place, asked = deep
    read: list[int] = []
    facts = data.facts(
        "image_folder",
        folder=place / "pictures16",
        kept_hashes=CachePaths(place / "cache").folder_hashes,
        progress=lambda _, total: read.append(total),
    )
    again = asked_for(place, place / "pictures16")
    assert final_run(again).run_id == final_run(asked).run_id
    assert read == [] and facts.depths == {"integer": (60, "test/dark/0.png")} and len(facts.extremes["test"]) == 20


def test_a_range_that_is_given_is_taken_and_is_another_identity(deep: tuple[Path, Request], tmp_path: Path) -> None:
    place, asked = deep
    given = asked_for(tmp_path, place / "pictures16", "dataset.value_range=[0,65535]")
    assert final_run(given).dataset.value_range == (0.0, 65535.0)
    assert final_run(given).run_id != final_run(asked).run_id
    for wrong in ("[5,5]", "[1]", "[0,nan]"):
        with pytest.raises(ConfigError, match=r"dataset.value_range=.*; wanted two numbers, the lower first"):
            asked_for(tmp_path, place / "pictures16", f"dataset.value_range={wrong}")


def test_a_run_is_carried_out_again_with_its_range(deep: tuple[Path, Request], tmp_path: Path) -> None:
    place, asked = deep
    run = final_run(asked)
    assert run.dataset.value_range is not None
    (spec_json := tmp_path / "runs" / run.run_id / "spec.json").parent.mkdir(parents=True)
    spec_json.write_text(json.dumps(to_dict(run)))
    folders = (f"dataset.folder={place / 'pictures16'}", f"store.dir={tmp_path}", f"cache.dir={tmp_path / 'cache'}")
    again = load_run([f"again={run.run_id}", *folders])
    assert final_run(again) == run


def test_a_range_for_pictures_of_8_bits_is_refused(tmp_path: Path) -> None:
    folder = two_classes(tmp_path / "plain", save_8_bits, train=3, test=2)
    for where in (folder_arguments(folder), ["dataset=digits"]):
        with pytest.raises(ConfigError, match="dataset.value_range: all pictures of (plain|digits) have 8 bits"):
            request(tmp_path, "model=tinynet_cifar", "phase=probe", *where, "dataset.value_range=[0,100]")


@pytest.mark.parametrize(
    ("values", "range_found"),
    [
        (lambda shares: (shares * 4095).astype(np.uint16), (0.03 * 4095, 0.92 * 4095)),
        (lambda shares: shares.astype(np.float32), (0.03, 0.92)),
        (lambda shares: (shares * 10**9).astype(np.int32), (0.03e9, 0.92e9)),
    ],
    ids=["12 bits", "float 0..1", "int32"],
)
def test_the_range_of_every_depth_is_found_on_train(
    values: Any, range_found: tuple[float, float], tmp_path: Path
) -> None:
    folder = two_classes(tmp_path / "deep", lambda p, s: by_pillow(p, values(s)), train=3, test=2, suffix="tif")
    run = final_run(asked_for(tmp_path, folder))
    assert run.dataset.value_range == pytest.approx(range_found, rel=0.02)


def test_test_pictures_beyond_the_range_of_train_are_counted_and_said(tmp_path: Path) -> None:
    folder = two_classes(tmp_path / "deep", save_16_bits, train=3, test=3)
    for name in ("dark/0.png", "light/1.png"):
        by_pillow(folder / "test" / name, np.full((32, 32), 65535, np.uint16))
    asked = asked_for(tmp_path, folder, "dataset.val_seed=1")
    notes = asked.notes
    assert notes[1:] == ("deep: test pictures with values beyond that range, which become 0 or 255: 2",)
    assert carry_out(asked) == "completed"
    assert record_of(final_run(asked), asked.runtime).details["beyond_value_range"] == {"test": 2}


def test_mixed_depths_are_named_with_a_file_of_each_and_the_way_out(tmp_path: Path) -> None:
    folder = two_classes(tmp_path / "both", save_8_bits, train=3, test=2)
    by_pillow(folder / "train" / "dark" / "1.png", np.full((32, 32), 300, np.uint16))
    with pytest.raises(
        ConfigError,
        match=r"both mixes pictures of several depths: 9 8-bit \(test/dark/0.png\), 1 integer \(train/dark/1.png\);"
        r" make them alike, or give dataset.value_range=\[low,high\]",
    ):
        asked_for(tmp_path, folder)
    asked = asked_for(tmp_path, folder, "dataset.value_range=[0,510]")
    assert asked.notes[1:] == ("both: pictures of 8 bits, which stay as they are: 9",)
    rules = PictureRules(final_run(asked).dataset.value_range)
    images = data.load("image_folder", split="train", data_dir=tmp_path, folder=folder, rules=rules)
    assert images.array()[1].min() == images.array()[1].max() == 150
    assert np.array_equal(images.array()[0], np.asarray(Image.open(folder / "train/dark/0.png").convert("RGB")))


def test_pictures_of_one_value_make_no_range(tmp_path: Path) -> None:
    folder = two_classes(tmp_path / "flat", lambda p, _: by_pillow(p, np.full((8, 8), 40000, np.uint16)))
    with pytest.raises(ConfigError, match="flat: every value in train/ is 40000, so there is no range; give dataset"):
        asked_for(tmp_path, folder)


def test_a_run_is_evaluated_on_another_folder_by_its_own_range(deep: tuple[Path, Request], tmp_path: Path) -> None:
    place, asked = deep
    run = final_run(asked)
    other = two_classes(tmp_path / "other", lambda p, s: save_16_bits(p, s / 2), train=0, test=3)
    found = request(place, "phase=evaluate", f"run={run.run_id}", *folder_arguments(other))
    assert final_run(found).dataset.value_range == run.dataset.value_range
    with pytest.raises(ConfigError, match=r"other is deeper than 8 bits \(test/dark/0.png\) and has no train/ to find"):
        request(tmp_path, "phase=evaluate", "model=tinynet", "phase.evaluate.checkpoint=x", *folder_arguments(other))


# ------------------------------------------------------------------------------------------------- predict and export
def said(monkeypatch: pytest.MonkeyPatch, capsys: Any, place: Path, *arguments: str) -> tuple[int, str, str]:
    places = [f"store.dir={place / 'store'}", f"cache.dir={place / 'cache'}", "device=cpu", "cluster.num_threads=1"]
    monkeypatch.setattr("sys.argv", ["jobs/predict.py", *arguments, *places])
    code = predict.main()
    found = capsys.readouterr()
    return code, found.out, found.err


def test_predict_maps_16_bit_files_by_the_runs_range_and_says_what_does_not_fit(
    deep: tuple[Path, Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place, asked = deep
    run = final_run(asked).run_id
    means = (3000, 6000, 9000, 42_000, 50_000)
    values = np.array(means)[:, None, None] * NOISE.uniform(0.9, 1.1, (5, 32, 32))
    for number, picture in enumerate(values.astype(np.uint16)):
        by_pillow(tmp_path / f"{number}.png", picture)
    by_pillow(tmp_path / "beyond.png", np.full((32, 32), 65535, np.uint16))
    by_pillow(tmp_path / "plain.png", np.full((32, 32), 200, np.uint8))
    code, out, err = said(monkeypatch, capsys, place, f"run={run}", f"images={tmp_path}")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0 and len(rows) == 7
    spec, record = final_run(asked), record_of(final_run(asked), asked.runtime)
    network, preprocess = network_of_run(spec, store_paths(asked.runtime).run(run), asked.runtime)
    options: Any = {"reading": reading_of(spec), "rules": picture_rules_of(record), "device": torch.device("cpu")}
    found = predict_files(network, preprocess, tmp_path, [row["file"] for row in rows[:5]], **options)
    assert len({float(p.logits_C[0]) for p in found if p.logits_C is not None}) == 5
    low, high = final_run(asked).dataset.value_range or (0, 0)
    assert f"warning: 1 image with values beyond the run's range {low:g} to {high:g}, which become 0 or 255" in err
    assert f"warning: 1 image with 8 bits, which stay as they are; the run's pictures hold {low:g} to {high:g}" in err


def test_predict_names_a_16_bit_file_that_a_run_on_8_bits_cannot_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = asked_for(tmp_path, two_classes(tmp_path / "plain", save_8_bits, train=10, test=2))
    assert carry_out(plain) == "completed"
    (tmp_path / "new").mkdir()
    by_pillow(tmp_path / "new" / "deep.png", np.full((32, 32), 4000, np.uint16))
    run = final_run(plain).run_id
    code, out, err = said(monkeypatch, capsys, tmp_path, f"run={run}", f"images={tmp_path / 'new'}")
    assert code == 1 and "deep.png is deeper than 8 bits, and no range of values is known" in err


READ_ALL = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import load
read = [load.resize(load.decode(path), load.FACTS["inputs"][0]) for path in sys.argv[3:]]
torch.save([torch.from_numpy(pixels) for pixels in read], sys.argv[2])
"""


@pytest.mark.slow
def test_load_py_of_an_export_reads_pictures_as_the_run_does(
    deep: tuple[Path, Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from transfergrid.data.preprocess import prepare_one
    from transfergrid.networks.finished import picture_rules_of

    place, asked = deep
    run = final_run(asked)
    assert said(monkeypatch, capsys, place, f"run={run.run_id}", f"export={tmp_path / 'export'}")[0] == 0
    how = json.loads((tmp_path / "export" / "preprocessing.json").read_text())["pictures"]
    assert how == {"value_range": list(run.dataset.value_range or ()), "orientation": "exif", "max_megapixels": 180}
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = tmp_path / "turned.jpg"
    Image.fromarray(tiny_data.random_images(20, 40, 3)).save(turned, exif=exif)
    files = [
        *(by_pillow(tmp_path / f"grey.{suffix}", GREY) for suffix in ("png", "tif", "pgm")),
        *(png16(tmp_path / "rgb.png", COLOUR), png16(tmp_path / "rgba.png", ALPHA), tiff(tmp_path / "rgb.tif", COLOUR)),
        *(by_pillow(tmp_path / "int32.tif", SIGNED), by_pillow(tmp_path / "float.tif", FLOAT * 70_000), turned),
        *(tiff(tmp_path / "uint32.tif", UNSIGNED), by_pillow(tmp_path / "plain.png", (GREY >> 8).astype(np.uint8))),
    ]
    places = [tmp_path / "export", tmp_path / "read.pt", *files]
    subprocess.run([sys.executable, "-c", READ_ALL, *map(str, places)], check=True, capture_output=True)
    rules, spec = picture_rules_of(record_of(run, asked.runtime)), run.backbones[0].preprocess
    for file, read in zip(files, torch.load(tmp_path / "read.pt"), strict=True):
        assert np.array_equal(read.numpy(), prepare_one(decode(file, rules), spec)), file.name
    (tmp_path / "program.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    command = [sys.executable, "export/load.py", "program.png", "plain.png"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 1 and len(ran.stdout.splitlines()) == 1 and ran.stdout.startswith("plain.png: ")
    assert ran.stderr == "program.png: cannot identify image file 'program.png'\n"


# -------------------------------------------------------------------------------------------------------- orientation
def with_orientation(path: Path, orientation: int, side_px: tuple[int, int] = (12, 20)) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = tiny_data.random_images(3, 5, 3).repeat(side_px[0] // 3, 0).repeat(side_px[1] // 5, 1)
    lossless = {"lossless": True} if path.suffix == ".webp" else {}
    Image.fromarray(blocks).save(path, exif=exif, **lossless)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
def test_exif_turns_every_format_alike_and_none_twice(suffix: str, tmp_path: Path) -> None:
    for orientation, method in TURNED.items():
        path = with_orientation(tmp_path / f"{orientation}.{suffix}", orientation)
        upright = with_orientation(tmp_path / f"upright.{suffix}", 1)
        as_it_lies = decode(upright)
        shown = np.asarray(Image.fromarray(as_it_lies).transpose(method))
        assert np.array_equal(decode(path, PictureRules(orientation="exif")), shown)
        # Pillow itself turns TIFF files, and so they are turned under either rule.
        assert np.array_equal(decode(path), shown if suffix == "tif" else as_it_lies)
        assert picture_facts(path, path.read_bytes()).turned == (suffix != "tif")
        assert not picture_facts(upright, upright.read_bytes()).turned


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_deep_picture_is_turned_too_and_damaged_exif_turns_nothing(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "deep.png"
    Image.fromarray(GREY).save(path, exif=exif)
    rules = PictureRules((0.0, 65535.0), "exif")
    assert np.array_equal(decode(path, rules), np.rot90(expected(GREY, 0, 65535), -1))
    damaged = tmp_path / "damaged.jpg"
    Image.new("RGB", (20, 10)).save(damaged, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    assert decode(damaged, rules).shape == (10, 20, 3)
    assert not picture_facts(damaged, damaged.read_bytes()).turned


def test_orientation_is_in_the_identity_only_where_some_picture_is_turned(tmp_path: Path) -> None:
    folder = two_classes(tmp_path / "photos", save_8_bits, train=3, test=2, suffix="jpg")
    before = final_run(asked_for(tmp_path, folder))
    assert "orientation" not in to_dict(before.dataset)
    for name, orientation in (("train/dark/0.tif", 6), ("train/dark/1.jpg", 1)):
        with_orientation(folder / name, orientation, (30, 30))
    assert final_run(asked_for(tmp_path, folder)).dataset.orientation == "stored"
    with_orientation(folder / "test/dark/1.jpg", 3, (30, 30))
    asked = asked_for(tmp_path, folder)
    assert final_run(asked).dataset.orientation == "exif"
    assert asked.notes == (
        "photos: EXIF data turn these pictures: 1; dataset.orientation=stored leaves them as stored",
    )
    left = asked_for(tmp_path, folder, "dataset.orientation=stored")
    assert final_run(left).dataset.orientation == "stored" and left.notes == ()
    with pytest.raises(ConfigError, match="dataset.orientation='up'"):
        asked_for(tmp_path, folder, "dataset.orientation=up")


def test_a_folder_behind_a_link_keeps_its_name_and_the_plan_says_so(tmp_path: Path) -> None:
    (tmp_path / "my_pets").symlink_to(two_classes(tmp_path / "base", save_8_bits, train=2, test=2))
    asked = asked_for(tmp_path, tmp_path / "my_pets")
    assert final_run(asked).dataset.name == "base"
    assert asked.notes == ("base: named after what my_pets links to; dataset.name=my_pets names it after the link",)
    named = asked_for(tmp_path, tmp_path / "my_pets", "dataset.name=my_pets")
    assert final_run(named).dataset.name == "my_pets" and named.notes == ()


def test_hashes_kept_by_the_first_release_are_completed_and_the_fingerprint_stays(tmp_path: Path) -> None:
    folder, kept = two_classes(tmp_path / "photos", save_8_bits, train=3, test=2), tmp_path / "kept"
    with_orientation(folder / "train/dark/0.png", 6, (30, 30))
    new = data.facts("image_folder", folder=folder, kept_hashes=kept)
    file = _hash_file(kept, folder)
    content = json.loads(file.read_text())
    former = {name: f"{bytes_} {ns} {sha} {w}x{h}" for name, (bytes_, ns, sha, w, h, *_) in content["files"].items()}
    file.write_text(json.dumps({"version": 1, "folder": str(folder), "files": former}))
    assert data.facts("image_folder", folder=folder, kept_hashes=kept) == new
    assert new.turned == 1 and json.loads(file.read_text()) == content


def test_predict_turns_pictures_unless_the_run_left_its_own_unturned(
    deep: tuple[Path, Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transfergrid.networks.finished import picture_rules_of

    _, asked = deep
    assert picture_rules_of(record_of(final_run(asked), asked.runtime)).orientation == "exif"  # none carried EXIF data
    folder = two_classes(tmp_path / "photos", save_8_bits, train=10, test=2, suffix="jpg")
    with_orientation(folder / "train/dark/0.jpg", 3, (30, 30))
    for given, rule in (("exif", "exif"), ("stored", "stored")):
        photos = asked_for(tmp_path, folder, f"dataset.orientation={given}")
        assert carry_out(photos) == "completed"
        record = record_of(final_run(photos), photos.runtime)
        assert picture_rules_of(record).orientation == rule
        former = replace(record, details={})  # as the first release left it: what its identity says
        assert picture_rules_of(former).orientation == final_run(photos).dataset.orientation
