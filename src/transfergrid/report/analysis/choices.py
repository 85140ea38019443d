"""Variants named `<what is compared>--<choice>`: the best choice of each by its mean on val, and its figure on test.

So each of the things compared gets its own small search, on images that are not reported on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from transfergrid.report.analysis.cells import accuracy_with_interval, markdown_table, percent
from transfergrid.report.analysis.comparison import Comparison
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.analysis.selection import RULE, SIGN, WORDS, best_first, val_score

_LEFT = 5


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
    families: dict[tuple[str, ...], list[ComparisonRow]] = {}
    for row in comparison.rows:
        name, sign, _ = row.variant.partition(SIGN)
        if sign:
            families.setdefault((row.dataset, row.model, row.phase, row.weights, row.protocol, name), []).append(row)
    return tuple(_choice(key[-1], rows) for key, rows in families.items())


def as_markdown(comparison: Comparison) -> str:
    """Empty for a grid without such variants."""
    found = choices(comparison)
    if not found:
        return ""
    header = ("dataset", "model", "phase", "compared", "chosen on val", "val", "test [95 %]", "val of the others")
    score = WORDS[found[0].candidates[0].select_by]
    about = (
        f"Each thing compared takes the choice with the best mean {score} on val over its seeds; test is read after.\n"
    )
    table = markdown_table(header, [_line(choice) for choice in found], left=_LEFT)
    notes = "".join(f"- {note}\n" for choice in found for note in _notes(choice))
    return "\n".join(part for part in (f"## Chosen on val\n\n{about}\n{table}", notes) if part)


def _notes(choice: Choice) -> Iterator[str]:
    """Ties, and whether the chosen one lies at an end of what was tried."""
    if choice.chosen is None:
        return
    row = choice.chosen
    name = " ".join(part for part in (row.dataset, row.model, row.phase, choice.name) if part)
    if len(choice.tied) > 1:
        yield f"{name}: {' and '.join(map(_named, choice.tied))} are tied on val: {RULE}."
    if row.remarks:
        yield f"{name}: {row.remarks}."


def _choice(name: str, rows: list[ComparisonRow]) -> Choice:
    unfinished = tuple(_named(r) for r in rows if r.status != "completed" or val_score(r) is None)
    tied = () if unfinished else tuple(rows[i] for i in best_first(rows)[0])
    return Choice(name=name, candidates=tuple(rows), tied=tied, unfinished=unfinished)


def _named(row: ComparisonRow) -> str:
    return row.variant.partition(SIGN)[2]


def _line(choice: Choice) -> list[str]:
    first = choice.candidates[0]
    names = [first.dataset, first.model, first.phase, choice.name]
    if choice.chosen is None:
        return [*names, f"not yet: {', '.join(choice.unfinished)} unfinished", "", "", ""]
    others = [f"{_named(r)} {percent(val_score(r))}" for r in choice.candidates if r is not choice.chosen]
    own = accuracy_with_interval(choice.chosen)
    return [*names, _named(choice.chosen), percent(val_score(choice.chosen)), own, ", ".join(others)]
