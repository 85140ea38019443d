"""Numbers as the report's tables print them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from transfergrid.report.analysis.rows import ComparisonRow


class WithAccuracy(Protocol):
    """A row: test accuracy and the ends of its 95 % interval, in [0, 1]."""

    @property
    def test_accuracy(self) -> float | None: ...
    @property
    def ci95_low(self) -> float | None: ...
    @property
    def ci95_high(self) -> float | None: ...
    @property
    def test_groups(self) -> int | None: ...


def percent(value: float | None, *, digits: int = 2) -> str:
    return "" if value is None else f"{100 * value:.{digits}f}"


def points(delta: float | None) -> str:
    """A difference of accuracies in percentage points, signed."""
    return "" if delta is None else f"{100 * delta:+.2f}"


def in_points(difference: float, low: float, high: float) -> str:
    """`+0.03 points [-0.05, +0.11]`"""
    return f"{points(difference)} points [{points(low)}, {points(high)}]"


def accuracy_with_interval(row: WithAccuracy) -> str:
    """`97.2 [95.0, 98.5]`; a second decimal only where the interval is narrower than one percentage point."""
    if row.ci95_low is None or row.ci95_high is None:
        not_judged = " [not judged]" if row.test_groups and row.test_accuracy is not None else ""
        return percent(row.test_accuracy) + not_judged
    digits = 2 if row.ci95_high - row.ci95_low < 0.01 else 1
    low, high = percent(row.ci95_low, digits=digits), percent(row.ci95_high, digits=digits)
    return f"{percent(row.test_accuracy, digits=digits)} [{low}, {high}]"


def weights_text(label: str) -> str:
    """The `weights` of a row in words: `weights random`; of a join, whose parts may differ, part by part."""
    return "weights " + "+".join("shipped with transfergrid" if p == "builtin" else p for p in label.split("+"))


def weights_where_needed(rows: Sequence[ComparisonRow], *columns: str) -> list[str]:
    """weights_text of those rows which these columns do not tell apart; the others have an empty text."""
    names = [tuple(getattr(row, name) for name in columns) for row in rows]
    return [weights_text(row.weights) if names.count(name) > 1 else "" for row, name in zip(rows, names, strict=True)]


def number(value: float | None, *, digits: int = 0) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
