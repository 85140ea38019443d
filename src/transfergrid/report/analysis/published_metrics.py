"""Everything a study published of a row, not only the accuracy that the table compares: losses, seconds, ..."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from transfergrid.report.analysis.cells import number, percent
from transfergrid.report.analysis.columns import pick
from transfergrid.report.analysis.comparison import Comparison
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.blocks import Column, Section, Table, figure, words
from transfergrid.report.studies.published import KEY, PublishedFigure, figures
from transfergrid.store.records import RunRecord

_SHARES = frozenset({"test_accuracy", "train_accuracy"})
_SHOWN = (*sorted(_SHARES), "test_loss", "train_loss", "wall_s")  # errors of evaluations have a section of their own


@dataclass(frozen=True, slots=True)
class Published:
    """One figure of a study beside ours, in the metric's unit."""

    row: ComparisonRow
    figure: PublishedFigure
    ours: float | None

    def text(self, value: float | None) -> str:
        if self.figure.metric in _SHARES:
            return percent(value)
        return number(value, digits=1 if self.figure.metric == "wall_s" else 4)


_COLUMNS: list[Column[Published]] = [
    *(column.of(lambda line: line.row) for column in pick("dataset model phase variant")),
    words("figure", lambda line: "phase s" if line.figure.metric == "wall_s" else line.figure.metric.replace("_", " ")),
    words("rule", lambda line: line.figure.rule.replace("_", " ")),
    figure("ours", text=lambda line: line.text(line.ours)),
    figure("published", value="figure.value", text=lambda line: line.text(line.figure.value)),
]
_ABOUT = """\
Accuracies in percent, losses in nats, seconds per run. Our training figures are evaluated after the last
epoch, in eval mode and without augmentation. The studies mostly give running means while training. Our
seconds are those of the run alone. The extraction of cached features, which rows share, is extra."""


def section(comparison: Comparison) -> Section | None:
    """None where the standing figures are all there is."""
    lines = [
        Published(row, figure, _ours(runs, figure))
        for row, runs in zip(comparison.rows, comparison.runs, strict=True)
        for figure in figures()
        if KEY(figure) == KEY(row) and figure.metric in _SHOWN and not figure.stands
    ]
    if not lines:
        return None
    table = Table("everything_published", _COLUMNS, lines)
    return Section("everything published", "Everything published", about=[_ABOUT], tables=[table])


def _ours(runs: Sequence[RunRecord], figure: PublishedFigure) -> float | None:
    """The mean over seeds; None where one has no such figure."""
    values = [value for run in runs if isinstance(value := _of_run(run, figure), (int, float))]
    return fmean(values) if values and len(values) == len(runs) else None


def _of_run(run: RunRecord, figure: PublishedFigure) -> Any:
    """By the figure's rule where a run has both: its test accuracy of the last and of the best epoch."""
    if figure.metric == "wall_s":
        return run.phase_s
    rule = run.details.get("rule")
    if figure.metric == "test_accuracy" and isinstance(rule, dict):
        name = {"last": "last_test_accuracy", "best_on_test": "best_test_accuracy"}.get(figure.rule, "")
        return rule.get(name, run.metrics.get("test_accuracy"))
    if figure.metric == "test_accuracy" and figure.rule == "best_on_test":
        return None  # under `fair` test was read once: it has no best epoch
    return run.metrics.get(figure.metric)
