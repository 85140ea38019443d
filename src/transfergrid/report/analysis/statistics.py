"""Intervals and tests: one run, several seeds, two models on the same test images, two published figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Any, Literal

import numpy as np

from transfergrid.training.by_group import Share, p_of_seeds
from transfergrid.training.evaluation import mcnemar_exact

# S seeds, N test images, P patterns, K bootstrap draws
Array = np.ndarray[Any, Any]
CONFIDENCE = 0.95
DRAWS = 10_000
DRAWS_AT_ONCE = 1_000  # bounds the memory of many patterns


# ------------------------------------------------------------------------------------------------ one model, one figure
def wilson(correct: int, n: int) -> tuple[float, float]:
    """95 % score interval for a proportion (Wilson 1927): what other test images of the same kind would change.

    It holds for one trained network; it says nothing about other seeds.
    """
    return published_interval(correct / n, n)


def published_interval(value: float, n_test: int) -> tuple[float, float]:
    """Wilson's interval of a published accuracy in [0, 1] on n_test images, however the figure was rounded."""
    assert 0 <= value <= 1 and n_test > 0, (value, n_test)
    return Share(value, n_test).interval(NormalDist().inv_cdf(0.5 + CONFIDENCE / 2))


def accuracy_interval(accuracies: Sequence[float], *, images: int) -> tuple[float, float]:
    """95 %, in [0, 1], of a mean accuracy over seeds: Student's t; where all seeds agree, which is no width, and what
    is left is chance among the test images, Wilson's over these `images`."""
    if len(set(accuracies)) == 1:
        return wilson(round(accuracies[0] * images), images)
    low, high = t_interval(accuracies)
    return max(0.0, low), min(1.0, high)


def difference_of_published(a: float, n_a: int, b: float, n_b: int) -> tuple[float, float, float]:
    """(a - b, low, high), 95 %: the hybrid score interval for independent proportions (Newcombe 1998, method 10).

    For figures of which only the accuracy is known. Two networks on one test set are not independent, so this is wider
    than what `compare` finds where the predictions are stored.
    """
    (low_a, high_a), (low_b, high_b) = published_interval(a, n_a), published_interval(b, n_b)
    return a - b, a - b - math.hypot(a - low_a, high_b - b), a - b + math.hypot(high_a - a, b - low_b)


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval for the mean over seeds (Student's t), from at least two values; not clipped.

    It holds for this test set; it says nothing about other images.
    """
    from scipy.special import stdtrit  # the quantile alone: scipy.stats takes a second to import

    assert len(values) >= 2, values
    half = float(stdtrit(len(values) - 1, 0.5 + CONFIDENCE / 2)) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


# ------------------------------------------------------------------------------------------------------------ p values
def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p values in the same order (Holm 1979): calling those below 5 % errs anywhere in the family in at most
    5 % of families. None, a comparison that could not be made, stays None and does not count."""
    adjusted: list[float | None] = [None] * len(p_values)
    ranked = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    largest = 0.0
    for rank, (p, i) in enumerate(ranked):
        largest = max(largest, min(1.0, p * (len(ranked) - rank)))
        adjusted[i] = largest
    return adjusted


def p_text(p: float, form: str) -> str:
    """p in this format, or with more digits where rounding would print 5 % for a p below it: a verdict is by p."""
    texts = (format(p, each) for each in (form, ".4f", ".5f", ".6f"))
    return next((text for text in texts if (float(text) < 0.05) == (p < 0.05)), repr(p))


# ----------------------------------------------------------------------------------------- two models, the same images
@dataclass(frozen=True, slots=True, kw_only=True)
class Variances:
    """Of d_si, what seed s makes of test image i for a minus for b (-1, 0 or 1), in squared units of accuracy.

    seed: of what one seed's trainings differ by on all images; image: of what an image is easier for a, whatever the
    seed; rest: of what is left. With one seed `image` holds all three.
    """

    seed: float
    image: float
    rest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedComparison:
    """Accuracy of a minus accuracy of b over `seeds` trainings of each and the same `images` test images.

    low, high: 95 %, not adjusted for other comparisons, as p_value is not. For one seed they are about other images
    only, for several about other images and other seeds. test `by_group`: `images` counts groups of test images, and
    the variances are of groups, see grouped.py.
    """

    difference: float
    low: float
    high: float
    p_value: float
    test: Literal["mcnemar_exact", "paired_bootstrap", "by_group"]
    seeds: int
    images: int
    variances: Variances


class NotJudged(str):
    """Why two rows are not told apart: there are too few groups."""


def compare(correct_a_SN: Array, correct_b_SN: Array, *, draws: int = DRAWS, seed: int = 0) -> PairedComparison:
    """Is a better than b? Rows are seeds, columns test images, in the same order for both.

    The interval is a paired bootstrap that draws seeds and images with replacement. Taken as it is, it would be wrong
    twice: five seeds drawn from five spread too little, and drawing both margins counts the rest variance about three
    times (Owen 2007, "The pigeonhole bootstrap"). So the draws keep their order and shape, but are moved to the spread
    and to the tails (Student's t) that `spread_of_mean` finds. p is twice the share of draws beyond zero. One seed has
    the exact McNemar test instead, and the same interval over images alone.
    """
    from scipy.special import ndtr, stdtrit

    if correct_a_SN.shape != correct_b_SN.shape or correct_a_SN.ndim != 2 or correct_a_SN.size == 0:
        raise ValueError(
            f"paired matrices (seeds, images) of one shape are needed, got {correct_a_SN.shape} and "
            f"{correct_b_SN.shape}; compare runs with the same seeds on the same test set"
        )
    seeds, images = correct_a_SN.shape
    difference_SN = correct_a_SN.astype(np.int8) - correct_b_SN.astype(np.int8)
    difference = float(difference_SN.mean())
    squares = _mean_squares(difference_SN)
    error, freedom = spread_of_mean(squares, seeds=seeds, images=images, differing=int(difference_SN.any(axis=0).sum()))
    drawn_K = _bootstrap(difference_SN, draws=draws, seed=seed)
    if error > 0 and drawn_K.std() > 0:
        drawn_U, place_K = np.unique(drawn_K, return_inverse=True)  # few: the quantile is slow
        share_U = ndtr(np.clip((drawn_U - difference) / drawn_K.std(), -8, 8))
        drawn_K = (difference + error * stdtrit(freedom, share_U))[place_K]
    low, high = np.clip(np.quantile(drawn_K, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]), -1, 1)
    if error == 0:  # every image alike: at most so many others (Clopper and Pearson 1934)
        half = 1 - ((1 - CONFIDENCE) / 2) ** (1 / images)
        low, high = max(-1.0, difference - half), min(1.0, difference + half)
    p_value = 2 * (1 + min((drawn_K <= 0).sum(), (drawn_K >= 0).sum())) / (1 + draws)
    if seeds == 1:
        p_value = mcnemar_exact(int((difference_SN > 0).sum()), int((difference_SN < 0).sum()))
    return PairedComparison(
        difference=difference,
        low=float(low),
        high=float(high),
        p_value=min(1.0, float(p_value)),
        test="mcnemar_exact" if seeds == 1 else "paired_bootstrap",
        seeds=seeds,
        images=images,
        variances=squares.variances(seeds=seeds, images=images),
    )


def non_inferiority(correct_best_SN: Array, correct_other_SN: Array, *, margin: float) -> float:
    """One-sided p of "the other is worse than the best by `margin` (in [0, 1]) or more"; below 5 % it is not worse.

    The mean difference over seeds (rows) and images (columns) has the standard error and degrees of freedom of
    `spread_of_mean`, as in `compare`. Few seeds can look alike by luck, so the seeds alone must pass Student's t, too:
    without it 9 to 11 % of simulated grids of 2 or 3 uneven seeds named a row that is not good enough. Where the two
    are right about the same images, at most so many others can differ (Clopper and Pearson 1934).
    """
    from scipy.special import stdtr

    difference_SN = correct_best_SN.astype(np.int8) - correct_other_SN.astype(np.int8)
    seeds, images = difference_SN.shape
    differing = int(difference_SN.any(axis=0).sum())
    squares = _mean_squares(difference_SN)
    error, freedom = spread_of_mean(squares, seeds=seeds, images=images, differing=differing)
    difference = float(difference_SN.mean())
    if error == 0:
        return (1 - margin) ** images if difference < margin else 1.0
    of_seeds = p_of_seeds(difference_SN.mean(axis=1), difference - margin)
    return max(float(stdtr(freedom, (difference - margin) / error)), of_seeds)


@dataclass(frozen=True, slots=True)
class MeanSquares:
    """Of the two-way layout seeds x images without repetition; with one seed only `image` is not zero. seed: a float,
    or (K,) of them, for which `spread_of_mean` then gives as many."""

    seed: Any
    image: float
    rest: float

    def variances(self, *, seeds: int, images: int) -> Variances:
        return Variances(
            seed=max(0.0, self.seed - self.rest) / images,
            image=max(0.0, self.image - self.rest) / seeds,
            rest=self.rest,
        )


def _mean_squares(difference_SN: Array) -> MeanSquares:
    seeds, images = difference_SN.shape
    of_seed_S, of_image_N = difference_SN.mean(axis=1), difference_SN.mean(axis=0)
    image = seeds * float(of_image_N.var(ddof=1)) if images > 1 else 0.0
    if seeds == 1 or images == 1:
        return MeanSquares(0.0, image, 0.0)
    rest_SN = difference_SN - of_seed_S[:, None] - of_image_N[None, :] + difference_SN.mean()
    rest = float((rest_SN**2).sum()) / ((seeds - 1) * (images - 1))
    return MeanSquares(images * float(of_seed_S.var(ddof=1)), image, rest)


def spread_of_mean(squares: MeanSquares, *, seeds: int, images: int, differing: int) -> tuple[Any, Any]:
    """Standard error of the mean difference and its degrees of freedom, seeds and images both taken as random.

    d_si = mean + seed_s + image_i + rest_si has a mean of variance (MS_seed + MS_image - MS_rest) / (S N); a seed
    variance that comes out negative counts as zero (Cornfield and Tukey 1956; Searle, Casella and McCulloch 1992, 4.4).
    Degrees of freedom by Satterthwaite (1946). Images on which the models never differ say nothing about a variance, so
    only the `differing` ones are counted: with few of them the plain count would call chance a difference.
    """
    total = squares.image + np.maximum(0.0, squares.seed - squares.rest)
    if np.all(total <= 0):
        return 0.0, 1.0
    image_freedom = max(1, differing - 1)
    spread = squares.image**2 / image_freedom
    if seeds > 1:
        spread += squares.seed**2 / (seeds - 1) + squares.rest**2 / (image_freedom * (seeds - 1))
    return np.sqrt(total / (seeds * images)), total**2 / spread


def _bootstrap(difference_SN: Array, *, draws: int, seed: int) -> Array:
    """(K,) mean differences, seeds and images drawn with replacement, the same ones for both models.

    Images on which the seeds agree in the same way are interchangeable, so a draw is a count per pattern: exact, fast.
    """
    seeds, images = difference_SN.shape
    pattern_SP, images_P = _patterns(difference_SN)
    generator = np.random.default_rng(seed)
    batches = []
    for start in range(0, draws, DRAWS_AT_ONCE):
        count = min(DRAWS_AT_ONCE, draws - start)
        images_KP = generator.multinomial(images, images_P / images, size=count)
        seeds_KS = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=count)
        batches.append(((seeds_KS @ pattern_SP) * images_KP).sum(axis=1) / (seeds * images))
    return np.concatenate(batches)


def _patterns(difference_SN: Array) -> tuple[Array, Array]:
    """The columns that differ, (S, P), in order, and of how many images each is, (P,): np.unique of columns, sooner."""
    code_N = np.zeros(difference_SN.shape[1], dtype=np.int64)
    for difference_N in difference_SN:
        _, code_N = np.unique(3 * code_N + difference_N + 1, return_inverse=True)
    _, first_P, images_P = np.unique(code_N, return_index=True, return_counts=True)
    return difference_SN[:, first_P], images_P
