"""Which classes are taken for which: the facts, and how a terminal of 80 columns shows them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from prediction_cases import predictions_of
from rich.cells import cell_len
from rich.console import Console

from transfergrid.cli.evaluations import _confusions
from transfergrid.cli.tables import rich_table
from transfergrid.errors import DataError
from transfergrid.report.analysis.per_class import (
    Confusion,
    class_table,
    confusion,
    confusions,
    matrix,
    pair_table,
    taken_for,
)
from transfergrid.report.blocks import Section, Table
from transfergrid.report.markdown import table_text
from transfergrid.report.wandb_report import _tables

ANIMALS = ("cat", "dog", "emu", "fox")
COUNTS = np.array([[6, 3, 0, 1], [2, 8, 2, 0], [0, 0, 0, 0], [0, 0, 0, 5]])  # no image is an emu, two are taken for one


def of(counts_CC: Any, names: tuple[str, ...] = ANIMALS, **more: Any) -> Confusion:
    return Confusion(names=names, counts_CC=np.asarray(counts_CC), **more)


def shown(table: Any, width: int = 80) -> list[str]:
    written = io.StringIO()
    Console(file=written, width=width, markup=False, emoji=False).print(table)
    return [line.rstrip() for line in written.getvalue().splitlines()]


def test_each_class_has_its_scores_and_what_it_is_taken_for() -> None:
    cat, dog, emu, fox = of(COUNTS).classes
    assert (cat.images, cat.right, cat.recall, cat.precision) == (10, 6, 0.6, 0.75)
    assert (taken_for(cat), taken_for(dog), taken_for(fox)) == ("dog (3)", "cat, emu (2 each)", "")
    assert (emu.images, emu.recall, emu.precision, emu.f1) == (0, None, 0.0, 0.0)
    assert of([[0, 2], [0, 3]], ("a", "b")).classes[0].precision is None  # never predicted


def test_the_worst_class_comes_first_and_one_without_images_nowhere() -> None:
    found = of(COUNTS)
    assert [c.name for c in found.worst_first()] == ["cat", "dog", "fox"]
    table = class_table(found, most=2)
    assert table.title == "Classes, the worst first, 2 of 3; 1 without test images"
    assert table.texts() == [
        ["cat", "10", "60.00", "75.00", "dog (3)"],
        ["dog", "12", "66.67", "72.73", "cat, emu (2 each)"],
    ]
    assert [c.name for c in of([[1, 1], [5, 5]], ("few", "many")).worst_first()] == ["many", "few"]


def test_the_matrix_has_the_true_classes_in_rows_and_every_predicted_one_in_columns() -> None:
    assert matrix(of(COUNTS)).texts() == [
        ["cat", "6", "3", ".", "1"],
        ["dog", "2", "8", "2", "."],
        ["fox", ".", ".", ".", "5"],
    ]
    assert [c.label for c in matrix(of(COUNTS), numbered=True).columns] == ["true \\ predicted", "0", "1", "2", "3"]
    odd = table_text(matrix(of([[1, 0], [0, 1]], ("line\nbreak", "a|b"))))
    assert odd.splitlines()[0] == "| true \\ predicted | line\\nbreak | a\\|b |" and odd.count("\n") == 4
    assert matrix(of(COUNTS, runs=3)).title == "Predictions, true classes in rows"


def test_predictions_of_more_classes_than_have_names_are_refused() -> None:
    with pytest.raises(DataError, match="are of 10 classes or more, and 9 have a name"):
        confusion([predictions_of(np.ones(20, dtype=bool))], tuple("123456789"))


def test_wandb_gets_no_table_of_it_beside_its_own_of_all_rows() -> None:
    named, unnamed = Table("named", matrix(of(COUNTS)).columns, [0]), matrix(of(COUNTS))
    assert list(_tables([Section("x", "Title", tables=[unnamed, named])])) == ["named"]


def test_the_pairs_have_their_share_of_the_true_class() -> None:
    assert pair_table(of(COUNTS), most=2).texts() == [["cat", "dog", "3", "30.00"], ["dog", "cat", "2", "16.67"]]


@pytest.mark.parametrize(("num_classes", "is_matrix"), [(2, True), (12, True), (13, False), (1000, False)])
def test_many_classes_have_pairs_in_place_of_a_matrix(num_classes: int, is_matrix: bool) -> None:
    found = of(
        np.eye(num_classes, dtype=int) + np.eye(num_classes, k=1, dtype=int), tuple(map(str, range(num_classes)))
    )
    assert (len(confusions(found).columns) == 1 + num_classes) == is_matrix
    table, drawn = _confusions(found, 80)
    assert (len(table.rows) == num_classes) == is_matrix and max(map(len, shown(drawn))) <= 80


@pytest.mark.parametrize(
    "names",
    [
        tuple("abcdefghijkl"),
        tuple(f"a very long name of the class number {i} which no column holds" for i in range(12)),
        tuple("猫の写真がたくさんあります" * (1 + i % 3) + str(i) for i in range(12)),
        tuple(f"\x1b[31mred\x1b[0m {i} 🐈" for i in range(12)),
    ],
    ids=["short", "long", "CJK", "escapes and emoji"],
)
def test_a_matrix_of_twelve_classes_and_its_scores_fit_80_columns_and_stand_in_line(names: tuple[str, ...]) -> None:
    found = of(np.full((12, 12), 7) + 9000 * np.eye(12, dtype=int), names)
    table, drawn = _confusions(found, 80)
    lines = shown(drawn)
    assert len(table.rows) == 12 and max(map(cell_len, lines)) <= 80
    ends = {cell_len(line) for line in lines if line.endswith((" 7", " 9007"))}
    assert ends == {cell_len(lines[1])}  # the last column ends where the rule does
    assert "\x1b" not in "".join(lines)
    of_classes = shown(rich_table(class_table(found)))
    assert max(map(cell_len, of_classes)) <= 80 and "…" not in "".join(lines + of_classes)
