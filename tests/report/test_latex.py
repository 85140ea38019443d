from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from page_cases import small_grid

from transfergrid.paths import StorePaths
from transfergrid.report.analysis.comparison import comparison_rows
from transfergrid.report.latex import as_latex, escape


def test_each_special_sign_is_printed_as_itself() -> None:
    assert escape("a_b & 50% of $x #1 {y} ~^\\") == (
        r"a\_b \& 50\% of \$x \#1 \{y\} \textasciitilde{}\textasciicircum{}\textbackslash{}"
    )
    assert escape('<b>"x"|[1]*\n\x00y--z') == (r"\textless{}b\textgreater{}''x''\textbar{}{[}1{]}{*} y{-}{-}z")


def test_the_table_is_a_booktabs_tabular_with_as_many_cells_in_every_line(tmp_path: Path) -> None:
    store = StorePaths(tmp_path)
    small_grid(store)
    rows = comparison_rows("small", store)
    rows[0] = replace(rows[0], model="a_b&c", variant="[x] \\input{y}")
    lines = as_latex("small", rows).splitlines()
    assert lines[2] == r"\begin{tabular}{llrrrrrrrrr}" and lines[3] == r"\toprule" and lines[-3] == r"\bottomrule"
    assert (
        lines[-2] == r"\multicolumn{11}{p{\linewidth}}{\footnotesize $^{a}$ lr 0.01 is the largest of the search.} \\"
    )
    body = [line for line in lines if line.endswith(r"\\") and "multicolumn" not in line]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {10} and len(body) == 1 + 5
    assert body[1].startswith(
        r"a\_b\&c & probe, {[}x{]} \textbackslash{}input\{y\} & 2 & 90.3 {[}87.1, 93.4{]}$^{a}$ &"
    )
    assert r" & $+5.00$ & " in body[3]
    assert r"& failed &" in body[4] and r"& missing &" in body[5]


def test_a_row_of_some_of_its_seeds_says_of_how_many(tmp_path: Path) -> None:
    store = StorePaths(tmp_path)
    small_grid(store)
    rows = comparison_rows("small", store)
    partly = replace(rows[0], n_seeds=2, status="2/5 completed", n_launched=5)
    seeds = [line.split(" & ")[2] for line in as_latex("small", [partly, *rows]).splitlines() if " & " in line][1:]
    assert seeds[:2] == ["2/5", "2"] and [row.status for row in rows[3:]] == ["failed", "missing"]
    assert seeds[-2:] == ["0", "0"]


def test_blocks_name_the_data_set_and_a_protocol_that_is_not_fair(tmp_path: Path) -> None:
    store = StorePaths(tmp_path)
    small_grid(store)
    rows = comparison_rows("small", store)
    text = as_latex("small", [*rows, replace(rows[0], protocol="published")])
    assert re.findall(r"\\emph\{(.*?)\}", text) == ["mnist", "mnist, protocol published"]


def test_rows_that_differ_in_weights_alone_are_told_apart_by_them_and_others_are_not(tmp_path: Path) -> None:
    store = StorePaths(tmp_path)
    small_grid(store)
    rows = comparison_rows("small", store)
    untrained = replace(rows[0], weights="random")
    elsewhere = replace(rows[1], weights="random", dataset="cifar10")
    lines = as_latex("small", [*rows, untrained, elsewhere]).splitlines()
    told = [line.split(" & ")[:2] for line in lines if "weights" in line]
    assert told == [
        ["resnet18", r"probe, weights IMAGENET1K\_V1"],
        ["resnet18", "probe, weights random"],
    ]
