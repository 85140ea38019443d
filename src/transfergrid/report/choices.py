"""Variants named `<what is compared>--<choice>`: the best choice of each by its mean on val, and its figure on test.

So each of the things compared gets its own small search, on images that are not reported on.
"""

from __future__ import annotations

from dataclasses import dataclass

from transfergrid.report.cells import accuracy_with_interval, markdown_table, percent
from transfergrid.report.comparison import Comparison, ComparisonRow

SIGN = "--"
_LEFT = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One thing compared: its candidates in the grid's order, and the one with the best mean val accuracy.

    unfinished: names of candidates without a val accuracy of every seed; while there are any, nothing is chosen.
    """

    name: str
    candidates: tuple[ComparisonRow, ...]
    chosen: ComparisonRow | None
    unfinished: tuple[str, ...]


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
    about = "Each thing compared takes the choice with the best mean val accuracy over its seeds; test is read after.\n"
    table = markdown_table(header, [_line(choice) for choice in found], left=_LEFT)
    return f"## Chosen on val\n\n{about}\n{table}"


def _choice(name: str, rows: list[ComparisonRow]) -> Choice:
    unfinished = tuple(_named(r) for r in rows if r.status != "completed" or r.val_accuracy is None)
    chosen = None if unfinished else max(rows, key=lambda r: r.val_accuracy or 0.0)
    return Choice(name=name, candidates=tuple(rows), chosen=chosen, unfinished=unfinished)


def _named(row: ComparisonRow) -> str:
    return row.variant.partition(SIGN)[2]


def _line(choice: Choice) -> list[str]:
    first = choice.candidates[0]
    names = [first.dataset, first.model, first.phase, choice.name]
    if choice.chosen is None:
        return [*names, f"not yet: {', '.join(choice.unfinished)} unfinished", "", "", ""]
    others = [f"{_named(r)} {percent(r.val_accuracy)}" for r in choice.candidates if r is not choice.chosen]
    own = accuracy_with_interval(choice.chosen)
    return [*names, _named(choice.chosen), percent(choice.chosen.val_accuracy), own, ", ".join(others)]
