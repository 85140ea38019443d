from __future__ import annotations

import csv
from pathlib import Path

import pytest
import report_cases as cases
from html_tree import parse
from page_cases import right_N, small_grid
from prediction_cases import finished

from transfergrid.cli.report import report
from transfergrid.config.report import parse_report
from transfergrid.errors import ConfigError
from transfergrid.paths import StorePaths
from transfergrid.report.analysis.comparison import read_comparison
from transfergrid.report.several import joined, named_apart


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    """`small`, which is not finished, and `other`, which is."""
    store = StorePaths(tmp_path / "results")
    runs = small_grid(store)
    fast = cases.spec("probe", "resnet18", epochs=1)
    finished(store, fast, right_N(120))
    cases.write_grid(store, "other", [(fast, ""), (runs["googlenet 0"], "as_before")])
    return store


def test_grids_stand_side_by_side_and_each_keeps_its_own_checks(
    store: StorePaths, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(["compare=[small,other]", f"store.dir={store.root}", "figures=false"]) == 1
    folder = store.report("small-vs-other")
    with open(folder / "comparison.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["grid"] for row in rows] == ["small"] * 5 + ["other"] * 2
    tex = [line for line in (folder / "comparison.tex").read_text().splitlines() if line.startswith("resnet18 &")]
    assert [line.split(" & ")[1] for line in tex][::2] == ["probe, in small", "probe, in other"]
    assert [(row["n_seeds"], row["epochs"]) for row in rows if row["model"] == "resnet18"][::2] == [
        ("2", "5"),
        ("1", "1"),
    ]
    text = (folder / "comparison.md").read_text()
    assert text.startswith("# Comparison: small and other\n\n7 rows of 2 grids: 5 completed.\n")
    assert [line for line in text.splitlines() if line.startswith("## ") and "rows" in line] == [
        "## small: rows",
        "## other: rows",
    ]
    assert "## small: Joined models beside their best part" in text
    assert "## other: Joined models beside their best part" not in text
    page = parse((folder / "index.html").read_text())
    filters = [s.attributes["data-filter"] for s in page.all("select") if "data-filter" in s.attributes]
    assert filters == ["grid", "dataset", "phase", "status"]
    headers = [th for th in page.one("table", id="comparison").all("th") if "data-column" in th.attributes]
    shown = [th.attributes["data-column"] for th in headers if "extra" not in th.classes]
    assert shown[0] == "grid"
    printed = capsys.readouterr().out
    assert printed.index("\nsmall\n") < printed.index("\nother\n")
    last = [line for line in printed.splitlines() if line.startswith(("small:", "other:"))]
    assert last == ["small: 2 of 5 rows not complete; the report names the runs, why, and the next step"]


def test_the_terminal_says_that_a_record_does_not_stand_on_its_predictions(
    store: StorePaths, capsys: pytest.CaptureFixture[str]
) -> None:
    run = cases.spec("probe", "resnet18", epochs=1)
    store.run(run.run_id).predictions.unlink()
    report(["grid=other", f"store.dir={store.root}", "figures=false"])
    line = "other: 1 record at odds with the stored predictions; see the report"
    assert line in capsys.readouterr().out.splitlines()


def test_finished_grids_give_exit_code_0(store: StorePaths) -> None:
    again = cases.spec("probe", "resnet18", epochs=1)
    cases.write_grid(store, "third", [(again, "")])
    assert report(["compare=[other,third]", f"store.dir={store.root}", "figures=false"]) == 0


def test_in_figures_equal_rows_of_two_grids_have_different_names(store: StorePaths) -> None:
    whole = joined([read_comparison("small", store), read_comparison("other", store)])
    assert len(whole.rows) == len(whole.runs) == 7
    names = [(row.model, row.variant) for row in named_apart(whole).rows]
    assert names[0] == ("resnet18", "in small") and names[5:] == [
        ("resnet18", "in other"),
        ("googlenet", "as_before in other"),
    ]
    alone = read_comparison("small", store)
    assert named_apart(alone) is alone and joined([alone]) is alone


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare=[a]"], "names fewer than two grids"),
        (["compare=[a,]"], "names fewer than two grids"),
        (["compare=a,b"], r"a list is written compare=\[a,b\]"),
        (["compare=[a,a]"], "holds a grid twice"),
        (["compare=[a,../b]"], "may hold only"),
        (["compare=[a,b]", "grid=a"], "both given"),
        (["figures=no"], "is not one of true, false, keep"),
        ([f"compare=[{','.join(f'grid_{i:03d}' for i in range(30))}]"], "give fewer grids"),
        (["sources=wandb"], "unknown key 'sources'; did you mean 'source'"),
        (["project=p"], "belongs to source=wandb or publish=true"),
        (["publish=maybe"], "is not true or false"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        parse_report(arguments)
    assert "\n" not in str(error.value)


def test_a_report_is_of_one_grid_with_figures_unless_said_otherwise() -> None:
    request = parse_report([])
    assert (request.grids, request.figures, request.store.root) == ((), True, Path("results"))
    assert parse_report(["compare=[a, b]", "figures=False"]).grids == ("a", "b")
