"""Some 900 odd pictures go through launch, evaluate and predict in one try each; names and files that break others."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import odd_pictures
import pytest
from damaged_pictures import by_pillow as reads_alone
from damaged_pictures import damaged, saved
from picture_files import chunk, decode

from transfergrid.cli import console
from transfergrid.cli.predict import _opened
from transfergrid.data._decode import PictureRules, picture_facts
from transfergrid.data._folder_scan import image_files
from transfergrid.data._image_size import size_px
from transfergrid.data.damaged import DamagedImage, lines_of
from transfergrid.data.folds import Fold
from transfergrid.errors import DataError, one_line
from transfergrid.export.inference import Prepared, _read
from transfergrid.names import csv_rows, printable
from transfergrid.phases.evaluate import _write_csv

MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[2:]).returncode
open(sys.argv[1], "w").write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""
ROOT = Path(__file__).resolve().parents[2]
DEEP = PictureRules(value_range=(0.0, 65535.0), orientation="exif")
NAMES = [*odd_pictures.ODD_NAMES, *map(os.fsdecode, odd_pictures.CLASSES)]


# --------------------------------------------------------------------------------------------------------------- names
@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("a\nb\rc\td", r"a\nb\rc\td"),
        ("\x1b[31mred\x07\x7f\x85", r"\x1b[31mred\x07\x7f\x85"),
        ("\u202egnp.exe\u2066\u2028", r"\u202egnp.exe\u2066\u2028"),
        (os.fsdecode(b"caf\xe9 \xff"), r"caf\xe9 \xff"),
        ("café cafe\u0301 猫 \U0001f408 \ud7ff [x] :cat: \\n", "café cafe\u0301 猫 \U0001f408 \ud7ff [x] :cat: \\n"),
    ],
)
def test_a_name_in_a_message_is_obeyed_by_no_terminal(name: str, seen: str) -> None:
    assert printable(name) == seen
    damaged = DamagedImage(Path("/pets") / f"{name}.png", "is none")
    assert str(damaged) == f"/pets/{seen}.png is none; mend or remove it" and one_line(damaged) == str(damaged)
    assert lines_of([(name, "is none")]) == (f"  {seen} is none",)
    assert one_line(DataError(f"x {name.strip()}")) == f"x {printable(' '.join(name.split()))}"


def test_a_name_comes_back_from_a_csv_file_byte_for_byte(tmp_path: Path) -> None:
    with _opened(tmp_path / "out.csv") as file:
        csv_rows(file).writerows([name, "x"] for name in NAMES)
    with open(tmp_path / "out.csv", newline="", encoding="utf-8", errors="surrogateescape") as written:
        rows = list(csv.reader(written))
    assert [os.fsencode(row[0]) for row in rows] == [os.fsencode(name) for name in NAMES]
    assert (tmp_path / "out.csv").read_bytes().endswith(b",x\n") and all(row[1] == "x" for row in rows)

    fold = Fold("test", np.array([0]), np.array([1]))
    _write_csv(tmp_path / "e.csv", fold, np.zeros((1, 2), np.float32), ("a", "b\rc"), None)
    assert (tmp_path / "e.csv").read_bytes() == b'file,index,label,predicted,probability\n,0,"b\rc",a,0.5000\n'


def test_a_terminal_that_lacks_a_letter_gets_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr("sys.argv", ["launch_grid.py"])

    def main(arguments: object) -> int:
        console.make_console().print("café 猫 :cat: [x]", soft_wrap=True)
        sys.stdout.flush()
        return 0

    assert console.run_script(main) == 0
    assert written.getvalue() == rb"caf\xe9 \u732b :cat: [x]" + b"\n"


def test_a_list_is_cut_on_a_terminal_alone() -> None:
    lines = [str(number) for number in range(103)]
    assert console.as_many_as_fit(lines, on_terminal=False) == lines
    assert console.as_many_as_fit(lines[:100], on_terminal=True) == lines[:100]
    cut = console.as_many_as_fit(lines, on_terminal=True)
    assert cut == [*lines[:100], "  and 3 more: send the output to a file to see all"]


# -------------------------------------------------------------------------------------------------------------- decode
def test_a_png_that_begins_with_another_chunk_has_the_size_that_it_states_later(tmp_path: Path) -> None:
    whole = saved("PNG")
    path = tmp_path / "x.png"
    path.write_bytes(whole[:8] + chunk(b"tEXt", b"a\0b" + bytes(20)) + whole[8:])
    assert size_px(path, path.read_bytes()) == (12, 10)
    assert decode(path).shape == (10, 12, 3)


def test_what_is_damaged_at_random_is_refused_where_pillow_refuses_it_and_never_otherwise(tmp_path: Path) -> None:
    """And no other error comes out of the decoder, whatever the bytes are."""
    read = refused = 0
    for odd in damaged(seed=1, each=30):
        path = tmp_path / os.fsdecode(odd.name)
        path.write_bytes(odd.content)
        by_pillow = reads_alone(odd.content)
        try:
            facts = picture_facts(path, odd.content)
        except DamagedImage as found:
            assert not by_pillow, found
            refused += 1
            continue
        assert by_pillow, odd.name
        pixels = decode(path, DEEP)
        assert sorted(pixels.shape[:2]) == sorted((facts.height_px, facts.width_px)), odd.name
        read += 1
    assert read > 200 and refused > 600


QUIET = """
import sys
from pathlib import Path
from transfergrid.data._decode import PictureRules, decoded
from transfergrid.errors import DataError
refused = 0
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        with decoded(path, PictureRules((0.0, 1.0), "exif")):
            pass
    except DataError:
        refused += 1
print(refused)
"""


def test_pillow_and_libtiff_print_no_lines_of_their_own(tmp_path: Path) -> None:
    """Warnings, errors of a logger, and what libtiff writes by itself: none of them names a file."""
    for odd in damaged(seed=2, each=12):
        (tmp_path / os.fsdecode(odd.name)).write_bytes(odd.content)
    done = subprocess.run([sys.executable, "-c", QUIET, tmp_path], capture_output=True, text=True, check=True)
    assert done.stderr == "" and int(done.stdout) > 200


def test_predict_never_takes_the_thumbnail_of_a_raw_file_for_the_picture(tmp_path: Path) -> None:
    """A camera's raw file is a TIFF file with a small picture before the large one, which Pillow would read."""
    for name in ("a.NEF", "b.tif"):
        (tmp_path / name).write_bytes(saved("TIFF"))
    raw, tiff = _read(tmp_path, image_files(tmp_path), (), PictureRules())
    assert str(raw) == f"{tmp_path / 'a.NEF'} has a format that is not supported: convert it to PNG or JPEG"
    assert tiff == Prepared({}, deep=False, outside=False)


# ---------------------------------------------------------------------------------------------------- the whole folder
def run(log: Path, script: str, *arguments: str) -> tuple[int, str]:
    """Exit code (124 after five minutes) and output of a script of jobs/, whose memory stays below 2 GB."""
    command = ["timeout", "300", sys.executable, str(ROOT / "jobs" / script), *arguments]
    used = log.with_suffix(".kb")
    measure = [sys.executable, "-c", MEASURE, str(used), *command]  # a child's own peak begins with its parent's size
    with open(log, "wb") as file:
        done = subprocess.run(
            measure, stdout=file, stderr=file, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
        )
    assert int(used.read_text()) < 2_000_000  # kB, of the largest of all its processes
    text = log.read_bytes().decode()
    assert "Traceback" not in text and "Warning" not in text and "\x1b" not in text
    return done.returncode, text


def listed(text: str, root: str) -> Iterator[str]:
    return (line for line in text.split("\n") if line.startswith(f"  {root}"))


@pytest.mark.slow
def test_nine_hundred_odd_pictures_go_through_launch_evaluate_and_predict_in_one_try_each(tmp_path: Path) -> None:
    folder, places = tmp_path / "odd", [f"store.dir={tmp_path / 's'}", f"cache.dir={tmp_path / 'c'}", "device=cpu"]
    made = odd_pictures.make(folder)
    assert len(made.good) > 300 and len(made.refused) > 400 and len(made.good | made.refused | made.left_out) > 900
    own = ["dataset=image_folder", f"dataset.folder={folder}", "dataset.value_range=[0,65535]", "tracking=disabled"]
    grid = ["cluster=local", "grid=compare", "grid.models=[tinynet_cifar]", "grid.phases=[probe]", "grid.seeds=[0]"]

    code, text = run(tmp_path / "refused.txt", "launch_grid.py", *grid, *own, *places)
    assert code == 1 and not list((tmp_path / "s").glob("runs/*"))
    assert f"error: {folder}: {len(made.refused)} files cannot be used; mend or remove them" in text
    wanted = sorted(printable(f"  {folder}/{path} ") for path in made.refused)
    assert [
        line[: len(start)] for line, start in zip(sorted(listed(text, f"{folder}/")), wanted, strict=True)
    ] == wanted

    code, text = run(tmp_path / "launch.txt", "launch_grid.py", *grid, *own, *places, "dataset.skip_damaged=true")
    assert code == 0 and f"left out because they cannot be used: {len(made.refused)}" in text
    left_out = [line for part in ("train/", "test/") for line in listed(text, part)]
    wanted = sorted(printable(f"  {path} ") for path in made.refused)
    assert [line[: len(start)] for line, start in zip(sorted(left_out), wanted, strict=True)] == wanted
    records = {path.parent.name: json.loads(path.read_bytes()) for path in (tmp_path / "s").glob("runs/*/record.json")}
    assert [record["status"] for record in records.values()] == ["completed", "completed"]
    assert all(0 < record["usage"]["max_rss_mib"] < 2000 for record in records.values())
    [probe] = [name for name in records if "-probe-" in name]

    predict = [f"run={probe}", f"images={folder}", f"output={tmp_path / 'p.csv'}", *places]
    code, _ = run(tmp_path / "predict.txt", "predict.py", *predict)
    assert code == 1
    with open(tmp_path / "p.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == image_files(folder)
    misnamed = {path for path in made.left_out if path.endswith(("/notes.txt", "/no-suffix", "/Thumbs.db"))}
    assert {row["file"] for row in rows if row["predicted"]} == made.good | misnamed
    assert made.refused < {row["file"] for row in rows if row["error"]} <= made.refused | made.left_out

    evaluate = ["phase=evaluate", f"run={probe}", *own, *places, "dataset.skip_damaged=true"]
    code, _ = run(tmp_path / "evaluate.txt", "run_phase.py", *evaluate)
    assert code == 0
    [evaluated] = [path for path in (tmp_path / "s").glob("runs/*/predictions.csv")]
    with open(evaluated, newline="", encoding="utf-8", errors="surrogateescape") as file:
        labels = [row["label"] for row in csv.DictReader(file)]
    assert sorted(labels) == sorted(path.split("/")[1] for path in made.good if path.startswith("test/"))
