"""Pictures that cost more than they should: too many pixels, a line, a program; and kinds that are newly read."""

from __future__ import annotations

import csv
import resource
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import tiny_data
from numpy.typing import NDArray
from picture_files import decode, save_8_bits, two_classes
from PIL import Image
from small_runs import carry_out, final_run, request

from transfergrid import data
from transfergrid.cli import predict
from transfergrid.config import load_run
from transfergrid.data import _decode, _formats
from transfergrid.data._decode import PictureRules, picture_facts
from transfergrid.data._folder_scan import image_files
from transfergrid.data._image_size import unreadable
from transfergrid.data.damaged import DamagedImage, DamagedImages
from transfergrid.data.sets.image_folder import FolderImages
from transfergrid.errors import ConfigError
from transfergrid.specs import Runtime


def declared(path: Path, width_px: int, height_px: int) -> Path:
    """A PNG of so many pixels by its header, and of none in truth."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


def line(path: Path) -> Path:
    """273 bytes or so; with its shorter edge at 256 it was 12.8 GB."""
    return tiny_data.save_image(path, np.full((1, 65000, 3), 9, np.uint8))


def refused(path: Path, rules: PictureRules = data.AS_STORED) -> str:
    with pytest.raises(DamagedImage) as error:
        decode(path, rules)
    assert error.value.path == path
    return str(error.value).removeprefix(f"{path} ")


# ---------------------------------------------------------------------------------------------------------------- size
def test_more_megapixels_than_allowed_are_refused_by_the_header_with_the_key_that_raises_the_limit(
    tmp_path: Path,
) -> None:
    bomb = declared(tmp_path / "bomb.png", 20_000, 20_000)
    said = (
        "is of 20000 x 20000 px, 400.0 megapixels; dataset.max_megapixels=180 is the limit: shrink the picture, or"
        " raise it"
    )
    assert refused(bomb) == said
    with pytest.raises(DamagedImage) as at_plan:
        picture_facts(bomb, bomb.read_bytes())
    assert (at_plan.value.reason, at_plan.value.remedy) == (said, "")
    assert refused(declared(tmp_path / "long.png", 2**17 + 1, 1)).startswith("is of 131073 x 1 px; an edge may have")
    nothing = declared(tmp_path / "none.png", 0, 5)
    with pytest.raises(DamagedImage, match="is of 0 x 5 px; mend or remove it"):  # the header was taken as it stood
        picture_facts(nothing, nothing.read_bytes())
    assert "cannot be read" in refused(bomb, PictureRules(max_megapixels=401))  # then it is the decoder's


def test_the_limit_is_the_users_and_is_in_no_identity(tmp_path: Path) -> None:
    folder = two_classes(tmp_path / "photos", save_8_bits, train=3, test=2)
    tiny_data.save_image(folder / "test" / "dark" / "0.png", tiny_data.random_images(1100, 1000, 3))
    asked = ("model=tinynet_cifar", "phase=probe", "dataset=image_folder", f"dataset.folder={folder}", "dry_run=true")
    places = (f"store.dir={tmp_path / 'store'}", f"cache.dir={tmp_path / 'cache'}")
    usual = load_run([*asked, *places])
    with pytest.raises(DamagedImages, match=r"test/dark/0.png is of 1000 x 1100 px, 1.1 megapixels; .*megapixels=1 "):
        load_run([*asked, *places, "dataset.max_megapixels=1"])
    raised = load_run([*asked, *places, "dataset.max_megapixels=1.2"])
    assert raised.runtime.max_megapixels == 1.2 and usual.runtime.max_megapixels == 180
    assert Runtime.__dataclass_fields__["max_megapixels"].default == data.MAX_MEGAPIXELS
    assert raised.configurations == usual.configurations
    with pytest.raises(ConfigError, match="dataset.max_megapixels=0.0 is out of range; it must be above 0"):
        load_run([*asked, *places, "dataset.max_megapixels=0"])


def test_a_picture_that_is_kept_from_a_launch_with_a_higher_limit_is_refused_under_a_lower_one(tmp_path: Path) -> None:
    folder = two_classes(tmp_path / "photos", save_8_bits, train=2, test=2)
    data.facts("image_folder", folder=folder, kept_hashes=tmp_path / "kept", max_megapixels=1)
    with pytest.raises(DamagedImages, match="8 files cannot be used") as refusal:
        data.facts("image_folder", folder=folder, kept_hashes=tmp_path / "kept", max_megapixels=0.001)
    said = (
        "is of 32 x 32 px, 0.0 megapixels; dataset.max_megapixels=0.001 is the limit: shrink the picture, or raise it"
    )
    assert {image.reason for image in refusal.value.images} == {said}


# -------------------------------------------------------------------------------------------------------------- memory
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("kind", ["RGB", "L", "P", "CMYK", "RGBA", "LA", "1", "YCbCr", "PA"])
def test_a_large_picture_is_converted_strip_by_strip_to_the_same_pixels(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.fromarray(tiny_data.random_images(37, 29, 3)).convert("P" if kind == "PA" else kind)
    path = tmp_path / f"x.{'jpg' if kind in ('CMYK', 'YCbCr') else 'png'}"
    if kind == "PA":
        image.info["transparency"] = bytes(range(256))
    image.save(path)
    whole = decode(path)
    assert whole.shape == (37, 29, 3) and np.array_equal(whole, np.asarray(Image.open(path).convert("RGB")))
    monkeypatch.setattr(_decode, "_STRIP_PX", 5 * 29)
    assert np.array_equal(decode(path), whole)


def test_values_deeper_than_8_bits_are_mapped_strip_by_strip_to_the_same_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (23, 11)).astype(np.uint16)
    path, rules = tmp_path / "deep.png", PictureRules((100.0, 60_000.0))
    Image.fromarray(values).save(path)
    expected = np.clip(np.rint((values.astype(np.float64) - 100) * (255 / 59_900)), 0, 255).astype(np.uint8)
    for strip_px in (2**22, 33):
        monkeypatch.setattr(_decode, "_STRIP_PX", strip_px)
        assert np.array_equal(decode(path, rules)[..., 0], expected)


def test_threads_hold_no_more_pixels_at_full_size_than_there_is_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = [8, 8, 8, 8, 30, 8, 8, 8, 8, 8]
    paths = [tiny_data.save_image(tmp_path / f"{i}.png", tiny_data.random_images(s, s, 3)) for i, s in enumerate(sides)]
    images = FolderImages(paths, np.zeros(len(paths), dtype=np.int64), class_names=("c",))
    monkeypatch.setattr(_formats, "_ROOM_PX", 128)
    monkeypatch.setattr(_formats, "num_threads", lambda: 1)  # room for two of 8 x 8; the large one goes alone
    monkeypatch.setattr("transfergrid.data._threads.num_threads", lambda: 6)
    lock, held, most = threading.Lock(), [0], [0]

    def look(image_HWC: NDArray[np.uint8]) -> int:
        own = image_HWC.shape[0] * image_HWC.shape[1]
        with lock:
            held[0] += own
            most[0] = max(most[0], held[0] if own != 900 else held[0] - 900)
        threading.Event().wait(0.02)
        with lock:
            held[0] -= own
        return len(image_HWC)

    assert images.each(range(10), look) == sides
    assert most[0] == 128 and _formats._in_use_px == 0


def test_a_failure_while_a_picture_is_held_gives_its_room_back(tmp_path: Path) -> None:
    path = tiny_data.save_image(tmp_path / "x.png", tiny_data.random_images(8, 8, 3))

    def fails(image_HWC: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        FolderImages([path], np.zeros(1, dtype=np.int64), class_names=("c",)).each([0], fails)
    assert _formats._in_use_px == 0


PEAK = """
import resource, sys
import numpy as np, torch
from pathlib import Path
from transfergrid.data.sets.image_folder import FolderImages
from transfergrid.data.batches import NetworkInputs
from transfergrid.specs import PreprocessSpec
spec = PreprocessSpec(mode="recipe", resize_px=40, crop_px=32, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1))
paths = [Path(sys.argv[1])] * 40
images = FolderImages(paths, np.zeros(40, dtype=np.int64), class_names=("c",))
rows = np.arange(40)
made = NetworkInputs({"test": images}, (spec,), device=torch.device("cpu"), resident_gb=0.0, rows={"test": rows})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert images.image_size_px == 2500
for [batch] in made.batches("test", torch.split(torch.from_numpy(rows), 40)):
    assert batch.shape == (40, 3, 32, 32)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_large_squares_of_one_size_do_not_fill_memory_with_a_batch_at_full_size(tmp_path: Path) -> None:
    path = tiny_data.save_image(tmp_path / "x.png", np.full((2500, 2500, 3), 7, np.uint8))
    done = subprocess.run([sys.executable, "-c", PEAK, path], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 500_000  # kB; 40 of 19 MB were 760 MB and more


# ------------------------------------------------------------------------------------------------------------- predict
def test_predict_gives_every_other_picture_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = request(tmp_path, "model=tinynet", "phase=scratch", "phase.scratch.epochs=1")
    assert carry_out(asked) == "completed"
    images = tmp_path / "images"
    good = [f"good{i}.png" for i in range(3)]
    for name in good:
        tiny_data.save_image(images / name, tiny_data.random_images(8, 8, 3))
    line(images / "line.png")
    declared(images / "bomb.png", 20_000, 20_000)
    (images / "program.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    tiny_data.save_image(images / "hungry.png", tiny_data.random_images(77, 77, 3))
    real = _decode._rgb

    def starved(image: Image.Image) -> object:
        if image.size == (77, 77):
            raise MemoryError
        return real(image)

    monkeypatch.setattr(_decode, "_rgb", starved)
    output = tmp_path / "out.csv"
    places = [f"store.dir={tmp_path / 'store'}", f"cache.dir={tmp_path / 'cache'}", "device=cpu"]
    monkeypatch.setattr(
        "sys.argv", ["predict.py", f"run={final_run(asked).run_id}", f"images={images}", f"output={output}", *places]
    )
    assert predict.main() == 1
    with open(output, newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert sorted(rows) == sorted([*good, "line.png", "bomb.png", "program.jpg", "hungry.png"])
    assert all(rows[name]["predicted"] and not rows[name]["error"] for name in (*good, "line.png"))
    assert "bomb.png is of 20000 x 20000 px, 400.0 megapixels" in rows["bomb.png"]["error"]
    assert "program.jpg is not an image in a supported format; mend or" in rows["program.jpg"]["error"]
    assert "hungry.png, of 77 x 77 px, does not fit into memory" in rows["hungry.png"]["error"]
    assert "3 images of 7 could not be read" in capsys.readouterr().err
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 6_000_000  # kB


# ------------------------------------------------------------------------------------------------------------- formats
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"),
        ("x.jpg", b"%PDF-1.4\n1 0 obj\n<< >>\nendobj\n"),
        ("x.gif", b"P9\n"),
    ],
)
def test_no_other_decoder_is_tried_whatever_a_file_holds(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DamagedImage, match="is not an image in a supported format"):
        picture_facts(path, content)  # the former release took the size that the program gives
    assert refused(path) == "is not an image in a supported format; mend or remove it"


@pytest.mark.parametrize("suffix", [".jfif", ".avif", ".heic", ".heif"])
def test_newer_kinds_are_read_as_pillow_reads_them_and_counted(suffix: str, tmp_path: Path) -> None:
    if suffix in (".heic", ".heif"):
        pytest.importorskip("pillow_heif")
    folder = two_classes(tmp_path / "photos", save_8_bits, train=3, test=2)
    before = data.facts("image_folder", folder=folder)
    assert before.newly_read == {}
    pixels = np.full((32, 32, 3), (200, 30, 90), np.uint8)
    path = folder / "train" / "dark" / f"new{suffix.upper()}"
    _formats.decoders()
    Image.fromarray(pixels).save(path, format={".jfif": "JPEG", ".avif": "AVIF"}.get(suffix, "HEIF"))
    after = data.facts("image_folder", folder=folder)
    assert dict(after.newly_read) == {suffix: 1} and after.num_images["train"] == before.num_images["train"] + 1
    assert after.fingerprint != before.fingerprint
    assert np.abs(decode(path).astype(int) - pixels).max() <= 8  # as lossy as the format
    path.unlink()
    assert data.facts("image_folder", folder=folder).fingerprint == before.fingerprint


def test_a_heic_file_without_the_extra_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    _formats.suffixes.cache_clear()
    try:
        path = tmp_path / "IMG_0001.HEIC"
        assert _formats.why_unread(path.name) == "needs the extra transfergrid[heic]"
        assert _formats.why_unread("x.png") is None and _formats.why_unread("notes.txt") is None
        assert unreadable(path, ValueError("?")).reason == "needs the extra transfergrid[heic]"
        path.write_bytes(b"\0\0\0\x18ftypheic")
        assert image_files(tmp_path) == [path.name]  # predict names it
    finally:
        _formats.suffixes.cache_clear()
