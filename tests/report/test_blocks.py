from __future__ import annotations

from transfergrid.report.page.blocks import Block, blocks, folded, sections


def test_headings_part_the_text_and_the_title_is_left_out() -> None:
    found = sections("# Title\n\n3 rows.\n\n## One\n\ntext\n\n## Two\n- a\n")
    assert [s.heading for s in found] == ["", "One", "Two"]
    assert [b.lines for s in found for b in s.blocks] == [("3 rows.",), ("text",), ("a",)]


def test_lists_keep_what_continues_on_the_next_line() -> None:
    assert blocks("- one\n  goes on\n- two\nparagraph\nof two lines\n") == (
        Block(kind="list", lines=("one goes on", "two")),
        Block(kind="paragraph", lines=("paragraph of two lines",)),
    )


def test_tables_keep_bars_inside_cells_and_know_their_numbers() -> None:
    (table,) = blocks("| name | n |\n| --- | ---: |\n| a \\| b | 1 |\n|  | " + "x" * 41 + " |\n")
    assert (table.header, table.numeric) == (("name", "n"), (False, True))
    assert table.cells == (("a | b", "1"), ("", "x" * 41))
    assert table.wide == (False, True)


def test_columns_of_names_that_never_change_leave_their_table_and_are_told_once() -> None:
    text = "| model | variant | weights | protocol | n |\n| --- | --- | --- | --- | ---: |\n"
    (table,) = blocks(text + "| a |  | random | fair | 1 |\n| b |  | random | published | 1 |\n")
    narrow = folded(table)
    assert (narrow.header, narrow.numeric) == (("model", "protocol", "n"), (False, False, True))
    assert narrow.cells == (("a", "fair", "1"), ("b", "published", "1"))
    assert narrow.same == "weights random"
    (empty,) = blocks(text)
    assert folded(empty) == empty
    (paragraph,) = blocks("weights\n")
    assert folded(paragraph) == paragraph
