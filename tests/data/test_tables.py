"""A table of pictures: what it may look like, what is refused, and what becomes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_data

from transfergrid import data
from transfergrid.data import DatasetFacts
from transfergrid.data.tables import Row, as_csv, read_rows
from transfergrid.errors import ConfigError, one_line

PATHS = [f"{label}/{number}.png" for label in ("cat", "dog") for number in range(6)]
HEADER = "path,label,split,group"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures of each of two classes."""
    for number, path in enumerate((*PATHS, "odd, name.png")):
        tiny_data.save_image(tmp_path / path, tiny_data.random_images(8, 8, 3, seed=number))
    return tmp_path


def lines(*, split: bool = True, group: bool = True) -> list[str]:
    """Patients of two pictures each; of every class the last patient is tested."""
    found = [",".join(["path", "label", *(["split"] if split else []), *(["group"] if group else [])])]
    for path in PATHS:
        label, number = path[:3], int(path[4])
        cells = [path, label]
        cells += ["test" if number >= 4 else "train"] if split else []
        found.append(",".join([*cells, *([f"{label}-{number // 2}"] if group else [])]))
    return found


def written(folder: Path, content: str | bytes) -> Path:
    table = folder / "table.csv"
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    return table


def facts_of(folder: Path, content: str | bytes) -> DatasetFacts:
    return data.facts("image_folder", folder=folder, table=written(folder, content), kept_hashes=None)


# ------------------------------------------------------------------------------------------------------------- reading
@pytest.mark.parametrize(
    "content",
    [
        b"path,label\na.png,x\nb.png,y\n",
        b"\xef\xbb\xbfpath,label\r\na.png,x\r\nb.png,y\r\n",  # Excel's mark and line ends
        b"label,PATH \nx,./a.png\ny,sub/../b.png\n\n,\n",  # another order, other spellings, empty lines at the end
        b'"path","label"\n"a.png"," x "\n"b.png","y"',
        b"path,label\na.png,x\n%s/b.png,y\n",
    ],
)
def test_what_programs_write_is_read_alike(tmp_path: Path, content: bytes) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    table = written(tmp_path, content.replace(b"%s", bytes(tmp_path)))
    assert read_rows(table, tmp_path) == (Row("a.png", "x"), Row("b.png", "y"))


def test_quoted_commas_and_letters_beyond_ascii_are_part_of_names(folder: Path) -> None:
    tiny_data.save_image(folder / "Hündin.png", tiny_data.random_images(8, 8, 3))
    table = written(folder, 'path,label\n"odd, name.png","a, b"\nHündin.png,e\u0301\n')
    assert read_rows(table, folder) == (Row("odd, name.png", "a, b"), Row("Hündin.png", "\u00e9"))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", r"table.csv has no column 'path'; wanted path,label and, if you have them, split,group"),
        (b"path,label\n", r"table.csv has no rows"),
        (b"path,labels\ncat/0.png,cat\n", r"has an unknown column 'labels'; known: path, label, split, group"),
        (b"path;label\ncat/0.png;cat\n", r"unknown column 'path;label'; separate columns by commas; known"),
        (b"path,label,path\n", r"has a column twice: path, label, path"),
        (b"path,label\ncat/0.png\n", r"line 2 has 1 cells; wanted 2"),
        (b'path,label\n"cat/0.png,cat\n', r"line 2 is not CSV \(unexpected end of data\)"),
        (b"path,label\ncat/0.png,\n", r"line 2 has no label"),
        (b"path,label\n ,cat\n", r"line 2 has no path"),
        (b"path,label,group\ncat/0.png,cat,\n", r"line 2 has no group"),
        (b"path,label,split\ncat/0.png,cat,dev\n", r"line 2: the split 'dev' is unknown; known: train, val, test"),
        (b"path,label\ncat/0.png,cat\n./cat/0.png,dog\n", r"lines 2 and 3 both name cat/0.png; keep one of them"),
        (b"path,label\ncat/0.png,cat\ncat/9.png,cat\ncat/8.png,cat\n", r"line 3: .*cat/9.png is not there, and 1 more"),
        (b"path,label\ncat/0.png,caf\xe9\n", r"line 2 is not UTF-8; save the table as CSV in UTF-8"),
        ("path,label\n".encode("utf-16"), r"line 1 is not UTF-8"),
    ],
)
def test_a_table_that_does_not_fit_is_told_in_one_line(folder: Path, content: bytes, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        read_rows(written(folder, content), folder)
    assert "\n" not in str(caught.value) and one_line(caught.value) == str(caught.value)


def test_a_group_on_both_sides_is_refused_with_a_file_of_each(folder: Path) -> None:
    content = "\n".join([*lines()[:-1], "dog/5.png,dog,train,dog-2"])
    with pytest.raises(
        ConfigError, match=r"group 'dog-2' is in test \(dog/4.png\) and in train \(dog/5.png\); move all its rows"
    ):
        facts_of(folder, content)


@pytest.mark.parametrize(
    ("kept", "complaint"),
    [
        (lambda line: "test" not in line, r"has neither test nor val rows"),
        (lambda line: "dog" not in line, r"train has one class, 'cat'; wanted two or more"),
        (lambda line: "dog/4" not in line and "dog/5" not in line, r"class 'dog' is in train only; test needs it, too"),
    ],
)
def test_every_split_has_every_class(folder: Path, kept: object, complaint: str) -> None:
    assert callable(kept)
    header, *rows = lines()
    with pytest.raises(ConfigError, match=complaint):
        facts_of(folder, "\n".join([header, *filter(kept, rows)]))


# ----------------------------------------------------------------------------------------------------- what it becomes
def test_rows_become_splits_and_groups_in_the_order_of_classes_and_paths(folder: Path) -> None:
    header, *rows = lines()
    facts = facts_of(folder, "\n".join([header, *reversed(rows)]))
    assert facts.num_images == {"train": 8, "test": 4} and facts.class_names == ("cat", "dog")
    assert facts.groups["train"].tolist() == [0, 0, 1, 1, 3, 3, 4, 4]
    assert facts.groups["test"].tolist() == [2, 2, 5, 5]
    images = data.load("image_folder", split="test", data_dir=folder, folder=folder, files=facts.files)
    assert images.labels_N.tolist() == [0, 0, 1, 1]
    assert np.array_equal(images.array()[0], tiny_data.random_images(8, 8, 3, seed=4))


def test_val_rows_are_val_and_without_test_rows_they_are_test(folder: Path) -> None:
    text = "\n".join(lines())
    assert facts_of(folder, text.replace("test", "Validation")).num_images == {"train": 8, "test": 4}
    with_val = text.replace("cat/0.png,cat,train,cat-0", "cat/0.png,cat,val,cat-9")
    with_val = with_val.replace("dog/0.png,dog,train,dog-0", "dog/0.png,dog,valid,dog-9")
    assert facts_of(folder, with_val).num_images == {"train": 6, "val": 2, "test": 4}
    assert facts_of(folder, "\n".join(line for line in lines() if "train" not in line)).num_images == {"test": 4}


def test_the_fingerprint_is_of_what_the_rows_say_and_of_bytes_however_the_table_is_written(folder: Path) -> None:
    text = "\n".join(lines())
    known = facts_of(folder, text).fingerprint
    header, *rows = lines()
    assert facts_of(folder, "\r\n".join([header, *reversed(rows)])).fingerprint == known.replace("content:", "table:")
    changed = [
        text.replace("cat-0", "cat-7"),
        text.replace("cat/0.png,cat", "cat/0.png,dog"),
        "\n".join(lines(group=False)),
        "\n".join([header, *rows[1:]]),
    ]
    others = [facts_of(folder, content).fingerprint for content in changed]
    tiny_data.save_image(folder / "cat" / "0.png", tiny_data.random_images(8, 8, 3, seed=99))
    assert len({known, facts_of(folder, text).fingerprint, *others}) == 6


def test_what_is_written_is_read_as_it_was(folder: Path) -> None:
    rows = tuple(sorted(read_rows(written(folder, "\n".join(lines())), folder), key=lambda row: row.path))
    assert read_rows(written(folder, as_csv(rows)), folder) == rows
    assert as_csv([Row("a", "x", "train"), Row("b", "y", "test")]) == b"path,label,split\na,x,train\nb,y,test\n"
