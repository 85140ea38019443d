"""Questions across phases: who wins? Is fine-tuning worth it over the probe? Pretraining over training from scratch?

Each question about one data set is a family of its own; p is adjusted within it. Rows are chosen on val, so the test
set has no part in what is compared on it. Where the winner and its runner-up stand beside each other in another
family, their p is that family's: two rows have one p wherever they meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from transfergrid.report.analysis import families, integrity
from transfergrid.report.analysis.cells import weights_where_needed
from transfergrid.report.analysis.comparison import Comparison
from transfergrid.report.analysis.families import Answer, Pair
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.analysis.selection import best_first, best_on_test, best_on_val
from transfergrid.report.analysis.verdicts import AgainstBest, against, answer_columns
from transfergrid.report.blocks import Column, Table, words
from transfergrid.store.records import RunRecord

Question = Literal["winner", "finetuning", "pretraining"]
TITLES: dict[Question, str] = {
    "winner": "The winner on val and the next",
    "finetuning": "Is fine-tuning worth it over the probe",
    "pretraining": "Is a pretrained network worth it over one from scratch",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Winner:
    """Of one data set, as positions: the best row on val and those tied with it, then the next best, tied ones too.

    on_test: nothing is chosen on val, so the first are the best on test, and nothing about them is tested.
    candidates: how many rows it is the best of.
    """

    dataset: str
    first: tuple[int, ...]
    runners_up: tuple[int, ...]
    candidates: int
    on_test: bool

    @property
    def pairs(self) -> list[Pair]:
        """The winner beside each row that is tied with it; without a tie, beside each runner-up."""
        others = self.first[1:] or self.runners_up
        return [] if self.on_test else [(self.first[0], other) for other in others]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """One row minus another, for a question."""

    question: Question
    dataset: str
    first: ComparisonRow
    second: AgainstBest  # of which `row` is the second, and the answer is of the first minus it

    @property
    def names(self) -> tuple[str, str]:
        first, second = row_names(self.first, self.second.row)
        return first, second


def winners(comparison: Comparison) -> list[Winner]:
    """Per data set with a result. Rows with a record that contradicts its predictions are passed over."""
    rows = comparison.rows
    seen: set[tuple[str, ...]] = set()
    tested = []
    for i in integrity.trusted(comparison):
        run_ids = tuple(run.run_id for run in comparison.runs[i])
        if rows[i].test_accuracy is not None and run_ids not in seen:  # one row of several grids is one candidate
            seen.add(run_ids)
            tested.append(i)
    by_dataset = []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        among = [i for i in tested if rows[i].dataset == dataset]
        ordered = best_first(rows, among)
        first = ordered[0] if ordered else best_on_test(rows, among)
        if first:
            winner = Winner(
                dataset=dataset,
                first=tuple(first),
                runners_up=tuple(ordered[1]) if len(ordered) > 1 else (),
                candidates=sum(map(len, ordered)) or len(among),
                on_test=not ordered,
            )
            by_dataset.append(winner)
    return by_dataset


def contests(comparison: Comparison) -> list[Contest]:
    """All of them, by question and data set."""
    return [
        contest
        for question in TITLES
        for dataset in dict.fromkeys(row.dataset for row in comparison.rows)
        for contest in contests_about(comparison, question, dataset)
    ]


def contests_about(comparison: Comparison, question: Question, dataset: str) -> list[Contest]:
    """One family, in the comparison's order."""
    rows = comparison.rows
    pairs = _pairs(comparison, question, dataset)
    answers = families.answers(pairs, comparison.runs, comparison.stored)
    if question == "winner":
        answers = {pair: told_elsewhere(pair, comparison) or answer for pair, answer in answers.items()}
    return [
        Contest(question=question, dataset=dataset, first=rows[a], second=against(rows[b], rows[a], answer))
        for (a, b), answer in answers.items()
    ]


def told_elsewhere(pair: Pair, comparison: Comparison) -> Answer | None:
    """What another family of these rows' own grid says about them."""
    grid, dataset = comparison.rows[pair[0]].grid, comparison.rows[pair[0]].dataset
    places = [i for i, row in enumerate(comparison.rows) if row.grid == grid]
    if pair[1] not in places:
        return None
    rows, runs = tuple(comparison.rows[i] for i in places), tuple(comparison.runs[i] for i in places)
    own = replace(comparison, rows=rows, runs=runs)
    own_pair = (places.index(pair[0]), places.index(pair[1]))
    others = [_pairs(own, question, dataset) for question in ("finetuning", "pretraining")]
    for pairs in (*families.families(own.rows).values(), *others):
        if any(set(own_pair) == set(other) for other in pairs):
            return families.answers([*pairs, own_pair], own.runs, own.stored)[own_pair]
    return None


# ---------------------------------------------------------------------------------------------------------- which rows
def _pairs(comparison: Comparison, question: str, dataset: str) -> list[Pair]:
    if question == "winner":
        return [pair for winner in winners(comparison) if winner.dataset == dataset for pair in winner.pairs]
    rows, runs = comparison.rows, comparison.runs
    alike: dict[object, list[int]] = {}  # trained on the same images, tested on the same
    for i, row in enumerate(rows):
        if row.dataset == dataset and row.n_seeds and row.test_accuracy is not None:
            spec = runs[i][0].spec
            alike.setdefault((spec.dataset, spec.train_fraction, spec.shots), []).append(i)
    if question == "finetuning":
        return [pair for group in alike.values() for pair in _finetuning_pairs(rows, group)]
    return [pair for group in alike.values() for pair in _pretraining_pairs(rows, runs, group)]


def _finetuning_pairs(rows: Sequence[ComparisonRow], group: Sequence[int]) -> list[Pair]:
    """Per model and weights: its best fine-tuning on val beside its best probe."""
    pairs = []
    for key in dict.fromkeys((rows[i].model, rows[i].weights) for i in group):
        own = [i for i in group if (rows[i].model, rows[i].weights) == key]
        sides = [[i for i in own if rows[i].phase == phase] for phase in ("finetune", "probe")]
        # Where nothing is chosen on val, each setting stands beside its own.
        pairs += _chosen_pairs(rows, *sides) or [
            (a, b)
            for a, b in product(*sides)
            if (rows[a].variant, rows[a].protocol) == (rows[b].variant, rows[b].protocol)
        ]
    return pairs


def _pretraining_pairs(
    rows: Sequence[ComparisonRow], runs: Sequence[Sequence[RunRecord]], group: Sequence[int]
) -> list[Pair]:
    """Each pretrained model's best row on val beside the best that was trained from scratch.

    From scratch is a fine-tuning of random weights, too.
    """
    untrained = {i for i in group if _random_parts(runs[i][0]) == len(runs[i][0].spec.backbones)}
    scratch = [i for i in group if rows[i].phase == "scratch" or (rows[i].phase == "finetune" and i in untrained)]
    pretrained = [i for i in group if rows[i].phase in ("probe", "finetune") and not _random_parts(runs[i][0])]
    pairs = []
    for key in dict.fromkeys((rows[i].model, rows[i].weights) for i in pretrained):
        own = [i for i in pretrained if (rows[i].model, rows[i].weights) == key]
        pairs += _chosen_pairs(rows, own, scratch)
    return pairs


def _random_parts(run: RunRecord) -> int:
    return sum(backbone.weights.kind == "random" for backbone in run.spec.backbones)


def _chosen_pairs(rows: Sequence[ComparisonRow], left: Sequence[int], right: Sequence[int]) -> list[Pair]:
    """One pair per protocol that both sides have; where they share none, one across protocols."""
    pairs = []
    for protocol in dict.fromkeys(rows[i].protocol for i in left):
        sides = [_chosen(rows, [i for i in side if rows[i].protocol == protocol]) for side in (left, right)]
        if sides[0] is not None and sides[1] is not None:
            pairs.append((sides[0], sides[1]))
    across = _chosen(rows, left), _chosen(rows, right)
    if not pairs and across[0] is not None and across[1] is not None:
        pairs.append((across[0], across[1]))
    return pairs


def _chosen(rows: Sequence[ComparisonRow], side: Sequence[int]) -> int | None:
    """The best on val of those that are finished; the only one, where nothing is chosen on val."""
    best = best_on_val(rows, [i for i in side if rows[i].status == "completed"])
    return side[0] if best is None and len(side) == 1 else best


# -------------------------------------------------------------------------------------------------------- in words
_COLUMNS: list[Column[Contest]] = [
    words("dataset"),
    words("row", lambda contest: contest.names[0]),
    words("beside", lambda contest: contest.names[1]),
    *answer_columns(lambda contest: contest.second),
]
_TABLES: dict[Question, str] = {
    "winner": "winner",
    "finetuning": "finetuning_over_probe",
    "pretraining": "pretraining_over_scratch",
}


def tables(found: Sequence[Contest]) -> list[Table[Contest]]:
    """One per question that is asked."""
    rows = {question: [contest for contest in found if contest.question == question] for question in TITLES}
    return [
        Table(_TABLES[question], _COLUMNS, contests, TITLES[question])
        for question, contests in rows.items()
        if contests
    ]


def row_names(*rows: ComparisonRow) -> list[str]:
    """`resnet18 (finetune, batch_64)`, with what else these rows differ in: weights, protocol, grid; and the status."""
    weights = weights_where_needed(rows, "model", "phase", "variant")
    differ = [name for name in ("protocol", "grid") if len({getattr(row, name) for row in rows}) > 1]
    names = []
    for row, label in zip(rows, weights, strict=True):
        also = [f"{name} {getattr(row, name)}" for name in differ]
        status = row.status if row.status != "completed" else ""
        conditions = ", ".join(part for part in (row.phase, row.variant, label, *also, status) if part)
        names.append(f"{row.model} ({conditions})")
    return names
