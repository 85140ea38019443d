"""What failed, one line per reason: seeds that end alike are told together."""

from __future__ import annotations

from collections.abc import Sequence

from transfergrid.errors import next_step
from transfergrid.report.analysis.comparison import Failure


def failure_lines(failures: Sequence[Failure]) -> list[str]:
    """Runs, class, reason and next step; in the order of the first run that ended so."""
    by_reason: dict[tuple[str, str, str], list[str]] = {}
    for failure in failures:
        reason = " ".join(failure.error.split())
        step = next_step(failure.failure_class, failure.remedy)
        by_reason.setdefault((failure.failure_class, reason, step), []).append(f"`{failure.run_id}`")
    return [
        f"{', '.join(run_ids)}: {failure_class}: {reason}." + (f" Next: {step}." if step else "")
        for (failure_class, reason, step), run_ids in by_reason.items()
    ]
