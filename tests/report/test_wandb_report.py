"""What is sent to W&B says what comparison.csv and the page say."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import page_cases
import pytest

from transfergrid.errors import DataError
from transfergrid.paths import StorePaths
from transfergrid.report.analysis.comparison import Comparison, read_comparison
from transfergrid.report.analysis.rows import COLUMNS
from transfergrid.report.wandb_report import wandb_report_of
from transfergrid.report.write import write
from transfergrid.store import durable
from transfergrid.tracking.wandb_report import Table, WandbReport, row_config, row_summary


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    store = StorePaths(tmp_path_factory.mktemp("store") / "results")
    page_cases.small_grid(store)
    return read_comparison("small", store)


@pytest.fixture(scope="module")
def folder(comparison: Comparison) -> Path:
    return write([comparison], figures=False).parent


@pytest.fixture
def wandb_report(comparison: Comparison, folder: Path) -> WandbReport:
    return wandb_report_of([comparison], folder)


def test_the_comparison_table_is_comparison_csv_cell_by_cell(wandb_report: WandbReport, folder: Path) -> None:
    lines = list(csv.reader(io.StringIO((folder / "comparison.csv").read_text())))
    table = wandb_report.tables["comparison"]
    assert list(table.columns) == lines[0] == list(COLUMNS)
    assert [["" if cell is None else str(cell) for cell in row] for row in table.rows] == lines[1:]
    assert len(lines) == 1 + 5


def test_a_rows_summary_has_its_numbers_and_its_config_its_names(wandb_report: WandbReport) -> None:
    pair = next(row for row in wandb_report.rows if row["model"] == "resnet18+googlenet")
    summary = row_summary(pair)
    assert summary["test_accuracy"] == pytest.approx((190 + 191) / 2 / 200)
    assert summary["n_seeds"] == 2
    assert summary["status"] == "completed"
    assert "published_accuracy" not in summary  # an empty cell
    assert row_config(pair) == {
        "grid": "small",
        "dataset": "mnist",
        "model": "resnet18+googlenet",
        "phase": "probe",
        "variant": "",
        "weights": pair["weights"],
        "protocol": "fair",
        "current": True,
    }
    assert set(summary) & set(row_config(pair)) == set()


def test_the_markdown_table_and_the_verdict_stand_on_the_page_in_the_same_words(
    wandb_report: WandbReport, folder: Path
) -> None:
    page = html.unescape((folder / "index.html").read_text())
    assert wandb_report.headline in page
    header, _, *lines = wandb_report.markdown_table.replace("\xa0", " ").splitlines()
    assert header.startswith("| dataset | model | phase | verdict | status | test, % [95 %] | val, % |")
    assert lines[5:] == ["", "- a: lr 0.01 is the largest of the search."]
    pair = next(line for line in lines if "resnet18+googlenet" in line)
    cells = [cell.strip() for cell in pair.strip("|").split("|")]
    assert cells[:6] == ["mnist", "resnet18+googlenet", "probe", "better", "completed", "95.2 [92.1, 98.4] a"]
    assert all(cell.removesuffix(" a") in page for cell in cells)
    assert '<span class="remark">lr 0.01 is the largest of the search</span>' in page


def test_tables_of_the_sections_are_sent_in_full_under_the_names_of_comparison_csv(
    wandb_report: WandbReport,
) -> None:
    costs = wandb_report.tables["cost"]
    assert costs.columns[:2] == ("dataset", "model")
    assert costs.rows[0][costs.columns.index("wall_s")] == 10.0
    assert costs.rows[0][costs.columns.index("parameters")] == 11_181_642
    statistics = wandb_report.tables["statistics"]
    assert {row[statistics.columns.index("best_on_val")] for row in statistics.rows} == {"resnet18+googlenet"}
    winner = wandb_report.tables["winner"]
    assert winner.rows[0][:4] == ("mnist", "resnet18+googlenet (probe)", "resnet18 (probe)", "better")
    assert {"joins", "failures"} <= set(wandb_report.tables)
    (join,) = (
        dict(zip(wandb_report.tables["joins"].columns, row, strict=True)) for row in wandb_report.tables["joins"].rows
    )
    pair = next(row for row in wandb_report.rows if row["model"] == "resnet18+googlenet")
    for name in ("test_accuracy", "ci95_low", "ci95_high", "delta_to_best_single"):
        assert join[name] == pair[name] and isinstance(pair[name], float)  # 0.9525, not "95.2 [92.1, 98.4]"
    assert join["p_holm"] == pair["p_value_vs_best_single"] and join["family_size"] == 2


def test_scores_per_class_are_of_all_seeds_and_add_up_to_the_accuracy(wandb_report: WandbReport) -> None:
    table = wandb_report.tables["per_class"]
    pair = [row for row in table.rows if row[table.columns.index("model")] == "resnet18+googlenet"]
    images, recall = table.columns.index("images"), table.columns.index("recall")
    assert [row[table.columns.index("class")] for row in pair] == [str(i) for i in range(10)]
    assert sum(row[images] for row in pair) == 2 * 200
    assert sum(row[images] * row[recall] for row in pair) == pytest.approx(190 + 191)


def test_what_failed_and_what_is_missing_is_told_with_its_next_step(wandb_report: WandbReport) -> None:
    assert "cuda_oom" in wandb_report.failures and "Next: use a smaller" in wandb_report.failures
    assert "googlenet · finetune" in wandb_report.failures and "not started" in wandb_report.failures
    assert wandb_report.tables["failures"].rows[0][1:3] == ("cuda_oom", "out of memory: <8 GB> & more second line")


def test_the_verdicts_row_is_chosen_with_all_its_runs(wandb_report: WandbReport, comparison: Comparison) -> None:
    pair = next(i for i, row in enumerate(comparison.rows) if row.model == "resnet18+googlenet")
    assert [chosen.run_ids for chosen in wandb_report.chosen] == [tuple(r.run_id for r in comparison.runs[pair])]
    assert wandb_report.runs == 8  # of the whole grid


def test_figures_of_single_rows_are_told_apart_and_left_out_on_request(comparison: Comparison, folder: Path) -> None:
    for name in ("accuracy-mnist-probe-123456", "errors-mnist-resnet18-probe-abcdef"):
        durable.write_bytes(folder / "figures" / f"{name}.png", b"png")
    made = wandb_report_of([comparison], folder)
    assert set(made.figures) == {"accuracy-mnist-probe-123456", "errors-mnist-resnet18-probe-abcdef"}
    assert made.single == ("errors-mnist-resnet18-probe-abcdef",)
    assert wandb_report_of([comparison], folder, figures=False).figures == {}


def test_several_grids_are_published_under_both_names(tmp_path: Path) -> None:
    store = StorePaths(tmp_path / "results")
    for name in ("small", "other"):
        page_cases.small_grid(store, name)
    both = [read_comparison(name, store) for name in ("small", "other")]
    made = wandb_report_of(both, write(both, figures=False).parent, figures=False)
    assert (made.grid, made.grids, made.grid_tags) == (
        "small-vs-other",
        ("small", "other"),
        ("grid:small", "grid:other"),
    )
    assert len({made.summary_id(row) for row in made.rows}) == 10
    assert {"small_cost", "other_cost"} <= set(made.tables)


# ---------------------------------------------------------------------------------------------------------------- names
def published_as(grid: str, **changes: Any) -> WandbReport:
    content: dict[str, Any] = {"tables": {}, "figures": {}, "files": (), "headline": "", "markdown_table": ""}
    return WandbReport(grid=grid, grids=(grid,), rows=(), failures="", runs=0, **content | changes)


def names_of(wandb_report: WandbReport) -> Iterator[str]:
    yield from (wandb_report.tag("report"), wandb_report.tag("summary"), wandb_report.tag("former"))
    yield from wandb_report.grid_tags


def test_names_of_long_grids_stay_within_what_wandb_takes_and_apart() -> None:
    one, other = (published_as("g" * 63 + last) for last in "ab")
    assert all(len(name) <= 64 for made in (one, other) for name in names_of(made))
    assert set(names_of(one)).isdisjoint(names_of(other)) and one.report_id != other.report_id
    assert published_as("a_b").artifact_name == "final-tables-a_b"
    assert re.fullmatch(r"final-tables-a_b-[0-9a-f]{12}", published_as("a+b").artifact_name)


def test_a_row_keeps_its_run_whatever_its_numbers_are(wandb_report: WandbReport) -> None:
    row = dict(wandb_report.rows[0])
    assert wandb_report.summary_id(row) == wandb_report.summary_id(row | {"test_accuracy": 0.1, "status": "failed"})
    assert wandb_report.summary_id(row) != wandb_report.summary_id(row | {"variant": "batch_64"})
    assert wandb_report.summary_id(row).startswith("summary-small-") and len(wandb_report.summary_id(row)) == 26


def test_a_table_that_wandb_would_cut_is_refused(wandb_report: WandbReport) -> None:
    large = Table(columns=("i",), rows=((1,),) * 200_001)
    with pytest.raises(DataError, match="table large has 200,001 rows, W&B keeps 200,000"):
        replace(wandb_report, tables={"large": large}).validate()
