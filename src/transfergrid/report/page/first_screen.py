"""What the page shows before anything is clicked, beside the sentences: the data, and where each row stands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from transfergrid.report.analysis.answer import DatasetAnswer, GridAnswer, Rival, Use, use_of
from transfergrid.report.analysis.comparison import Comparison
from transfergrid.report.analysis.selection import val_score
from transfergrid.store.records import RunRecord

MOST_NAMED, MOST_NAMED_OF_SEVERAL = 5, 2  # rows, on a page of one data set and of several
Kind = Literal["best", "equal", "missed", "tied", "other"]
# kind -> (sign, what it says); in the order of the groups.
SIGNS: dict[Kind, tuple[str, str]] = {
    "best": ("★", "the best"),
    "equal": ("≈", "not told apart from the best"),
    "missed": ("!", "better on test than the best on val"),
    "tied": ("=", "tied with the best"),
    "other": ("", ""),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a row stands beside the winner of its data set. rank: its place on the page, from 0. use: how to use its
    best run on val; None where no run has completed."""

    kind: Kind
    rank: int
    use: Use | None

    @property
    def sign(self) -> str:
        return SIGNS[self.kind][0]

    @property
    def text(self) -> str:
        return SIGNS[self.kind][1]

    @property
    def commands(self) -> str:
        """A line each: predict, export, carry out again."""
        return "" if self.use is None else "\n".join(filter(None, (self.use.predict, self.use.export, self.use.again)))

    @property
    def short_id(self) -> str:
        """The hash that ends the run's id."""
        return "" if self.use is None else self.use.run_id.rpartition("-")[2]


def standings(comparison: Comparison, answer: GridAnswer) -> list[Standing]:
    """Beside each row. By data set: the winner, the rows not told apart from it, the others; the best on val first."""
    rows = comparison.rows
    kinds = _kinds(comparison, answer)
    datasets = list(dict.fromkeys(row.dataset for row in rows))

    def place(i: int) -> tuple[float, ...]:
        row = rows[i]
        score = val_score(row) if val_score(row) is not None else row.test_accuracy
        group = list(SIGNS).index(kinds[i])
        return (datasets.index(row.dataset), group, score is None, -(score or 0.0), -(row.test_accuracy or 0.0), i)

    rank = {i: rank for rank, i in enumerate(sorted(range(len(rows)), key=place))}
    return [
        Standing(kind=kinds[i], rank=rank[i], use=use_of(runs, comparison.store, rows[i].select_by) if runs else None)
        for i, runs in enumerate(comparison.runs)
    ]


def _kinds(comparison: Comparison, answer: GridAnswer) -> list[Kind]:
    kind_by_row: dict[tuple[str, tuple[str, ...]], Kind] = {}
    for of_dataset in answer.datasets:
        for kind, run_ids in _kinds_of(of_dataset):
            kind_by_row.setdefault((of_dataset.dataset, run_ids), kind)
    beside = zip(comparison.rows, comparison.runs, strict=True)
    keys = [(row.dataset, tuple(run.run_id for run in runs)) for row, runs in beside]
    return [kind_by_row.get(key, "other") if key[1] else "other" for key in keys]


def _kinds_of(answer: DatasetAnswer) -> Iterator[tuple[Kind, tuple[str, ...]]]:
    """The first that is told of a row holds."""
    yield "best", answer.winner.run_ids
    yield from (("missed", rival.row.run_ids) for rival in answer.better_on_test)
    yield from (("equal", rival.row.run_ids) for rival in answer.not_told_apart)
    yield from (("tied", row.run_ids) for row in answer.tied)


# -------------------------------------------------------------------------------------------------- beside the winner
def beside_lines(answer: GridAnswer) -> list[str]:
    """Where rows are chosen on val: is the winner better than all; if not, than which it is not, a line for each sign:
    `≈ not told apart from ★: 2 of 9 other rows: a (probe), b (probe).` Of several data sets a line for each."""
    are_several = len(answer.datasets) > 1
    most = MOST_NAMED_OF_SEVERAL if are_several else MOST_NAMED
    lines = []
    for of_dataset in answer.datasets:
        if of_dataset.chosen_on == "test" or of_dataset.candidates < 2:
            continue
        others = of_dataset.candidates - 1
        facts = [f"★ is better than each of the {others} other rows."] if of_dataset.decided and others > 1 else []
        if rivals := of_dataset.not_told_apart:
            facts.append(f"≈ not told apart from ★: {len(rivals)} of {others} other rows: {_named(rivals, most)}.")
        if rivals := of_dataset.better_on_test:
            facts.append(f"! better than ★ on the test images, but not on val: {_named(rivals, most)}.")
        lines += [f"{of_dataset.dataset}: {' '.join(facts)}"] if are_several and facts else facts
    return lines


def _named(rivals: Sequence[Rival], most: int) -> str:
    more = f" and {len(rivals) - most} more" if len(rivals) > most else ""
    return ", ".join(rival.row.name for rival in rivals[:most]) + more


# ------------------------------------------------------------------------------------------------------------ the data
def data_lines(comparison: Comparison) -> list[str]:
    """A line per data set, of what the records say: `digits: 1,293 images trained on, 144 val, 360 test; 10 classes;
    networks see 32 px`."""
    runs_by_dataset: dict[str, list[RunRecord]] = {}
    for row, of_row in zip(comparison.rows, comparison.runs, strict=True):
        runs_by_dataset.setdefault(row.dataset, []).extend(of_row)
    lines = []
    for dataset, runs in runs_by_dataset.items():
        images = [
            f"{text} {what}"
            for what, numbers in (
                ("images trained on", [run.n_train for run in runs]),
                ("val", [run.details.get("n_val") for run in runs]),
                ("test", [run.details.get("n_test") for run in runs]),
            )
            if (text := _range(numbers))
        ]
        classes = _range(run.spec.dataset.num_classes for run in runs)
        sizes = _range(size for run in runs for size in _sizes_px(run))
        facts = [
            ", ".join(images),
            f"{classes} classes" if classes else "",
            f"networks see {sizes} px" if sizes else "",
        ]
        if text := "; ".join(filter(None, facts)):
            lines.append(f"{dataset}: {text}.")
    return lines


def _sizes_px(run: RunRecord) -> Iterator[int | None]:
    """Edges of the square images that the networks are given."""
    yield from (part.preprocess.crop_px for part in run.spec.backbones)
    yield getattr(run.spec.settings, "image_size_px", None)


def _range(numbers: Iterable[object]) -> str:
    """`54`, `10 to 540`; nothing where none is known."""
    known = sorted({n for n in numbers if isinstance(n, int) and not isinstance(n, bool)})
    return " to ".join(f"{n:,}" for n in dict.fromkeys(known[:1] + known[-1:]))
