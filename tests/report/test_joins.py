"""Joined models beside their baselines: the average, the overlap of errors, and what missing files leave to say."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prediction_cases import finished, predictions_of, right_but
from report_cases import completed, spec, write_grid, write_report
from sklearn.metrics import cohen_kappa_score

from transfergrid.paths import RunPaths, StorePaths
from transfergrid.report.analysis.comparison import read_comparison
from transfergrid.report.analysis.joins import Joins, error_overlap, join_baselines, section
from transfergrid.report.analysis.predictions import EDITED, StoredPredictions, averaged_correct_N, probabilities_NC
from transfergrid.report.analysis.statistics import PairedComparison, t_interval, wilson
from transfergrid.report.markdown import section_text
from transfergrid.specs import RunSpec
from transfergrid.store import records
from transfergrid.store.records import Predictions, make_predictions

PAIR = "resnet18+googlenet"


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return StorePaths(tmp_path)


def baselines(store: StorePaths, runs: list[RunSpec], variants: dict[str, str] | None = None) -> Joins:
    write_grid(store, "pairs", [(run, (variants or {}).get(run.model, "")) for run in runs])
    return join_baselines(read_comparison("pairs", store))


def three_runs(seed: int = 0) -> tuple[RunSpec, RunSpec, RunSpec]:
    return (
        spec("finetune", "resnet18", seed=seed),
        spec("finetune", "googlenet", seed=seed),
        spec("finetune", PAIR, seed=seed),
    )


# ------------------------------------------------------------------------------------------------------ probabilities
def test_the_surer_of_two_parts_wins_the_average() -> None:
    label_N = np.array([0, 0, 1])
    index_N = np.arange(3)
    sure = make_predictions(index_N, label_N, np.log(np.array([[0.9, 0.1], [0.2, 0.8], [0.55, 0.45]])))
    other = make_predictions(index_N, label_N, np.log(np.array([[0.4, 0.6], [0.7, 0.3], [0.3, 0.7]])))
    # means of the first class: 0.65, 0.45, 0.425
    assert averaged_correct_N([sure, other], num_classes=2).tolist() == [True, False, True]


def test_logits_on_other_scales_are_averaged_as_probabilities() -> None:
    loud = make_predictions(np.arange(1), np.array([0]), np.array([[101.0, 100.0]]))  # 0.731 and 0.269
    sure = make_predictions(np.arange(1), np.array([0]), np.array([[0.0, 2.0]]))  # 0.119 and 0.881
    assert averaged_correct_N([loud, sure], num_classes=2).tolist() == [False]


def test_probabilities_of_many_classes_are_those_of_the_kept_ones_and_zero_elsewhere() -> None:
    logits_NC = np.random.default_rng(0).normal(0, 3, (5, 200)).astype(np.float32)
    full_NC = np.exp(logits_NC.astype(np.float64)) / np.exp(logits_NC.astype(np.float64)).sum(axis=1, keepdims=True)
    stored = make_predictions(np.arange(5), np.zeros(5, dtype=np.int64), logits_NC)
    ours_NC = probabilities_NC(stored, num_classes=200)
    assert ours_NC.shape == (5, 200)
    assert (ours_NC > 0).sum(axis=1).tolist() == [20] * 5
    assert np.allclose(ours_NC[ours_NC > 0], full_NC[ours_NC > 0], rtol=5e-3)  # the logits are float16
    assert (ours_NC.sum(axis=1) < 1).all()


# -------------------------------------------------------------------------------------------------------------- errors
def test_overlap_of_errors_counted_by_hand() -> None:
    overlap = error_overlap([right_but(0, 1, 2)[None], right_but(2, 3)[None]])
    assert overlap.all_wrong == pytest.approx(0.1)
    assert overlap.all_wrong_if_independent == pytest.approx(0.3 * 0.2)
    assert overlap.kappa == pytest.approx(cohen_kappa_score(right_but(0, 1, 2), right_but(2, 3)), abs=1e-12)


def test_overlap_of_three_parts_is_of_all_and_kappa_of_pairs() -> None:
    parts = [right_but(0, 1, 2), right_but(1, 2, 3), right_but(2, 9)]
    overlap = error_overlap([part[None] for part in parts])
    assert overlap.all_wrong == pytest.approx(0.1)
    kappas = [cohen_kappa_score(parts[i], parts[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert overlap.kappa == pytest.approx(sum(kappas) / 3, abs=1e-12)


def test_a_part_without_errors_has_no_kappa() -> None:
    perfect = right_but()[None]
    assert error_overlap([perfect, right_but(1)[None]]).kappa is None
    both = error_overlap([perfect, perfect])
    assert (both.kappa, both.all_wrong) == (None, 0.0)


# ----------------------------------------------------------------------------------------------------------- baselines
def test_a_pair_stands_beside_its_parts_their_average_and_the_oracle(store: StorePaths) -> None:
    first, second, pair = three_runs()
    finished(store, first, right_but(0, 1, 2))
    finished(store, second, right_but(2, 3))
    finished(store, pair, right_but(2))
    joins = baselines(store, [first, second, pair])
    (found,) = joins.baselines
    assert joins.notes == ()
    assert isinstance(found.joined_minus_averaged, PairedComparison)
    assert (found.seeds, found.joined_minus_averaged.images) == ((0,), 10)
    assert [(part.model, part.mean) for part in found.parts] == [("resnet18", 0.7), ("googlenet", 0.8)]
    assert found.oracle.mean == pytest.approx(0.9)
    low, high = wilson(9, 10)
    assert (found.joined.low, found.joined.high) == (low, high)
    # Both are equally sure, so where they disagree the lower class wins: image 3 (class 3 against 4) is right, and so
    # are 0 and 1; only image 2, where both say class 3, is wrong.
    assert found.averaged.mean == pytest.approx(0.9)
    assert found.joined_minus_averaged.difference == 0.0
    assert found.joined_minus_averaged.test == "mcnemar_exact"


def test_several_seeds_give_means_and_a_t_interval(store: StorePaths) -> None:
    runs = [run for seed in (0, 1, 2) for run in three_runs(seed)]
    for run in runs:
        assert run.seed is not None
        wrong = {"resnet18": (0, 1), "googlenet": (0, 2), PAIR: tuple(range(run.seed))}[run.model]
        finished(store, run, right_but(*wrong))
    (found,) = baselines(store, runs).baselines
    assert found.seeds == (0, 1, 2)
    assert found.joined.mean == pytest.approx(0.9)
    low, high = t_interval([1.0, 0.9, 0.8])
    assert found.joined.low == pytest.approx(max(0.0, low)) and found.joined.high == pytest.approx(min(1.0, high))
    assert isinstance(found.joined_minus_averaged, PairedComparison)
    assert found.joined_minus_averaged.seeds == 3


def test_images_are_matched_by_their_index_not_by_their_place(store: StorePaths) -> None:
    first, second, pair = three_runs()
    finished(store, first, right_but(0))
    finished(store, pair, right_but(0))
    finished(store, second, right_but(0))
    straight = predictions_of(right_but(0))
    turned = make_predictions(straight.index_N[::-1], straight.label_N[::-1], straight.logits_NC[::-1])
    records.write_predictions(store.run(second.run_id), {"test": turned})
    (found,) = baselines(store, [first, second, pair]).baselines
    assert found.overlap.kappa == 1.0
    assert isinstance(found.joined_minus_averaged, PairedComparison)
    assert found.joined_minus_averaged.difference == 0.0


def test_a_seed_whose_predictions_are_gone_is_left_out_and_named(store: StorePaths) -> None:
    runs = [run for seed in (0, 1) for run in three_runs(seed)]
    for run in runs:
        finished(store, run, right_but(0))
    gone = runs[4]
    store.run(gone.run_id).predictions.unlink()
    joins = baselines(store, runs)
    assert joins.baselines[0].seeds == (0,)
    assert joins.notes == (
        f"`{gone.run_id}` is left out: the test predictions of {gone.run_id} are missing or damaged; "
        "delete its record.json, and launch again.",
    )


def test_a_seed_whose_record_contradicts_its_predictions_is_left_out_and_named(store: StorePaths) -> None:
    runs = [run for seed in (0, 1) for run in three_runs(seed)]
    for run in runs:
        finished(store, run, right_but(0))
    completed(store, runs[3], test_accuracy=1.0, details={"n_test": 10})
    joins = baselines(store, runs)
    assert [(b.seeds, b.joined.mean) for b in joins.baselines] == [((0,), 0.9)]
    (note,) = joins.notes
    assert note.startswith(f"`{runs[3].run_id}` is left out: {EDITED}")
    assert note in section_text(section(joins))


def test_an_edited_single_of_equal_flops_is_named_and_not_compared(store: StorePaths) -> None:
    first, second, pair = three_runs()
    bigger = spec("finetune", "resnet34")
    for run, cost in ((first, 3.6), (second, 3.0), (pair, 7.0)):
        finished(store, run, right_but(0), gflops_per_image=cost)
    finished(store, bigger, right_but(0, 1), gflops_per_image=7.0)
    completed(store, bigger, test_accuracy=1.0, gflops_per_image=7.0, details={"n_test": 10})
    joins = baselines(store, [first, second, pair, bigger])
    (found,) = joins.baselines
    assert found.equal_flops is not None and found.equal_flops.difference is None
    assert [EDITED in note and bigger.run_id in note for note in joins.notes] == [True]


@pytest.mark.parametrize("damage", ["cut", "lengths"])
def test_damaged_predictions_leave_a_note_and_break_nothing(store: StorePaths, damage: str) -> None:
    runs = three_runs()
    for run in runs:
        finished(store, run, right_but(0))
    path = store.run(runs[0].run_id).predictions
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        np.savez(path, test_index=np.arange(3), test_label=np.arange(4), test_logits=np.zeros((4, 10)))
    joins = baselines(store, list(runs))
    assert joins.baselines == ()
    assert "no seed with stored predictions" in joins.notes[0] and "(without any: resnet18)" in joins.notes[0]
    assert joins.notes[1].startswith(f"`{runs[0].run_id}` is left out: the test predictions of")
    assert joins.notes[0] in section_text(section(joins))


def test_runs_on_other_images_are_not_paired(store: StorePaths) -> None:
    runs = three_runs()
    for run in runs:
        finished(store, run, right_but(0))
    records.write_predictions(store.run(runs[1].run_id), {"test": predictions_of(right_but(0), first_index=5)})
    joins = baselines(store, list(runs))
    assert joins.baselines == ()
    assert "googlenet was not tested on the same images as resnet18+googlenet" in joins.notes[0]


def test_a_part_under_other_conditions_is_no_baseline(store: StorePaths) -> None:
    runs = three_runs()
    for run in runs:
        finished(store, run, right_but(0))
    joins = baselines(store, list(runs), variants={"googlenet": "random_head"})
    assert joins.baselines == ()
    assert joins.notes == (
        "mnist resnet18+googlenet finetune: no baselines, because googlenet has no result under the same conditions.",
    )


def test_a_part_is_the_row_with_the_joins_own_weights_of_it(store: StorePaths) -> None:
    """Of two rows of resnet18 the join was made from that of a file; the other is better, and stands last."""
    mine = {"weights": "mine.pth", "identity": "file:ab"}
    from_file, hers = spec("finetune", "resnet18", backbone_options=mine), spec("finetune", "resnet18")
    part, join = spec("finetune", "googlenet"), spec("finetune", "resnet18+googlenet")
    join = replace(join, backbones=(*from_file.backbones, *part.backbones))
    for run, wrong in ((from_file, (0, 1)), (part, (0, 1, 2)), (hers, ()), (join, (0,))):
        finished(store, run, right_but(*wrong), val=0.8 if run is part else 0.9)
    (found,) = baselines(store, [from_file, part, hers, join]).baselines
    assert [(of.model, of.mean) for of in found.parts] == [("resnet18", 0.8), ("googlenet", 0.7)]
    row = read_comparison("pairs", store).rows[3]
    assert (row.weights, row.best_single_model) == ("mine.pth+IMAGENET1K_V1", "resnet18")
    assert row.delta_to_best_single == pytest.approx(0.1)


def test_a_grid_without_joins_has_no_section(store: StorePaths) -> None:
    run = spec("finetune", "resnet18")
    finished(store, run, right_but(0))
    assert section(baselines(store, [run])) is None


# ---------------------------------------------------------------------------------------------------------- equal FLOPs
@pytest.mark.parametrize(("gflops", "found"), [(6.0, True), (10.4, True), (4.6, False), (10.7, False)])
def test_the_single_of_equal_flops_is_within_a_factor_of_one_and_a_half(
    store: StorePaths, gflops: float, found: bool
) -> None:
    first, second, pair = three_runs()
    bigger = spec("finetune", "resnet34")
    for run, cost in ((first, 3.6), (second, 3.0), (pair, 7.0), (bigger, gflops)):
        finished(store, run, right_but(0, 1) if run is bigger else right_but(0), gflops_per_image=cost)
    (baseline,) = baselines(store, [first, second, pair, bigger]).baselines
    if not found:
        assert baseline.equal_flops is None
        return
    assert baseline.equal_flops is not None and isinstance(baseline.equal_flops.difference, PairedComparison)
    assert baseline.equal_flops.row.model == "resnet34"
    assert baseline.equal_flops.flops_ratio == pytest.approx(gflops / 7.0)
    assert baseline.equal_flops.difference.difference == pytest.approx(0.1)


def test_the_closest_of_several_is_taken_and_another_join_never_is(store: StorePaths) -> None:
    first, second, pair = three_runs()
    near, nearer, join = (spec("finetune", name) for name in ("resnet34", "resnet50", "resnet18+resnet34"))
    costs = {first: 3.6, second: 3.0, pair: 7.0, near: 8.0, nearer: 6.5, join: 7.0}
    for run, cost in costs.items():
        finished(store, run, right_but(0), gflops_per_image=cost)
    joins = baselines(store, list(costs))
    assert [b.equal_flops.row.model for b in joins.baselines if b.equal_flops] == ["resnet50", "resnet50"]
    assert math.isclose(joins.baselines[0].equal_flops.flops_ratio if joins.baselines[0].equal_flops else 0, 6.5 / 7)


# ------------------------------------------------------------------------------------------------------------ documents
def test_the_section_shows_every_number_once(store: StorePaths) -> None:
    first, second, pair = three_runs()
    finished(store, first, right_but(0, 1, 2), val=0.95)  # of two singles of equal FLOPs it is the best on val
    finished(store, second, right_but(2, 3))
    finished(store, pair, right_but(2))
    text = section_text(section(baselines(store, [first, second, pair])))
    assert "| mnist | resnet18+googlenet | finetune |  | resnet18 70.00, googlenet 80.00 | 1 | 90.00 [" in text
    assert "| mnist | resnet18+googlenet | finetune |  | resnet18 70.00 (x 1.00) | +20.00 [" in text
    assert "] | 90.00 | 10.00 | 6.00 | 0.21 |" in text
    widths = {line.count(" |") for line in text.splitlines() if line.startswith("|")}
    assert widths == {9, 10}


# --------------------------------------------------------------------------------------------------- read once
def counted_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each run's predictions.npz is read from now on."""
    reads: Counter[str] = Counter()
    real = records.read_predictions

    def counting(paths: RunPaths) -> dict[str, Predictions]:
        reads[paths.root.name] += 1
        return real(paths)

    monkeypatch.setattr(records, "read_predictions", counting)
    return reads


def test_a_whole_report_reads_each_file_once(store: StorePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [run for seed in (0, 1) for run in three_runs(seed)]
    for run in runs:
        finished(store, run, right_but(0))
    store.run(runs[0].run_id).predictions.unlink()
    write_grid(store, "pairs", [(run, "") for run in runs])
    reads = counted_reads(monkeypatch)
    write_report("pairs", store, figures=False)
    assert reads == {run.run_id: 1 for run in runs}


def test_what_was_used_last_stays_in_memory(store: StorePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = three_runs()
    for run in runs:
        finished(store, run, right_but(0))
    reads = counted_reads(monkeypatch)
    size_bytes = 10 * (8 + 8 + 10 * 2)  # ten images: index, label, float16 logits of ten classes
    stored = StoredPredictions(store, limit_bytes=2 * size_bytes)
    for run in (runs[0], runs[1], runs[0], runs[2], runs[0], runs[1]):
        assert len(stored.of(run.run_id).index_N) == 10
    assert [reads[run.run_id] for run in runs] == [1, 2, 1]
