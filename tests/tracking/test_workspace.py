"""The W&B Report, block by block: what is filtered, grouped, drawn, and that nothing of it is a silent sample."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import wandb_report_cases as cases

from transfergrid.tracking.wandb_report import WandbReport
from transfergrid.tracking.workspace import report_blocks

Json = dict[str, Any]


@pytest.fixture(scope="module")
def wandb_report(tmp_path_factory: pytest.TempPathFactory) -> WandbReport:
    rows = [cases.row(i) for i in range(40)] + [cases.row(0, phase="probe"), cases.row(0, phase="evaluate")]
    return cases.wandb_report(rows, tmp_path_factory.mktemp("report"), runs=1_234)


@pytest.fixture(scope="module")
def blocks(wandb_report: WandbReport) -> list[Json]:
    return told(wandb_report)


def told(wandb_report: WandbReport, **options: Any) -> list[Json]:
    """The blocks as the server gets them."""
    made = report_blocks(wandb_report, **options)
    return [json.loads(block._to_model().model_dump_json(by_alias=True, exclude_none=True)) for block in made]


def heading(block: Json) -> str | None:
    return str(block["children"][0]["text"]) if block["type"] == "heading" else None


def below(blocks: list[Json], title: str) -> list[Json]:
    """What stands between this heading and the next."""
    start = [heading(block) for block in blocks].index(title) + 1
    end = next((i for i in range(start, len(blocks)) if heading(blocks[i]) is not None), len(blocks))
    return blocks[start:end]


def grid_below(blocks: list[Json], title: str) -> tuple[list[Json], list[Json]]:
    """Run sets and panels of the one panel grid below this heading."""
    (metadata,) = [block["metadata"] for block in below(blocks, title) if block["type"] == "panel-grid"]
    return metadata["runSets"], metadata["panelBankSectionConfig"]["panels"]


def filters(runset: Json) -> list[tuple[str, str, str, list[str]]]:
    """(section, name, operator, value) of each condition; all have to hold."""
    conditions = runset["filters"]["filters"]
    assert all(condition.get("connector", "AND") == "AND" for condition in conditions)
    return [(c["key"]["section"], c["key"]["name"], c["op"], c["value"]) for c in conditions]


def every(value: Any) -> Iterator[Json]:
    """All objects in the report, at any depth."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from every(inner)


def panels(blocks: list[Json], kind: str) -> list[Json]:
    return [found["config"] for found in every(blocks) if found.get("viewType") == kind]


# ------------------------------------------------------------------------------------------------------------- the text
def test_the_headings_are_in_the_order_in_which_a_reader_asks(blocks: list[Json]) -> None:
    assert [text for text in map(heading, blocks) if text] == [
        "Comparison",
        "Rows",
        "Cost against accuracy",
        "Runs by model and dataset",
        "Curves",
        "probe",
        "finetune",
        "Confusion matrices",
        "What differs between the rows",
        "What failed",
        "Figures",
        "Discussion",
    ]


def test_verdict_table_and_failures_are_told_in_words_that_cannot_be_filtered_away(
    wandb_report: WandbReport, blocks: list[Json]
) -> None:
    texts = [block["content"] for block in blocks if block["type"] == "markdown-block"]
    assert texts == [wandb_report.headline, wandb_report.markdown_table, wandb_report.failures]
    assert texts[1].count("\n") == 42


def test_a_grid_without_failures_says_so(wandb_report: WandbReport) -> None:
    (text, _) = below(told(replace(wandb_report, failures="")), "What failed")
    assert text["content"] == "Nothing has failed, and no row is missing."


# ------------------------------------------------------------------------------------------------------- which runs
def test_tables_are_those_of_the_report_run_the_comparison_first(blocks: list[Json]) -> None:
    runsets, shown = grid_below(blocks, "Comparison")
    assert [filters(runset) for runset in runsets] == [[("run", "tags", "IN", ["report:g"])]]
    keys = [panel["config"]["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"] for panel in shown]
    assert keys == ["final/comparison", "final/claims"]
    assert [panel["layout"]["y"] for panel in shown] == [0, 10]


def test_runs_are_grouped_by_the_configs_model_and_dataset_a_tab_for_each_phase(blocks: list[Json]) -> None:
    runsets, _ = grid_below(blocks, "Runs by model and dataset")
    assert [runset["name"] for runset in runsets] == ["probe", "finetune", "evaluate"]
    for runset in runsets:
        assert runset["grouping"] == [
            {"section": "config", "name": "model.value"},
            {"section": "config", "name": "dataset.value"},
        ]
        assert filters(runset) == [("run", "tags", "IN", ["grid:g"]), ("run", "jobType", "IN", [runset["name"]])]


def test_rows_are_the_summary_runs_best_first_with_their_spread_in_the_table(blocks: list[Json]) -> None:
    for title in ("Rows", "Cost against accuracy", "What differs between the rows"):
        ((runset,), _) = grid_below(blocks, title)
        assert filters(runset) == [("run", "tags", "IN", ["summary:g"])]
        assert runset["sort"]["keys"] == [{"key": {"section": "summary", "name": "test_accuracy"}, "ascending": False}]
        assert runset["grouping"] == []
        columns = runset["runFeed"]["columnOrder"]
        assert {"config:model.value", "summary:test_accuracy_std", "summary:ci95_low"} <= set(columns)


def test_failed_runs_are_those_whose_status_says_so(blocks: list[Json]) -> None:
    ((runset,), _) = grid_below(blocks, "What failed")
    assert filters(runset) == [("run", "tags", "IN", ["grid:g"]), ("summary", "status", "IN", ["failed"])]
    assert "summary:failure_class" in runset["runFeed"]["columnOrder"]


def test_the_confusion_matrix_is_of_the_verdicts_runs_by_their_ids(blocks: list[Json]) -> None:
    ((runset,), (panel,)) = grid_below(blocks, "Confusion matrices")
    assert filters(runset) == [("run", "name", "IN", ["model000-s0", "model000-s1"])]
    assert panel["config"]["panelDefId"] == "wandb/confusion_matrix/v1"
    query = panel["config"]["userQuery"]["queryFields"][0]["fields"]
    (table,) = [field for field in query if field["name"] == "summaryTable"]
    assert table["args"] == [{"name": "tableKey", "value": "confusion_matrix_table"}]


def test_several_grids_are_filtered_by_all_their_tags(wandb_report: WandbReport) -> None:
    both = replace(wandb_report, grid="g-vs-h", grids=("g", "h"))
    (runset, *_), _ = grid_below(told(both), "Runs by model and dataset")
    assert filters(runset)[0] == ("run", "tags", "IN", ["grid:g", "grid:h"])
    ((rows,), _) = grid_below(told(both), "Rows")
    assert filters(rows) == [("run", "tags", "IN", ["summary:g-vs-h"])]


def test_no_run_set_names_a_project_so_all_are_of_the_reports_own(blocks: list[Json]) -> None:
    runsets = [runset for found in every(blocks) for runset in found.get("runSets", ())]
    assert len(runsets) == 12
    assert not any("project" in runset for runset in runsets)


def test_no_filter_holds_a_name_that_wandb_would_rewrite(wandb_report: WandbReport) -> None:
    made = report_blocks(replace(wandb_report, grids=("a=b",)))
    spec = " ".join(block._to_model().model_dump_json(by_alias=True, exclude_none=True) for block in made)
    assert "grid:a-b" in spec and "grid:a=b" not in spec


# ------------------------------------------------------------------------------------------------------- what is drawn
def test_curves_have_epoch_or_batch_as_their_axis(blocks: list[Json]) -> None:
    for phase in ("probe", "finetune"):
        ((runset,), shown) = grid_below(blocks, phase)
        assert runset["grouping"] == []  # of groups W&B draws means of a sample
        drawn = {(p["config"]["xAxis"], *p["config"].get("metrics", ())) for p in shown}
        assert drawn == {
            ("epoch", "val/accuracy"),
            ("epoch", "val/loss"),
            ("epoch", "train/accuracy"),
            ("epoch", "train/loss"),
            ("batch", "train/accuracy"),
            ("batch", "train/loss"),
            ("batch",),
        }
        (rates,) = [panel["config"] for panel in shown if not panel["config"].get("metrics")]
        assert (rates["metricRegex"], rates["useMetricRegex"]) == ("^lr/", True)


def test_test_accuracy_by_epoch_is_drawn_only_where_it_was_measured(wandb_report: WandbReport) -> None:
    as_published = replace(wandb_report, rows=(cases.row(0, protocol="published"),))
    _, shown = grid_below(told(as_published), "finetune")
    assert ("epoch", ["test/accuracy"]) in [(p["config"]["xAxis"], p["config"].get("metrics")) for p in shown]


def test_bars_set_the_published_beside_the_measured(blocks: list[Json]) -> None:
    (config,) = panels(blocks, "Bar Chart")
    assert config["metrics"] == ["test_accuracy", "published_accuracy"]
    assert "groupBy" not in config


def test_costs_are_drawn_against_accuracy_from_the_summaries(blocks: list[Json]) -> None:
    drawn = [(config["xAxis"], config["yAxis"]) for config in panels(blocks, "Scatter Plot")]
    assert drawn == [
        ("summary:full_gpu_s", "summary:test_accuracy"),
        ("summary:full_wall_s", "summary:test_accuracy"),
        ("summary:parameters", "summary:test_accuracy"),
        ("summary:gflops_per_image", "summary:test_accuracy"),
    ]


def test_the_comparer_shows_only_what_differs(blocks: list[Json]) -> None:
    assert panels(blocks, "Run Comparer") == [{"diffOnly": True}]


def test_figures_of_single_rows_stand_apart(wandb_report: WandbReport) -> None:
    two = replace(wandb_report, figures={"a": Path("a.png"), "b": Path("b.png")}, single=("b",))
    shown = [config["mediaKeys"] for config in panels(told(two), "Media Browser")]
    assert shown == [["figures/a"], ["figures/b"]]


# ------------------------------------------------------------------------------------------------------------- limits
def test_line_plots_have_room_for_every_run_and_show_every_point(blocks: list[Json]) -> None:
    plots = panels(blocks, "Run History Line Plot")
    assert len(plots) == 14
    for config in plots:
        assert config["limit"] == 1_234
        assert config["pointVisualizationMethod"] == "bucketing-gorilla"
        assert (config["smoothingType"], config["smoothingWeight"]) == ("none", 0.0)
        assert config["ignoreOutliers"] is False
        assert "groupBy" not in config and not config.get("aggregate")


def test_a_server_with_more_runs_than_the_grid_has_now_gets_room_for_all(wandb_report: WandbReport) -> None:
    assert {p["limit"] for p in panels(told(wandb_report, runs=5_000), "Run History Line Plot")} == {5_000}
    assert {p["limit"] for p in panels(told(wandb_report, runs=7), "Run History Line Plot")} == {1_234}


def test_bars_have_room_for_two_of_every_row(blocks: list[Json]) -> None:
    (config,) = panels(blocks, "Bar Chart")
    assert (config["limit"], config["barLimit"]) == (42, 84)


def test_panels_do_not_cover_each_other(blocks: list[Json]) -> None:
    for found in every(blocks):
        places = [panel["layout"] for panel in found.get("panels", ()) if isinstance(panel, dict)]
        cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
        assert len(cells) == len(set(cells))
        assert all(p["x"] + p["w"] <= 24 for p in places)
