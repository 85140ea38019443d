"""Does a record say what its stored predictions say? Where not, it is told beside the row, and nothing changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from transfergrid.errors import DataError, one_line
from transfergrid.paths import RunPaths
from transfergrid.records import Predictions, RunRecord, assert_as_recorded

if TYPE_CHECKING:  # a comparison asks here whether its predictions may be used
    from transfergrid.report.comparison import Comparison

HEADING = "Records and their predictions"
EDITED = "record does not agree with its predictions"


def findings(comparison: Comparison) -> tuple[tuple[str, ...], ...]:
    """Beside each row, one sentence per completed run that does not stand on its predictions; mostly empty."""
    return tuple(
        tuple(sentence for record in runs if (sentence := finding(record, comparison)) is not None)
        for runs in comparison.runs
    )


def trusted(comparison: Comparison) -> list[int]:
    """Positions of the rows of which no record contradicts its predictions."""
    return [i for i, found in enumerate(findings(comparison)) if not any(EDITED in sentence for sentence in found)]


def finding(record: RunRecord, comparison: Comparison) -> str | None:
    """None where the test accuracy recomputed from predictions.npz is the record's, and its weights are as written."""
    if "test_accuracy" not in record.metrics:
        return None
    try:
        return comparison.stored.disagreement(record) or _damaged_weights(comparison.store.run(record.run_id))
    except DataError as error:
        if not comparison.store.run(record.run_id).predictions.exists():
            return f"{record.run_id}: no predictions.npz, so its record cannot be checked and has no confusion matrix"
        return f"{record.run_id}: {one_line(error)}"


def _damaged_weights(paths: RunPaths) -> str | None:
    """Only weights that were touched since their record was written are read: they may be gigabytes. What uses them
    reads them whole."""
    try:
        if paths.weights.stat().st_ctime_ns > paths.record.stat().st_ctime_ns:
            assert_as_recorded(paths, paths.weights)
    except OSError:  # no weights were kept
        return None
    except DataError as error:
        return f"{paths.root.name}: {one_line(error)}"
    return None


def disagreement(record: RunRecord, test: Predictions) -> str | None:
    """What the record states and what its test predictions say, where both cannot be true.

    Logits are stored as float16: where the right class and another are equal there, either may have been predicted.
    """
    stated = record.metrics.get("test_accuracy")
    if stated is None:
        return None
    correct, n_test = int((test.predicted_N == test.label_N).sum()), len(test.index_N)
    largest_NC = test.logits_NC == test.logits_NC.max(axis=1, keepdims=True)
    classes_NC = np.arange(test.logits_NC.shape[1]) if test.classes_NC is None else test.classes_NC
    open_N = (largest_NC & (classes_NC == test.label_N[:, None])).any(axis=1) & (largest_NC.sum(axis=1) > 1)
    surely = int(((test.predicted_N == test.label_N) & ~open_N).sum())
    if surely - 0.5 < stated * n_test < surely + int(open_N.sum()) + 0.5:
        return None
    return (
        f"{record.run_id}: {EDITED}: it states a test accuracy of {100 * stated:.2f} %, "
        f"{correct:,} of {n_test:,} stored predictions are right ({100 * correct / n_test:.2f} %)"
    )


def as_markdown(comparison: Comparison) -> str:
    """A section, or nothing where every record stands on its predictions."""
    lines = [f"- {sentence}.\n" for found in findings(comparison) for sentence in found]
    return f"## {HEADING}\n\n{''.join(lines)}" if lines else ""
