"""Top-1 and top-5 errors of evaluations, beside what studies state about the same network and what is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from transfergrid.report.analysis.cells import number, percent
from transfergrid.report.analysis.columns import pick
from transfergrid.report.analysis.comparison import Comparison
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.blocks import Column, Section, Table, figure, words
from transfergrid.report.studies.published import PublishedFigure, Rule, figures
from transfergrid.specs import EvaluateSettings
from transfergrid.store.records import RunRecord

METRICS = {"top1_error": "top-1", "top5_error": "top-5"}
_CORRECTED_WEIGHTS = "IMAGENET1K_V1"  # whose error torchvision's documentation gives


@dataclass(frozen=True, slots=True)
class TopError:
    """One error of one evaluation. row: names the run where a finished run was evaluated. published: by their rules."""

    row: ComparisonRow
    record: RunRecord
    metric: str
    published: Mapping[Rule, PublishedFigure]

    @property
    def measured(self) -> float:
        """In [0, 1], as the published values are."""
        return float(self.record.details[self.metric])

    @property
    def images(self) -> int:
        return int(self.record.details["n_test"])

    @property
    def differs(self) -> tuple[str, ...]:
        """What keeps it from being comparable with the corrected value."""
        spec = self.record.spec
        assert isinstance(spec.settings, EvaluateSettings)
        differences = {
            "max_images": spec.dataset.max_images is not None,
            "weights": spec.settings.source != "own_head" or spec.weights_label != _CORRECTED_WEIGHTS,
            "split": spec.settings.split == "train",
            "image_size_px": any(backbone.preprocess.mode != "recipe" for backbone in spec.backbones),
            "classes": "classes_compared" in self.record.details,
        }
        return tuple(name for name, is_different in differences.items() if is_different and self.published)


def _as_published(rule: Rule) -> Callable[[TopError], float | None]:
    return lambda error: error.published[rule].value if rule in error.published else None


COLUMNS: list[Column[TopError]] = [
    *(column.of(lambda error: error.row) for column in pick("dataset model variant weights")),
    words("differs", lambda error: ", ".join(error.differs)),
    words("error", lambda error: METRICS[error.metric], label="error %"),
    figure("images", number),
    figure("measured", percent),
    figure("as_stated", percent, _as_published("as_stated"), label="as stated"),
    figure("corrected", percent, _as_published("corrected")),
]


def top_errors(comparison: Comparison) -> tuple[TopError, ...]:
    """Of every completed evaluation, in the order of the grid's rows. A figure counts whatever grid its study is in."""
    errors = []
    for row, runs in zip(comparison.rows, comparison.runs, strict=True):
        for record in runs:
            for metric in METRICS:
                if record.spec.phase == "evaluate" and metric in record.details:
                    key = (record.spec.dataset.name, record.spec.model, "evaluate", metric)
                    published = {f.rule: f for f in figures() if (f.dataset, f.model, f.phase, f.metric) == key}
                    errors.append(TopError(row, record, metric, published))
    return tuple(errors)


def table(errors: Sequence[TopError]) -> Table[TopError]:
    return Table("top_1_and_top_5_errors", COLUMNS, errors)


def section(comparison: Comparison) -> Section | None:
    """None for a grid without evaluations."""
    errors = top_errors(comparison)
    if not errors:
        return None
    notes = [
        f"{METRICS[error.metric]} error {percent(f.value)} % {f.rule.replace('_', ' ')}: {f.note}"
        for error in errors
        for f in error.published.values()
    ]
    return Section("errors", "Top-1 and top-5 errors", tables=[table(errors)], items=list(dict.fromkeys(notes)))
