"""Which classes a network gets wrong: its confusion matrix, each class's scores, and the pairs it confuses most.

One computation for the figures, the terminal, the report of an evaluation, model cards and W&B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from transfergrid.errors import DataError
from transfergrid.names import printable, some
from transfergrid.report.analysis.cells import accuracy_with_interval, number, percent
from transfergrid.report.analysis.comparison import Comparison
from transfergrid.report.analysis.predictions import StoredPredictions
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.blocks import Column, Section, Table, figure, words
from transfergrid.specs import EvaluateSettings
from transfergrid.store.records import MANY_CLASSES, Predictions, RunRecord, read_predictions
from transfergrid.training.evaluation import Array, class_scores, confusion_matrix

MATRIX_CLASSES = 12  # of a matrix that a terminal of 80 columns holds; above it the pairs are listed
MOST_PAIRS = 10
MOST_TAKEN_FOR = 3  # names of classes
MOST_EVALUATIONS = 10  # in a report with their tables
Pair = tuple[int, int, int]  # true class, predicted class, images


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassErrors:
    """One class. recall, precision: in [0, 1], None where it has no images, or was never predicted; f1 is then 0.

    taken_for: the class that most of its errors are taken for, several where as many are; each_for: images of each.
    """

    name: str
    images: int
    right: int
    recall: float | None
    precision: float | None
    f1: float
    taken_for: tuple[str, ...]
    each_for: int


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """names: of the classes. counts_CC: images, rows true, columns predicted, summed over `runs` runs of one row.

    split: that the images are of. Not slotted: `classes` is kept.
    """

    names: tuple[str, ...]
    counts_CC: Array
    runs: int = 1
    split: str = "test"

    @property
    def images(self) -> int:
        return int(self.counts_CC.sum())

    @property
    def right(self) -> int:
        return int(self.counts_CC.trace())

    @property
    def counted(self) -> str:
        """What the counts are of: with several runs an image counts once for each."""
        return "images" if self.runs == 1 else "predictions"

    @cached_property
    def classes(self) -> tuple[ClassErrors, ...]:
        """In the order of the classes."""
        scores = class_scores(self.counts_CC)
        true_C, guessed_C = self.counts_CC.sum(axis=1), self.counts_CC.sum(axis=0)
        errors_CC = self.counts_CC.copy()
        np.fill_diagonal(errors_CC, 0)
        most_C = errors_CC.max(axis=1)
        return tuple(
            ClassErrors(
                name=name,
                images=int(true_C[c]),
                right=int(self.counts_CC[c, c]),
                recall=float(scores.recall_C[c]) if true_C[c] else None,
                precision=float(scores.precision_C[c]) if guessed_C[c] else None,
                f1=float(scores.f1_C[c]),
                taken_for=tuple(self.names[o] for o in np.flatnonzero(errors_CC[c] == most_C[c])) if most_C[c] else (),
                each_for=int(most_C[c]),
            )
            for c, name in enumerate(self.names)
        )

    @property
    def met(self) -> list[int]:
        """The classes that have images, or that some image is taken for."""
        return [int(c) for c in np.flatnonzero(self.counts_CC.any(axis=0) | self.counts_CC.any(axis=1))]

    def worst_first(self) -> list[ClassErrors]:
        """The classes that have images, by recall, then by errors."""
        return sorted((c for c in self.classes if c.images), key=lambda c: (c.right / c.images, c.right - c.images))

    def pairs(self, most: int = MOST_PAIRS) -> list[Pair]:
        return confused_pairs(self.counts_CC, most=most)


def confused_pairs(counts_CC: Array, *, most: int) -> list[Pair]:
    """Most images first; ties by class."""
    errors_CC = counts_CC.copy()
    np.fill_diagonal(errors_CC, 0)
    order = np.argsort(-errors_CC, axis=None, kind="stable")[:most]
    places = zip(*np.unravel_index(order, errors_CC.shape), strict=True)
    return [(int(i), int(j), int(errors_CC[i, j])) for i, j in places if errors_CC[i, j]]


def class_names(run: RunRecord) -> tuple[str, ...]:
    """As the record has them; numbers in records that are older than the names."""
    names = run.details.get("class_names") or range(run.spec.dataset.num_classes)
    return tuple(str(name) for name in names)


def confusion(sets: Sequence[Predictions], names: Sequence[str], *, split: str = "test") -> Confusion:
    """Of one row's runs. Raises DataError where these are not the names of the predictions' classes."""
    most = max(int(max(p.label_N.max(), p.predicted_N.max())) for p in sets)
    if most >= len(names):
        raise DataError(f"predictions are of {most + 1} classes or more, and {len(names)} have a name")
    counts = [confusion_matrix(p.label_N, p.predicted_N, num_classes=len(names)) for p in sets]
    return Confusion(names=tuple(names), counts_CC=np.sum(counts, axis=0), runs=len(sets), split=split)


def confusion_of(runs: Sequence[RunRecord], stored: StoredPredictions) -> Confusion:
    """Of one row's runs, on test, or on the split that an evaluation is of. Raises DataError where the predictions of
    one are missing or damaged."""
    settings = runs[0].spec.settings
    split = settings.split if isinstance(settings, EvaluateSettings) else "test"
    return confusion([_predictions(run, split, stored) for run in runs], class_names(runs[0]), split=split)


def _predictions(run: RunRecord, split: str, stored: StoredPredictions) -> Predictions:
    if split == "test":
        return stored.of(run.run_id)
    paths = stored.store.run(run.run_id)
    found = read_predictions(paths).get(split)
    if found is None or not len(found.index_N):
        raise DataError(f"{paths.predictions} holds no {split} images; launch the run again")
    return found


# ------------------------------------------------------------------------------------------------------------- tables
# Without names: W&B has one table of every row's classes.
def matrix(found: Confusion, *, numbered: bool = False) -> Table[int]:
    """A line for each true class, a column for each predicted one, of those that were met. numbered: a column is headed
    by its class's place, which stands before the name of each true class."""
    labels = list(map(printable, found.names))
    columns: list[Column[int]] = [
        words("true", lambda c: f"{c} {labels[c]}" if numbered else labels[c], label="true \\ predicted")
    ]
    columns += [_of_predicted(found, c, str(c) if numbered else labels[c]) for c in found.met]
    lines = [c for c in found.met if found.classes[c].images]
    return Table("", columns, lines, title=f"{found.counted}, true classes in rows".capitalize())


def _of_predicted(found: Confusion, predicted: int, head: str) -> Column[int]:
    counts_C = found.counts_CC[:, predicted]
    return figure(f"predicted_{predicted}", lambda n: str(n) if n else ".", lambda c: int(counts_C[c]), label=head)


def pair_table(found: Confusion, *, most: int = MOST_PAIRS) -> Table[Pair]:
    classes = found.classes
    columns: list[Column[Pair]] = [
        words("true", lambda pair: printable(found.names[pair[0]])),
        words("predicted", lambda pair: printable(found.names[pair[1]])),
        figure("images", number, lambda pair: pair[2], label=found.counted),
        figure("share", percent, lambda pair: pair[2] / classes[pair[0]].images, label="of its class %"),
    ]
    return Table("", columns, found.pairs(most), title="The pairs that are confused most")


def class_table(found: Confusion, *, most: int = MANY_CLASSES) -> Table[ClassErrors]:
    """The worst classes first, at most so many."""
    columns: list[Column[ClassErrors]] = [
        words("class", lambda c: printable(c.name)),
        figure("images", number, label=found.counted),
        figure("recall", percent, label="recall %"),
        figure("precision", percent, label="precision %"),
        words("taken_for", lambda c: printable(taken_for(c)), label="most often taken for"),
    ]
    lines = found.worst_first()
    of = f", {most} of {len(lines)}" if len(lines) > most else ""
    without = len(found.names) - len(lines)
    title = f"Classes, the worst first{of}" + (f"; {without} without {found.split} images" if without else "")
    return Table("", columns, lines[:most], title=title)


def taken_for(errors: ClassErrors) -> str:
    """`dog (12)`, or `cat, dog (3 each)`; empty without errors."""
    if not errors.taken_for:
        return ""
    each = " each" if len(errors.taken_for) > 1 else ""
    return f"{some(errors.taken_for, MOST_TAKEN_FOR)} ({number(errors.each_for)}{each})"


def confusions(found: Confusion) -> Table[int] | Table[Pair]:
    """The matrix, or of many classes the pairs."""
    return matrix(found) if len(found.met) <= MATRIX_CLASSES else pair_table(found)


# -------------------------------------------------------------------------------------------------------- evaluations
def in_words(row: ComparisonRow, found: Confusion) -> str:
    """`347 of 360 test images right: 96.4 [93.9, 97.9] %`"""
    summed = "" if found.runs == 1 else f" of {found.runs} runs"
    of_test = found.split == "test" and row.test_accuracy is not None
    accuracy = accuracy_with_interval(row) if of_test else percent(found.right / found.images)
    counts = f"{number(found.right)} of {number(found.images)} {found.split} {found.counted}{summed} right"
    return f"{counts}: {accuracy} %"


def section(comparison: Comparison) -> Section | None:
    """Of each evaluation which classes it gets wrong; None for a grid without any whose predictions can be read."""
    rows = zip(comparison.rows, comparison.runs, strict=True)
    evaluated = [(row, runs) for row, runs in rows if row.phase == "evaluate" and runs]
    about, tables = [], []
    for row, runs in evaluated[:MOST_EVALUATIONS]:
        try:
            found = confusion_of(runs, comparison.stored)
        except DataError:
            continue  # another section names what is damaged
        about.append(f"{row.title}: {in_words(row, found)}.")
        tables += [replace(t, title=f"{row.title}. {t.title}") for t in (confusions(found), class_table(found))]
    if not tables:
        return None
    about.append("`predictions.csv` in the folder of each run names every image with its label and what was predicted.")
    more = len(evaluated) - MOST_EVALUATIONS
    below = [f"{more} more evaluations stand in the table of rows alone."] if more > 0 else []
    return Section("per class", "Which classes an evaluation gets wrong", about=about, tables=tables, below=below)
