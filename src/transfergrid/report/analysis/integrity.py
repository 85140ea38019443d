"""Does a record say what its stored predictions say? Where not, it is told beside the row, and nothing changes."""

from __future__ import annotations

from transfergrid.errors import DataError, one_line
from transfergrid.paths import RunPaths
from transfergrid.report.analysis.comparison import Comparison, once
from transfergrid.report.analysis.predictions import EDITED
from transfergrid.report.blocks import Finding, Section
from transfergrid.store.records import RunRecord, assert_as_recorded

NO_PREDICTIONS = "no predictions.npz"


@once
def findings(comparison: Comparison) -> tuple[tuple[Finding, ...], ...]:
    """Beside each row, one per completed run that does not stand on its predictions; mostly empty."""
    return tuple(tuple(f for record in runs if (f := finding(record, comparison))) for runs in comparison.runs)


def trusted(comparison: Comparison) -> list[int]:
    """Positions of the rows of which no record contradicts its predictions."""
    return [i for i, of_row in enumerate(findings(comparison)) if all(f.kind != EDITED for f in of_row)]


def finding(record: RunRecord, comparison: Comparison) -> Finding | None:
    """None where the test accuracy recomputed from predictions.npz is the record's, and its weights are as written."""
    if "test_accuracy" not in record.metrics:
        return None
    paths = comparison.store.run(record.run_id)
    try:
        return comparison.stored.disagreement(record) or _damaged_weights(paths)
    except DataError as error:
        if not paths.predictions.exists():
            text = f"{NO_PREDICTIONS}, so its record cannot be checked and has no confusion matrix"
            return Finding(record.run_id, NO_PREDICTIONS, text)
        return Finding(record.run_id, "its predictions cannot be read", one_line(error))


def _damaged_weights(paths: RunPaths) -> Finding | None:
    """Only weights that were touched since their record was written are read: they may be gigabytes. What uses them
    reads them whole."""
    try:
        if paths.weights.stat().st_ctime_ns > paths.record.stat().st_ctime_ns:
            assert_as_recorded(paths, paths.weights)
    except OSError:  # no weights were kept
        return None
    except DataError as error:
        return Finding(paths.root.name, "its weights are not as they were written", one_line(error))
    return None


def section(comparison: Comparison) -> Section | None:
    """None where every record stands on its predictions."""
    items = [f"{finding.sentence}." for of_row in findings(comparison) for finding in of_row]
    return Section("integrity", "Records and their predictions", items=items) if items else None
