"""The report's files: tables and page stand before figures are begun, and figures are made where they are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import report_cases as cases

from transfergrid.config import load_grid
from transfergrid.paths import StorePaths
from transfergrid.report import figures
from transfergrid.report.write import write_report


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
    assert names == ["comparison.csv", "comparison.md", "comparison.tex", "index.html"]
    assert "or are still being made" in (store.report("g") / "index.html").read_text()


@pytest.mark.parametrize(
    ("asked", "kept"), [([], None), (["report.figures=false"], False), (["report.figures=true"], True)]
)
def test_a_launch_carries_to_its_end_whether_figures_are_wanted(
    asked: list[str], kept: bool | None, tmp_path: Path
) -> None:
    request = load_grid(["grid=quickstart", "dry_run=true", f"cache.dir={tmp_path}", *asked])
    assert request.runtime.report_figures is kept
