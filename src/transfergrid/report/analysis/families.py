"""Which rows a report sets beside each other, in which families of comparisons, and what came out.

A family is one question asked of one dataset and phase: of `models` of the same variant, each beside the best on val
and each join beside its best part, or of `settings` (variants) of one model, each beside the best on val. p is adjusted
within its family, and two rows that a family compares twice count once: whoever asks finds the same p.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from transfergrid.report.analysis.cells import in_points
from transfergrid.report.analysis.grouped import NotJudged
from transfergrid.report.analysis.paired_rows import Verdict, compare_rows, verdict
from transfergrid.report.analysis.predictions import StoredPredictions
from transfergrid.report.analysis.selection import RULE, best_first, val_score
from transfergrid.report.analysis.statistics import PairedComparison, holm, p_text
from transfergrid.store.records import RunRecord

if TYPE_CHECKING:  # a comparison asks here what it says about its joins
    from transfergrid.report.analysis.rows import ComparisonRow

Question = Literal["models", "settings"]
Family = tuple[Question, str, str]  # question, dataset, phase
GroupKey = tuple[Question, str, str, str]  # and the variant whose models, or the model whose settings these are
Pair = tuple[int, int]  # positions: a row, and the row beside which it stands


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One row minus another. result: its p and interval not adjusted, or in words why there is none.

    p_adjusted: by Holm over the `family_size` comparisons that could be made in its family.
    """

    result: PairedComparison | str
    p_adjusted: float | None
    family_size: int

    @property
    def verdict(self) -> Verdict | None:
        if isinstance(self.result, NotJudged):
            return "not judged"
        if isinstance(self.result, str) or self.p_adjusted is None:
            return None
        return verdict(self.result.difference, self.p_adjusted)

    @property
    def p_text(self) -> str:
        """`0.031 (of 5)`"""
        if isinstance(self.result, NotJudged):
            return "not judged"
        return "" if self.p_adjusted is None else f"{_p(self.p_adjusted)} (of {self.family_size})"

    @property
    def in_words(self) -> str:
        """`no difference shown (+0.03 points [-0.05, +0.11], p = 0.400 after Holm over 3)`"""
        result = self.result
        if isinstance(result, str) or self.p_adjusted is None:
            return f"{'not judged' if isinstance(result, NotJudged) else 'not compared'}: {result}"
        equals = "p" if _is_tiny(self.p_adjusted) else "p ="
        over = f" after Holm over {self.family_size}" if self.family_size > 1 else ""
        difference = in_points(result.difference, result.low, result.high)
        return f"{self.verdict} ({difference}, {equals} {_p(self.p_adjusted)}{over})"


def _is_tiny(p: float) -> bool:
    """A bootstrap of 10,000 draws knows no smaller differences."""
    return p < 0.001


def _p(p: float) -> str:
    return "< 0.001" if _is_tiny(p) else p_text(p, ".3f")


def families(rows: Sequence[ComparisonRow]) -> dict[Family, list[Pair]]:
    """All pairs that a report of these rows compares."""
    pairs_by_family: dict[Family, list[Pair]] = {}
    for row, part in best_parts(rows).items():
        pairs_by_family.setdefault(("models", rows[row].dataset, rows[row].phase), []).append((row, part))
    for key, (best, others) in groups(rows).items():
        pairs_by_family.setdefault(key[:3], []).extend((other, best) for other in others)
    return pairs_by_family


def answers(
    pairs: Sequence[Pair], runs: Sequence[Sequence[RunRecord]], stored: StoredPredictions
) -> dict[Pair, Answer]:
    """Of one family."""
    results = {(a, b): compare_rows(runs[a], runs[b], stored) for a, b in pairs}
    p_values = {frozenset(pair): r.p_value for pair, r in results.items() if isinstance(r, PairedComparison)}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return {
        pair: Answer(result=result, p_adjusted=adjusted.get(frozenset(pair)), family_size=len(p_values))
        for pair, result in results.items()
    }


def answers_about_joins(
    rows: Sequence[ComparisonRow], runs: Sequence[Sequence[RunRecord]], stored: StoredPredictions
) -> dict[Pair, Answer]:
    """Each join beside its best part, from the families that hold one."""
    wanted = set(best_parts(rows).items())
    answers_by_pair: dict[Pair, Answer] = {}
    for pairs in families(rows).values():
        if not wanted.isdisjoint(pairs):
            answers_by_pair |= {pair: answer for pair, answer in answers(pairs, runs, stored).items() if pair in wanted}
    return answers_by_pair


# ------------------------------------------------------------------------------------------------------ which rows
def best_parts(rows: Sequence[ComparisonRow]) -> dict[int, int]:
    """Position of each join -> that of the best of its own parts on val, where each part has a row with a score there.

    Under `published` nothing is held out to choose by, so those joins have none.
    """
    parts_by_join = {i: _best_parts(row, rows) for i, row in enumerate(rows)}
    return {i: best[0] for i, best in parts_by_join.items() if best}


def _best_parts(row: ComparisonRow, rows: Sequence[ComparisonRow]) -> list[int]:
    """The best part on val, and after it those that are tied with it."""
    parts = set(row.parts)
    if len(parts) < 2 or row.protocol == "published" or row.test_accuracy is None:
        return []
    singles = {
        single.model: position
        for position, single in enumerate(rows)
        if single.model in parts
        and single.weights in weights_beside(row, single.model)
        and (single.dataset, single.phase, single.variant, single.protocol)
        == (row.dataset, row.phase, row.variant, row.protocol)
        and val_score(single) is not None
        and single.test_accuracy is not None
    }
    if set(singles) != parts:
        return []
    return best_first(rows, singles.values())[0]


def beside_best_parts(
    rows: Sequence[ComparisonRow], answers: Mapping[Pair, Answer]
) -> tuple[list[ComparisonRow], list[str]]:
    """The joins with their best part, the difference and its verdict; why some have none, and which parts are tied."""
    beside, notes = list(rows), []
    for (i, best), answer in answers.items():
        row, single, result = rows[i], rows[best], answer.result
        assert row.test_accuracy is not None and single.test_accuracy is not None
        beside[i] = replace(
            row,
            best_single_model=single.model,
            # Of the seeds that both have: means over different seeds could point the other way than the verdict.
            delta_to_best_single=row.test_accuracy - single.test_accuracy
            if isinstance(result, str)
            else result.difference,
            p_value_vs_best_single=answer.p_adjusted,
            verdict=answer.verdict,
        )
        if note := _note(result, seeds=max(row.n_seeds, single.n_seeds)):
            notes.append(f"{row.title} beside {single.model}: {note}.")
        if len(tied := _best_parts(row, rows)) > 1:
            notes.append(f"{row.title}: its parts {' and '.join(rows[t].model for t in tied)} are tied on val: {RULE}.")
    return beside, notes


def _note(result: PairedComparison | str, *, seeds: int) -> str | None:
    if isinstance(result, str):
        return f"no verdict, because {result}"
    if result.seeds < seeds:
        return f"difference and verdict are from the {result.seeds} of {seeds} seeds that both have"
    return None


def weights_beside(join: ComparisonRow, model: str) -> set[str]:
    """The labels with which a single model stands under a join's conditions: a part of it has its own."""
    parts, labels = join.parts, join.weights_of_parts
    if model in parts and len(parts) == len(labels):
        return {join.weights, labels[parts.index(model)]}
    return {join.weights, *labels}


def groups(rows: Sequence[ComparisonRow]) -> dict[GroupKey, tuple[int, list[int]]]:
    """The best row on val and the others, of each group of two rows or more, models first; none under `published`.

    Of rows tied on val the best is by selection.RULE.
    """
    members: dict[GroupKey, list[int]] = {}
    tested = [
        (i, row)
        for i, row in enumerate(rows)
        if row.protocol != "published" and row.n_seeds and row.test_accuracy is not None
    ]
    for i, row in tested:
        members.setdefault(("models", row.dataset, row.phase, row.variant), []).append(i)
    for i, row in tested:
        members.setdefault(("settings", row.dataset, row.phase, row.model), []).append(i)
    groups_by_key = {}
    for key, group in members.items():
        ordered = best_first(rows, [i for i in group if rows[i].status == "completed"])
        # Rows of one model that differ in nothing but weights stand in its models group already.
        several = len({rows[i].variant for i in group}) > 1 if key[0] == "settings" else len(group) > 1
        if several and ordered:
            best = ordered[0][0]
            groups_by_key[key] = best, [i for i in group if i != best]
    return groups_by_key
