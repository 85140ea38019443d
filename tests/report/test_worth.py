"""Questions across phases: the winner and the next, fine-tuning over the probe, pretraining over none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_cases as cases
from prediction_cases import finished
from report_cases import as_markdown

from transfergrid.paths import StorePaths
from transfergrid.report import wording
from transfergrid.report.analysis.answer import answer_of
from transfergrid.report.analysis.comparison import Comparison, read_comparison
from transfergrid.report.analysis.joins import join_baselines
from transfergrid.report.analysis.statistics import PairedComparison, compare, wilson
from transfergrid.report.analysis.worth import Contest, Question, contests, contests_about, winners
from transfergrid.report.several import joined
from transfergrid.report.wording import in_words
from transfergrid.specs import RunSpec
from transfergrid.store import records
from transfergrid.training.evaluation import mcnemar_exact

IMAGES = 1_000


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return StorePaths(tmp_path / "results")


def but(start: int, stop: int) -> np.ndarray[Any, Any]:
    """(IMAGES,) bool: wrong on images start to stop - 1."""
    index_N = np.arange(IMAGES)
    return (index_N < start) | (index_N >= stop)


def write(store: StorePaths, rows: list[tuple[RunSpec, np.ndarray[Any, Any], float]], grid: str = "g") -> Comparison:
    """Each row's run, which test images it gets right, and its val accuracy; the variant is told by the settings."""
    for run, right_N, val in rows:
        finished(store, run, right_N, val=val)
    named = [(run, f"batch_{run.settings.batch_size}") for run, _, _ in rows]  # type: ignore[union-attr]
    cases.write_grid(store, grid, [(run, "" if name == "batch_128" else name) for run, name in named])
    return read_comparison(grid, store)


def asked(comparison: Comparison, question: Question, dataset: str = "mnist") -> list[tuple[str, str]]:
    found = contests_about(comparison, question, dataset)
    return [tuple(f"{r.model} {r.phase} {r.variant}".strip() for r in (c.first, c.second.row)) for c in found]  # type: ignore[misc]


def result(contest: Contest) -> PairedComparison:
    assert isinstance(contest.second.answer.result, PairedComparison)
    return contest.second.answer.result


# ---------------------------------------------------------------------------------------------------------- the winner
def test_the_winner_is_tested_against_the_runner_up_of_another_phase(store: StorePaths) -> None:
    comparison = write(
        store,
        [
            (cases.spec("probe", "resnet18"), but(0, 100), 0.90),
            (cases.spec("scratch", "baseline_cnn"), but(60, 100), 0.94),
            (cases.spec("finetune", "resnet18"), but(0, 60), 0.95),
        ],
    )
    (contest,) = contests_about(comparison, "winner", "mnist")
    assert (contest.first.phase, contest.second.row.phase) == ("finetune", "scratch")
    # The pair stands among pretrained against from scratch, too, and has one p there and here.
    assert result(contest).difference == pytest.approx(-0.02)
    assert contest.second.answer.p_adjusted == pytest.approx(mcnemar_exact(40, 60))
    said = wording.verdict(comparison)
    assert "resnet18 (finetune) reaches 94.0 [92.4, 95.3] % on the test images (best on val of 3 rows). " in said
    assert "Against the runner-up on val, baseline_cnn (scratch): no difference shown (-2.00 points [" in said


def test_two_rows_that_meet_elsewhere_have_the_p_of_that_family(store: StorePaths) -> None:
    """Both best rows are fine-tunings, so they meet among the models of that phase, with a third."""
    rows = [
        (cases.spec("finetune", "resnet18"), but(0, 60), 0.95),
        (cases.spec("finetune", "googlenet"), but(0, 75), 0.94),
        (cases.spec("finetune", "resnet34"), but(0, 200), 0.80),
    ]
    (contest,) = contests_about(write(store, rows), "winner", "mnist")
    alone = mcnemar_exact(15, 0)
    assert result(contest).p_value == pytest.approx(alone)
    assert contest.second.answer.family_size == 2
    assert contest.second.answer.p_adjusted == pytest.approx(alone)  # the larger of two, so it stays as it is
    assert "no difference" not in wording.verdict(read_comparison("g", store))


def test_each_row_tied_with_the_winner_and_each_tied_runner_up_is_tested(store: StorePaths) -> None:
    rows = [
        (cases.spec("probe", "resnet18"), but(0, 60), 0.90),
        (cases.spec("scratch", "lenet5"), but(0, 70), 0.90),
        (cases.spec("finetune", "googlenet"), but(0, 80), 0.90),
    ]
    comparison = write(store, rows)
    assert asked(comparison, "winner") == [
        ("googlenet finetune", "lenet5 scratch"),
        ("googlenet finetune", "resnet18 probe"),
    ]
    above = write(store, [*rows, (cases.spec("probe", "resnet50"), but(0, 10), 0.95)])
    assert {pair[0] for pair in asked(above, "winner")} == {"resnet50 probe"} and len(asked(above, "winner")) == 3


def test_where_nothing_is_chosen_on_val_ties_are_on_test_and_nothing_is_tested(store: StorePaths) -> None:
    rows = [(cases.spec("probe", name, protocol="published"), but(0, 60), 0.9) for name in ("resnet18", "googlenet")]
    comparison = write(store, [*rows, (cases.spec("probe", "resnet34", protocol="published"), but(0, 90), 0.99)])
    assert contests_about(comparison, "winner", "mnist") == []
    assert wording.verdict(comparison) == (
        "On mnist, googlenet (probe) reaches 94.0 [92.4, 95.3] % on the test images (highest on test of 3 rows, tied "
        "with 1 more; nothing is chosen on val). It cost at least 4.0 GPU seconds."
    )
    assert next(in_words(answer_of(comparison))) == "Tied with it on test: resnet18 (probe) (94.0 [92.4, 95.3] %)."


def test_one_row_of_two_grids_is_no_tie_with_itself(store: StorePaths) -> None:
    rows = [
        (cases.spec("probe", "resnet18"), but(0, 60), 0.95),
        (cases.spec("probe", "googlenet"), but(0, 90), 0.90),
    ]
    both = joined([write(store, rows, name) for name in ("g", "h")])
    (winner,) = winners(both)
    assert [both.rows[i].model for i in (*winner.first, *winner.runners_up)] == ["resnet18", "googlenet"]
    assert winner.candidates == 2


# ------------------------------------------------------------------------------------------------- is it worth it?
def test_fine_tuning_stands_beside_the_probe_of_the_same_model_and_weights_each_best_on_val(store: StorePaths) -> None:
    random = {"weights": "random", "identity": "random:v1:0"}
    rows = [
        (cases.spec("probe", "resnet18"), but(0, 100), 0.90),
        (cases.spec("probe", "resnet18", batch_size=64), but(0, 5), 0.85),  # better on test, not on val
        (cases.spec("finetune", "resnet18"), but(0, 90), 0.80),
        (cases.spec("finetune", "resnet18", batch_size=64), but(0, 60), 0.95),
        (cases.spec("probe", "resnet18", backbone_options=random, batch_size=256), but(0, 300), 0.70),
        (cases.spec("probe", "googlenet"), but(0, 50), 0.93),
        (cases.spec("finetune", "googlenet"), but(0, 52), 0.94),
        (cases.spec("finetune", "resnet34"), but(0, 52), 0.94),
    ]
    comparison = write(store, rows)
    found = contests_about(comparison, "finetuning", "mnist")
    assert asked(comparison, "finetuning") == [
        ("resnet18 finetune batch_64", "resnet18 probe"),
        ("googlenet finetune", "googlenet probe"),
    ]
    p_values = [mcnemar_exact(40, 0), mcnemar_exact(0, 2)]
    assert [c.second.answer.p_adjusted for c in found] == [pytest.approx(2 * p_values[0]), pytest.approx(p_values[1])]
    assert [c.second.answer.verdict for c in found] == ["better", "no difference shown"]
    text = as_markdown(comparison)
    assert "\nIs fine-tuning worth it over the probe:\n\n| dataset | row | beside | verdict |" in text
    assert "| mnist | resnet18 (finetune, batch_64) | resnet18 (probe) | better |  | 1 | +4.00 [" in text


def test_each_pretrained_model_stands_beside_the_best_from_scratch_on_val(store: StorePaths) -> None:
    random = {"weights": "random", "identity": "random:v1:0"}
    rows = [
        (cases.spec("probe", "resnet18"), but(0, 100), 0.90),
        (cases.spec("finetune", "resnet18"), but(0, 60), 0.95),
        (cases.spec("probe", "googlenet"), but(0, 70), 0.90),
        (cases.spec("scratch", "lenet5"), but(0, 200), 0.80),
        (cases.spec("scratch", "baseline_cnn"), but(0, 90), 0.85),
        (cases.spec("probe", "resnet18", backbone_options=random, batch_size=64), but(0, 1), 0.99),
    ]
    assert asked(write(store, rows), "pretraining") == [
        ("resnet18 finetune", "baseline_cnn scratch"),
        ("googlenet probe", "baseline_cnn scratch"),
    ]
    # All layers trained from random weights is training from scratch; a head on random features is not.
    rows.append((cases.spec("finetune", "resnet18", backbone_options=random, batch_size=64), but(0, 80), 0.88))
    assert [b for _, b in asked(write(store, rows), "pretraining")] == ["resnet18 finetune batch_64"] * 2


def test_only_rows_trained_on_as_many_images_meet(store: StorePaths) -> None:
    def few(run: RunSpec, shots: int) -> RunSpec:
        return replace(run, shots=shots)

    rows = []
    for i, shots in enumerate((5, 20)):
        rows.append((few(cases.spec("probe", "resnet18", batch_size=64 + i), shots), but(0, 100), 0.8))
        rows.append((few(cases.spec("finetune", "resnet18", batch_size=64 + i), shots), but(0, 90 + i), 0.9))
    assert asked(write(store, rows), "finetuning") == [
        ("resnet18 finetune batch_64", "resnet18 probe batch_64"),
        ("resnet18 finetune batch_65", "resnet18 probe batch_65"),
    ]
    scratch = (cases.spec("scratch", "lenet5", max_images=10), but(0, 90), 0.9)
    assert contests_about(write(store, [*rows, scratch]), "pretraining", "mnist") == []


def test_rows_of_two_protocols_are_compared_where_there_is_nothing_else_and_it_is_said(store: StorePaths) -> None:
    probe = (cases.spec("probe", "resnet18", protocol="published"), but(0, 100), 0.9)
    fair = (cases.spec("finetune", "resnet18"), but(0, 60), 0.9)
    comparison = write(store, [probe, fair])
    (contest,) = contests(comparison)
    assert (contest.first.protocol, contest.second.row.protocol) == ("fair", "published")
    assert "| resnet18 (finetune, protocol fair) | resnet18 (probe, protocol published) | better |" in as_markdown(
        comparison
    )
    own = (cases.spec("probe", "resnet18", batch_size=64), but(0, 100), 0.8)
    assert asked(write(store, [probe, fair, own]), "finetuning") == [("resnet18 finetune", "resnet18 probe batch_64")]


def test_without_val_each_setting_stands_beside_its_own(store: StorePaths) -> None:
    rows = [
        (cases.spec(phase, "resnet18", protocol="published", batch_size=size), but(0, 60 + size), 0.9)
        for phase in ("probe", "finetune")
        for size in (128, 64)
    ]
    assert asked(write(store, rows), "finetuning") == [
        ("resnet18 finetune", "resnet18 probe"),
        ("resnet18 finetune batch_64", "resnet18 probe batch_64"),
    ]


def test_what_cannot_be_compared_says_why_and_a_family_of_none_has_no_table(store: StorePaths) -> None:
    rows = [
        (cases.spec("probe", "resnet18"), but(0, 100), 0.90),
        (cases.spec("finetune", "resnet18"), but(0, 60), 0.95),
    ]
    store.run(rows[0][0].run_id).root.mkdir(parents=True)
    write(store, rows)
    store.run(rows[0][0].run_id).predictions.unlink()
    comparison = read_comparison("g", store)
    text = as_markdown(comparison)
    assert "| resnet18 (probe) |  | not compared: the test predictions of " in text
    assert "from scratch:" not in text
    assert "(probe): not compared: the test predictions of" in wording.verdict(comparison)


# --------------------------------------------------------------------------------------------- one run, several seeds
def seeded(store: StorePaths, *, probe_seed: int | None = None) -> Comparison:
    """A probe of one run, and three seeds of the fine-tuning that was made from it."""
    rows = [(cases.spec("probe", "resnet18", seed=probe_seed), but(0, 100), 0.90)]
    rows += [(cases.spec("finetune", "resnet18", seed=s), but(5 * s, 60 + 7 * s), 0.95) for s in (0, 1, 2)]
    return write(store, rows)


def test_a_run_without_a_seed_stands_beside_every_seed_of_the_other_row(store: StorePaths) -> None:
    comparison = seeded(store)
    (contest,) = contests_about(comparison, "finetuning", "mnist")
    tuned_SN = np.stack([but(5 * s, 60 + 7 * s) for s in (0, 1, 2)])
    expected = compare(tuned_SN, np.stack([but(0, 100)] * 3))
    assert (result(contest).seeds, result(contest).test) == (3, "paired_bootstrap")
    assert result(contest).difference == pytest.approx(expected.difference)
    assert (result(contest).low, result(contest).high) == pytest.approx((expected.low, expected.high), abs=0.002)
    assert contest.second.seeds == "3 beside one run"
    (probe, tuned) = comparison.rows
    assert (probe.ci95_low, probe.ci95_high) == wilson(900, IMAGES)  # over images alone, and of some width
    assert tuned.ci95_high is not None and tuned.ci95_high > (tuned.test_accuracy or 1)


def test_a_run_with_a_seed_is_paired_with_that_seed_alone(store: StorePaths) -> None:
    (contest,) = contests_about(seeded(store, probe_seed=1), "finetuning", "mnist")
    assert (result(contest).seeds, contest.second.seeds) == (1, "1 of 3")


def test_two_rows_of_one_run_each_are_tested_over_images(store: StorePaths) -> None:
    rows = [(cases.spec("probe", name, seed=None), but(0, 60 + i), 0.9 - i / 10) for i, name in enumerate("ab")]
    (contest,) = contests_about(write(store, rows), "winner", "mnist")
    assert (result(contest).test, result(contest).p_value) == ("mcnemar_exact", 1.0)
    assert result(contest).low < result(contest).high


def test_seeds_that_all_agree_have_an_interval_over_images_and_none_of_no_width(store: StorePaths) -> None:
    runs = [cases.spec("probe", "resnet18", seed=seed) for seed in (0, 1, 2)]
    (row,) = write(store, [(run, but(0, 60), 0.9) for run in runs]).rows
    assert (row.n_seeds, row.test_accuracy_std) == (3, 0.0)
    assert (row.ci95_low, row.ci95_high) == wilson(940, IMAGES)


@pytest.mark.parametrize("seed", [None, 0])
def test_a_join_of_one_run_has_its_baselines(store: StorePaths, seed: int | None) -> None:
    """Single networks of one run, and the join with seeds or without."""
    rows = [
        (cases.spec("probe", name, seed=None), but(i, 60), 0.9 - i / 100)
        for i, name in enumerate(("resnet18", "googlenet"))
    ]
    for s in (None,) if seed is None else (0, 1):
        rows.append((cases.spec("probe", "resnet18+googlenet", seed=s), but(0, 50 + (s or 0)), 0.95))
    comparison = write(store, rows)
    (baseline,) = join_baselines(comparison).baselines
    assert baseline.seeds == ((None,) if seed is None else (0, 1))
    assert [round(part.mean, 3) for part in baseline.parts] == [0.94, 0.941]
    assert all((part.low or 1) < part.mean < (part.high or 0) for part in baseline.parts)
    assert records.read_grid(store.grid("g"))[0].seed is None
    assert comparison.rows[-1].verdict == "better" and comparison.notes == ()
