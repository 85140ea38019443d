"""The heads shown beside a probe's own, on the same standardised features."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from transfergrid.networks import reference_heads
from transfergrid.phases._heads_on_features import Bench
from transfergrid.training import by_group


def references(bench: Bench, head_predicted_N: np.ndarray[Any, Any]) -> tuple[dict[str, float], dict[str, Any]]:
    """Test accuracies of heads that are not linear, or not trained, and what the record says of each.

    only_right, only_head_right: test images that it alone, and that the probe's own head alone, has right.
    """
    train_ND, labels_N = bench.features["train"], bench.labels(bench.folds.train)
    options: dict[str, Any] = {"num_classes": bench.num_classes, "balanced": bench.balanced}
    heads = {"lda": reference_heads.linear_discriminant(train_ND, labels_N, **options)}
    quadratic = reference_heads.quadratic_discriminant(train_ND, labels_N, **options)
    if quadratic is not None:
        heads["qda"] = quadratic
    predicted: dict[str, tuple[np.ndarray[Any, Any], dict[str, Any]]] = {"knn": _neighbours(bench, labels_N)}
    for name, predict in heads.items():
        bench.stop()
        on_val = {} if bench.chooses_on is None else {"val": bench.score(_numpy(predict(bench.features["val"])))}
        predicted[name] = (_numpy(predict(bench.features["test"])), on_val)
    right_N = head_predicted_N == bench.folds.test.labels_N
    metrics, details = {}, {}
    for name, (predicted_N, on_val) in predicted.items():
        theirs_N = predicted_N == bench.folds.test.labels_N
        metrics[f"{name}_test_accuracy"] = float(theirs_N.mean())
        counts = {"only_right": int((theirs_N & ~right_N).sum()), "only_head_right": int((right_N & ~theirs_N).sum())}
        details[name] = on_val | counts | _by_group(theirs_N, right_N, bench.folds.test.groups_N)
    return metrics, details


def _by_group(
    theirs_N: np.ndarray[Any, Any], right_N: np.ndarray[Any, Any], group_N: np.ndarray[Any, Any] | None
) -> dict[str, Any]:
    """p that both are right equally often, where test images come in groups; None where those are too few."""
    if group_N is None:
        return {}
    enough = by_group.count_groups(group_N) >= by_group.MIN_GROUPS
    return {"p_by_group": by_group.compare(theirs_N[None], right_N[None], group_N).p_value if enough else None}


def _neighbours(bench: Bench, labels_N: Tensor) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
    """k by its score on val, then the larger; where nothing is held out, FIXED_K."""

    def by_k(name: str) -> dict[int, Tensor]:
        bench.stop()
        rows_BD = bench.features[name]
        return reference_heads.nearest_neighbours(
            bench.features["train"], labels_N, rows_BD, num_classes=bench.num_classes
        )

    on_test = by_k("test")
    if bench.chooses_on is None:
        k = max(k for k in on_test if k <= reference_heads.FIXED_K)
        return _numpy(on_test[k]), {"k": k, "ks": [k]}
    scores = {k: bench.score(_numpy(predicted_N)) for k, predicted_N in by_k("val").items()}
    k = max(scores, key=lambda k: (scores[k], k))
    return _numpy(on_test[k]), {"k": k, "ks": list(scores), "val": scores[k]}


def _numpy(values_N: Tensor) -> np.ndarray[Any, Any]:
    array_N: np.ndarray[Any, Any] = values_N.cpu().numpy()
    return array_N
