import numpy as np
import pytest

from transfergrid.report.analysis.calibration import confidence, expected_calibration_error, reliability_bins
from transfergrid.store.records import make_predictions


def test_a_worked_example_of_four_images_in_two_bins() -> None:
    # (0, 0.5]: confidences 0.3 and 0.5, one right: |0.5 - 0.4| = 0.1; (0.5, 1]: 0.8 and 1.0, both right: 0.1
    found = expected_calibration_error(np.array([0.3, 0.5, 0.8, 1.0]), np.array([True, False, True, True]), bins=2)
    assert found == pytest.approx(0.1, abs=1e-12)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below_it() -> None:
    bins = reliability_bins(np.array([0.2, 0.2001, 0.4]), np.array([True, True, False]), bins=5)
    assert bins.images_B.tolist() == [1, 2, 0, 0, 0]
    assert bins.accuracy_B[:2].tolist() == [1.0, 0.5]
    assert np.isnan(bins.accuracy_B[2:]).all() and np.isnan(bins.confidence_B[2:]).all()
    assert (bins.low_B[1], bins.high_B[1]) == pytest.approx((0.2, 0.4))


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_the_error_is_that_of_the_definition_written_as_loops(bins: int) -> None:
    generator = np.random.default_rng(0)
    confidence_N = np.concatenate([generator.beta(5, 1, 2_000), np.linspace(0, 1, 16), [0.0, 1.0]])
    correct_N = generator.random(len(confidence_N)) < confidence_N**2
    expected = 0.0
    edges = np.linspace(0, 1, bins + 1)
    for b in range(bins):
        inside = [
            i for i, c in enumerate(confidence_N) if edges[b] < c <= edges[b + 1] or (b == 0 and c == 0)
        ]  # a probability of zero has no bin in the definition; it goes to the lowest
        if inside:
            accuracy = sum(bool(correct_N[i]) for i in inside) / len(inside)
            mean = sum(float(confidence_N[i]) for i in inside) / len(inside)
            expected += len(inside) / len(confidence_N) * abs(accuracy - mean)
    assert expected_calibration_error(confidence_N, correct_N, bins=bins) == pytest.approx(expected, rel=0, abs=1e-9)


def test_the_confidence_is_the_softmax_of_the_predicted_class_with_all_logits_and_with_the_twenty_largest() -> None:
    generator = np.random.default_rng(1)
    for classes in (10, 200):
        logits_NC = generator.normal(size=(50, classes)).astype(np.float16).astype(np.float32)
        made = make_predictions(np.arange(50), np.zeros(50, dtype=np.int64), logits_NC)
        softmax_NC = np.exp(logits_NC.astype(np.float64))
        softmax_NC /= softmax_NC.sum(axis=1, keepdims=True)
        assert confidence(made) == pytest.approx(softmax_NC.max(axis=1), rel=1e-6)
