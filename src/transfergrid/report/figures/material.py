"""What figures are made from: a comparison, what its runs left in the store, and the images where they are at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from transfergrid.data.images_at_hand import Images
from transfergrid.errors import DataError
from transfergrid.report.analysis.comparison import Comparison
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.specs import digest, safe_name
from transfergrid.store import records
from transfergrid.store.records import Predictions, RunRecord
from transfergrid.training.evaluation import Array, confusion_matrix

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

Section = Literal["accuracy", "curves", "cost", "errors", "data", "architecture", "calibration", "cache"]
Rows = Sequence[tuple[ComparisonRow, tuple[RunRecord, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketch:
    """A figure that is still to be drawn; draw() raises where something it needs is missing."""

    name: str
    title: str
    caption: str
    section: Section
    rows: tuple[ComparisonRow, ...]
    draw: Callable[[], Drawing]


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    comparison: Comparison
    images: Images

    @property
    def rows(self) -> Rows:
        """Rows with at least one completed run, and these runs."""
        pairs = zip(self.comparison.rows, self.comparison.runs, strict=True)
        return [(row, runs) for row, runs in pairs if runs]

    @property
    def datasets(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.dataset for row, _ in self.rows))

    def groups(self) -> dict[tuple[str, str], Rows]:
        """(dataset, phase) -> rows."""
        found: dict[tuple[str, str], list[tuple[ComparisonRow, tuple[RunRecord, ...]]]] = {}
        for row, runs in self.rows:
            found.setdefault((row.dataset, row.phase), []).append((row, runs))
        return dict(found)

    def record(self, run_id: str) -> RunRecord | None:
        """A completed run that is no row's own: an extraction, or the probe of a fine-tuning. None where it is gone."""
        for runs in self.comparison.runs:
            for run in runs:
                if run.run_id == run_id:
                    return run
        try:
            record = records.read_record(self.comparison.store.run(run_id))
        except DataError:
            return None
        return record if record is not None and record.status == "completed" else None

    def test_predictions(self, run: RunRecord) -> Predictions:
        """Raises DataError where the run's file is missing or damaged, or holds no test images."""
        return self.comparison.stored.of(run.run_id)

    def test_confusion(self, runs: Sequence[RunRecord]) -> Array:
        """Counts (C, C), rows true, summed over seeds."""
        num_classes = len(class_names(runs[0]))
        made = [self.test_predictions(run) for run in runs]
        counts = [confusion_matrix(p.label_N, p.predicted_N, num_classes=num_classes) for p in made]
        counts_CC: Array = np.sum(counts, axis=0)
        return counts_CC


def class_names(run: RunRecord) -> tuple[str, ...]:
    """As the record has them; numbers in records that are older than the names."""
    names = run.details.get("class_names") or range(run.spec.dataset.num_classes)
    return tuple(str(name) for name in names)


def train_confusion(runs: Sequence[RunRecord]) -> Array | None:
    """Counts (C, C), rows true, summed over seeds; None where a record has none."""
    stored = [run.details.get("train_confusion") for run in runs]
    if any(counts is None for counts in stored):
        return None
    counts_CC: Array = np.sum([np.asarray(counts, dtype=np.int64) for counts in stored], axis=0)
    return counts_CC


# --------------------------------------------------------------------------------------------------------------- names
def row_key(row: ComparisonRow) -> str:
    """What names a row within its grid: dataset, model, phase, variant, weights and protocol, joined by ` | `."""
    return " | ".join((row.dataset, row.model, row.phase, row.variant, row.weights, row.protocol))


def row_name(kind: str, row: ComparisonRow) -> str:
    """A file name for a row's own figure: readable, and distinct even where only odd characters differ."""
    words = safe_name("-".join(filter(None, (row.dataset, row.model, row.phase, row.variant))))
    return f"{kind}-{words[:70].rstrip('-.+')}-{digest(row_key(row), 6)}"


def group_name(kind: str, *words: str) -> str:
    return f"{kind}-{safe_name('-'.join(words))[:70].rstrip('-.+')}-{digest(words, 6)}"


def row_title(row: ComparisonRow) -> str:
    return " · ".join(filter(None, (row.dataset, row.model, row.phase, row.variant)))


def row_labels(rows: Sequence[ComparisonRow]) -> list[str]:
    """Model and variant, with as much of phase, weights and protocol as it takes to tell the rows apart."""
    parts = [["model", "variant"], ["phase"], ["weights"], ["protocol"]]
    shown = parts[0]
    several_phases = len({row.phase for row in rows}) > 1
    for extra in parts[1:]:
        said = {tuple(getattr(row, name) for name in shown) for row in rows}
        if (extra == ["phase"] and several_phases) or (extra != ["phase"] and len(said) < len(rows)):
            shown = shown + extra
    return [" · ".join(filter(None, (getattr(row, name) for name in shown))) for row in rows]
