import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import report_cases as cases
from report_cases import row, write_report
from rich.console import Console

from transfergrid.cli.tables import terminal_table
from transfergrid.errors import NEXT_STEP, ConfigError, DataError
from transfergrid.paths import StorePaths
from transfergrid.report.analysis.cells import accuracy_with_interval
from transfergrid.report.analysis.comparison import comparison_rows, read_comparison
from transfergrid.report.analysis.rows import COLUMNS, ComparisonRow
from transfergrid.report.documents import as_csv
from transfergrid.specs import RunSpec
from transfergrid.store import records

DESIGNED = (
    "grid, dataset, model, phase, variant, weights, protocol, n_seeds, n_train, test_accuracy, test_accuracy_std, "
    "ci95_low, ci95_high, val_accuracy, train_accuracy, test_loss, macro_precision, macro_recall, macro_f1, "
    "lbfgs_test_accuracy, knn_test_accuracy, lda_test_accuracy, qda_test_accuracy, better_than_head, "
    "published_accuracy, published_rule, published_differs, delta_to_published, "
    "best_single_model, delta_to_best_single, p_value_vs_best_single, verdict, epochs, parameters, "
    "trainable_parameters, size_mb, gflops_per_image, images_per_s, wall_s, phase_s, gpu_s, "
    "upstream_gpu_s, full_wall_s, full_gpu_s, status, failure_class, "
    "n_val, val_loss, val_balanced_accuracy, val_macro_f1, select_by, optimizer_steps, remarks"
)


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return StorePaths(tmp_path / "results")


def seeds(phase: str, model: str, count: int) -> list[RunSpec]:
    return [cases.spec(phase, model, seed=seed) for seed in range(count)]


def test_the_columns_are_the_designed_ones_in_order() -> None:
    assert ", ".join(COLUMNS) == DESIGNED


# ---------------------------------------------------------------------------------------------------------------- rows
def test_one_seed_fills_every_column_with_a_wilson_interval(store: StorePaths) -> None:
    run = cases.spec("probe", "resnet18")
    cases.write_grid(store, "mine", [(run, "")])
    beside = {"lbfgs_test_accuracy": 0.956, "knn_test_accuracy": 0.961, "lda_test_accuracy": 0.95}
    on_val = {"val_loss": 0.25, "val_macro_recall": 0.941, "val_macro_f1": 0.942}
    # Of 10,000 images: 293 and 200 are right by one alone; 100 and 117 could be chance.
    counts = {"knn": {"only_right": 293, "only_head_right": 200}, "lda": {"only_right": 100, "only_head_right": 117}}
    stated = {"n_val": 6_000, "optimizer_steps": 1_055, "references": counts}
    cases.completed(store, run, test_accuracy=0.9517, metrics=beside | on_val, details=stated)
    (row,) = comparison_rows("mine", store)
    assert row.cells() == {
        "grid": "mine",
        "dataset": "mnist",
        "model": "resnet18",
        "phase": "probe",
        "variant": "",
        "weights": "IMAGENET1K_V1",
        "protocol": "fair",
        "n_seeds": 1,
        "n_train": 54_000,
        "test_accuracy": 0.9517,
        "test_accuracy_std": None,
        "ci95_low": pytest.approx(0.9473, abs=5e-5),
        "ci95_high": pytest.approx(0.9557, abs=5e-5),
        "val_accuracy": 0.94,
        "train_accuracy": 0.99,
        "test_loss": 0.125,
        "macro_precision": 0.951,
        "macro_recall": 0.952,
        "macro_f1": 0.953,
        "lbfgs_test_accuracy": 0.956,
        "knn_test_accuracy": 0.961,
        "lda_test_accuracy": 0.95,
        "qda_test_accuracy": None,
        "better_than_head": "knn",
        "published_accuracy": None,
        "published_rule": None,
        "published_differs": None,
        "delta_to_published": None,
        "best_single_model": None,
        "delta_to_best_single": None,
        "p_value_vs_best_single": None,
        "verdict": None,
        "epochs": 5,
        "parameters": 11_181_642,
        "trainable_parameters": 5_130,
        "size_mb": 44.7,
        "gflops_per_image": 3.64,
        "images_per_s": 2_000.0,
        "wall_s": 10.0,
        "phase_s": 10.0,
        "gpu_s": 4.0,
        "upstream_gpu_s": None,
        "full_wall_s": None,
        "full_gpu_s": None,
        "status": "completed",
        "failure_class": None,
        "n_val": 6_000,
        "val_loss": 0.25,
        "val_balanced_accuracy": 0.941,
        "val_macro_f1": 0.942,
        "select_by": "accuracy",
        "optimizer_steps": 1_055,
        "remarks": None,
    }


def test_three_seeds_are_averaged_with_a_t_interval_and_mean_times(store: StorePaths) -> None:
    runs = seeds("probe", "resnet18", 3)
    cases.write_grid(store, "mine", [(run, "") for run in runs])
    for run, accuracy, wall_s in zip(runs, (0.90, 0.92, 0.94), (10.0, 20.0, 60.0), strict=True):
        cases.completed(store, run, test_accuracy=accuracy, wall_s=wall_s, gpu_s=wall_s / 2)
    (row,) = comparison_rows("mine", store)
    half = 4.302653 * 0.02 / 3**0.5
    assert (row.n_seeds, row.status, row.wall_s, row.gpu_s) == (3, "completed", 30.0, 15.0)
    assert (row.test_accuracy, row.test_accuracy_std) == pytest.approx((0.92, 0.02))
    assert (row.ci95_low, row.ci95_high) == pytest.approx((0.92 - half, 0.92 + half), abs=1e-6)


def test_the_t_interval_is_cut_to_one(store: StorePaths) -> None:
    runs = seeds("probe", "resnet18", 2)
    cases.write_grid(store, "mine", [(run, "") for run in runs])
    for run, accuracy in zip(runs, (0.96, 1.0), strict=True):
        cases.completed(store, run, test_accuracy=accuracy)
    (row,) = comparison_rows("mine", store)
    assert row.ci95_high == 1.0
    assert row.ci95_low == pytest.approx(0.98 - 12.7062 * 0.02, abs=1e-5)


def test_without_a_stated_test_size_the_stored_predictions_are_counted(store: StorePaths) -> None:
    run = cases.spec("probe", "resnet18")
    cases.write_grid(store, "mine", [(run, "")])
    cases.completed(store, run, test_accuracy=0.75, details={"n_test": None})
    assert comparison_rows("mine", store)[0].ci95_low is None
    index_N = np.arange(4)
    sets = {"test": records.make_predictions(index_N, index_N, np.eye(4, dtype=np.float32))}
    records.write_predictions(store.run(run.run_id), sets)
    assert comparison_rows("mine", store)[0].ci95_low == pytest.approx(0.30064, abs=1e-5)  # wilson(3, 4)


def test_a_failed_seed_leaves_the_numbers_of_the_others_and_its_class(store: StorePaths) -> None:
    runs = seeds("finetune", "resnet18", 3)
    cases.write_grid(store, "mine", [(run, "") for run in runs])
    cases.completed(store, runs[0], test_accuracy=0.90)
    cases.completed(store, runs[1], test_accuracy=0.92)
    cases.failed(store, runs[2], failure_class="cuda_oom", error="no memory")
    (row,) = comparison_rows("mine", store)
    assert (row.status, row.n_seeds, row.failure_class) == ("2/3 completed", 2, "cuda_oom")
    assert row.test_accuracy == pytest.approx(0.91)


def test_a_configuration_without_any_record_keeps_an_empty_row(store: StorePaths) -> None:
    cases.write_grid(store, "mine", [(run, "") for run in seeds("probe", "resnet18", 2)])
    (row,) = comparison_rows("mine", store)
    filled = {name for name, value in row.cells().items() if value not in (None, "")}
    assert filled == {"grid", "dataset", "model", "phase", "weights", "protocol", "n_seeds", "status", "select_by"}
    assert (row.status, row.n_seeds) == ("missing", 0)


def test_a_configuration_that_only_failed_is_failed_with_each_class_once(store: StorePaths) -> None:
    runs = seeds("probe", "resnet18", 4)
    cases.write_grid(store, "mine", [(run, "") for run in runs])
    for run, failure_class in zip(runs[:3], ("data", "timeout", "data"), strict=True):
        cases.failed(store, run, failure_class=failure_class, error="x")
    (row,) = comparison_rows("mine", store)
    assert (row.status, row.failure_class, row.test_accuracy) == ("failed", "data; timeout", None)


def test_a_damaged_record_counts_as_failed_by_data(store: StorePaths) -> None:
    run = cases.spec("probe", "resnet18")
    cases.write_grid(store, "mine", [(run, "")])
    cases.completed(store, run)
    store.run(run.run_id).record.write_text("{")
    comparison = read_comparison("mine", store)
    assert (comparison.rows[0].status, comparison.rows[0].failure_class) == ("failed", "data")
    assert "is damaged" in comparison.failures[0].error


def test_the_record_of_another_run_is_not_averaged_in(store: StorePaths) -> None:
    own, other = seeds("probe", "resnet18", 2)
    cases.write_grid(store, "mine", [(own, ""), (other, "")])
    cases.completed(store, own, test_accuracy=0.90)
    store.run(other.run_id).root.mkdir(parents=True)
    store.run(other.run_id).record.write_bytes(store.run(own.run_id).record.read_bytes())
    comparison = read_comparison("mine", store)
    assert (comparison.rows[0].status, comparison.rows[0].n_seeds) == ("1/2 completed", 1)
    assert comparison.failures[0].error == f"its record.json belongs to {own.run_id}"
    assert comparison.failures[0].remedy == "delete it and launch again"


def test_where_a_seed_has_no_test_accuracy_there_is_no_mean_and_no_interval_either(store: StorePaths) -> None:
    runs = seeds("probe", "resnet18", 2)
    cases.write_grid(store, "mine", [(run, "") for run in runs])
    cases.completed(store, runs[0])
    without = cases.completed(store, runs[1])
    metrics = {name: value for name, value in without.metrics.items() if name != "test_accuracy"}
    records.write_record(store.run(runs[1].run_id), replace(without, metrics=metrics))
    (row,) = comparison_rows("mine", store)
    assert (row.n_seeds, row.test_accuracy, row.test_accuracy_std, row.ci95_low, row.ci95_high) == (2, *[None] * 4)
    assert accuracy_with_interval(row) == ""


def test_phases_variants_and_datasets_have_rows_of_their_own_in_the_grids_order(store: StorePaths) -> None:
    runs = [
        (cases.spec("probe", "resnet18", dataset="mnist"), ""),
        (cases.spec("probe", "resnet18", dataset="mnist", batch_size=64), "batch_64"),
        (cases.spec("finetune", "resnet18", dataset="mnist"), ""),
        (cases.spec("probe", "resnet18", dataset="cifar10"), ""),
    ]
    cases.write_grid(store, "mine", runs)
    rows = comparison_rows("mine", store)
    assert [(r.dataset, r.phase, r.variant) for r in rows] == [
        ("mnist", "probe", ""),
        ("mnist", "probe", "batch_64"),
        ("mnist", "finetune", ""),
        ("cifar10", "probe", ""),
    ]


def test_seeds_of_different_settings_are_never_averaged(store: StorePaths) -> None:
    runs = [cases.spec("probe", "resnet18", seed=0), cases.spec("probe", "resnet18", seed=1, epochs=6)]
    cases.write_grid(store, "mine", [(run, "") for run in runs])
    for run in runs:
        cases.completed(store, run)
    with pytest.raises(DataError, match="row mnist resnet18 probe IMAGENET1K_V1 fair holds runs of different settings"):
        comparison_rows("mine", store)


def test_one_seed_twice_in_a_row_is_refused_before_any_record_exists(store: StorePaths) -> None:
    runs = [cases.spec("probe", "resnet18"), cases.spec("probe", "resnet18", epochs=6)]
    cases.write_grid(store, "mine", [(run, "") for run in runs])
    with pytest.raises(DataError, match="different settings"):
        comparison_rows("mine", store)


def test_needs_differ_between_seeds_without_making_them_different(store: StorePaths) -> None:
    runs = [replace(run, needs=(f"probe-of-seed-{run.seed}",)) for run in seeds("finetune", "resnet18", 2)]
    cases.write_grid(store, "mine", [(run, "") for run in runs])
    for run in runs:
        cases.completed(store, run)
    assert comparison_rows("mine", store)[0].n_seeds == 2


def test_a_grid_that_was_never_launched_is_named_with_those_that_were(store: StorePaths) -> None:
    cases.write_grid(store, "mine", [])
    with pytest.raises(ConfigError, match=r"grid 'yours' was never launched.*launched there: mine; next: a launch"):
        comparison_rows("yours", store)


# ------------------------------------------------------------------------------------------------------------ documents
def test_the_csv_holds_the_columns_full_precision_and_empty_cells(store: StorePaths) -> None:
    run = cases.spec("probe", "resnet18")
    cases.write_grid(store, "mine", [(run, "")])
    cases.completed(store, run, test_accuracy=2 / 3)
    write_report("mine", store, figures=False)
    content = (store.report("mine") / "comparison.csv").read_text()
    assert content == as_csv(comparison_rows("mine", store))
    header, line = csv.reader(io.StringIO(content))
    cells = dict(zip(header, line, strict=True))
    assert tuple(header) == COLUMNS
    assert (cells["test_accuracy"], cells["n_seeds"], cells["status"]) == ("0.6666666666666666", "1", "completed")
    assert (cells["variant"], cells["test_accuracy_std"], cells["verdict"]) == ("", "", "")


def test_the_markdown_reads_as_percent_with_intervals_costs_and_next_steps(store: StorePaths) -> None:
    cases.write_join(store)
    runs = records.read_grid(store.grid("mine"))
    broken = cases.spec("finetune", "resnet18")
    records.write_grid(store.grid("mine"), grid="mine", entries=[*runs, cases.entry(broken)])
    cases.failed(store, broken, failure_class="cuda_oom", error="CUDA out of memory\nat step 3")
    extraction = cases.spec("probe", "resnet18").extractions[0]
    cases.completed(store, extraction, wall_s=1234.5, gpu_s=3.0)
    path = write_report("mine", store, figures=False)
    text = path.read_text()
    assert path == store.report("mine") / "comparison.md"
    assert text.startswith("# Comparison: mine\n\n5 rows: 4 completed, 1 failed.\n")
    assert (
        "| mnist | resnet18+googlenet | probe |  | IMAGENET1K_V1 | fair | completed | 1 | 54,000 | "
        "98.00 [97.71, 98.26] |  | 94.00 | 99.00 | 0.1250 | 95.10 | 95.20 | 95.30 |  |  |  |  |\n"
    ) in text
    assert "| fair | failed (cuda_oom) | 0 |" in text
    assert "| fair | resnet18 |  | 98.00 [97.71, 98.26] | +3.00 |  |\n" in text
    assert "shared by all rows and in their full seconds alone: 1 run, 1,234.5 s wall, 3.0 s GPU.\n" in text
    assert f"- `{broken.run_id}`: cuda_oom: CUDA out of memory at step 3. Next: {NEXT_STEP['cuda_oom']}.\n" in text
    assert "Beside the published figures" not in text


def test_every_markdown_table_has_as_many_cells_in_each_line_as_in_its_header(store: StorePaths) -> None:
    run = cases.spec("finetune", "resnet18+googlenet")
    cases.write_grid(store, "individual_vs_parallel", [(run, "")])
    cases.completed(store, run)
    text = write_report("individual_vs_parallel", store, figures=False).read_text()
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("| ")]
    assert [len(lines) for lines in tables] == [3, 5, 3, 3]
    for lines in tables:
        assert len({line.count(" |") for line in lines}) == 1
    assert "| last | protocol; batch_size; drop_last;" in text
    assert text.count("- source: saha2023/Individual-and-Parallel-Deep-Learning-Models@b169cd2.\n") == 1
    assert "- mnist resnet18+googlenet finetune: no phase 1: 10 epochs from a random head.\n" in text


def test_a_report_written_twice_is_the_same(store: StorePaths) -> None:
    cases.write_join(store)
    first = write_report("mine", store, figures=False).read_bytes()
    assert write_report("mine", store, figures=False).read_bytes() == first


def test_a_second_decimal_is_shown_only_where_the_interval_bears_it() -> None:
    assert accuracy_with_interval(row()) == "97.2 [95.0, 98.5]"
    narrow = row(test_accuracy=0.9955, ci95_low=0.99398, ci95_high=0.99664)
    assert accuracy_with_interval(narrow) == "99.55 [99.40, 99.66]"
    assert accuracy_with_interval(row(ci95_low=None)) == "97.20"
    assert accuracy_with_interval(row(test_accuracy=None, ci95_low=None)) == ""


# ------------------------------------------------------------------------------------------------------------- terminal
def shown(rows: list[ComparisonRow], *, width: int = 100, color: bool = False) -> str:
    output = io.StringIO()
    console = Console(file=output, width=width, force_terminal=color, color_system="standard" if color else None)
    console.print(terminal_table(rows, width=width))
    return output.getvalue()


def test_the_terminal_shows_eight_columns_and_published_only_where_a_figure_is() -> None:
    above, header, *_ = shown([row(published_accuracy=0.9955)]).splitlines()
    assert header.split("  ")[0] == "dataset"
    names = ["dataset", "model", "phase", "test accuracy", "published", "verdict", "wall s", "status"]
    assert (above.split(), " ".join(header.split())) == (["own"], " ".join(names))
    names.remove("published")
    assert " ".join(shown([row()], width=120).splitlines()[1].split()) == " ".join(names)


def test_on_eighty_columns_empty_columns_go_before_a_name_is_broken() -> None:
    rows = [
        row(),
        row(phase="finetune", model="tinynet_mnist+tinynet_cifar", verdict="better", gpu_s=None),
        row(variant="random_weights"),
    ]
    text = shown(rows, width=80)
    assert "published" not in text
    for whole in ("tinynet_mnist+ ", "tinynet_cifar", "random_weights", "97.2 [95.0, 98.5]", "better", "completed"):
        assert whole in text
    with_figure = shown([*rows, row(published_accuracy=0.9955)], width=80)
    assert "published" in with_figure and "99.55" in with_figure and "completed" in with_figure


def test_a_wide_grid_fits_a_hundred_columns_whole() -> None:
    rows = [
        row(variant="random_weights"),
        row(model="tinynet_mnist+tinynet_cifar", variant="random_weights", n_seeds=2, status="2/3 completed",
            failure_class="node_failure"),
        row(test_accuracy=0.99551, ci95_low=0.99398, ci95_high=0.99664, published_accuracy=0.9955,
            published_differs=("protocol",), wall_s=12345.6),
    ]  # fmt: skip
    text = shown(rows)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 100
    assert "…" not in text
    for cell in ("97.2 [95.0, 98.5]", "99.55 [99.40, 99.66]", "99.55*", "12,345.6", "node_failure", "random_weights"):
        assert cell in text
    assert "tinynet_mnist+ " in text and "tinynet_cifar " in text
    assert "* obtained with other settings" in text


def test_a_join_stays_on_one_line_where_there_is_room() -> None:
    assert "tinynet_mnist+tinynet_cifar" in shown([row(model="tinynet_mnist+tinynet_cifar")], width=160)


def test_failed_rows_are_red_and_others_are_not() -> None:
    good, bad = row(model="good"), row(model="bad", status="failed", failure_class="data", test_accuracy=None)
    lines = shown([good, bad], color=True).splitlines()
    assert ["\x1b[31m" in line for line in lines if "good" in line or "bad" in line] == [False, True]


def test_gpu_seconds_are_shown_where_a_gpu_was_used_and_wall_seconds_marked_where_not() -> None:
    text = shown([row(gpu_s=3.0), row(wall_s=9.0)], width=140)
    assert "GPU s" in text and " 3.0 " in text and " 9.0 wall " in text


@pytest.mark.parametrize("content", ['{"grid": "q", "conf', "[]", '{"configurations": [{"run_id": "x"}]}'])
def test_a_damaged_grid_file_is_said_in_one_line(store: StorePaths, content: str) -> None:
    cases.write_grid(store, "mine", [])
    store.grid("mine").write_text(content)
    with pytest.raises(DataError, match=r"mine\.json is damaged .*; delete it and launch the grid again"):
        read_comparison("mine", store)


@pytest.mark.parametrize(("field", "value"), [("failure_class", 5), ("error", ["no"]), ("error", {})])
def test_a_failed_record_whose_reason_is_no_text_is_a_failure_of_its_own_row(
    store: StorePaths, field: str, value: object
) -> None:
    run = cases.spec("probe", "resnet18")
    cases.write_grid(store, "mine", [(run, "")])
    cases.failed(store, run, failure_class="code", error="e")
    path = store.run(run.run_id).record
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    comparison = read_comparison("mine", store)
    assert (comparison.rows[0].status, comparison.rows[0].failure_class) == ("failed", "data")
    assert f"{field} is {value!r}, not a text" in comparison.failures[0].error


def test_a_record_that_cannot_be_opened_is_a_failure_of_its_own_row(store: StorePaths) -> None:
    run = cases.spec("probe", "resnet18")
    cases.write_grid(store, "mine", [(run, "")])
    store.run(run.run_id).record.mkdir(parents=True)
    assert "record.json cannot be read (Is a directory)" in read_comparison("mine", store).failures[0].error
