"""Does a record say what its stored predictions say? Where not, it is told beside the row, and nothing changes."""

from __future__ import annotations

from transfergrid import records
from transfergrid.errors import DataError, one_line
from transfergrid.paths import StorePaths
from transfergrid.records import RunRecord
from transfergrid.report.comparison import Comparison

# Logits are stored as float16: two that were nearly equal can tie there and turn one image's prediction over.
IMAGES_TOLERATED = 2
EDITED = "record does not agree with its predictions"


def findings(comparison: Comparison) -> tuple[tuple[str, ...], ...]:
    """Beside each row, one sentence per completed run that does not stand on its predictions; mostly empty."""
    return tuple(
        tuple(sentence for record in runs if (sentence := finding(record, comparison.store)) is not None)
        for runs in comparison.runs
    )


def finding(record: RunRecord, store: StorePaths) -> str | None:
    """None where the test accuracy recomputed from predictions.npz is the record's, within two images."""
    stated = record.metrics.get("test_accuracy")
    if stated is None:
        return None
    try:
        test = records.read_predictions(store.run(record.run_id)).get("test")
    except DataError as error:
        if not store.run(record.run_id).predictions.exists():
            return f"{record.run_id}: no predictions.npz, so its record cannot be checked and has no confusion matrix"
        return f"{record.run_id}: {one_line(error)}"
    if test is None or not len(test.index_N):
        return f"{record.run_id}: predictions.npz holds no test images, so its record cannot be checked"
    correct, n_test = int((test.predicted_N == test.label_N).sum()), len(test.index_N)
    if abs(stated * n_test - correct) <= IMAGES_TOLERATED + 1e-6:
        return None
    return (
        f"{record.run_id}: {EDITED}: it states a test accuracy of {100 * stated:.2f} %, "
        f"{correct:,} of {n_test:,} stored predictions are right ({100 * correct / n_test:.2f} %)"
    )
