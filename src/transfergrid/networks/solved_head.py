"""The optimum of a linear head: multinomial logistic regression with an L2 penalty, by preconditioned L-BFGS.

N rows, D feature dimensions, C classes, P of them with a row to train on. Products are in float32 and sums in float64;
what float32 cannot decide is finished in float64. Rows pass in slabs, so there is no second copy of the features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

GRADIENT_NORM = 1e-5  # of a head that is published
MAX_ITERATIONS = 1000
STALE = 30  # iterations without a smaller gradient, after which float32 is taken to have no more to say
PRECONDITIONER_ROWS = 8192
HISTORY_BYTES = 2**28
ABSENT_BIAS = 30.0  # nats that a class without a training row stands behind every other

Check = Callable[[], None]


@dataclass(frozen=True, slots=True)
class LogisticRegression:
    """The optimum of mean cross entropy + ||W||^2 / (2 C n), no penalty on the bias, on standardised features.

    The objective is scikit-learn's LogisticRegression(C=c) divided by n. `gradient_norm` is Euclidean, over W and b;
    train_loss: the mean cross entropy in nats, as the rows are weighed.
    """

    weight_CD: Tensor
    bias_C: Tensor
    iterations: int
    gradient_norm: float
    train_loss: float

    def logits(self, features_ND: Tensor) -> Tensor:
        return features_ND.float() @ self.weight_CD.T.float() + self.bias_C.float()


class SoftmaxProblem:
    """The training rows and all that does not depend on the strength of the penalty.

    features_ND: standardised, float32, on the device that is to compute. balanced: a row counts n / (P x rows of its
    class), scikit-learn's class_weight="balanced".
    """

    def __init__(self, features_ND: Tensor, labels_N: Tensor, *, num_classes: int, balanced: bool = False) -> None:
        self.device = features_ND.device
        self.num_rows, self.num_classes = len(features_ND), num_classes
        self.present_P, self._labels_N, counts_P = torch.unique(labels_N, return_inverse=True, return_counts=True)
        self._weight_N: Tensor | None = None
        if balanced:
            self._weight_N = (self.num_rows / (len(counts_P) * counts_P.float()))[self._labels_N]
        # The optimum lies in the span of the rows: with fewer rows than dimensions that is the smaller space.
        self._basis_DR: Tensor | None = None
        if self.num_rows < features_ND.shape[1]:
            self._basis_DR, coordinates_RN = torch.linalg.qr(features_ND.double().T)
            features_ND = coordinates_RN.T.float().contiguous()
        self._features_ND = features_ND
        every = max(1, self.num_rows // PRECONDITIONER_ROWS)
        some_MD = features_ND[::every]
        self._gram_DD = (some_MD.T @ some_MD).double() / len(some_MD)

    def start(self) -> Tensor:
        """(D + 1, P) float64 zeros: weights, and in the last line biases."""
        shape = (self._features_ND.shape[1] + 1, len(self.present_P))
        return torch.zeros(shape, dtype=torch.float64, device=self.device)

    def evaluate(self, parameters: Tensor, ridge: float, dtype: torch.dtype) -> tuple[float, float, Tensor]:
        """Objective, its cross entropy alone, and the gradient in float64. ridge: 1 / (C n)."""
        weight_DP, bias_P = parameters[:-1].to(dtype), parameters[-1].to(dtype)
        weight_sum_DP = torch.zeros_like(weight_DP)
        bias_sum_P = torch.zeros_like(parameters[-1])
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        width = max(weight_DP.shape)
        slab = max(256, (1 << 20 if self.device.type == "cpu" else 1 << 26) // width)
        for first in range(0, self.num_rows, slab):
            rows_BD = self._features_ND[first : first + slab].to(dtype)
            labels_B1 = self._labels_N[first : first + slab, None]
            scores_BP = torch.addmm(bias_P, rows_BD, weight_DP)
            scores_BP -= scores_BP.amax(1, keepdim=True)
            own_B1 = scores_BP.gather(1, labels_B1)
            scores_BP.exp_()
            total_B1 = scores_BP.sum(1, keepdim=True)
            loss_B1 = total_B1.log() - own_B1
            scores_BP /= total_B1
            scores_BP.scatter_add_(1, labels_B1, torch.full_like(own_B1, -1.0))
            if self._weight_N is not None:
                weight_B1 = self._weight_N[first : first + slab, None].to(dtype)
                scores_BP *= weight_B1
                loss_B1 = loss_B1 * weight_B1
            weight_sum_DP.addmm_(rows_BD.T, scores_BP)
            bias_sum_P += scores_BP.sum(0, dtype=torch.float64)
            loss += loss_B1.sum(dtype=torch.float64)
        gradient = torch.cat([weight_sum_DP.double(), bias_sum_P[None]]) / self.num_rows
        gradient[:-1] += ridge * parameters[:-1]
        mean_loss, squares = torch.stack([loss / self.num_rows, parameters[:-1].square().sum()]).tolist()
        return mean_loss + ridge / 2 * squares, mean_loss, gradient

    def preconditioner(self, ridge: float) -> Callable[[Tensor], Tensor]:
        """The inverse of the Hessian at zero, of at most PRECONDITIONER_ROWS rows: (gram / P + ridge)^-1."""
        num_present = len(self.present_P)
        hessian_DD = self._gram_DD / num_present
        hessian_DD.diagonal().add_(ridge + 1e-9)
        factor_DD = torch.linalg.cholesky(hessian_DD)

        def apply(direction: Tensor) -> Tensor:
            return torch.cat([torch.cholesky_solve(direction[:-1], factor_DD), direction[-1:] * num_present])

        return apply

    def head(self, optimum: Minimum) -> LogisticRegression:
        """In the space of the features, with a line for every class of the data set."""
        parameters = optimum.parameters
        weight_DP = parameters[:-1] if self._basis_DR is None else self._basis_DR @ parameters[:-1]
        weight_CD = torch.zeros(self.num_classes, len(weight_DP), dtype=torch.float64, device=self.device)
        bias_C = torch.full((self.num_classes,), float(parameters[-1].min()) - ABSENT_BIAS, device=self.device).double()
        weight_CD[self.present_P] = weight_DP.T
        bias_C[self.present_P] = parameters[-1]
        return LogisticRegression(weight_CD, bias_C, optimum.iterations, optimum.gradient_norm, optimum.loss)


@dataclass(slots=True)
class Minimum:
    """Where a minimisation ended. parameters as SoftmaxProblem.start says."""

    parameters: Tensor
    iterations: int
    gradient_norm: float
    loss: float


def minimise(
    problem: SoftmaxProblem,
    c: float,
    start: Tensor,
    *,
    gradient_norm: float = GRADIENT_NORM,
    max_iterations: int = MAX_ITERATIONS,
    check: Check = lambda: None,
) -> Minimum:
    """From `start` until the gradient, taken in float64 at last, is that small. check: called before each iteration."""
    ridge = 1.0 / (c * problem.num_rows)
    inverse = problem.preconditioner(ridge)
    memory = _Memory(inverse, length=max(5, min(20, HISTORY_BYTES // (16 * start.numel()))))
    at, dtype, iterations, best, best_at = start, torch.float32, 0, float("inf"), 0
    value, loss, gradient = problem.evaluate(at, ridge, dtype)
    while True:
        norm = float(gradient.norm())
        if norm < 0.9 * best:
            best, best_at = norm, iterations
        is_stale = dtype == torch.float32 and iterations - best_at >= STALE
        is_over = norm < gradient_norm or iterations >= max_iterations
        if is_over and not is_stale and (dtype == torch.float64 or norm >= gradient_norm):
            return Minimum(at, iterations, norm, loss)
        if is_stale or is_over:
            dtype = torch.float64
            value, loss, gradient = problem.evaluate(at, ridge, dtype)
            continue
        check()
        direction = -memory.apply(gradient)
        slope = float((gradient * direction).sum())
        step, accepted = 1.0, None
        while accepted is None and step > 1e-6:
            there = at + step * direction
            new_value, new_loss, new_gradient = problem.evaluate(there, ridge, dtype)
            new_slope = float((new_gradient * direction).sum())
            # Near the optimum the values differ by less than their rounding; there the slopes decide.
            flat = new_value <= value + 1e-6 * abs(value) and abs(new_slope) <= 0.9 * abs(slope)
            if new_value <= value + 1e-4 * step * slope or flat:
                accepted = there
            else:
                step *= min(0.5, max(0.1, slope / (slope - new_slope))) if new_slope > 0 else 0.5
        if accepted is None:
            if dtype == torch.float64:
                return Minimum(at, iterations, norm, loss)
            dtype = torch.float64
            memory.clear()
            value, loss, gradient = problem.evaluate(at, ridge, dtype)
            continue
        memory.add(accepted - at, new_gradient - gradient)
        at, value, loss, gradient = accepted, new_value, new_loss, new_gradient
        iterations += 1


class _Memory:
    """The last steps s and changes of the gradient y of L-BFGS; `apply` is its two-loop recursion, whose numbers stay
    on the device: the host would wait for each."""

    def __init__(self, inverse: Callable[[Tensor], Tensor], *, length: int) -> None:
        self._inverse, self._length, self._scale = inverse, length, 1.0
        self._pairs: list[tuple[Tensor, Tensor, Tensor]] = []

    def clear(self) -> None:
        self._pairs.clear()
        self._scale = 1.0

    def add(self, s: Tensor, y: Tensor) -> None:
        along = (s * y).sum()
        figures = torch.stack([along, s.norm() * y.norm(), (y * self._inverse(y)).sum()]).tolist()
        if figures[0] <= 1e-12 * figures[1]:
            return
        self._pairs = [*self._pairs[1 - self._length :], (s, y, along)]
        self._scale = figures[0] / figures[2]

    def apply(self, gradient: Tensor) -> Tensor:
        direction, shares = gradient.clone(), []
        for s, y, along in reversed(self._pairs):
            shares.append((s * direction).sum() / along)
            direction -= shares[-1] * y
        direction = self._inverse(direction) * self._scale
        for (s, y, along), share in zip(self._pairs, reversed(shares), strict=True):
            direction += s * (share - (y * direction).sum() / along)
        return direction


def fit_lbfgs(
    features_ND: Tensor, labels_N: Tensor, *, num_classes: int, c: float = 1.0, balanced: bool = False
) -> LogisticRegression:
    """One strength by itself, from zero. Deterministic."""
    problem = SoftmaxProblem(features_ND, labels_N, num_classes=num_classes, balanced=balanced)
    return problem.head(minimise(problem, c, problem.start()))
