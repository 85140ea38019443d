"""What the features say without a linear head: nearest neighbours and Gaussian classes. Shown beside it, never chosen.

N training rows, B rows asked about, D dimensions, C classes, R dimensions of the rows' own span (at most N).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

KS = (1, 3, 5, 10, 20, 50)
FIXED_K = 20  # where nothing is held out to choose on
QUERY_ROWS = 2048
SIMILARITIES = 1 << 25  # that are held at once

Predict = Callable[[Tensor], Tensor]


def nearest_neighbours(train_ND: Tensor, labels_N: Tensor, rows_BD: Tensor, *, num_classes: int) -> dict[int, Tensor]:
    """By k, the class (B,) that most of the k rows of highest cosine have; of equal votes the nearer ones count."""
    unit_ND = functional.normalize(train_ND.float())
    most = min(max(KS), len(unit_ND))
    ks = sorted({min(k, most) for k in KS})
    votes: dict[int, list[Tensor]] = {k: [] for k in ks}
    for some_BD in torch.split(rows_BD, max(1, min(QUERY_ROWS, SIMILARITIES // len(unit_ND)))):
        near = (functional.normalize(some_BD.float()) @ unit_ND.T).topk(most)
        classes_BK, votes_BK = labels_N[near.indices], 1 + 1e-3 * near.values
        for k in ks:
            votes_BC = torch.zeros(len(some_BD), num_classes, device=rows_BD.device)
            votes_BC.scatter_add_(1, classes_BK[:, :k], votes_BK[:, :k])
            votes[k].append(votes_BC.argmax(1))
    return {k: torch.cat(parts) for k, parts in votes.items()}


def linear_discriminant(train_ND: Tensor, labels_N: Tensor, *, num_classes: int, balanced: bool = False) -> Predict:
    """Gaussian classes of one covariance, shrunk as Ledoit and Wolf say (2004); priors from the rows, or all equal."""
    num_dims = train_ND.shape[1]
    # The discriminants lie in the span of the rows: with fewer rows than dimensions that is the smaller space.
    basis_DR = torch.linalg.qr(train_ND.double().T)[0] if len(train_ND) < num_dims else None
    rows_NR = train_ND if basis_DR is None else (train_ND.double() @ basis_DR)
    present_P, place_N, counts_P = torch.unique(labels_N, return_inverse=True, return_counts=True)
    mean_PR = _class_means(rows_NR, place_N, counts_P)
    factor_RR = torch.linalg.cholesky(_shrunk(rows_NR - mean_PR[place_N].to(rows_NR.dtype), num_dims=num_dims))
    weight_RP = torch.cholesky_solve(mean_PR.T, factor_RR)
    bias_P = -0.5 * (mean_PR.T * weight_RP).sum(0) + _log_priors(counts_P, balanced=balanced)
    weight_DP = weight_RP if basis_DR is None else basis_DR @ weight_RP

    def predict(rows_BD: Tensor) -> Tensor:
        best_B: Tensor = (rows_BD.float() @ weight_DP.float() + bias_P.float()).argmax(1)
        found_B: Tensor = present_P[best_B]
        return found_B

    return predict


def quadratic_discriminant(
    train_ND: Tensor, labels_N: Tensor, *, num_classes: int, balanced: bool = False
) -> Predict | None:
    """Gaussian classes, each of its own shrunk covariance; None unless every class has more rows than dimensions."""
    counts_C = torch.bincount(labels_N, minlength=num_classes)
    if int(counts_C.min()) <= train_ND.shape[1]:
        return None
    priors_C = _log_priors(counts_C, balanced=balanced)
    means, factors, offsets = [], [], []
    for label in range(num_classes):
        rows_ND = train_ND[labels_N == label]
        means.append(rows_ND.double().mean(0))
        factors.append(torch.linalg.cholesky(_shrunk(rows_ND - means[-1].to(rows_ND.dtype), num_dims=rows_ND.shape[1])))
        offsets.append(priors_C[label] - factors[-1].diagonal().log().sum())

    def predict(rows_BD: Tensor) -> Tensor:
        labels = []
        for some_BD in torch.split(rows_BD, QUERY_ROWS):
            scores = []
            for mean_D, factor_DD, offset in zip(means, factors, offsets, strict=True):
                whitened_DB = torch.linalg.solve_triangular(factor_DD, (some_BD.double() - mean_D).T, upper=False)
                scores.append(offset - 0.5 * whitened_DB.square().sum(0))
            labels.append(torch.stack(scores).argmax(0))
        return torch.cat(labels)

    return predict


def _class_means(rows_NR: Tensor, place_N: Tensor, counts_P: Tensor) -> Tensor:
    sums_PR = torch.zeros(len(counts_P), rows_NR.shape[1], dtype=torch.float64, device=rows_NR.device)
    sums_PR.index_add_(0, place_N, rows_NR.double())
    return sums_PR / counts_P[:, None]


def _log_priors(counts: Tensor, *, balanced: bool) -> Tensor:
    return torch.zeros_like(counts, dtype=torch.float64) if balanced else (counts / counts.sum()).double().log()


def _shrunk(centred_NR: Tensor, *, num_dims: int) -> Tensor:
    """Ledoit and Wolf's covariance, float64: towards the identity times the mean variance over all `num_dims`."""
    num_rows = len(centred_NR)
    covariance_RR = (centred_NR.T @ centred_NR).double() / num_rows
    variance = float(covariance_RR.diagonal().sum()) / num_dims
    squares = float(covariance_RR.square().sum())
    fourths = float(centred_NR.double().square().sum(1).square().sum()) / num_rows
    distance = squares / num_dims - variance**2
    spread = min(max((fourths - squares) / (num_dims * num_rows), 0.0), distance)
    share = spread / distance if distance > 0 else 1.0
    shrunk_RR = (1 - share) * covariance_RR
    # A fold without any variance has no classes to tell apart, and 1e-6 keeps what float16 left of a constant apart.
    shrunk_RR.diagonal().add_(share * variance + 1e-6 * (variance or 1.0))
    return shrunk_RR
