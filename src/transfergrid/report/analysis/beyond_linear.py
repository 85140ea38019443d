"""Where a head that is not linear, or not trained, does better on the same features than the probe's own."""

from __future__ import annotations

from collections.abc import Sequence

from transfergrid.report.analysis.statistics import CONFIDENCE, holm
from transfergrid.store.records import RunRecord
from transfergrid.training.evaluation import mcnemar_exact


def better_than_head(runs: Sequence[RunRecord]) -> tuple[str, ...]:
    """Names (`knn`, `lda`, `qda`) that have more test images right than the head in every run of a row.

    By the exact McNemar test at 5 %, or by group where there are any, Holm-adjusted within a run. Test decides nothing
    here but the mark.
    """
    marked = [_of_run(run) for run in runs]
    return tuple(name for name in marked[0] if all(name in others for others in marked)) if marked else ()


def _of_run(run: RunRecord) -> list[str]:
    told_of = _references(run)
    counts = {name: (told["only_right"], told["only_head_right"]) for name, told in told_of.items()}
    adjusted = holm([told.get("p_by_group", mcnemar_exact(*counts[name])) for name, told in told_of.items()])
    return [
        name
        for (name, (only_right, only_head)), p in zip(counts.items(), adjusted, strict=True)
        if only_right > only_head and p is not None and p < 1 - CONFIDENCE
    ]


def _references(run: RunRecord) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = run.details.get("references", {})
    return found
