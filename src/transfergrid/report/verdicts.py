"""Is the difference real? Each row beside the one chosen on val, among models and among the settings of one model."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transfergrid.report import paired_rows
from transfergrid.report.cells import markdown_table, points
from transfergrid.report.comparison import Comparison, ComparisonRow
from transfergrid.report.paired_rows import Verdict
from transfergrid.report.power import needed
from transfergrid.report.statistics import CONFIDENCE, PairedComparison

Question = Literal["models", "settings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgainstBest:
    """One row beside the best of its group. result: this row minus the best one, its p and interval not adjusted.

    Where no comparison could be made, result, p_adjusted and verdict are None and `note` says why. needed: what it
    would take to tell, empty where a difference is shown.
    """

    row: ComparisonRow
    result: PairedComparison | None
    p_adjusted: float | None
    verdict: Verdict | None
    needed: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rows that answer one question: `models` of one variant, or the `settings` (variants) of one model.

    best: the highest val accuracy among the completed rows, so the test set has no part in the choice. others: the
    remaining rows with a result, in the comparison's order.
    """

    question: Question
    dataset: str
    phase: str
    name: str  # the variant whose models these are, or the model whose settings these are
    best: ComparisonRow
    others: tuple[AgainstBest, ...]


def against_best(comparison: Comparison) -> tuple[Group, ...]:
    """Every group of at least two rows under `fair`; p is adjusted over all groups of one question x dataset x phase.

    Under `published` nothing is held out to choose by, so those rows are in no group.
    """
    runs = dict(zip(comparison.rows, comparison.runs, strict=True))
    groups = _groups(comparison.rows)
    pairs = [(key, row, best) for key, (best, others) in groups.items() for row in others]
    results = [paired_rows.compare_rows(runs[row], runs[best], comparison.stored) for _, row, best in pairs]
    adjusted = paired_rows.adjusted_p([key[:3] for key, _, _ in pairs], results)
    found: dict[_Key, list[AgainstBest]] = {key: [] for key in groups}
    for (key, row, best), result, p in zip(pairs, results, adjusted, strict=True):
        found[key].append(_against(row, result, p, seeds=max(row.n_seeds, best.n_seeds)))
    return tuple(
        Group(question=key[0], dataset=key[1], phase=key[2], name=key[3], best=best, others=tuple(found[key]))
        for key, (best, _) in groups.items()
    )


_Key = tuple[Question, str, str, str]


def _groups(rows: Sequence[ComparisonRow]) -> dict[_Key, tuple[ComparisonRow, list[ComparisonRow]]]:
    """The best row and the others of each group of two rows or more, models first."""
    members: dict[_Key, list[ComparisonRow]] = {}
    tested = [row for row in rows if row.protocol != "published" and row.n_seeds and row.test_accuracy is not None]
    for row in tested:
        members.setdefault(("models", row.dataset, row.phase, row.variant), []).append(row)
    for row in tested:
        members.setdefault(("settings", row.dataset, row.phase, row.model), []).append(row)
    groups = {}
    for key, group in members.items():
        chosen_from = [row for row in group if row.status == "completed" and row.val_accuracy is not None]
        # Rows of one model that differ in nothing but weights stand in its models group already.
        if len(group) < 2 or not chosen_from or (key[0] == "settings" and len({row.variant for row in group}) < 2):
            continue
        best = max(chosen_from, key=lambda row: row.val_accuracy or 0.0)
        groups[key] = best, [row for row in group if row is not best]
    return groups


def _against(row: ComparisonRow, result: PairedComparison | str, p: float | None, *, seeds: int) -> AgainstBest:
    if isinstance(result, str) or p is None:
        return AgainstBest(row=row, result=None, p_adjusted=None, verdict=None, needed="", note=str(result))
    said = paired_rows.verdict(result.difference, p)
    would_take = ""
    if said == "no difference shown":
        alone = result.p_value < 1 - CONFIDENCE
        would_take = "shown if it were the only comparison, not among so many" if alone else needed(result)
    note = f"{result.seeds} of {seeds} seeds in common" if result.seeds < seeds else ""
    return AgainstBest(row=row, result=result, p_adjusted=p, verdict=said, needed=would_take, note=note)


# ----------------------------------------------------------------------------------------------------------- markdown
_ABOUT = """\
Each row minus the best of its group, in points of test accuracy, on the same seeds and test images. The best is chosen
on val; its name on test may be another. {tests} The brackets are 95 % intervals of one comparison alone; p is
Holm-adjusted over all comparisons of a table with the same dataset and phase, and a difference is called real below
5 %. `No difference shown` is not `equal`: the interval says how large a difference may still be, the column beside
the verdict what it would take to tell the observed one at 5 % with 80 % power.
"""
_TESTS = {
    "mcnemar_exact": "Rows of one seed: exact McNemar test, about these trained networks and other test images; what "
    "other seeds would change, one seed cannot say.",
    "paired_bootstrap": "Rows of several seeds: paired bootstrap over seeds and test images (10,000 draws), about "
    "other trainings and other test images.",
}
_TITLES: dict[Question, str] = {"models": "Models of the same variant", "settings": "Settings of the same model"}


def as_markdown(groups: Sequence[Group]) -> str:
    """A section, or nothing where no group has two rows."""
    if not groups:
        return ""
    used = {other.result.test for group in groups for other in group.others if other.result}
    about = _ABOUT.format(tests=" ".join(text for test, text in _TESTS.items() if test in used))
    parts = ["## Is the difference real?\n", textwrap.fill(about, width=120, break_on_hyphens=False) + "\n"]
    for question, title in _TITLES.items():
        asked = [group for group in groups if group.question == question]
        if asked:
            parts.append(f"{title}:\n\n{_table(question, asked)}")
    return "\n".join(parts)


def _table(question: Question, groups: Sequence[Group]) -> str:
    header = ["dataset", "phase", "variant" if question == "models" else "model", "best on val", "row beside it"]
    header += ["verdict", "what it would take to tell", "seeds", "difference [95 %]", "p (Holm)"]
    lines = [
        [group.dataset, group.phase, group.name, _name(group, group.best), _name(group, other.row), *_cells(other)]
        for group in groups
        for other in group.others
    ]
    return markdown_table(header, lines, left=7)


def _name(group: Group, row: ComparisonRow) -> str:
    """What the row is in its group, with its weights where the group holds several."""
    name = row.model if group.question == "models" else row.variant or "(the grid's defaults)"
    several = len({group.best.weights, *(other.row.weights for other in group.others)}) > 1
    return f"{name} ({row.weights})" if several else name


def _cells(other: AgainstBest) -> list[str]:
    result = other.result
    if result is None or other.verdict is None:
        return ["", f"not compared: {other.note}", "", "", ""]
    said = f"{other.verdict} ({other.note})" if other.note else other.verdict
    difference = f"{points(result.difference)} [{points(result.low)}, {points(result.high)}]"
    return [said, other.needed, str(result.seeds), difference, p_text(other.p_adjusted)]


def p_text(p: float | None) -> str:
    """Three decimals; `< 0.001` below, since a bootstrap of 10,000 draws knows no smaller differences."""
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
