"""Does a record say what its stored predictions say? Where not, it is told beside the row, and nothing changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transfergrid.errors import DataError, one_line
from transfergrid.paths import RunPaths
from transfergrid.report.analysis.predictions import EDITED
from transfergrid.store.records import RunRecord, assert_as_recorded

if TYPE_CHECKING:  # a comparison asks here whether its predictions may be used
    from transfergrid.report.analysis.comparison import Comparison

HEADING = "Records and their predictions"


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


def as_markdown(comparison: Comparison) -> str:
    """A section, or nothing where every record stands on its predictions."""
    lines = [f"- {sentence}.\n" for found in findings(comparison) for sentence in found]
    return f"## {HEADING}\n\n{''.join(lines)}" if lines else ""
