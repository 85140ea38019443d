"""Rows that are compared: a join with its best part, a row with its published figure; what extractions cost."""

from dataclasses import replace
from pathlib import Path

import pytest
import report_cases as cases
from test_published import as_published

from transfergrid.paths import StorePaths
from transfergrid.report.analysis.comparison import comparison_rows, read_comparison
from transfergrid.specs import ProbeSettings, RunSpec, to_dict
from transfergrid.store import durable


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return StorePaths(tmp_path / "results")


def seeds(phase: str, model: str, count: int) -> list[RunSpec]:
    return [cases.spec(phase, model, seed=seed) for seed in range(count)]


# -------------------------------------------------------------------------------------------------- best single, shared
def test_a_join_is_compared_with_its_own_part_that_is_best_on_val(store: StorePaths) -> None:
    cases.write_join(store)
    rows = {row.model: row for row in comparison_rows("mine", store)}
    join = rows["resnet18+googlenet"]
    assert join.best_single_model == "resnet18"
    assert join.delta_to_best_single == pytest.approx(0.03)
    assert (join.p_value_vs_best_single, join.verdict) == (None, None)
    assert [rows[m].best_single_model for m in ("resnet18", "googlenet", "vgg16")] == [None, None, None]


def test_under_published_val_and_the_best_single_stay_empty(store: StorePaths) -> None:
    cases.write_join(store, protocol="published")
    for found in comparison_rows("mine", store):
        assert (found.val_accuracy, found.best_single_model, found.delta_to_best_single) == (None, None, None)


def test_a_join_without_all_its_parts_has_no_best_single(store: StorePaths) -> None:
    runs = [cases.spec("probe", "resnet18"), cases.spec("probe", "resnet18+googlenet")]
    cases.write_grid(store, "mine", [(run, "") for run in runs])
    for run in runs:
        cases.completed(store, run)
    assert comparison_rows("mine", store)[1].best_single_model is None


def test_a_part_from_another_variant_is_not_the_best_single(store: StorePaths) -> None:
    models = ("resnet18", "googlenet", "resnet18+googlenet")
    runs = [(cases.spec("probe", m), "" if "+" in m else "other") for m in models]
    cases.write_grid(store, "mine", runs)
    for run, _ in runs:
        cases.completed(store, run)
    assert comparison_rows("mine", store)[2].best_single_model is None


def test_extraction_has_no_row_and_its_cost_is_counted_once(store: StorePaths) -> None:
    runs = [*seeds("probe", "resnet18", 2), *seeds("probe", "resnet18+googlenet", 2)]
    cases.write_grid(store, "mine", [(run, "") for run in runs])
    for run in runs:
        cases.completed(store, run)
    for extraction in {e for run in runs for e in run.extractions}:
        cases.completed(store, extraction, wall_s=7.0, gpu_s=3.0)
    comparison = read_comparison("mine", store)
    assert [row.phase for row in comparison.rows] == ["probe", "probe"]
    assert len(comparison.spent.extractions) == 2
    assert comparison.spent.total(comparison.spent.extractions) == (14.0, 6.0)
    assert [row.upstream_gpu_s for row in comparison.rows] == [3.0, 6.0]
    assert comparison.spent.total() == (4 * 10.0 + 14.0, 4 * 4.0 + 6.0)


# ------------------------------------------------------------------------------------------------------------ published
AS_PUBLISHED = "individual_vs_parallel_as_published"


def test_a_replayed_row_shows_its_delta_because_nothing_differs(store: StorePaths) -> None:
    run = as_published("resnet18+googlenet", "finetune", "mnist")
    cases.write_grid(store, AS_PUBLISHED, [(run, "")])
    cases.completed(store, run, test_accuracy=0.9950)
    (row,) = comparison_rows(AS_PUBLISHED, store)
    assert (row.published_accuracy, row.published_rule, row.published_differs) == (0.9955, "last", ())
    assert row.delta_to_published == pytest.approx(-0.0005)


def test_a_replayed_fine_tuning_from_a_shorter_probe_has_no_delta(store: StorePaths) -> None:
    probe = as_published("resnet18", "probe", "mnist")
    assert isinstance(probe.settings, ProbeSettings)
    shorter = replace(probe, settings=replace(probe.settings, epochs=1))
    found = []
    for began in (probe, shorter):
        run = replace(as_published("resnet18", "finetune", "mnist"), needs=(began.run_id,))
        durable.write_json(store.run(began.run_id).spec, to_dict(began))
        cases.write_grid(store, AS_PUBLISHED, [(run, "")])
        cases.completed(store, run, test_accuracy=0.9951)
        (row,) = comparison_rows(AS_PUBLISHED, store)
        found.append((row.published_differs, row.delta_to_published))
    assert found == [((), pytest.approx(0.0002)), (("its probe",), None)]


def test_a_fair_row_shows_the_figure_and_what_differs_but_no_delta(store: StorePaths) -> None:
    run = cases.spec("probe", "resnet18")
    cases.write_grid(store, "individual_vs_parallel", [(run, "")])
    cases.completed(store, run)
    (row,) = comparison_rows("individual_vs_parallel", store)
    assert (row.published_accuracy, row.delta_to_published) == (0.9675, None)
    assert row.published_differs[0] == "protocol"
    assert {"source", "bn", "optimizer"} <= set(row.published_differs)


def test_a_weights_file_alone_does_not_forbid_the_delta(store: StorePaths) -> None:
    published = as_published("resnet18", "probe", "mnist")
    run = replace(published, backbones=(cases.backbone("resnet18", weights="mine.pth", identity="file:ab"),))
    cases.write_grid(store, AS_PUBLISHED, [(run, "")])
    cases.completed(store, run, test_accuracy=0.9675)
    (row,) = comparison_rows(AS_PUBLISHED, store)
    assert (row.published_differs, row.delta_to_published) == (("weights file",), 0.0)


def test_a_missing_row_keeps_its_published_figure(store: StorePaths) -> None:
    cases.write_grid(store, AS_PUBLISHED, [(as_published("resnet18", "probe", "mnist"), "")])
    (row,) = comparison_rows(AS_PUBLISHED, store)
    assert (row.status, row.published_accuracy, row.delta_to_published) == ("missing", 0.9675, None)
