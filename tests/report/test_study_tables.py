"""What a study's own tables show: choices made on val, epochs both ways, everything published."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import report_cases as cases

from transfergrid.paths import StorePaths
from transfergrid.report.analysis import choices, lengths, published_metrics, top_errors
from transfergrid.report.analysis.comparison import read_comparison
from transfergrid.report.markdown import section_text
from transfergrid.report.studies import published
from transfergrid.specs import EvaluateSettings, RunSpec


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return StorePaths(tmp_path)


def scratch(*, seed: int = 0, **changes: Any) -> RunSpec:
    return cases.spec("scratch", "resnet10_wide", dataset="cifar10", seed=seed, image_size_px=32, **changes)


def test_a_damaged_metrics_file_leaves_its_column_empty_and_stops_no_report(store: StorePaths) -> None:
    long_run, short = scratch(epochs=3), scratch(epochs=2)
    cases.write_grid(store, "g", [(long_run, "along_one_run"), (short, "epochs_2")])
    for run in (long_run, short):
        cases.completed(store, run)
    for damaged in (
        "not json\n",
        "[]\n",
        '{"epoch": 2, "val/accuracy": 0.5}\n',
        '{"kind": "epoch", "val/accuracy": 1}\n',
    ):
        store.run(long_run.run_id).metrics.write_text(damaged)
        (found,) = lengths.lengths(read_comparison("g", store))
        assert (found.epochs, found.row.test_accuracy, found.along_val) == (2, 0.95, None)


# ------------------------------------------------------------------------------------------------------------ choices
def test_each_optimizer_takes_its_best_choice_on_val_though_another_is_better_on_test(store: StorePaths) -> None:
    figures = {  # variant: (val, test)
        "adam--lr_0.001": (0.90, 0.99),
        "adam--lr_0.01": (0.92, 0.80),
        "sgd--lr_0.1": (0.93, 0.91),
        "sgd--lr_0.3": (0.91, 0.97),
    }
    runs = {name: scratch(lr=0.01 * (i + 1)) for i, name in enumerate(figures)}
    cases.write_grid(store, "g", [(run, name) for name, run in runs.items()])
    for name, run in runs.items():
        val, test = figures[name]
        cases.completed(store, run, test_accuracy=test, metrics={"val_accuracy": val})
    found = {c.name: c for c in choices.choices(read_comparison("g", store))}
    assert {name: c.chosen.variant for name, c in found.items() if c.chosen} == {
        "adam": "adam--lr_0.01",
        "sgd": "sgd--lr_0.1",
    }
    text = section_text(choices.section(read_comparison("g", store)))
    assert "| adam | lr_0.01 | 92.00 | 80.0 [79.2, 80.8] | lr_0.001 90.00 |" in text


def test_nothing_is_chosen_while_a_candidate_is_unfinished(store: StorePaths) -> None:
    done, missing = scratch(lr=0.1), scratch(lr=0.2)
    cases.write_grid(store, "g", [(done, "sgd--lr_0.1"), (missing, "sgd--lr_0.2")])
    cases.completed(store, done)
    (choice,) = choices.choices(read_comparison("g", store))
    assert (choice.chosen, choice.unfinished) == (None, ("lr_0.2",))
    assert "not yet: lr_0.2 unfinished" in section_text(choices.section(read_comparison("g", store)))


def test_plain_variants_are_no_choices(store: StorePaths) -> None:
    cases.write_grid(store, "g", [(scratch(), "batch_128")])
    assert choices.section(read_comparison("g", store)) is None


# ------------------------------------------------------------------------------------------------------------ lengths
def test_each_number_of_epochs_stands_beside_the_long_run_at_that_epoch(store: StorePaths) -> None:
    long_runs = [scratch(epochs=20, lr=0.01, seed=seed) for seed in (0, 1)]
    short = {5: scratch(epochs=5), 10: scratch(epochs=10)}
    pairs = [(run, "along_one_run") for run in long_runs] + [(run, f"epochs_{n}") for n, run in short.items()]
    cases.write_grid(store, "g", pairs)
    for run in (*long_runs, *short.values()):
        cases.completed(store, run, test_accuracy=0.7, metrics={"val_accuracy": 0.6})
    for seed, run in enumerate(long_runs):
        lines = [{"kind": "step", "epoch": 1, "train/loss": 1.0}]
        lines += [{"kind": "epoch", "epoch": e, "val/accuracy": 0.5 + 0.01 * e + 0.02 * seed} for e in range(1, 10)]
        store.run(run.run_id).metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    comparison = read_comparison("g", store)
    found = lengths.lengths(comparison)
    assert [(f.epochs, f.row.val_accuracy, f.row.test_accuracy, f.along_val) for f in found] == [
        (5, 0.6, 0.7, pytest.approx(0.56)),  # the mean of 0.55 and 0.57
        (10, 0.6, 0.7, None),  # the long run stopped at its ninth epoch
    ]
    assert "| cifar10 | resnet10_wide | 5 | 70.00 | 60.00 | 56.00 |" in section_text(lengths.section(comparison))


def test_without_a_long_run_there_is_no_such_table(store: StorePaths) -> None:
    cases.write_grid(store, "g", [(scratch(epochs=5), "epochs_5")])
    assert lengths.section(read_comparison("g", store)) is None


# --------------------------------------------------------------------------------------------------- all that was said
def test_losses_and_training_accuracy_of_resnet50_stand_beside_ours(store: StorePaths) -> None:
    run = cases.spec("finetune", "resnet50", epochs=1)
    cases.write_grid(store, "resnet50_one_epoch", [(run, "")])
    cases.completed(store, run, metrics={"train_accuracy": 0.98, "train_loss": 0.25, "test_loss": 0.0625})
    text = section_text(published_metrics.section(read_comparison("resnet50_one_epoch", store)))
    assert "| mnist | resnet50 | finetune |  | train accuracy | last | 98.00 | 99.46 |" in text
    assert "| train loss | last | 0.2500 | 0.0199 |" in text
    assert "| test loss | last | 0.0625 | 0.0147 |" in text


def test_the_best_epoch_on_test_stands_only_where_test_was_watched(store: StorePaths) -> None:
    fair = scratch(epochs=51)
    watched = scratch(epochs=51, protocol="published", selection="best_on_test")
    rule = {"last_test_accuracy": 0.90, "last_epoch": 51, "best_test_accuracy": 0.91, "best_epoch": 40}
    cases.write_grid(store, "small_resnet18", [(fair, "epochs_51")])
    cases.write_grid(store, "small_resnet18_as_published", [(watched, "")])
    cases.completed(store, fair, test_accuracy=0.95)
    cases.completed(store, watched, test_accuracy=0.91, details={"rule": rule})
    text = section_text(published_metrics.section(read_comparison("small_resnet18", store)))
    assert "| test accuracy | last | 95.00 | 91.19 |" in text
    text = section_text(published_metrics.section(read_comparison("small_resnet18_as_published", store)))
    assert "| test accuracy | last | 90.00 | 91.19 |" in text


@pytest.mark.parametrize("rule", ["best", ["best"], {"best_test_accuracy": "0.9"}])
def test_a_rule_edited_into_nonsense_leaves_the_cell_empty(store: StorePaths, rule: object) -> None:
    watched = scratch(epochs=51, protocol="published", selection="best_on_test")
    cases.write_grid(store, "small_resnet18_as_published", [(watched, "")])
    cases.completed(store, watched, test_accuracy=0.91, details={"rule": rule})
    (figure,) = [
        f
        for f in published.figures()
        if f.grid == "small_resnet18_as_published"
        and f.variant == ""
        and f.rule == "best_on_test"
        and f.metric == "test_accuracy"
    ]
    assert published_metrics._ours(read_comparison("small_resnet18_as_published", store).runs[0], figure) is None


# ----------------------------------------------------------------------------------------------------- top-1 and top-5
def test_the_error_of_a_finished_run_is_named_by_it_and_not_taken_for_that_of_the_published_weights(
    store: StorePaths,
) -> None:
    trained = replace(cases.spec("probe", "resnet50", dataset="imagenet", seed=None), phase="evaluate")
    runs = []
    for variant, source in (("", "own_head"), ("run-0123456789ab", "run:imagenet-resnet50-finetune-s0-0123456789ab")):
        settings = EvaluateSettings(source=source, split="test", precision="fp32", preprocess=None)
        runs.append((replace(trained, settings=settings), variant))
        cases.completed(store, runs[-1][0], details={"top1_error": 0.24, "n_test": 50_000})
    cases.write_grid(store, "adhoc", runs)
    published_head, finished_run = top_errors.top_errors(read_comparison("adhoc", store))
    assert (published_head.published["corrected"].value, published_head.differs) == (0.2387, ("image_size_px",))
    assert finished_run.differs == ("weights", "image_size_px")
    assert top_errors.table([finished_run]).texts()[0][:3] == ["imagenet", "resnet50", "run-0123456789ab"]


def test_the_error_on_training_images_is_not_that_of_the_published_test(store: StorePaths) -> None:
    settings = EvaluateSettings(source="own_head", split="train", precision="fp32", preprocess=None)
    run = replace(cases.spec("probe", "resnet50", dataset="imagenet", seed=None), phase="evaluate", settings=settings)
    cases.completed(store, run, details={"top1_error": 0.12, "n_test": 50_000})
    cases.write_grid(store, "adhoc", [(run, "")])
    (error,) = top_errors.top_errors(read_comparison("adhoc", store))
    assert error.differs == ("split", "image_size_px")
