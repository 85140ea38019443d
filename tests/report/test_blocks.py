"""Sections, tables and columns, and what their renderers write."""

from __future__ import annotations

from dataclasses import dataclass, replace

from report_cases import row

from transfergrid.report import markdown
from transfergrid.report.analysis.cells import percent
from transfergrid.report.analysis.columns import COMPARISON, pick
from transfergrid.report.analysis.rows import COLUMNS as COLUMNS_OF_CSV
from transfergrid.report.blocks import Column, Section, Table, figure, plain, words
from transfergrid.report.page.table import PageTable, page_table


@dataclass(frozen=True)
class Line:
    model: str
    accuracy: float | None
    low: float = 0.5
    weights: str = "random"


COLUMNS: list[Column[Line]] = [
    words("model"),
    words("weights"),
    figure("accuracy", percent, label="test", unit="%", beside="[95 %]", more={"low": lambda line: line.low}),
]
ROWS = [Line("a|b", 0.971167), Line("", None)]


def test_a_column_is_told_with_and_without_its_unit_and_of_a_part_of_its_line() -> None:
    accuracy = COLUMNS[2]
    assert (accuracy.heading, accuracy.heading_with_unit) == ("test [95 %]", "test,\u00a0% [95 %]")
    assert replace(accuracy, unit="points", beside="").heading_with_unit == "test, points"  # may break: it is long
    of_pair: Column[tuple[int, Line]] = accuracy.of(lambda pair: pair[1])
    pair = (3, ROWS[0])
    assert (of_pair.text(pair), of_pair.value(pair), of_pair.more["low"](pair)) == ("97.12", 0.971167, 0.5)


def test_facts_are_the_numbers_in_full_and_a_text_rounds_them() -> None:
    table = Table("t", COLUMNS, ROWS)
    assert table.texts() == [["a|b", "random", "97.12"], ["", "random", ""]]
    assert table.facts() == (
        ("model", "weights", "accuracy", "low"),
        (("a|b", "random", 0.971167, 0.5), (None, "random", None, 0.5)),
    )


def test_a_section_as_markdown_has_its_parts_in_order_and_bars_stay_in_their_cells() -> None:
    marked = [*COLUMNS[:2], figure("accuracy", percent, is_marked=True)]
    table = Table("t", marked, ROWS, "Above", marks=["x", ""], notes=[("x", "few images")])
    section = Section("s", "Title", about=["About."], tables=[table], items=["one"], below=["End."], grid="mine")
    assert markdown.section_text(section) == (
        "## mine: Title\n\nAbout.\n\nAbove:\n\n"
        "| model | weights | accuracy |\n| --- | --- | ---: |\n| a\\|b | random | 97.12 x |\n|  | random |  |\n\n"
        "- x: few images.\n\n- one\n\nEnd.\n"
    )
    assert markdown.section_text(None) == ""
    assert markdown.document("T", [Section("s", about=["a"]), Section("t", items=["b"])]) == "# T\n\na\n\n- b\n"


def test_columns_of_names_that_never_change_leave_their_table_on_the_page_and_are_told_once() -> None:
    long = "x" * 41
    page = page_table(Table("t", [*COLUMNS[:2], words("about", lambda _: long)], ROWS))
    assert page == PageTable(
        header=[("model", ""), ("about", "")],
        lines=[[("a|b", ""), (long, "wide")], [("", ""), (long, "wide")]],
        same="weights random",
    )
    assert page_table(plain(["a", "n"], [["one two three", "1"]], left=1)).lines == [
        [("one two three", "phrase"), ("1", "number")]
    ]
    assert page_table(plain(["weights"], [], left=1)).header == [("weights", "")]


def test_columns_of_the_comparison_are_picked_by_name_and_may_stand_under_other_words() -> None:
    accuracy, seconds = pick("test_accuracy wall_s", test_accuracy="ours [95 %]")
    assert [accuracy.heading, seconds.heading, seconds.heading_with_unit] == [
        "ours [95 %]",
        "own wall s",
        "own wall\u00a0s",
    ]
    assert COMPARISON["test_accuracy"].heading == "test [95 %]"
    assert list(COMPARISON) == list(COLUMNS_OF_CSV)  # the page and W&B show all of comparison.csv, in its order
    line = row(
        test_accuracy=0.971167,
        ci95_low=0.96,
        ci95_high=0.98,
        remarks=("a", "b"),
        better_than_head=("knn",),
        knn_test_accuracy=0.98,
    )
    assert (accuracy.value(line), accuracy.text(line)) == (0.971167, "97.1 [96.0, 98.0]")
    assert COMPARISON["remarks"].value(line) == "a; b" and COMPARISON["knn_test_accuracy"].text(line) == "98.00 ▲"
