"""The sentences of the page that are not in a table: the verdict at the top, and what failed or is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transfergrid.report import integrity
from transfergrid.report.cells import accuracy_with_interval
from transfergrid.report.comparison import Comparison, ComparisonRow
from transfergrid.report.failures import failure_lines


def verdict(comparison: Comparison) -> str:
    """Per data set the row that a careful reader would take: best on val, told with its test accuracy.

    Rows with a record that contradicts its predictions are passed over.
    """
    rows = comparison.rows
    if not any(row.test_accuracy is not None for row in rows):
        return "Nothing can be said yet: no row has a test accuracy."
    trusted = trusted_rows(comparison)
    sentences = [_best(dataset, trusted) for dataset in dict.fromkeys(row.dataset for row in rows)]
    return " ".join(sentences) + _passed_over(len(rows) - len(trusted)) + _unfinished(rows)


def trusted_rows(comparison: Comparison) -> list[ComparisonRow]:
    """Those of which no record contradicts its predictions."""
    findings = zip(comparison.rows, integrity.findings(comparison), strict=True)
    return [row for row, found in findings if not any(integrity.EDITED in sentence for sentence in found)]


def _passed_over(count: int) -> str:
    if not count:
        return ""
    return f" Passed over: {count} {'row' if count == 1 else 'rows'} whose records do not agree with their predictions."


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
    status = row.status if row.status != "completed" else ""
    return f"{row.model} ({', '.join(part for part in (row.phase, row.variant, status) if part)})"


def _unfinished(rows: Sequence[ComparisonRow]) -> str:
    open_rows = sum(row.status != "completed" for row in rows)
    return f" {open_rows} of {len(rows)} rows have not completed." if open_rows else ""


def missing(comparison: Comparison) -> list[str]:
    """Rows that have not completed, failed runs with reason and next step, records that contradict predictions."""
    return [*_rows(comparison), *failure_lines(comparison.failures), *_findings(comparison)]


def _rows(comparison: Comparison) -> Iterator[str]:
    for row in comparison.rows:
        if row.status != "completed":
            parts = (row.grid, row.dataset, row.model, row.phase, row.variant, row.weights)
            why = f": {row.failure_class}" if row.failure_class else ""
            started = "" if why or row.n_seeds else "; no run has a record: not started, or still in work"
            yield f"{' · '.join(part for part in parts if part)}: {row.status}{why}{started}."


def _findings(comparison: Comparison) -> Iterator[str]:
    for found in integrity.findings(comparison):
        yield from (f"{text}." for text in found)
