"""Splits that are drawn: class shares, whole groups, the same on every machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from transfergrid.data import DatasetFacts
from transfergrid.data.draws import val_groups, with_splits
from transfergrid.data.folds import count_rows, make_folds
from transfergrid.data.images import FolderFiles
from transfergrid.data.tables import Row
from transfergrid.errors import ConfigError
from transfergrid.specs import DatasetSpec, Split

FOLDER = Path("/data/pets")
GROUPS_OF_TWO = {"p": "ab", "q": "ac", "r": "bc"}  # each class is in two of them


def rows_of(counts: dict[str, int]) -> list[Row]:
    return [Row(f"{label}/{number:03}.png", label) for label, count in counts.items() for number in range(count)]


def sides(rows: list[Row], fraction: float = 0.2) -> dict[str, str]:
    return {row.path: row.split for row in with_splits(rows, test_fraction=fraction, where=FOLDER)}


def test_each_class_gives_its_share_and_keeps_one_picture_on_either_side() -> None:
    rows = rows_of({"cat": 50, "dog": 13, "emu": 2})
    split_of = sides(rows)
    tested = {
        label: sum(split_of[row.path] == "test" for row in rows if row.label == label)
        for label in "cat dog emu".split()
    }
    assert tested == {"cat": 10, "dog": 3, "emu": 1}
    assert sum(split == "test" for split in sides(rows, 0.5).values()) == 25 + 6 + 1


def test_the_split_does_not_depend_on_the_order_of_files_and_is_the_same_everywhere() -> None:
    rows = rows_of({"cat": 10, "dog": 10})
    assert sides(rows) == sides(rows[::-1])
    tested = [path for path, split in sides(rows).items() if split == "test"]
    assert tested == ["cat/003.png", "cat/005.png", "dog/003.png", "dog/009.png"]


def test_a_folder_that_grows_keeps_nearly_all_pictures_on_their_side() -> None:
    before, after = sides(rows_of({"cat": 200, "dog": 200})), sides(rows_of({"cat": 260, "dog": 260}))
    moved = [path for path in before if before[path] != after[path]]
    assert len(moved) <= 12  # of 400: only those near the border of a class


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (rows_of({"cat": 5, "dog": 1}), r"/data/pets: class 'dog' has one picture; a split needs two"),
        (rows_of({"cat": 5}), r"/data/pets has one class, 'cat'; wanted two or more"),
        (
            [Row("a", "cat", "", "p1"), Row("b", "cat", "", "p2"), Row("c", "dog", "", "p3")],
            r"class 'dog' has one group",
        ),
        (
            [Row(group + label, label, "", group) for group, labels in GROUPS_OF_TWO.items() for label in labels],
            r"no split by group has class",
        ),
    ],
)
def test_a_class_that_cannot_be_on_both_sides_is_one_line(rows: list[Row], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        with_splits(rows, test_fraction=0.2, where=FOLDER)


def patients(count: int, seed: int = 0) -> list[Row]:
    """Of uneven sizes; each has pictures of one class, and a few of another."""
    generator = np.random.default_rng(seed)
    return [
        Row(f"{patient}-{number}", "abc"[(patient + (number > 6)) % 3], "", f"p{patient:03}")
        for patient in range(count)
        for number in range(generator.integers(1, 12))
    ]


def test_groups_stay_whole_and_each_class_gives_about_its_share() -> None:
    rows = patients(120)
    drawn = with_splits(rows, test_fraction=0.2, where=FOLDER)
    assert len({(row.group, row.split) for row in drawn}) == 120
    for label in "abc":
        own = [row for row in drawn if row.label == label]
        assert 0.17 < sum(row.split == "test" for row in own) / len(own) < 0.23
    assert {(row.group, row.split) for row in with_splits(rows[::-1], test_fraction=0.2, where=FOLDER)} == {
        (row.group, row.split) for row in drawn
    }


def arrays(rows: list[Row]) -> tuple[Any, Any]:
    rows = sorted(rows, key=lambda row: (row.label, row.path))
    return (
        np.array(["abc".index(row.label) for row in rows]),
        np.unique([row.group for row in rows], return_inverse=True)[1].astype(np.int64),
    )


def test_val_is_whole_groups_by_seed_and_no_class_leaves_the_training_set() -> None:
    labels_N, groups_N = arrays(patients(120))
    held = [val_groups(labels_N, groups_N, val_seed=seed) for seed in (0, 0, 1)]
    assert np.array_equal(held[0], held[1]) and not np.array_equal(held[0], held[2])
    for index_N in held:
        assert not set(groups_N[index_N]) & set(np.delete(groups_N, index_N))
        assert np.all(np.abs(np.bincount(labels_N[index_N]) / np.bincount(labels_N) - 0.1) < 0.04)
    few = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1])
    assert len(val_groups(*few, val_seed=0)) == 0  # each group is all there is of a class


@pytest.mark.parametrize("max_images", [None, 150])
def test_the_plan_counts_what_the_run_holds_out(max_images: int | None) -> None:
    from report_cases import spec

    labels_N, groups_N = arrays(patients(60))
    counts = tuple(np.bincount(labels_N).tolist())
    facts = DatasetFacts(
        kind="image_folder",
        fingerprint="table:0",
        num_classes=3,
        class_names=("a", "b", "c"),
        image_size_px=8,
        mirror_ok=True,
        num_images={"train": len(labels_N), "test": 3},
        train_counts=counts,
        files=FolderFiles({}, {}, {"train": groups_N, "test": np.arange(3)}),
    )
    run = spec("probe", "resnet18", max_images=max_images)
    labels: dict[Split, NDArray[np.int64]] = {"train": labels_N, "test": np.arange(3)}
    folds = make_folds(run, labels, facts.groups)
    counted = count_rows(
        facts, max_images=max_images, protocol="fair", train_fraction=None, shots=None, val_seed=run.val_seed
    )
    assert folds.val is not None and len(folds.val) == counted.val > 0 and len(folds.train) == counted.train
    assert folds.val.groups_N is not None and folds.train.groups_N is not None and folds.test.groups_N is not None
    assert not set(folds.val.groups_N) & set(folds.train.groups_N)
    assert isinstance(run.dataset, DatasetSpec)
