"""What failed, one line per reason: seeds that end alike are told together."""

from __future__ import annotations

from collections.abc import Sequence

from transfergrid.errors import NEXT_STEP
from transfergrid.report.comparison import Failure


def failure_lines(failures: Sequence[Failure]) -> list[str]:
    """Runs, class, reason and next step; in the order of the first run that ended so."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for failure in failures:
        reason = " ".join(failure.error.split())
        by_reason.setdefault((failure.failure_class, reason), []).append(f"`{failure.run_id}`")
    return [
        f"{', '.join(run_ids)}: {failure_class}: {reason}.{_next_step(failure_class, reason)}"
        for (failure_class, reason), run_ids in by_reason.items()
    ]


def _next_step(failure_class: str, reason: str) -> str:
    """Empty where the reason names it already."""
    return "" if "launch again" in reason else f" Next: {NEXT_STEP.get(failure_class, 'read its log.txt')}."
