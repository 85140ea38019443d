"""Which rows a report sets beside each other, in which families of comparisons, and what came out.

A family is one question asked of one dataset and phase: of `models` of the same variant, each beside the best on val
and each join beside its best part, or of `settings` (variants) of one model, each beside the best on val. p is adjusted
within its family, and two rows that a family compares twice count once: whoever asks finds the same p.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Literal

from transfergrid.report.analysis.cells import in_points
from transfergrid.report.analysis.paired_rows import Verdict, compare_rows, verdict
from transfergrid.report.analysis.predictions import StoredPredictions
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.analysis.selection import RULE, best_first, best_on_val, val_score
from transfergrid.report.analysis.statistics import NotJudged, PairedComparison, holm, p_text
from transfergrid.store.records import RunRecord

Question = Literal["models", "settings"]
Family = tuple[Question, str, str]  # question, dataset, phase
GroupKey = tuple[Question, str, str, str]  # and the variant whose models, or the model whose settings these are
COLUMNS: dict[Question, str] = {"models": "variant", "settings": "model"}  # what the rows of a group have in common
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
        return "" if self.p_adjusted is None else f"{p_in_words(self.p_adjusted, equals='')} (of {self.family_size})"

    @property
    def in_words(self) -> str:
        """`no difference shown (+0.03 points [-0.05, +0.11], p = 0.400 after Holm over 3)`"""
        result = self.result
        if isinstance(result, str) or self.p_adjusted is None:
            return f"{'not judged' if isinstance(result, NotJudged) else 'not compared'}: {result}"
        over = f" after Holm over {self.family_size}" if self.family_size > 1 else ""
        difference = in_points(result.difference, result.low, result.high)
        return f"{self.verdict} ({difference}, p {p_in_words(self.p_adjusted)}{over})"


def p_in_words(p: float, *, equals: str = "= ") -> str:
    """`= 0.031`; a bootstrap of 10,000 draws knows no smaller p than `< 0.001`."""
    return "< 0.001" if p < 0.001 else equals + p_text(p, ".3f")


# ------------------------------------------------------------------------------------------------------ families
def families(rows: Sequence[ComparisonRow]) -> dict[Family, list[Pair]]:
    """All pairs that a report of these rows compares."""
    pairs_by_family: dict[Family, list[Pair]] = {}
    for join, (part, *_) in best_parts(rows).items():
        pairs_by_family.setdefault(("models", rows[join].dataset, rows[join].phase), []).append((join, part))
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
    joins = {(join, parts[0]) for join, parts in best_parts(rows).items()}
    return {
        pair: answer
        for pairs in families(rows).values()
        if not joins.isdisjoint(pairs)
        for pair, answer in answers(pairs, runs, stored).items()
        if pair in joins
    }


# ------------------------------------------------------------------------------------------------------ which rows
def best_parts(rows: Sequence[ComparisonRow]) -> dict[int, list[int]]:
    """Position of each join -> that of the best of its own parts on val, then of those that are tied with it.

    Only joins of which each part has a row with a score on val: under `published` nothing is held out to choose by.
    """
    parts_by_join = {}
    for i, row in enumerate(rows):
        parts = set(row.parts)
        if len(parts) < 2 or row.protocol == "published" or row.test_accuracy is None:
            continue
        positions = {
            single.model: position
            for position, single in enumerate(rows)
            if single.model in parts
            and is_alike(single, row)
            and val_score(single) is not None
            and single.test_accuracy is not None
        }
        if set(positions) == parts:
            parts_by_join[i] = best_first(rows, positions.values())[0]
    return parts_by_join


def is_alike(single: ComparisonRow, join: ComparisonRow) -> bool:
    """Whether a single model stands under a join's conditions; a part of it has its own label of the weights there."""
    conditions = attrgetter("dataset", "phase", "variant", "protocol")
    parts, labels = join.parts, join.weights.split("+")
    if single.model in parts and len(parts) == len(labels):  # equal labels stand once: whose is which can be open
        labels = [labels[parts.index(single.model)]]
    return conditions(single) == conditions(join) and single.weights in (join.weights, *labels)


def beside_best_parts(
    rows: Sequence[ComparisonRow], answers: Mapping[Pair, Answer]
) -> tuple[list[ComparisonRow], list[str]]:
    """The joins with their best part, the difference and its verdict; why some have none, and which parts are tied."""
    rows_beside, notes, parts_by_join = list(rows), [], best_parts(rows)
    for (i, best), answer in answers.items():
        row, single, result = rows[i], rows[best], answer.result
        assert row.test_accuracy is not None and single.test_accuracy is not None
        difference, reason = row.test_accuracy - single.test_accuracy, f"no verdict, because {result}"
        if isinstance(result, PairedComparison):
            # Of the seeds that both have: means over different seeds could point the other way than the verdict.
            difference, seeds = result.difference, max(row.n_seeds, single.n_seeds)
            fewer = f"difference and verdict are from the {result.seeds} of {seeds} seeds that both have"
            reason = fewer if result.seeds < seeds else ""
        rows_beside[i] = replace(
            row,
            best_single_model=single.model,
            delta_to_best_single=difference,
            p_value_vs_best_single=answer.p_adjusted,
            verdict=answer.verdict,
        )
        if reason:
            notes.append(f"{row.title} beside {single.model}: {reason}.")
        if len(parts := parts_by_join[i]) > 1:
            names = " and ".join(rows[part].model for part in parts)
            notes.append(f"{row.title}: its parts {names} are tied on val: {RULE}.")
    return rows_beside, notes


def groups(rows: Sequence[ComparisonRow]) -> dict[GroupKey, tuple[int, list[int]]]:
    """The best row on val and the others, of each group of two rows or more, models first; none under `published`.

    Of rows tied on val the best is by selection.RULE.
    """
    members: dict[GroupKey, list[int]] = {}
    for question, column in COLUMNS.items():
        for i, row in enumerate(rows):
            if row.protocol != "published" and row.n_seeds and row.test_accuracy is not None:
                members.setdefault((question, row.dataset, row.phase, getattr(row, column)), []).append(i)
    groups_by_key = {}
    for key, group in members.items():
        best = best_on_val(rows, [i for i in group if rows[i].status == "completed"])
        # Rows of one model that differ in nothing but weights stand in its models group already.
        several = len({rows[i].variant for i in group}) > 1 if key[0] == "settings" else len(group) > 1
        if several and best is not None:
            groups_by_key[key] = best, [i for i in group if i != best]
    return groups_by_key
