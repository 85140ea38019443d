"""The report's files: tables and page stand before figures are begun, and figures are made where they are asked for."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
import report_cases as cases
from report_cases import write_report
from rich.console import Console

from transfergrid.cli.report import show_report
from transfergrid.config import load_grid
from transfergrid.paths import StorePaths
from transfergrid.report import figures


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    store = StorePaths(tmp_path)
    run = cases.spec("probe", "resnet18")
    cases.write_grid(store, "g", [(run, "")])
    cases.completed(store, run)
    return store


def test_a_report_killed_among_its_figures_leaves_tables_and_a_page(
    store: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(figures, "make_figures", killed)
    with pytest.raises(KeyboardInterrupt):
        write_report("g", store)
    names = sorted(path.name for path in store.report("g").iterdir())
    assert names == ["answer.json", "comparison.csv", "comparison.md", "comparison.tex", "index.html"]
    assert "or are still being made" in (store.report("g") / "index.html").read_text()


@pytest.mark.parametrize(
    ("asked", "kept"), [([], None), (["report.figures=false"], False), (["report.figures=true"], True)]
)
def test_a_launch_carries_to_its_end_whether_figures_are_wanted(
    asked: list[str], kept: bool | None, tmp_path: Path
) -> None:
    request = load_grid(["grid=quickstart", "dry_run=true", f"cache.dir={tmp_path}", *asked])
    assert request.runtime.report_figures is kept


def test_what_the_finish_job_has_made_is_shown_and_not_made_again_without_figures(
    store: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(file=io.StringIO(), width=120)
    assert show_report(console, ["g"], store, figures=None)  # nobody has made it: now it is
    page = store.report("g") / "index.html"
    page.write_text("with figures")
    assert show_report(console, ["g"], store, figures=None)
    assert page.read_text() == "with figures"
    answer = page.with_name("answer.json")
    content = answer.read_text()
    answer.unlink()  # as an older release left it
    assert show_report(console, ["g"], store, figures=None)
    assert (page.read_text(), answer.read_text()) == ("with figures", content)
    run = cases.spec("probe", "resnet18")
    cases.completed(store, run, test_accuracy=0.5)  # a record that is newer than the page
    os.utime(page, (1, 1))
    assert show_report(console, ["g"], store, figures=None)
    assert page.read_text() != "with figures"


def test_a_report_of_other_rows_is_made_anew_even_if_no_record_is_newer(store: StorePaths) -> None:
    """The grid is launched again with one model more, whose run another grid has made already."""
    console = Console(file=io.StringIO(), width=120)
    run, other = cases.spec("probe", "resnet18"), cases.spec("probe", "googlenet")
    cases.completed(store, other)
    show_report(console, ["g"], store, figures=None)
    cases.write_grid(store, "g", [(run, ""), (other, "")])
    show_report(console, ["g"], store, figures=None)
    lines = (store.report("g") / "comparison.csv").read_text().splitlines()
    assert [line.split(",")[2] for line in lines] == ["model", "resnet18", "googlenet"]
