"""Variants named `<what is compared>--<choice>`: the best choice of each by its mean on val, and its figure on test.

So each of the things compared gets its own small search, on images that are not reported on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transfergrid.report.analysis.cells import accuracy_with_interval, percent
from transfergrid.report.analysis.columns import pick
from transfergrid.report.analysis.comparison import Comparison
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.analysis.selection import RULE, WORDS, best_first, choice_of, val_score
from transfergrid.report.blocks import Column, Section, Table, figure, words


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One thing compared: its candidates in the grid's order, and the one with the best mean score on val.

    tied: the chosen one and those with the same score, by selection.RULE. unfinished: names of candidates without a
    score of every seed; while there are any, nothing is chosen.
    """

    name: str
    candidates: tuple[ComparisonRow, ...]
    tied: tuple[ComparisonRow, ...]
    unfinished: tuple[str, ...]

    @property
    def chosen(self) -> ComparisonRow | None:
        return self.tied[0] if self.tied else None


def choices(comparison: Comparison) -> tuple[Choice, ...]:
    """Per dataset, model, phase and thing compared; none where no variant's name has the sign."""
    rows_by_search: dict[tuple[str, ...], list[ComparisonRow]] = {}
    for row in comparison.rows:
        if choice := choice_of(row.variant):
            key = (choice[0], row.dataset, row.model, row.phase, row.weights, row.protocol)
            rows_by_search.setdefault(key, []).append(row)
    return tuple(_choice(name, rows) for (name, *_), rows in rows_by_search.items())


def section(comparison: Comparison) -> Section | None:
    """None for a grid without such variants."""
    rows = choices(comparison)
    if not rows:
        return None
    score = WORDS[rows[0].candidates[0].select_by]
    return Section(
        "choices",
        "Chosen on val",
        about=[f"The best mean {score} on val over the seeds decides each comparison. Test is read afterwards."],
        tables=[Table("chosen_on_val", _COLUMNS, rows)],
        items=[note for choice in rows for note in _notes(choice)],
    )


def _notes(choice: Choice) -> Iterator[str]:
    """Ties, and whether the chosen one lies at an end of what was tried."""
    if row := choice.chosen:
        name = " ".join(part for part in (row.dataset, row.model, row.phase, choice.name) if part)
        if len(choice.tied) > 1:
            yield f"{name}: {' and '.join(map(_name_of, choice.tied))} are tied on val: {RULE}."
        if row.remarks:
            yield f"{name}: {'; '.join(row.remarks)}."


def _choice(name: str, rows: Sequence[ComparisonRow]) -> Choice:
    unfinished = tuple(_name_of(r) for r in rows if r.status != "completed" or val_score(r) is None)
    tied = () if unfinished else tuple(rows[i] for i in best_first(rows)[0])
    return Choice(name=name, candidates=tuple(rows), tied=tied, unfinished=unfinished)


def _name_of(row: ComparisonRow) -> str:
    """Its choice: of every candidate the variant's name has the sign."""
    return (choice_of(row.variant) or ("", ""))[1]


def _chosen_text(choice: Choice) -> str:
    return _name_of(choice.chosen) if choice.chosen else f"not yet: {', '.join(choice.unfinished)} unfinished"


def _others(choice: Choice) -> str:
    rows = [row for row in choice.candidates if choice.chosen and row is not choice.chosen]
    return ", ".join(f"{_name_of(row)} {percent(val_score(row))}" for row in rows)


_COLUMNS: list[Column[Choice]] = [
    *(column.of(lambda choice: choice.candidates[0]) for column in pick("dataset model phase")),
    words("compared", "name"),
    words("chosen_on_val", _chosen_text, label="chosen on val"),
    figure("val", percent, lambda choice: val_score(choice.chosen) if choice.chosen else None),
    figure(
        "test_accuracy",
        value=lambda choice: choice.chosen.test_accuracy if choice.chosen else None,
        text=lambda choice: accuracy_with_interval(choice.chosen) if choice.chosen else "",
        label="test",
        beside="[95 %]",
    ),
    words("val_of_the_others", _others, label="val of the others", is_number=True),
]
