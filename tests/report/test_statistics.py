import numpy as np
import pytest

from transfergrid.report.analysis.statistics import (
    _patterns,
    compare,
    difference_of_published,
    holm,
    published_interval,
    t_interval,
    wilson,
)
from transfergrid.training.evaluation import mcnemar_exact


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        (9955, 10_000, 0.9940, 0.9966),
        (9949, 10_000, 0.9933, 0.9961),
        (9517, 10_000, 0.9473, 0.9557),
        (9494, 10_000, 0.9449, 0.9535),
    ],
)
def test_wilson_gives_the_known_intervals_of_the_published_figures(
    correct: int, n: int, low: float, high: float
) -> None:
    assert wilson(correct, n) == pytest.approx((low, high), abs=5.1e-5)


def test_wilson_stays_inside_zero_and_one_at_the_ends() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert wilson(10, 10) == pytest.approx((0.72247, 1.0), abs=1e-5)


def test_wilson_refuses_more_correct_than_images() -> None:
    with pytest.raises(AssertionError):
        wilson(11, 10)


@pytest.mark.parametrize(("correct", "n"), [(0, 7), (1, 360), (352, 360), (9955, 10_000), (10_000, 10_000)])
def test_wilson_is_statsmodels(correct: int, n: int) -> None:
    from statsmodels.stats.proportion import proportion_confint

    theirs = proportion_confint(correct, n, method="wilson")
    assert wilson(correct, n) == pytest.approx(theirs, rel=0, abs=1e-9)
    assert published_interval(correct / n, n) == pytest.approx(theirs, rel=0, abs=1e-9)


@pytest.mark.parametrize(
    ("a", "n_a", "b", "n_b"), [(9955, 10_000, 9949, 10_000), (56, 70, 48, 80), (0, 10, 3, 20), (10, 10, 20, 20)]
)
def test_the_difference_of_published_figures_is_statsmodels_newcombe(a: int, n_a: int, b: int, n_b: int) -> None:
    from statsmodels.stats.proportion import confint_proportions_2indep

    theirs = confint_proportions_2indep(a, n_a, b, n_b, method="newcomb", compare="diff")
    difference, low, high = difference_of_published(a / n_a, n_a, b / n_b, n_b)
    assert difference == a / n_a - b / n_b
    assert (low, high) == pytest.approx(theirs, rel=0, abs=1e-9)


def test_the_difference_of_56_of_70_and_48_of_80_is_newcombes_own_example() -> None:
    # Newcombe 1998, Table II, example (a), method 10
    assert difference_of_published(56 / 70, 70, 48 / 80, 80) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_t_interval_is_scipys() -> None:
    from scipy import stats

    values = [0.9431, 0.9502, 0.9467, 0.9489, 0.9440, 0.9475]
    theirs = stats.t.interval(0.95, 5, loc=np.mean(values), scale=stats.sem(values))
    assert t_interval(values) == pytest.approx(theirs, rel=0, abs=1e-9)


def test_t_interval_of_five_values_uses_the_quantile_with_four_degrees_of_freedom() -> None:
    # mean 3, standard error sqrt(2.5 / 5), t(0.975; 4) = 2.776445
    half = 2.776445 * (2.5 / 5) ** 0.5
    assert t_interval([1, 2, 3, 4, 5]) == pytest.approx((3 - half, 3 + half), abs=1e-6)


def test_t_interval_of_two_values_is_wide() -> None:
    assert t_interval([0.9, 1.0]) == pytest.approx((0.95 - 12.706205 * 0.05, 0.95 + 12.706205 * 0.05), abs=1e-6)


# ------------------------------------------------------------------------------------------------------------ p values
@pytest.mark.parametrize(
    ("only_a", "only_b"), [(0, 0), (0, 1), (5, 0), (7, 7), (10, 3), (3, 10), (121, 59), (5000, 4800)]
)
def test_mcnemar_is_statsmodels(only_a: int, only_b: int) -> None:
    from statsmodels.stats.contingency_tables import mcnemar

    theirs = mcnemar([[1000, only_a], [only_b, 50]], exact=True).pvalue
    assert mcnemar_exact(only_a, only_b) == pytest.approx(theirs, rel=0, abs=1e-9)


def test_holm_is_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests

    generator = np.random.default_rng(0)
    for count in (1, 2, 6, 30):
        p_values = (generator.random(count) ** 3).tolist()
        p_values[-1] = p_values[0]  # a tie
        theirs = multipletests(p_values, method="holm")[1]
        assert holm(p_values) == pytest.approx(theirs.tolist(), rel=0, abs=1e-9)


def test_holm_passes_over_comparisons_that_could_not_be_made() -> None:
    assert holm([0.02, None, 0.01, None]) == [0.02, None, 0.02, None]
    assert holm([None]) == [None] and holm([]) == []


# ----------------------------------------------------------------------------------------- two models, the same images
def test_equal_models_differ_by_zero_and_at_most_by_what_so_few_images_could_hide() -> None:
    correct_SN = np.random.default_rng(1).random((3, 200)) < 0.9
    found = compare(correct_SN, correct_SN)
    bound = 1 - 0.025 ** (1 / 200)
    assert (found.difference, found.p_value, found.seeds, found.images) == (0.0, 1.0, 3, 200)
    assert (found.low, found.high) == pytest.approx((-bound, bound))


def test_one_seed_has_mcnemars_p_and_the_normal_interval_of_paired_differences() -> None:
    n = 10_000
    a_SN = np.ones((1, n), dtype=bool)
    b_SN = np.ones((1, n), dtype=bool)
    a_SN[0, :80] = False  # 80 images only b has right, 120 only a
    b_SN[0, 80:200] = False
    found = compare(a_SN, b_SN)
    half = 1.96 * ((200 / n - 0.004**2) / n) ** 0.5
    assert found.difference == pytest.approx(0.004)
    assert (found.low, found.high) == pytest.approx((0.004 - half, 0.004 + half), abs=1.5e-4)
    assert (found.test, found.p_value) == ("mcnemar_exact", mcnemar_exact(120, 80))
    assert found.variances.image == pytest.approx(0.02 - 0.004**2, rel=1e-3)
    assert (found.variances.seed, found.variances.rest) == (0.0, 0.0)


def test_a_few_images_are_not_enough_whatever_their_number_says() -> None:
    """Five images that only a has right: the exact test finds p = 1/16, and so must the interval of one seed."""
    a_SN, b_SN = np.ones((1, 10_000), dtype=bool), np.ones((1, 10_000), dtype=bool)
    b_SN[0, :5] = False
    found = compare(a_SN, b_SN)
    assert found.p_value == 0.0625
    assert found.low < 0 < found.difference < found.high


def test_an_interval_stays_within_what_accuracies_can_differ_by() -> None:
    """Two seeds that differ on one image of ten: Student's t has one degree of freedom, and would go far beyond."""
    a_SN, b_SN = np.ones((2, 10), dtype=bool), np.ones((2, 10), dtype=bool)
    b_SN[0, :5] = False
    found = compare(a_SN, b_SN)
    assert -1 <= found.low < found.difference == 0.25 < found.high == 1


def test_the_variances_of_seeds_images_and_the_rest_are_those_of_a_two_way_layout() -> None:
    """Against the sums of squares of statsmodels' analysis of variance."""
    import statsmodels.formula.api as formula
    from statsmodels.stats.anova import anova_lm

    pandas = pytest.importorskip("pandas")  # comes with statsmodels

    generator = np.random.default_rng(4)
    easy_N = generator.normal(size=80)
    a_SN = easy_N + generator.normal(size=(4, 80)) + np.array([0.0, 0.5, 1.0, 1.5])[:, None] > -1
    b_SN = easy_N + generator.normal(size=(4, 80)) > -1
    seed_SN, image_SN = np.indices((4, 80))
    table = {"d": a_SN.astype(int).ravel() - b_SN.ravel(), "seed": seed_SN.ravel(), "image": image_SN.ravel()}
    squares = anova_lm(formula.ols("d ~ C(seed) + C(image)", pandas.DataFrame(table)).fit())
    squares = (squares["sum_sq"] / squares["df"]).tolist()
    assert squares[0] > squares[2] < squares[1]  # else a variance would be cut to zero
    found = compare(a_SN, b_SN, draws=10).variances
    assert found.rest == pytest.approx(squares[2], abs=1e-9)
    assert found.seed == pytest.approx((squares[0] - squares[2]) / 80, abs=1e-9)
    assert found.image == pytest.approx((squares[1] - squares[2]) / 4, abs=1e-9)


def test_where_only_seeds_differ_the_interval_is_the_t_interval_over_seeds() -> None:
    n = 10_000
    a_SN, b_SN = np.ones((5, n), dtype=bool), np.ones((5, n), dtype=bool)
    for seed, (start, count) in enumerate([(0, 100), (1000, 160), (2000, 220), (3000, 120), (4000, 200)]):
        b_SN[seed, start : start + count] = False
    found = compare(a_SN, b_SN)
    low, high = t_interval((a_SN.mean(axis=1) - b_SN.mean(axis=1)).tolist())
    assert (found.low, found.high) == pytest.approx((low, high), rel=0.05)
    assert (found.test, found.seeds) == ("paired_bootstrap", 5)
    assert found.p_value < 0.01


def test_the_interval_is_wider_where_the_seeds_disagree() -> None:
    n = 1_000
    b_SN = np.ones((3, n), dtype=bool)
    b_SN[:, :20] = False
    even_SN, uneven_SN = np.ones((3, n), dtype=bool), np.ones((3, n), dtype=bool)
    uneven_SN[0, -30:] = False  # one seed loses 30 images that b has right
    even, uneven = compare(even_SN, b_SN), compare(uneven_SN, b_SN)
    assert uneven.high - uneven.low > 2 * (even.high - even.low)


def test_swapped_models_mirror_the_comparison() -> None:
    generator = np.random.default_rng(2)
    a_SN, b_SN = generator.random((2, 3, 300)) < 0.8
    one, other = compare(a_SN, b_SN), compare(b_SN, a_SN)
    assert one.difference == -other.difference
    assert (one.low, one.p_value) == pytest.approx((-other.high, other.p_value), abs=0.02)


def test_a_comparison_repeats_under_its_seed_and_changes_with_it() -> None:
    generator = np.random.default_rng(2)
    a_SN, b_SN = generator.random((2, 3, 300)) < 0.8
    assert compare(a_SN, b_SN, draws=500, seed=7) == compare(a_SN, b_SN, draws=500, seed=7)
    assert compare(a_SN, b_SN, draws=500, seed=7) != compare(a_SN, b_SN, draws=500, seed=8)


def test_a_comparison_refuses_matrices_of_different_shape_and_names_both() -> None:
    with pytest.raises(ValueError, match=r"got \(3, 10\) and \(2, 10\)"):
        compare(np.ones((3, 10), dtype=bool), np.ones((2, 10), dtype=bool))


@pytest.mark.parametrize("seeds", [1, 2, 5, 45])
def test_patterns_are_the_columns_that_differ_in_their_order(seeds: int) -> None:
    """The draws of the bootstrap depend on the order, so a faster way to find them must keep it."""
    difference_SN = np.random.default_rng(seeds).integers(-1, 2, (seeds, 300)).astype(np.int8)
    expected_SP, expected_P = np.unique(difference_SN, axis=1, return_counts=True)
    pattern_SP, images_P = _patterns(difference_SN)
    assert np.array_equal(pattern_SP, expected_SP) and np.array_equal(images_P, expected_P)
