"""Simulated grids: how often chance is called a difference, and how often a true difference is found.

A network is right on an image where a sum of normal terms is above a bound: how easy the image is (the same for all
networks), how easy it is for this model, how good this seed became, and the rest. So accuracy, the spread of seeds and
a true difference are known exactly, and networks fail on the same images to about the degree that real ones do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist, fmean
from typing import Any

import numpy as np
import pytest
from group_simulation import centre_of, two_models
from mcnemar_power import mcnemar_power
from paired_cases import observed

from transfergrid.report.analysis.paired_rows import verdict
from transfergrid.report.analysis.power import images_needed, power, seeds_needed
from transfergrid.report.analysis.statistics import Variances, compare, holm, non_inferiority
from transfergrid.training import by_group
from transfergrid.training.evaluation import mcnemar_exact

# M models, S seeds, N test images
Array = np.ndarray[Any, Any]
ACCURACY = 0.95
EASE_SD, MODEL_SD, REST_SD = 3.0, 1.0, 1.0
GRIDS = 1_000
DRAWS = 500  # of the bootstrap: near 5 % p is then known to 0.014, which makes it no smaller on average


def networks(
    generator: np.random.Generator,
    accuracies: Sequence[float],
    *,
    seeds: int,
    images: int,
    seed_sd: float,
    ease_N: Array | None = None,
) -> Array:
    """(M, S, N) bool: are they right? seed_sd: of the accuracy of one model's seeds, in [0, 1]. ease_N: of the images,
    where other networks see them, too."""
    found = []
    ease_N = EASE_SD * generator.standard_normal(images, dtype=np.float32) if ease_N is None else ease_N
    for accuracy in accuracies:
        spread = (EASE_SD**2 + MODEL_SD**2 + REST_SD**2) ** 0.5
        z = NormalDist().inv_cdf(accuracy)
        of_seed_sd = seed_sd * spread / NormalDist().pdf(z)
        bound = -z * (spread**2 + of_seed_sd**2) ** 0.5
        of_model_N = ease_N + MODEL_SD * generator.standard_normal(images, dtype=np.float32)
        of_seed_S1 = of_seed_sd * generator.standard_normal((seeds, 1), dtype=np.float32)
        rest_SN = REST_SD * generator.standard_normal((seeds, images), dtype=np.float32)
        found.append(of_model_N + of_seed_S1 + rest_SN > bound)
    return np.stack(found)


def true_variances(*, seed_sd: float) -> Variances:
    """Of the difference of two such models: the seeds' by construction, the others from very many images."""
    a_SN, b_SN = networks(np.random.default_rng(99), [ACCURACY] * 2, seeds=8, images=200_000, seed_sd=0.0)
    measured = compare(a_SN, b_SN, draws=2).variances
    return Variances(seed=2 * seed_sd**2, image=measured.image, rest=measured.rest)


def one_seed_p(a_N: Array, b_N: Array) -> float:
    return mcnemar_exact(int((a_N & ~b_N).sum()), int((b_N & ~a_N).sum()))


# ---------------------------------------------------------------------------------------------- one seed of each model
@pytest.mark.parametrize("images", [1_000, 5_000])
def test_of_a_thousand_grids_of_one_seed_without_a_difference_at_most_six_percent_show_one(images: int) -> None:
    """Networks of equal expected accuracy: for one seed of each, its luck is a true difference of these networks."""
    generator = np.random.default_rng(1)
    shown = 0
    for _ in range(GRIDS):
        right_MN = networks(generator, [ACCURACY] * 2, seeds=1, images=images, seed_sd=0.0)[:, 0]
        shown += one_seed_p(*right_MN) < 0.05
    assert 0.02 * GRIDS <= shown <= 0.06 * GRIDS


def test_a_true_difference_of_two_standard_errors_between_two_networks_is_found_as_often_as_computed() -> None:
    generator, images = np.random.default_rng(2), 2_000
    variances = true_variances(seed_sd=0.0)
    disagreement = variances.image + variances.rest
    difference = 2 * (disagreement / images) ** 0.5
    pairs = 2_000
    right = [
        networks(generator, [ACCURACY + difference / 2, ACCURACY - difference / 2], seeds=1, images=images, seed_sd=0.0)
        for _ in range(pairs)
    ]
    disagreement = fmean(float((a != b).mean()) for a, b in right)
    found = sum(one_seed_p(a[0], b[0]) < 0.05 for a, b in right) / pairs
    assert found == pytest.approx(mcnemar_power(difference, disagreement, images=images), abs=0.03)
    assert 0.40 < found < 0.55


@pytest.mark.slow
def test_one_seed_takes_the_luck_of_a_seed_for_the_model_and_several_seeds_do_not() -> None:
    """Why the report says what one seed cannot say: seeds 0.4 points apart, models equal, 10,000 images."""
    generator = np.random.default_rng(3)
    by_one, by_five = 0, 0
    for _ in range(100):
        a_SN, b_SN = networks(generator, [ACCURACY] * 2, seeds=5, images=10_000, seed_sd=0.004)
        by_one += one_seed_p(a_SN[0], b_SN[0]) < 0.05
        by_five += compare(a_SN, b_SN, draws=200).p_value < 0.05
    assert by_one > 25 and by_five <= 11  # binomial: more than 11 of 100 has a probability of 0.4 % at 5 %


# ------------------------------------------------------------------------------------------------------ several seeds
@pytest.mark.slow
@pytest.mark.parametrize(("images", "seed_sd"), [(1_000, 0.005), (3_000, 0.003)])
def test_of_a_thousand_comparisons_of_five_seeds_without_a_difference_at_most_six_percent_show_one(
    images: int, seed_sd: float
) -> None:
    generator = np.random.default_rng(4)
    shown = 0
    for _ in range(GRIDS):
        a_SN, b_SN = networks(generator, [ACCURACY] * 2, seeds=5, images=images, seed_sd=seed_sd)
        shown += compare(a_SN, b_SN, draws=DRAWS).p_value < 0.05
    assert 0.01 * GRIDS <= shown <= 0.06 * GRIDS


@pytest.mark.slow
def test_the_test_keeps_its_level_on_a_test_set_of_ten_thousand_images() -> None:
    generator = np.random.default_rng(5)
    shown = 0
    for _ in range(200):
        a_SN, b_SN = networks(generator, [ACCURACY] * 2, seeds=5, images=10_000, seed_sd=0.001)
        shown += compare(a_SN, b_SN, draws=DRAWS).p_value < 0.05
    assert shown <= 18  # of 200; binomial: more has a probability of 1.3 % at 5 %


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 5])
def test_of_a_thousand_whole_grids_without_a_difference_at_most_six_percent_call_any_different(seeds: int) -> None:
    """Three models and their three joins; each join against its part that is best on val, each against the best on val,
    Holm over all of these."""
    generator, test_images, val_images = np.random.default_rng(6), 1_000, 500
    parts = [(0, 1), (0, 2), (1, 2)]
    called = 0
    for _ in range(GRIDS):
        sd = 0.0 if seeds == 1 else 0.003
        right_MSN = networks(generator, [ACCURACY] * 6, seeds=seeds, images=test_images + val_images, seed_sd=sd)
        val_M, test_MSN = right_MSN[:, :, test_images:].mean(axis=(1, 2)), right_MSN[:, :, :test_images]
        pairs = {frozenset((join, max(ab, key=val_M.__getitem__))) for join, ab in enumerate(parts, start=3)}
        pairs |= {frozenset((other, int(val_M.argmax()))) for other in range(6) if other != val_M.argmax()}
        results = [compare(*test_MSN[list(pair)], draws=DRAWS if seeds > 1 else 2) for pair in pairs]
        adjusted = holm([result.p_value for result in results])
        called += any(
            p is not None and verdict(result.difference, p) != "no difference shown"
            for result, p in zip(results, adjusted, strict=True)
        )
    assert 0 < called <= 0.06 * GRIDS


@pytest.mark.slow
def test_a_true_difference_of_two_standard_errors_over_five_seeds_is_found_as_often_as_computed() -> None:
    generator, images, seeds, seed_sd = np.random.default_rng(7), 2_000, 5, 0.003
    variances = true_variances(seed_sd=seed_sd)
    error = (variances.seed / seeds + variances.image / images + variances.rest / (seeds * images)) ** 0.5
    first, second = ACCURACY + error, ACCURACY - error
    found = 0
    for _ in range(GRIDS):
        a_SN, b_SN = networks(generator, [first, second], seeds=seeds, images=images, seed_sd=seed_sd)
        found += compare(a_SN, b_SN, draws=DRAWS).p_value < 0.05
    computed = power(2 * error, variances, seeds=seeds, images=images)
    assert found / GRIDS == pytest.approx(computed, abs=0.03)
    assert 0.30 < computed < 0.50


# ---------------------------------------------------------------------------------------------- questions across phases
def families_of_a_grid(generator: np.random.Generator, *, seeds: int, probe_runs: int) -> list[list[float]]:
    """The p values of one grid without any difference, by question: is fine-tuning worth it over the probe, is each
    model worth it over the best from scratch, is the winner better than the next.

    Three models, of each two settings of the probe and two of fine-tuning, and two networks from scratch; everything
    compared is chosen on val, as worth.py does. probe_runs 1: a probe draws nothing and stands beside every seed.
    """
    test_images, val_images = 1_000, 500
    ease_N = EASE_SD * generator.standard_normal(test_images + val_images, dtype=np.float32)

    def trained(count: int, runs: int) -> Array:
        """(count, runs, N); a single run has no luck of a seed, which would be a true difference of this network."""
        sd = 0.0 if runs == 1 else 0.003
        return networks(generator, [ACCURACY] * count, seeds=runs, images=len(ease_N), seed_sd=sd, ease_N=ease_N)

    probes, tuned, scratch = trained(6, probe_runs), trained(6, seeds), trained(2, seeds)
    rows = [np.broadcast_to(row_SN, (seeds, len(ease_N))) for row_SN in (*probes, *tuned, *scratch)]
    val = [float(row_SN[:, test_images:].mean()) for row_SN in rows]

    def best(among: Sequence[int]) -> int:
        return max(among, key=val.__getitem__)

    def p_of(pairs: Sequence[tuple[int, int]]) -> list[float]:
        draws = DRAWS if seeds > 1 else 2
        found = [compare(rows[a][:, :test_images], rows[b][:, :test_images], draws=draws).p_value for a, b in pairs]
        return [p for p in holm(found) if p is not None]

    from_scratch = best((12, 13))
    finetuning = [(best((6 + 2 * m, 7 + 2 * m)), best((2 * m, 2 * m + 1))) for m in range(3)]
    pretraining = [(best((2 * m, 2 * m + 1, 6 + 2 * m, 7 + 2 * m)), from_scratch) for m in range(3)]
    winner, runner_up = sorted(range(len(rows)), key=val.__getitem__, reverse=True)[:2]
    return [p_of(finetuning), p_of(pretraining), p_of([(winner, runner_up)])]


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "probe_runs"), [(1, 1), (3, 1), (3, 3)])
def test_in_simulated_grids_without_a_difference_each_question_across_phases_errs_in_at_most_five_percent(
    seeds: int, probe_runs: int
) -> None:
    """One run of each row, a probe of one run beside three seeds, three seeds of each."""
    generator, grids = np.random.default_rng(8), GRIDS if seeds == 1 else GRIDS // 2
    called = np.zeros(3, dtype=int)
    for _ in range(grids):
        called += [
            min(p_values) < 0.05 for p_values in families_of_a_grid(generator, seeds=seeds, probe_runs=probe_runs)
        ]
    assert (called > 0).all() and (called <= 0.05 * grids).all(), called.tolist()


def test_a_hundred_grids_without_a_difference_are_mostly_told_so() -> None:
    """The quick one of the test above: more than 10 of 100 has a probability of 1.1 % at 5 %."""
    generator = np.random.default_rng(9)
    called = np.zeros(3, dtype=int)
    for _ in range(100):
        called += [min(p_values) < 0.05 for p_values in families_of_a_grid(generator, seeds=1, probe_runs=1)]
    assert (called <= 10).all(), called.tolist()


@pytest.mark.parametrize(
    ("seeds", "seed_sd", "margin"), [(1, 0.0, 0.01), (2, 0.01, 0.01), (3, 0.01, 0.01), (5, 0.003, 0.02)]
)
def test_a_row_that_is_worse_by_the_margin_is_called_good_enough_in_at_most_five_percent_of_grids(
    seeds: int, seed_sd: float, margin: float
) -> None:
    """Of each grid four cheaper rows, each worse than the winner by exactly the margin: whichever passes Holm's
    one-sided test is a wrong answer."""
    generator, grids = np.random.default_rng(5), 600
    accuracies = [ACCURACY, *[ACCURACY - margin] * 4]
    wrong = 0
    for _ in range(grids):
        best_SN, *others = networks(generator, accuracies, seeds=seeds, images=1_000, seed_sd=seed_sd)
        p_values = holm([non_inferiority(best_SN, other_SN, margin=margin) for other_SN in others])
        wrong += any(p is not None and p < 0.05 for p in p_values)
    assert wrong / grids <= 0.05 + 1.64 * (0.05 * 0.95 / grids) ** 0.5, wrong


def test_a_cheaper_row_that_is_as_good_is_found() -> None:
    """Of two equal models on 10,000 images, three seeds each, within one point."""
    generator, found = np.random.default_rng(6), 0
    for _ in range(50):
        a_SN, b_SN = networks(generator, [ACCURACY] * 2, seeds=3, images=10_000, seed_sd=0.001)
        found += non_inferiority(a_SN, b_SN, margin=0.01) < 0.05
    assert found >= 47


# ------------------------------------------------------------------------------------------------- what would decide it
def assert_about_eighty_percent(found: int, grids: int) -> None:
    assert 0.70 <= found / grids <= 0.90, found


@pytest.mark.full
@pytest.mark.parametrize(
    ("seeds", "images", "seed_sd", "difference"),
    [(1, None, 0.0, 0.02), (3, None, 0.001, 0.006), (5, None, 0.001, 0.006), (None, 8_000, 0.006, 0.010)],
)
def test_the_number_of_images_or_seeds_that_is_said_to_be_needed_shows_the_difference_in_four_of_five_grids(
    seeds: int | None, images: int | None, seed_sd: float, difference: float
) -> None:
    """200 grids of as many seeds and images as are said, where the true difference is the observed one."""
    generator, grids, variances = np.random.default_rng(22), 200, true_variances(seed_sd=seed_sd)
    if seeds == 1:
        variances = Variances(seed=0.0, image=variances.image + variances.rest, rest=0.0)
    seeds = seeds or seeds_needed(observed(difference, variances, seeds=3, images=images or 0))
    assert seeds is not None and seeds < 20
    images = images or images_needed(observed(difference, variances, seeds=seeds))
    assert images is not None and images < 20_000
    accuracies, found = [ACCURACY + difference / 2, ACCURACY - difference / 2], 0
    for _ in range(grids):
        a_SN, b_SN = networks(generator, accuracies, seeds=seeds, images=images, seed_sd=seed_sd)
        p = one_seed_p(a_SN[0], b_SN[0]) if seeds == 1 else compare(a_SN, b_SN, draws=DRAWS).p_value
        found += p < 0.05
    assert_about_eighty_percent(found, grids)


@pytest.mark.full
def test_the_number_of_groups_that_is_said_to_be_needed_shows_the_difference_in_four_of_five_grids() -> None:
    generator, grids, found = np.random.default_rng(12), 200, 0
    centres = centre_of(0.97), centre_of(0.93)
    a_N, b_N, group_N = two_models(generator, centres, groups=4_000, sizes="equal")
    true = by_group.compare(a_N[None], b_N[None], group_N)
    variances = Variances(seed=0.0, image=true.group_variance, rest=0.0)
    groups = images_needed(replace(observed(true.value, variances, seeds=1), test="by_group"))
    assert groups is not None and 100 < groups < 300
    for _ in range(grids):
        a_N, b_N, group_N = two_models(generator, centres, groups=groups, sizes="equal")
        found += by_group.compare(a_N[None], b_N[None], group_N).p_value < 0.05
    assert_about_eighty_percent(found, grids)
