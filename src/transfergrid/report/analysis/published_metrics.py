"""Everything a study published of a row, not only the accuracy that the table compares: losses, seconds, ..."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from transfergrid.report.analysis.cells import markdown_table, number, percent
from transfergrid.report.analysis.comparison import Comparison
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.studies.published import PublishedFigure, figures
from transfergrid.store.records import RunRecord

_SHARES = frozenset({"test_accuracy", "train_accuracy"})
_SHOWN = (*sorted(_SHARES), "test_loss", "train_loss", "wall_s")  # errors of evaluations have a section of their own


def as_markdown(comparison: Comparison) -> str:
    """Empty where the standing figures are all there is."""
    lines = []
    for row, runs in zip(comparison.rows, comparison.runs, strict=True):
        lines += [_line(row, runs, figure) for figure in of_row(row) if not figure.stands]
    if not lines:
        return ""
    header = ("dataset", "model", "phase", "variant", "figure", "rule", "ours", "published")
    about = (
        "Accuracies in percent, losses in nats, seconds per run. Our training figures are evaluated after the last\n"
        "epoch, in eval mode and without augmentation; the studies' mostly are running means while training. Ours\n"
        "are seconds of the run alone: where it reads cached features, their extraction, shared by rows, is extra.\n"
    )
    return f"## Everything published\n\n{about}\n" + markdown_table(header, lines, left=6)


def of_row(row: ComparisonRow) -> tuple[PublishedFigure, ...]:
    """All figures of one row, whatever metric and rule."""
    key = (row.grid, row.dataset, row.model, row.phase, row.variant)
    return tuple(f for f in figures() if (f.grid, f.dataset, f.model, f.phase, f.variant) == key and f.metric in _SHOWN)


def _line(row: ComparisonRow, runs: Sequence[RunRecord], figure: PublishedFigure) -> list[str]:
    names = [row.dataset, row.model, row.phase, row.variant, figure.metric.replace("_", " ")]
    rule = figure.rule.replace("_", " ")
    return [*names, rule, _shown(figure.metric, _ours(runs, figure)), _shown(figure.metric, figure.value)]


def _ours(runs: Sequence[RunRecord], figure: PublishedFigure) -> float | None:
    """The mean over seeds, by the figure's rule where a run has both (its test accuracy of the last and best epoch)."""
    if not runs:
        return None
    if figure.metric == "wall_s":
        return fmean(run.phase_s for run in runs)
    if figure.metric == "test_accuracy":
        name = {"last": "last_test_accuracy", "best_on_test": "best_test_accuracy"}.get(figure.rule, "")
        rules = [run.details.get("rule") for run in runs]
        if figure.rule == "best_on_test" and not all(isinstance(rule, dict) for rule in rules):
            return None  # under `fair` test was read once: it has no best epoch
        values = [
            rule.get(name) if isinstance(rule, dict) and name in rule else run.metrics.get("test_accuracy")
            for run, rule in zip(runs, rules, strict=True)
        ]
    else:
        values = [run.metrics.get(figure.metric) for run in runs]
    known = [value for value in values if isinstance(value, (int, float))]
    return fmean(known) if len(known) == len(runs) else None


def _shown(metric: str, value: float | None) -> str:
    if metric in _SHARES:
        return percent(value)
    return number(value, digits=1 if metric == "wall_s" else 4)
