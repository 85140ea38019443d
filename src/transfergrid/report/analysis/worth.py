"""Questions across phases: who wins? Is fine-tuning worth it over the probe? Pretraining over training from scratch?

Each question about one data set is a family of its own; p is adjusted within it. Rows are chosen on val, so the test
set has no part in what is compared on it. Where the winner and its runner-up stand beside each other in another
family, their p is that family's: two rows have one p wherever they meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from operator import attrgetter
from typing import Literal

from transfergrid.report.analysis import families, integrity
from transfergrid.report.analysis.cells import weights_where_needed
from transfergrid.report.analysis.comparison import Comparison, once
from transfergrid.report.analysis.families import Answer, Pair
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.analysis.selection import best_first, best_on_val
from transfergrid.report.analysis.verdicts import AgainstBest, against, answer_columns
from transfergrid.report.blocks import Column, Table, words

Question = Literal["winner", "finetuning", "pretraining"]
# question -> (name of its table in W&B, title)
_TABLES: dict[Question, tuple[str, str]] = {
    "winner": ("winner", "The winner on val and the next"),
    "finetuning": ("finetuning_over_probe", "Is fine-tuning worth it over the probe"),
    "pretraining": ("pretraining_over_scratch", "Is a pretrained network worth it over one from scratch"),
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


def candidates(comparison: Comparison, dataset: str) -> list[int]:
    """Rows that could win. Those with a record that contradicts its predictions are passed over, one row of several
    grids is one candidate, and an evaluation of what is a row of its own is none: it is the same network."""
    tested = [i for i in integrity.trusted(comparison) if comparison.rows[i].test_accuracy is not None]
    position_by_runs: dict[tuple[str, ...], int] = {}
    for i in tested:
        if comparison.rows[i].dataset == dataset:
            position_by_runs.setdefault(tuple(run.run_id for run in comparison.runs[i]), i)
    run_ids = {run_id for row_run_ids in position_by_runs for run_id in row_run_ids}

    def evaluates_another(i: int) -> bool:
        needs = {need for run in comparison.runs[i] for need in run.spec.needs}
        return comparison.rows[i].phase == "evaluate" and not needs.isdisjoint(run_ids)

    return [i for i in position_by_runs.values() if not evaluates_another(i)]


@once
def winners(comparison: Comparison) -> list[Winner]:
    """Per data set with a result."""
    rows = comparison.rows
    winner_by_dataset = []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        among = candidates(comparison, dataset)
        ordered = best_first(rows, among)
        first, *others = ordered or best_first(rows, among, score=attrgetter("test_accuracy"))[:1] or [[]]
        if first:
            winner = Winner(
                dataset=dataset,
                first=tuple(first),
                runners_up=tuple(others[0]) if others else (),
                candidates=sum(map(len, ordered)) or len(among),
                on_test=not ordered,
            )
            winner_by_dataset.append(winner)
    return winner_by_dataset


def contests(comparison: Comparison) -> list[Contest]:
    """All of them, by question and data set."""
    return [
        contest
        for question in _TABLES
        for dataset in dict.fromkeys(row.dataset for row in comparison.rows)
        for contest in contests_about(comparison, question, dataset)
    ]


def contests_about(comparison: Comparison, question: Question, dataset: str) -> list[Contest]:
    """One family, in the comparison's order."""
    rows = comparison.rows
    pairs = _pairs(comparison, question, dataset)
    answers = families.answers(pairs, comparison.runs, comparison.stored)
    if question == "winner":
        answers |= told_elsewhere(pairs, comparison)
    return [
        Contest(question=question, dataset=dataset, first=rows[a], second=against(rows[b], rows[a], answer))
        for (a, b), answer in answers.items()
    ]


def told_elsewhere(pairs: Sequence[Pair], comparison: Comparison) -> dict[Pair, Answer]:
    """Of those pairs of one data set that another family of their own grid holds, what it says about them."""
    told: dict[Pair, Answer] = {}
    for grid in dict.fromkeys(comparison.rows[a].grid for a, _ in pairs):
        places = {i: place for place, i in enumerate(i for i, row in enumerate(comparison.rows) if row.grid == grid)}
        rows, runs = tuple(comparison.rows[i] for i in places), tuple(comparison.runs[i] for i in places)
        of_grid = replace(comparison, rows=rows, runs=runs)
        own = {(a, b): (places[a], places[b]) for a, b in pairs if a in places and b in places}
        dataset = comparison.rows[pairs[0][0]].dataset
        across_phases = [_pairs(of_grid, question, dataset) for question in ("finetuning", "pretraining")]
        for family in (*families.families(rows).values(), *across_phases):
            held = {frozenset(pair) for pair in family}
            here = [pair for pair in own if pair not in told and frozenset(own[pair]) in held]
            if here:
                answers = families.answers([*family, *(own[pair] for pair in here)], runs, comparison.stored)
                told |= {pair: answers[own[pair]] for pair in here}
    return told


# ---------------------------------------------------------------------------------------------------------- which rows
def _pairs(comparison: Comparison, question: str, dataset: str) -> list[Pair]:
    if question == "winner":
        return [pair for winner in winners(comparison) if winner.dataset == dataset for pair in winner.pairs]
    rows, runs = comparison.rows, comparison.runs
    groups: dict[object, list[int]] = {}  # trained on the same images, tested on the same
    for i, row in enumerate(rows):
        if row.dataset == dataset and row.n_seeds and row.test_accuracy is not None:
            spec = runs[i][0].spec
            groups.setdefault((spec.dataset, spec.train_fraction, spec.shots), []).append(i)
    pairs: list[Pair] = []
    for group in groups.values():
        # From scratch is a fine-tuning of random weights, too.
        is_random = {i: [part.weights.kind == "random" for part in runs[i][0].spec.backbones] for i in group}
        scratch = [
            i for i in group if rows[i].phase == "scratch" or (rows[i].phase == "finetune" and all(is_random[i]))
        ]
        pretrained = [i for i in group if rows[i].phase in ("probe", "finetune") and not any(is_random[i])]
        networks: dict[object, list[int]] = {}
        for i in group if question == "finetuning" else pretrained:
            networks.setdefault((rows[i].model, rows[i].weights), []).append(i)
        for own in networks.values():
            pairs += _finetuning_pairs(rows, own) if question == "finetuning" else _pairs_of_best(rows, own, scratch)
    return pairs


def _finetuning_pairs(rows: Sequence[ComparisonRow], network: Sequence[int]) -> list[Pair]:
    """Of one model and its weights: the best fine-tuning on val beside the best probe."""
    sides = [[i for i in network if rows[i].phase == phase] for phase in ("finetune", "probe")]
    # Where nothing is chosen on val, each setting stands beside its own.
    setting = attrgetter("variant", "protocol")
    return _pairs_of_best(rows, *sides) or [(a, b) for a, b in product(*sides) if setting(rows[a]) == setting(rows[b])]


def _pairs_of_best(rows: Sequence[ComparisonRow], left: Sequence[int], right: Sequence[int]) -> list[Pair]:
    """One pair per protocol that both sides have; where they share none, one across protocols."""
    pairs: list[Pair] = []
    for protocol in dict.fromkeys(rows[i].protocol for i in left):
        first, second = (_best(rows, [i for i in side if rows[i].protocol == protocol]) for side in (left, right))
        pairs += product(first, second)
    return pairs or list(product(_best(rows, left), _best(rows, right)))


def _best(rows: Sequence[ComparisonRow], side: Sequence[int]) -> Sequence[int]:
    """The best on val of those that are finished; the only one, where nothing is chosen on val; else none."""
    best = best_on_val(rows, [i for i in side if rows[i].status == "completed"])
    if best is not None:
        return [best]
    return side if len(side) == 1 else []


# -------------------------------------------------------------------------------------------------------- in words
_COLUMNS: list[Column[Contest]] = [
    words("dataset"),
    words("row", lambda contest: row_names(contest.first, contest.second.row)[0]),
    words("beside", lambda contest: row_names(contest.first, contest.second.row)[1]),
    *answer_columns(lambda contest: contest.second),
]


def tables(contests: Sequence[Contest]) -> list[Table[Contest]]:
    """One per question that is asked."""
    tables = []
    for question, (name, title) in _TABLES.items():
        if rows := [contest for contest in contests if contest.question == question]:
            tables.append(Table(name, _COLUMNS, rows, title))
    return tables


def row_names(*rows: ComparisonRow) -> list[str]:
    """`resnet18 (finetune, batch_64)`, with what else these rows differ in: weights, protocol, grid; and the status."""
    weights = weights_where_needed(rows, "model", "phase", "variant")
    differ = [name for name in ("protocol", "grid") if len({getattr(row, name) for row in rows}) > 1]
    names = []
    for row, label in zip(rows, weights, strict=True):
        also = [f"{name} {value}" for name in differ if (value := getattr(row, name))]
        status = row.status if row.status != "completed" else ""
        conditions = ", ".join(part for part in (row.phase, row.variant, label, *also, status) if part)
        names.append(f"{row.model} ({conditions})")
    return names
