"""Published claims decided on stores whose truth is known: each outcome, and what is said where rows are missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prediction_cases import finished, right_but
from report_cases import completed, entry, failed, spec, write_grid, write_report

from transfergrid.config import load_grid
from transfergrid.config.compose import compose_config
from transfergrid.config.folders import conf_dir
from transfergrid.config.spelling import command_of_grid
from transfergrid.paths import StorePaths
from transfergrid.report.analysis.claim_file import Claim, all_claims, claims_for
from transfergrid.report.analysis.claims import Decision, decisions_of, section
from transfergrid.report.analysis.comparison import read_comparison
from transfergrid.report.analysis.statistics import difference_of_published
from transfergrid.report.markdown import section_text
from transfergrid.report.studies import published
from transfergrid.specs import EvaluateSettings, RunSpec
from transfergrid.store import records

N_TEST = 1_000
PAIRS = ("resnet18+vgg16", "resnet18+googlenet", "vgg16+googlenet")
SINGLES = ("vgg16", "resnet18", "googlenet")


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return StorePaths(tmp_path)


def claim(name: str) -> Claim:
    return next(c for c in all_claims() if c.id == name)


def correct_N(accuracy: float, *, noise: int) -> np.ndarray[Any, Any]:
    """Exactly that share right; the hardest images are the same for every model, up to chance."""
    rng = np.random.default_rng(noise)
    score_N = np.linspace(0, 1, N_TEST) + rng.normal(0, 0.05, N_TEST)
    right_N = np.zeros(N_TEST, dtype=bool)
    right_N[np.argsort(score_N, kind="stable")[: round(accuracy * N_TEST)]] = True
    return right_N


def measure(
    store: StorePaths,
    grid: str,
    accuracies: dict[str, float],
    *,
    phase: str,
    dataset: str,
    seeds: int = 3,
    val: dict[str, float] | None = None,
    **changes: Any,
) -> list[tuple[RunSpec, str]]:
    """One row per `model` or `model variant` with the given accuracies, and the grid file."""
    runs = []
    for number, (name, accuracy) in enumerate(accuracies.items()):
        model, _, variant = name.partition(" ")
        epochs = {c.epochs_of(variant) for c in claims_for(grid) if c.phase == phase} - {None}
        settings = ({"epochs": epochs.pop()} if epochs else {}) | changes
        for seed in range(seeds):
            # Variants differ in a setting, so their runs have names of their own.
            run = spec(phase, model, dataset=dataset, seed=seed, lr=0.01 + number / 1000, **settings)
            right_N = correct_N(accuracy, noise=100 * number + seed)
            finished(store, run, right_N, val=(val or accuracies)[name])
            runs.append((run, variant))
    write_grid(store, grid, runs)
    return runs


def decisions(store: StorePaths, grid: str) -> dict[str, Decision]:
    return {d.claim.id: d for d in decisions_of(read_comparison(grid, store))}


def singles_and_pairs(single: float, pair: float) -> dict[str, float]:
    return (
        dict.fromkeys(SINGLES, single - 0.02)
        | dict.fromkeys(PAIRS, pair - 0.02)
        | {
            "googlenet": single,
            "resnet18+googlenet": pair,
        }
    )


# --------------------------------------------------------------------------------------------------------- the outcomes
def test_a_true_difference_confirms_the_claim_with_its_numbers(store: StorePaths) -> None:
    accuracies = singles_and_pairs(0.90, 0.95)
    measure(store, "individual_vs_parallel", accuracies, phase="finetune", dataset="mnist", seeds=5)
    decision = decisions(store, "individual_vs_parallel")["pairs_beat_singles_on_mnist"]
    assert decision.outcome == "confirmed"
    assert decision.difference == pytest.approx(0.05)
    assert decision.low is not None and decision.high is not None and 0 < decision.low < 0.05 < decision.high
    assert decision.text.startswith("resnet18+googlenet 95.00 against googlenet 90.00: +5.00 points [+")
    assert decision.text.endswith("], five seeds; each is the best of its side on val")


def test_a_difference_the_other_way_contradicts_it(store: StorePaths) -> None:
    accuracies = singles_and_pairs(0.95, 0.90)
    measure(store, "individual_vs_parallel", accuracies, phase="finetune", dataset="mnist")
    decision = decisions(store, "individual_vs_parallel")["pairs_beat_singles_on_mnist"]
    assert decision.outcome == "contradicted"
    assert decision.difference == pytest.approx(-0.05)


def test_no_difference_is_not_shown_for_one_seed_as_for_five(store: StorePaths) -> None:
    for seeds in (1, 5):
        grid = singles_and_pairs(0.92, 0.92)
        measure(store, "individual_vs_parallel", grid, phase="finetune", dataset="mnist", seeds=seeds)
        decision = decisions(store, "individual_vs_parallel")["pairs_beat_singles_on_mnist"]
        assert (decision.outcome, decision.difference) == ("not shown", 0.0)
        assert f"{'one seed' if seeds == 1 else 'five seeds'};" in decision.text


def test_the_sides_are_chosen_on_val_even_where_test_says_otherwise(store: StorePaths) -> None:
    accuracies = singles_and_pairs(0.90, 0.90) | {"vgg16+googlenet": 0.97}
    val = dict.fromkeys(accuracies, 0.5) | {"resnet18+vgg16": 0.9, "resnet18": 0.9}
    measure(store, "individual_vs_parallel", accuracies, phase="finetune", dataset="mnist", val=val)
    decision = decisions(store, "individual_vs_parallel")["pairs_beat_singles_on_mnist"]
    assert (decision.compared[0].first, decision.compared[0].second) == ("resnet18+vgg16", "resnet18")


def test_best_means_better_than_every_other(store: StorePaths) -> None:
    rows = {"lr_0.01": 0.95, "lr_0.1": 0.90, "lr_0.001": 0.90, "lr_0.0001": 0.8, "lr_0.00001": 0.6, "lr_0.000001": 0.4}
    named = {f"resnet10_wide {variant}": accuracy for variant, accuracy in rows.items()}
    measure(store, "small_resnet18_lr", named, phase="scratch", dataset="cifar10")
    (decision,) = decisions(store, "small_resnet18_lr").values()
    assert (decision.outcome, len(decision.compared)) == ("confirmed", 5)
    assert decision.difference == pytest.approx(0.05)
    assert "it decides among the 5 comparisons of this claim, p = 0.001 after Holm" in decision.text
    # One equal rival and it is no longer shown; one better rival and it is wrong.
    for rival, outcome, difference in ((0.95, "not shown", 0.0), (0.98, "contradicted", -0.03)):
        changed = named | {"resnet10_wide lr_0.001": rival}
        measure(store, "small_resnet18_lr", changed, phase="scratch", dataset="cifar10")
        (decision,) = decisions(store, "small_resnet18_lr").values()
        assert decision.outcome == outcome
        assert decision.difference == pytest.approx(difference)


def test_rivals_are_compared_one_to_one(store: StorePaths) -> None:
    rows = {"sgd": 0.94, "adam": 0.90, "adamw": 0.90, "sgd_lookahead": 0.90, "adam_lookahead": 0.94}
    rows |= {"adamw_lookahead": 0.90}
    named = {f"resnet10_wide {variant}": accuracy for variant, accuracy in rows.items()}
    measure(store, "small_resnet18_optimizer", named, phase="scratch", dataset="cifar10")
    lookahead = decisions(store, "small_resnet18_optimizer")["lookahead_helps"]
    assert [c.result.difference for c in lookahead.compared] == pytest.approx([-0.04, 0.04, 0.0])
    assert [c.direction for c in lookahead.compared] == [-1, 1, 0]
    assert lookahead.outcome == "contradicted"
    assert lookahead.difference == pytest.approx(-0.04)
    assert lookahead.text.startswith("resnet10_wide sgd_lookahead 90.00 against resnet10_wide sgd 94.00")


def test_holm_counts_the_comparisons_of_a_claim(store: StorePaths) -> None:
    rows = {"batch_256": 0.910, "batch_64": 0.902, "batch_128": 0.902, "batch_512": 0.902, "batch_1024": 0.902}
    named = {f"resnet10_wide {variant}": accuracy for variant, accuracy in rows.items()}
    measure(store, "small_resnet18_batch", named, phase="scratch", dataset="cifar10", seeds=1)
    (decision,) = decisions(store, "small_resnet18_batch").values()
    smallest = min(decision.compared, key=lambda c: c.result.p_value)
    assert smallest.p_adjusted == pytest.approx(min(1.0, 4 * smallest.result.p_value))
    assert decision.outcome == "not shown"


@pytest.mark.parametrize(("one_epoch", "outcome"), [(0.990, "confirmed"), (0.986, "not shown"), (0.97, "contradicted")])
def test_enough_means_that_ten_epochs_gain_less_than_the_margin(
    store: StorePaths, one_epoch: float, outcome: str
) -> None:
    named = {"resnet50": one_epoch, "resnet50 epochs_10": 0.985}
    measure(store, "resnet50_one_epoch", named, phase="finetune", dataset="mnist", seeds=5)
    decision = decisions(store, "resnet50_one_epoch")["one_epoch_is_enough_on_mnist"]
    assert decision.outcome == outcome
    assert decision.difference == pytest.approx(one_epoch - 0.985)
    assert f"resnet50 {100 * one_epoch:.2f} against resnet50 epochs_10 98.50" in decision.text
    assert decision.text.endswith("five seeds; worse by at most 0.10 points is enough")


def test_of_several_choices_the_best_on_val_is_compared(store: StorePaths) -> None:
    test = {"sgd--lr_0.1": 0.90, "sgd--lr_0.3": 0.99, "sgd_lookahead--lr_0.1": 0.90, "adam--lr_0.001": 0.94}
    test |= {"adam_lookahead--lr_0.001": 0.94}
    named = {f"resnet10_wide {variant}": accuracy for variant, accuracy in test.items()}
    val = dict.fromkeys(named, 0.5) | {"resnet10_wide sgd--lr_0.3": 0.4}
    measure(store, "small_resnet18_optimizer", named, phase="scratch", dataset="cifar10", val=val)
    decision = decisions(store, "small_resnet18_optimizer")["adam_beats_sgd"]
    assert decision.outcome == "confirmed"
    assert [c.second for c in decision.compared] == [
        "resnet10_wide sgd--lr_0.1",
        "resnet10_wide sgd_lookahead--lr_0.1",
    ]


def test_an_artefact_says_of_what_and_what_a_fair_measurement_shows(store: StorePaths) -> None:
    rows = {"lenet5": 0.7, "cifar_resnet18": 0.95, "cifar_resnext29_32x4d": 0.95, "cifar_densenet121": 0.95}
    measure(store, "scratch_cifar10", rows, phase="scratch", dataset="cifar10")
    decision = decisions(store, "scratch_cifar10")["densenet_reaches_82_percent"]
    assert decision.outcome == "artefact"
    assert decision.claim.artefact_of is not None and decision.claim.artefact_of.startswith("BatchNorm over one image")
    difference, low, high = difference_of_published(0.95, N_TEST, 0.8206, 10_000)
    assert [decision.difference, decision.low, decision.high] == pytest.approx([difference, low, high])
    assert "Ours: cifar_densenet121 95.00 against the published 82.06: +12.94 points [" in decision.text


def test_an_error_is_read_from_the_accuracy_of_an_evaluation(store: StorePaths) -> None:
    settings = EvaluateSettings(source="own_head", split="test", precision="fp32", preprocess=None)
    base = spec("finetune", "resnet50", dataset="imagenet", seed=None)
    run = replace(base, phase="evaluate", settings=settings, extract=None, val_seed=None)
    completed(store, run, metrics={"test_top5_accuracy": 0.92862}, details={"n_test": 50_000})
    write_grid(store, "resnet50_one_epoch", [(run, "")])
    decision = decisions(store, "resnet50_one_epoch")["resnet50_has_3_57_percent_top5_error"]
    assert decision.outcome == "artefact"
    assert "resnet50 7.14 against the published 3.57: +3.57 points [" in decision.text
    assert decision.difference == pytest.approx(0.03568)


# -------------------------------------------------------------------------------------------------------------- epochs
@pytest.mark.parametrize("pair", [0.95, 0.85])
def test_other_epochs_than_the_grid_files_decide_nothing_and_are_told(store: StorePaths, pair: float) -> None:
    accuracies = singles_and_pairs(0.90, pair)
    measure(store, "individual_vs_parallel", accuracies, phase="finetune", dataset="mnist", epochs=2)
    decision = decisions(store, "individual_vs_parallel")["pairs_beat_singles_on_mnist"]
    assert decision.outcome == "not shown"
    assert decision.difference == pytest.approx(pair - 0.90)
    assert decision.text.startswith(
        f"run with 2 epochs instead of 10, so this decides nothing: resnet18+googlenet {100 * pair:.2f} against"
    )


def test_rows_of_other_epochs_are_named_where_each_has_its_own_number(store: StorePaths) -> None:
    named = {"resnet50": 0.99, "resnet50 epochs_10": 0.985}
    measure(store, "resnet50_one_epoch", named, phase="finetune", dataset="mnist", epochs=3)
    decision = decisions(store, "resnet50_one_epoch")["one_epoch_is_enough_on_mnist"]
    assert decision.outcome == "not shown"
    assert decision.text.startswith(
        "resnet50 run with 3 epochs instead of 1, resnet50 epochs_10 run with 3 epochs instead of 10, so this decides"
    )


def test_an_artefact_measured_with_other_epochs_says_so(store: StorePaths) -> None:
    rows = {"cifar_densenet121": 0.95}
    measure(store, "scratch_cifar10", rows, phase="scratch", dataset="cifar10", epochs=1)
    decision = decisions(store, "scratch_cifar10")["densenet_reaches_82_percent"]
    assert decision.outcome == "artefact"
    assert "Ours: run with 1 epoch instead of 30, so this decides nothing: cifar_densenet121 95.00" in decision.text


def test_what_is_said_about_82_percent_names_the_corners_filled_with_255() -> None:
    told = [
        f"{c.caveat or ''}{c.artefact_of or ''}" for c in all_claims() if c.published and c.published.first == 0.8206
    ]
    assert ["corners of rotated images are filled with 255" in text for text in told] == [True, True]


# ------------------------------------------------------------------------------------------------------------- missing
def test_what_is_missing_is_named_with_the_command_that_makes_it(store: StorePaths) -> None:
    rows = {"resnet10_wide lr_0.01": 0.9, "resnet10_wide lr_0.1": 0.8}
    runs = measure(store, "small_resnet18_lr", rows, phase="scratch", dataset="cifar10", seeds=2)
    late = spec("scratch", "resnet10_wide", dataset="cifar10", seed=0, lr=0.5)
    failed(store, late, failure_class="code", error="loss is nan")
    store.run(runs[0][0].run_id).record.unlink()
    write_grid(store, "small_resnet18_lr", [*runs, (late, "lr_0.001")])
    (decision,) = decisions(store, "small_resnet18_lr").values()
    assert (decision.outcome, decision.difference) == ("not tested", None)
    assert "resnet10_wide lr_0.01 is 1/2 completed, resnet10_wide lr_0.001 is failed (code)" in decision.text
    assert "resnet10_wide lr_0.0001 is missing" in decision.text and "lr_0.1 " not in decision.text
    told = command_of_grid("launch_grid.py", "small_resnet18_lr", store)
    assert decision.text.endswith(f"next: {told}")


def test_missing_predictions_leave_a_claim_untested_and_the_others_decided(store: StorePaths) -> None:
    accuracies = singles_and_pairs(0.90, 0.95)
    runs = measure(store, "individual_vs_parallel", accuracies, phase="finetune", dataset="cifar10", seeds=2)
    for run, _ in runs:
        if run.model == "vgg16" and run.seed == 1:
            store.run(run.run_id).predictions.unlink()
    found = decisions(store, "individual_vs_parallel")
    best = found["googlenet_is_the_best_single_on_cifar10"]
    assert (best.outcome, best.compared) == ("not tested", ())
    assert f"googlenet against vgg16: the test predictions of {runs[1][0].run_id} are missing" in best.text
    assert found["googlenet_beats_the_pairs_on_cifar10"].outcome == "contradicted"


def test_damaged_predictions_and_an_edited_record_decide_nothing(store: StorePaths) -> None:
    accuracies = singles_and_pairs(0.90, 0.95)
    runs = measure(store, "individual_vs_parallel", accuracies, phase="finetune", dataset="cifar10", seeds=1)
    by_model = {run.model: run for run, _ in runs}
    store.run(by_model["resnet18"].run_id).predictions.write_bytes(b"damaged")
    completed(store, by_model["vgg16+googlenet"], test_accuracy=0.99, details={"n_test": N_TEST})
    found = decisions(store, "individual_vs_parallel")
    assert by_model["resnet18"].run_id in found["googlenet_is_the_best_single_on_cifar10"].text
    edited = found["googlenet_beats_the_pairs_on_cifar10"]
    assert edited.outcome == "not tested"
    assert "states a test accuracy of 99.00 %" in edited.text


def test_an_artefact_without_rows_is_told_as_one_all_the_same(store: StorePaths) -> None:
    measure(store, "resnet50_one_epoch", {"resnet50": 0.995}, phase="finetune", dataset="mnist", seeds=1)
    decision = decisions(store, "resnet50_one_epoch")["resnet50_has_3_57_percent_top5_error"]
    assert (decision.outcome, decision.difference) == ("artefact", None)
    assert "Ours: not measured here (imagenet: resnet50 is missing; next: python jobs/run_phase.py" in decision.text


def test_a_part_of_the_data_set_decides_nothing(store: StorePaths) -> None:
    accuracies = singles_and_pairs(0.90, 0.95)
    measure(store, "individual_vs_parallel", accuracies, phase="finetune", dataset="mnist", seeds=1, max_images=600)
    decision = decisions(store, "individual_vs_parallel")["pairs_beat_singles_on_mnist"]
    assert decision.outcome == "not tested"
    assert "googlenet saw a part of the data set only" in decision.text


def test_rows_as_published_are_no_fair_measurement(store: StorePaths) -> None:
    accuracies = singles_and_pairs(0.90, 0.95)
    measure(store, "individual_vs_parallel", accuracies, phase="finetune", dataset="mnist", protocol="published")
    decision = decisions(store, "individual_vs_parallel")["pairs_beat_singles_on_mnist"]
    assert decision.outcome == "not tested" and "googlenet is missing" in decision.text


def test_two_rows_of_one_name_are_not_mixed(store: StorePaths) -> None:
    named = {"resnet50": 0.999, "resnet50 epochs_10": 0.999}
    runs = measure(store, "resnet50_one_epoch", named, phase="finetune", dataset="mnist", seeds=1)
    other = spec("finetune", "resnet50", backbone_options={"weights": "IMAGENET1K_V2"})
    finished(store, other, right_but(n=N_TEST))
    records.write_grid(
        store.grid("resnet50_one_epoch"),
        grid="resnet50_one_epoch",
        entries=[entry(run, variant=variant) for run, variant in [*runs, (other, "")]],
    )
    decision = decisions(store, "resnet50_one_epoch")["one_epoch_is_enough_on_mnist"]
    assert decision.outcome == "not tested" and "resnet50 stands in 2 rows" in decision.text


# -------------------------------------------------------------------------------------------------- which claims, where
def test_the_jpeg_copy_decides_under_its_own_name(store: StorePaths) -> None:
    measure(store, "individual_vs_parallel", singles_and_pairs(0.95, 0.9), phase="finetune", dataset="cifar10-jpeg")
    found = decisions(store, "individual_vs_parallel")
    beats = found["googlenet_beats_the_pairs_on_cifar10"]
    assert (beats.dataset, beats.outcome) == ("cifar10-jpeg", "confirmed")
    assert found["pairs_beat_singles_on_mnist"].outcome == "not tested"


def test_a_grid_decides_its_own_claims_only(store: StorePaths) -> None:
    assert claims_for("quickstart") == []
    assert [c.id for c in claims_for("small_resnet18_optimizer")] == ["adam_beats_sgd", "lookahead_helps"]
    write_grid(store, "small_resnet18_batch", [])
    (decision,) = decisions(store, "small_resnet18_batch").values()
    assert (decision.claim.id, decision.outcome) == ("batch_256_is_best", "not tested")
    assert decision.text.endswith(f"grid=small_resnet18_batch store.dir={store.root}")


def test_every_study_has_claims_and_every_claim_a_test_and_a_source() -> None:
    claims = all_claims()
    assert len({c.id for c in claims}) == len(claims) == 13
    studies = {"individual_vs_parallel", "scratch_cifar10", "resnet50_one_epoch", "small_resnet18"}
    assert {c.study for c in claims} == studies
    assert [c.id for c in claims if c.artefact_of] == [
        "densenet_reaches_82_percent",
        "resnet50_has_3_57_percent_top5_error",
    ]


@pytest.mark.parametrize("claim", all_claims(), ids=lambda c: c.id)
def test_the_figures_of_a_claim_are_published_ones_of_its_study(claim: Claim) -> None:
    if claim.published is None:
        return
    known = [f for f in published.figures() if f.source == claim.source and f.dataset == claim.datasets[0]]
    metric = claim.metric.removeprefix("test_") if claim.metric.endswith("_error") else claim.metric
    values = {f.value for f in known if f.metric == metric and f.phase == claim.phase}
    assert {claim.published.first, claim.published.second} - {None} <= values


@pytest.mark.parametrize("claim", all_claims(), ids=lambda c: c.id)
def test_the_rows_of_a_claim_stand_in_its_grid_files_and_are_trained_for_as_long(claim: Claim) -> None:
    for grid in claim.grids:
        if claim.command is not None:  # rows that no launch makes: the grid file tells the same command
            assert claim.command in (conf_dir() / "grid" / f"{grid}.yaml").read_text(encoding="utf-8")
            continue
        whole = load_grid([f"grid={grid}", "cluster=local"])
        trained = {
            (c.run.model, c.variant.partition("--")[0]): getattr(c.run.settings, "epochs", None)
            for c in whole.configurations
            if c.run.phase == claim.phase
        }
        assert all(trained[row] == claim.epochs_of(row[1]) for row in (*claim.first, *claim.second))
        config = compose_config([f"grid={grid}"]).grid
        variants = {str(name).partition("--")[0] for name in config.variants}
        rows = (*claim.first, *claim.second)
        assert claim.datasets[0] in config.datasets and claim.phase in config.phases
        assert {model for model, _ in rows} <= set(config.models)
        assert {variant for _, variant in rows} <= variants | ({""} if not config.only_variants else set())


# ------------------------------------------------------------------------------------------------------------ documents
def test_the_report_tells_claims_with_the_published_interval(store: StorePaths) -> None:
    measure(store, "individual_vs_parallel", singles_and_pairs(0.90, 0.95), phase="finetune", dataset="mnist", seeds=2)
    comparison = read_comparison("individual_vs_parallel", store)
    text = section_text(section(decisions_of(comparison)))
    assert "than the best single network. | confirmed | resnet18+googlenet 95.00 against googlenet 90.00" in text
    assert text.count(" | mnist | individual_vs_parallel |\n") == 1
    low, high = difference_of_published(0.9955, 10_000, 0.9949, 10_000)[1:]
    assert f"| 99.55 against 99.49: +0.06 points [{100 * low:+.2f}, {100 * high:+.2f}] |" in text
    report = write_report("individual_vs_parallel", store, figures=False).read_text(encoding="utf-8")
    assert text in report and "## Joined models beside their baselines" in report
    assert section([]) is None
