"""What figures are made from: a comparison, what its runs left in the store, and the images where they are at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Literal, TypeVar

from transfergrid.data.images_at_hand import Images
from transfergrid.errors import DataError
from transfergrid.report.analysis.comparison import Comparison
from transfergrid.report.analysis.per_class import class_names
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.figures import style
from transfergrid.specs import digest, safe_name
from transfergrid.store import records
from transfergrid.store.records import Predictions, RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

Section = Literal["accuracy", "few images", "cost", "curves", "errors", "calibration", "architecture"]
Rows = Sequence[tuple[ComparisonRow, tuple[RunRecord, ...]]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketch:
    """A figure that is still to be drawn. title: the question that it answers. panels: draws all but the title, and
    raises where something it needs is missing."""

    name: str
    title: str
    caption: str
    section: Section
    rows: tuple[ComparisonRow, ...]
    panels: Callable[[], Drawing]

    def draw(self) -> Drawing:
        figure = self.panels()
        figure.suptitle(style.wrap(self.title, int(11 * figure.get_figwidth())))
        return figure


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

    def tested(self, dataset: str) -> Rows:
        """Rows of a data set with an accuracy on test, the highest first."""
        rows = [(row, runs) for row, runs in self.rows if row.dataset == dataset and row.test_accuracy is not None]
        return sorted(rows, key=lambda pair: -(pair[0].test_accuracy or 0.0))

    def groups(self) -> dict[tuple[str, str], Rows]:
        """(dataset, phase) -> rows."""
        rows_of: dict[tuple[str, str], list[tuple[ComparisonRow, tuple[RunRecord, ...]]]] = {}
        for row, runs in self.rows:
            rows_of.setdefault((row.dataset, row.phase), []).append((row, runs))
        return dict(rows_of)

    def letters(self) -> str:
        """Of all names that figures may show."""
        names = {row_title(row) for row, _ in self.rows}
        return "".join(names.union(*(class_names(runs[0]) for _, runs in self.rows)))

    def record(self, run_id: str) -> RunRecord | None:
        """A completed run that may be no row's own, as the probe of a fine-tuning is none. None where it is gone."""
        for run in chain.from_iterable(self.comparison.runs):
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


def class_labels(run: RunRecord) -> list[str]:
    """The class names on one line each; of one in letters that no font here has, its number."""
    names = class_names(run)
    return [style.clean(name) if style.is_drawable(name) else str(number) for number, name in enumerate(names)]


def pages(items: Sequence[T], most: int) -> Iterator[tuple[str, Sequence[T]]]:
    """At most so many at a time, and what the name of their figure ends in: nothing for the first."""
    for start in range(0, len(items), most):
        yield f"-{start // most + 1}" if start else "", items[start : start + most]


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
    fields = ["model", "variant"]
    if len({row.phase for row in rows}) > 1:
        fields.append("phase")
    for extra in ("weights", "protocol"):
        if len({tuple(getattr(row, name) for name in fields) for row in rows}) < len(rows):
            fields.append(extra)
    return [" · ".join(filter(None, (getattr(row, name) for name in fields))) for row in rows]
