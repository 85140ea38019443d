import numpy as np
import pytest

from transfergrid.records import Predictions
from transfergrid.report.statistics import bootstrap_difference, correct_matrix, t_interval, wilson


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


def test_t_interval_of_five_values_uses_the_quantile_with_four_degrees_of_freedom() -> None:
    # mean 3, standard error sqrt(2.5 / 5), t(0.975; 4) = 2.776445
    half = 2.776445 * (2.5 / 5) ** 0.5
    assert t_interval([1, 2, 3, 4, 5]) == pytest.approx((3 - half, 3 + half), abs=1e-6)


def test_t_interval_of_two_values_is_wide() -> None:
    assert t_interval([0.9, 1.0]) == pytest.approx((0.95 - 12.706205 * 0.05, 0.95 + 12.706205 * 0.05), abs=1e-6)


def predictions(index: list[int], label: list[int], predicted: list[int]) -> Predictions:
    logits_NC = np.eye(3, dtype=np.float16)[predicted]
    return Predictions(np.array(index), np.array(label), logits_NC)


def test_correct_matrix_pairs_images_by_their_index_whatever_their_order() -> None:
    first = predictions([0, 1, 2], [0, 1, 2], [0, 1, 0])
    second = predictions([2, 0, 1], [2, 0, 1], [2, 0, 0])
    assert correct_matrix([first, second]).tolist() == [[True, True, False], [True, False, True]]


def test_correct_matrix_refuses_predictions_of_different_images() -> None:
    with pytest.raises(ValueError, match="different test images"):
        correct_matrix([predictions([0, 1], [0, 1], [0, 1]), predictions([0, 2], [0, 1], [0, 1])])


def test_bootstrap_of_equal_models_is_exactly_zero() -> None:
    correct_SN = np.random.default_rng(1).random((3, 200)) < 0.9
    assert bootstrap_difference(correct_SN, correct_SN) == (0.0, 0.0, 0.0)


def test_bootstrap_of_one_seed_agrees_with_the_normal_interval_of_paired_differences() -> None:
    n = 10_000
    a_SN = np.ones((1, n), dtype=bool)
    b_SN = np.ones((1, n), dtype=bool)
    a_SN[0, :50] = False  # 50 images only b has right, 150 only a
    b_SN[0, 50:200] = False
    mean, low, high = bootstrap_difference(a_SN, b_SN)
    half = 1.96 * ((200 / n - 0.01**2) / n) ** 0.5
    assert mean == pytest.approx(0.01)
    assert (low, high) == pytest.approx((0.01 - half, 0.01 + half), abs=1.5e-4)


def test_bootstrap_over_seeds_is_wider_where_the_seeds_disagree() -> None:
    n = 1_000
    b_SN = np.ones((3, n), dtype=bool)
    b_SN[:, :20] = False
    even_SN, uneven_SN = np.ones((3, n), dtype=bool), np.ones((3, n), dtype=bool)
    uneven_SN[0, -30:] = False  # one seed loses 30 images that b has right
    _, low_even, high_even = bootstrap_difference(even_SN, b_SN)
    _, low, high = bootstrap_difference(uneven_SN, b_SN)
    assert high - low > 1.4 * (high_even - low_even)


def test_bootstrap_repeats_under_its_seed_and_changes_with_it() -> None:
    generator = np.random.default_rng(2)
    a_SN, b_SN = generator.random((2, 3, 300)) < 0.8
    assert bootstrap_difference(a_SN, b_SN, draws=500, seed=7) == bootstrap_difference(a_SN, b_SN, draws=500, seed=7)
    assert bootstrap_difference(a_SN, b_SN, draws=500, seed=7) != bootstrap_difference(a_SN, b_SN, draws=500, seed=8)


def test_bootstrap_refuses_matrices_of_different_shape_and_names_both() -> None:
    with pytest.raises(ValueError, match=r"got \(3, 10\) and \(2, 10\)"):
        bootstrap_difference(np.ones((3, 10), dtype=bool), np.ones((2, 10), dtype=bool))
