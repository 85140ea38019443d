"""The sentences of the page that are not in a table: the verdict at the top, and what failed or is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transfergrid.errors import NEXT_STEP
from transfergrid.report import integrity
from transfergrid.report.cells import accuracy_with_interval
from transfergrid.report.comparison import Comparison, ComparisonRow


def verdict(rows: Sequence[ComparisonRow]) -> str:
    """Per data set the row that a careful reader would take: best on val, told with its test accuracy."""
    if not any(row.test_accuracy is not None for row in rows):
        return "Nothing can be said yet: no row has a test accuracy."
    sentences = [_best(dataset, rows) for dataset in dict.fromkeys(row.dataset for row in rows)]
    return " ".join(sentence for sentence in sentences if sentence) + _unfinished(rows)


def chosen_row(dataset: str, rows: Sequence[ComparisonRow]) -> ComparisonRow | None:
    """Best on val; highest on test where nothing is chosen on val; None without a result."""
    tested = [row for row in rows if row.dataset == dataset and row.test_accuracy is not None]
    chosen = [row for row in tested if row.val_accuracy is not None]
    if chosen:
        return max(chosen, key=lambda row: row.val_accuracy or 0.0)
    return max(tested, key=lambda row: row.test_accuracy or 0.0, default=None)


def _best(dataset: str, rows: Sequence[ComparisonRow]) -> str:
    best = chosen_row(dataset, rows)
    if best is None:
        return f"On {dataset} no row has a result yet."
    how = "highest on test; nothing is chosen on val" if best.val_accuracy is None else "best on val"
    tested = sum(row.dataset == dataset and row.test_accuracy is not None for row in rows)
    reached = f"{accuracy_with_interval(best)} % on the test images"
    return f"On {dataset}, {_name(best)} reaches {reached} ({how} of {tested} rows)."


def _name(row: ComparisonRow) -> str:
    return f"{row.model} ({', '.join(part for part in (row.phase, row.variant) if part)})"


def _unfinished(rows: Sequence[ComparisonRow]) -> str:
    open_rows = sum(row.status != "completed" for row in rows)
    return f" {open_rows} of {len(rows)} rows have not completed." if open_rows else ""


def missing(comparison: Comparison) -> list[str]:
    """Rows that have not completed, failed runs with reason and next step, records that contradict predictions."""
    return [*_rows(comparison), *_failures(comparison), *_findings(comparison), *comparison.notes]


def _rows(comparison: Comparison) -> Iterator[str]:
    for row in comparison.rows:
        if row.status != "completed":
            parts = (row.grid, row.dataset, row.model, row.phase, row.variant, row.weights)
            why = f": {row.failure_class}" if row.failure_class else ""
            started = "" if why or row.n_seeds else "; no run has a record: not started, or still in work"
            yield f"{' · '.join(part for part in parts if part)}: {row.status}{why}{started}."


def _failures(comparison: Comparison) -> Iterator[str]:
    for failure in comparison.failures:
        step = NEXT_STEP.get(failure.failure_class, "read its log.txt")
        yield f"`{failure.run_id}`: {failure.failure_class}: {' '.join(failure.error.split())}. Next: {step}."


def _findings(comparison: Comparison) -> Iterator[str]:
    for found in integrity.findings(comparison):
        yield from (f"{text}." for text in found)
