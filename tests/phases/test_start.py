"""Fine-tuning starts where the probe ended: what is measured before its first step, and what a report says of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import report_cases as cases
from report_cases import as_markdown
from small_runs import carry_out, final_run, paths_of, record_of, request

from transfergrid.paths import StorePaths
from transfergrid.report import documents
from transfergrid.report.analysis import handover
from transfergrid.report.analysis.comparison import read_comparison
from transfergrid.report.page.render import render_page
from transfergrid.store.metrics_log import read_metrics

CIFAR_ON_DIGITS = ["model=tinynet_cifar", "phase=finetune", "dataset.max_images=null", "phase.finetune.epochs=1"]


def first_step(folder: Path, *arguments: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was measured before the first step of tinynet_cifar on all digits, and the metrics line of that step."""
    asked = request(folder, *CIFAR_ON_DIGITS, "phase.finetune.shift_px=0", *arguments)
    assert carry_out(asked) == "completed"
    lines = read_metrics(paths_of(final_run(asked), asked.runtime).metrics)
    start: dict[str, Any] = record_of(final_run(asked), asked.runtime).details["start"]
    return start, next(line for line in lines if line["kind"] == "step")


@pytest.mark.slow
def test_by_default_the_first_step_of_a_finetuning_is_as_good_as_its_probe(tmp_path: Path) -> None:
    start, step = first_step(tmp_path)
    assert start["measured"] and start["refitted"] and not start["falls"]
    assert (start["rows"], start["batch_size"]) == (144, 32)
    assert start["running_accuracy"] > 0.85 and start["batch_accuracy"] > 0.85
    assert step["train/accuracy"] > 0.9 and step["train/loss"] < 1.2  # with label smoothing, whose floor is 0.5


@pytest.mark.slow
def test_the_probes_own_head_falls_to_chance_under_batch_statistics_and_that_is_recorded(tmp_path: Path) -> None:
    start, step = first_step(tmp_path, "phase.finetune.head=probe")
    assert start["measured"] and not start["refitted"] and start["falls"]
    assert start["running_accuracy"] > 0.85 and start["batch_accuracy"] < 0.3 and start["p_value"] < 1e-9
    assert round(144 * (start["running_accuracy"] - start["batch_accuracy"])) == (
        start["only_running"] - start["only_batch"]
    )
    assert step["train/loss"] > 5


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("model", "dataset", "at_least"),
    [
        ("tinynet_cifar", ["dataset=mnist"], 0.75),
        ("tinynet_mnist", ["dataset=image_folder", "dataset.folder={data}/cifar10-jpeg"], 0.2),
    ],
)
def test_on_real_images_of_another_kind_the_start_is_the_probes_too(
    real_data_dir: Path, tmp_path: Path, model: str, dataset: list[str], at_least: float
) -> None:
    images = [a.replace("{data}", str(real_data_dir)) for a in dataset]
    few = [f"model={model}", "phase=finetune", "dataset.max_images=2000", "phase.finetune.epochs=1"]
    starts = {}
    for head in ("refitted", "probe"):
        asked = request(tmp_path, *few, *images, f"data.dir={real_data_dir}", f"phase.finetune.head={head}")
        assert carry_out(asked) == "completed"
        starts[head] = record_of(final_run(asked), asked.runtime).details["start"]
    assert starts["refitted"]["batch_accuracy"] > at_least > starts["probe"]["batch_accuracy"]
    assert starts["probe"]["falls"] and not starts["refitted"]["falls"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["model=alexnet", "weights=random", "dataset.max_images=20", "dataset.image_size_px=64"], "no_batch_norm"),
        (["model=tinynet_cifar", "phase.finetune.bn=eval"], "statistics_kept"),
        (["model=tinynet_cifar", "phase.finetune.micro_batch=1"], "one_image_per_batch"),
    ],
)
def test_where_nothing_can_fall_nothing_is_measured_and_the_record_says_why(
    tmp_path: Path, arguments: list[str], reason: str
) -> None:
    asked = request(tmp_path, "phase=finetune", "phase.finetune.epochs=1", *arguments)
    assert carry_out(asked) == "completed"
    start = record_of(final_run(asked), asked.runtime).details["start"]
    assert (start["measured"], start["reason"], start["falls"]) == (False, reason, False)


def test_a_micro_batch_is_the_batch_that_is_measured_and_training_rows_fill_the_last(tmp_path: Path) -> None:
    micro = ["phase.finetune.micro_batch=8", "phase.finetune.batch_size=16"]
    asked = request(tmp_path, "model=tinynet_cifar", "phase=finetune", "phase.finetune.epochs=1", *micro)
    assert carry_out(asked) == "completed"
    start = record_of(final_run(asked), asked.runtime).details["start"]
    assert (start["rows"], start["batch_size"]) == (10, 8)  # 10 held out: two batches, six rows of train in the second


def test_with_statistics_kept_a_refitted_head_is_the_probes_and_the_run_is_one() -> None:
    runs = [
        final_run(request(Path("x"), *CIFAR_ON_DIGITS, "phase.finetune.bn=eval", f"phase.finetune.head={head}"))
        for head in ("refitted", "probe")
    ]
    assert runs[0].run_id == runs[1].run_id


# ---------------------------------------------------------------------------------------------------------- the report
START = {
    "measured": True,
    "falls": True,
    "rows": 144,
    "batch_size": 32,
    "running_accuracy": 0.93,
    "batch_accuracy": 0.125,
    "p_value": 1e-20,
}


def report_of(tmp_path: Path, **details: Any) -> Any:
    store = StorePaths(tmp_path)
    run = cases.spec("finetune", "resnet18", seed=0)
    cases.completed(store, run, details=details)
    cases.write_grid(store, "mine", [(run, "")])
    return read_comparison("mine", store), run.run_id


def test_a_start_below_the_probe_stands_in_the_document_beside_the_row_and_on_the_terminal(tmp_path: Path) -> None:
    comparison, run_id = report_of(tmp_path, start=START)
    told = as_markdown(comparison)
    assert "## Where fine-tuning started" in told
    assert (
        f"- {run_id}: before the first step 12.50 % of 144 held-out images are right with BatchNorm by batches" in told
    )
    assert "against 93.00 % by its statistics" in told
    assert handover.flags(comparison) == [("starts below its probe",)]
    assert handover.summary(comparison) == ["1 of 1 fine-tunings start below their probe: see the report"]
    page = render_page(comparison, documents.sections(comparison))
    assert "starts below its probe" in page and "12.50 % of 144 held-out images" in page


def test_what_the_gate_could_not_judge_and_constant_features_are_said(tmp_path: Path) -> None:
    gate = {"judged": False, "reason": "rounding", "rows": 9, "constant_backbones": ["resnet18"]}
    comparison, run_id = report_of(tmp_path, gate=gate)
    assert handover.flags(comparison) == [("hand-over not judged", "constant features of resnet18")]
    assert f"- {run_id}: on none of 9 images is the probe's margin above rounding" in as_markdown(comparison)
    assert f"- {run_id}: resnet18 gives the same features for all 9 images of the gate" in as_markdown(comparison)


@pytest.mark.parametrize(
    "details",
    [
        {},
        {"gate": "none: the head is random"},
        {"gate": {"judged": False, "reason": "random_head"}},
        {"gate": {"rows": 10, "largest_ratio": 0.2, "counting_share": 1.0}},
        {"start": dict(START, falls=False), "gate": {"judged": True, "reason": None, "constant_backbones": []}},
        {"start": "?", "gate": {"constant_backbones": None}},
    ],
)
def test_of_a_hand_over_in_order_and_of_older_records_nothing_is_said(tmp_path: Path, details: dict[str, Any]) -> None:
    comparison, _ = report_of(tmp_path, **details)
    assert handover.flags(comparison) == [()] and handover.summary(comparison) == []
    assert handover.TITLE not in as_markdown(comparison)
    assert not math.isnan(comparison.rows[0].test_accuracy)
