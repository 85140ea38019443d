"""Is the difference real? Each row beside the one chosen on val, among models and among the settings of one model."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeVar

from transfergrid.report.analysis import families
from transfergrid.report.analysis.cells import weights_where_needed
from transfergrid.report.analysis.columns import adjusted_p, difference
from transfergrid.report.analysis.comparison import Comparison
from transfergrid.report.analysis.families import Answer, Question
from transfergrid.report.analysis.power import needed
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.analysis.selection import RULE, is_tied
from transfergrid.report.analysis.statistics import CONFIDENCE, NotJudged, PairedComparison
from transfergrid.report.blocks import Column, Section, Table, figure, words

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgainstBest:
    """One row minus the best of its group. needed: what it would take to tell, empty where a difference is shown; or
    why the two were not compared.

    seeds: those in common, of how many where a row has more, or beside one run that has no seed; empty where no
    comparison could be made.
    """

    row: ComparisonRow
    answer: Answer
    needed: str
    seeds: str = ""

    @property
    def result(self) -> PairedComparison | NotJudged | None:
        result = self.answer.result
        return None if isinstance(result, str) and not isinstance(result, NotJudged) else result


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that answer one question: `models` of one variant, or the `settings` (variants) of one model.

    best: the highest score on val among the completed rows, so the test set has no part in the choice; of tied ones by
    selection.RULE. others: the remaining rows with a result, in the comparison's order.
    """

    question: Question
    dataset: str
    phase: str
    name: str  # the variant whose models these are, or the model whose settings these are
    best: ComparisonRow
    others: tuple[AgainstBest, ...]


def against_best(comparison: Comparison) -> tuple[Group, ...]:
    """Every group of at least two rows under `fair`; see families.py for what p is adjusted over."""
    rows = comparison.rows
    answers = {
        family: families.answers(pairs, comparison.runs, comparison.stored)
        for family, pairs in families.families(rows).items()
    }
    return tuple(
        Group(
            *key,
            best=rows[best],
            others=tuple(against(rows[i], rows[best], answers[key[:3]][i, best]) for i in others),
        )
        for key, (best, others) in families.groups(rows).items()
    )


def against(row: ComparisonRow, best: ComparisonRow, answer: Answer) -> AgainstBest:
    """answer: of the one minus the other, whichever way round."""
    result, would_take = answer.result, ""
    if isinstance(result, str):
        reason = result if isinstance(result, NotJudged) else f"not compared: {result}"
        return AgainstBest(row=row, answer=answer, needed=reason)
    if answer.verdict == "no difference shown":
        alone = result.p_value < 1 - CONFIDENCE
        would_take = "shown if it were the only comparison, not among so many" if alone else needed(result)
    fewer, seeds = sorted((row.n_seeds, best.n_seeds))
    in_common = f"{result.seeds} of {seeds}" if result.seeds < seeds else str(seeds)
    if fewer == 1 < result.seeds:  # a run that draws nothing stands beside each seed
        in_common = f"{seeds} beside one run"
    return AgainstBest(row=row, answer=answer, needed=would_take, seeds=in_common)


# ----------------------------------------------------------------------------------------------------------- in words
_ABOUT = """\
Each row minus the one beside it, in points of test accuracy, on the same seeds and test images. The best row is
chosen on val, so another row may be best on test; {rule}. {tests} The brackets are 95 % intervals of one comparison
alone. p is Holm-adjusted over the number of comparisons in brackets behind it. These are the comparisons of this
dataset that ask the same question: between models of one phase (with joins beside their best part), between settings,
or across phases. A difference is called real below 5 %. `No difference shown` is not `equal`: the interval says how
large a difference may still be. The column beside the verdict says what would show the observed one at 5 % with 80 %
power.
"""
_TESTS = {
    "mcnemar_exact": "Rows of one seed: exact McNemar test, about these trained networks and other test images. One "
    "seed says nothing about other seeds. The exact test is more cautious than the interval: even if the interval "
    "just leaves out zero, the verdict follows p.",
    "paired_bootstrap": "Rows of several seeds: paired bootstrap over seeds and test images (10,000 draws), about "
    "other trainings and other test images.",
    "by_group": "Test images in groups: every interval and p is by group, about other groups and, for several seeds, "
    "other trainings. It is Newcombe's hybrid score interval on the groups' effective number of images, with Student's "
    "t for G - 1 degrees of freedom. What it would take to tell is in groups, too.",
}
_TITLES: dict[Question, str] = {"models": "Models of the same variant", "settings": "Settings of the same model"}


@dataclass(frozen=True, slots=True)
class _Line:
    """best, name: of the best row and the one beside it, in their group."""

    group: Group
    best: str
    name: str
    beside: AgainstBest


def section(
    groups: Sequence[Group], answers: Sequence[Answer] = (), *, tables: Sequence[Table[Any]] = ()
) -> Section | None:
    """None where no group has two rows and nothing else was asked. tables: of the questions across phases, whose
    answers these are."""
    if not groups and not tables:
        return None
    results = [answer.result for answer in (*(other.answer for group in groups for other in group.others), *answers)]
    tests = {result.test for result in results if not isinstance(result, str)}
    about = _ABOUT.format(rule=RULE, tests=" ".join(text for test, text in _TESTS.items() if test in tests))
    return Section(
        "statistics",
        "Is the difference real?",
        about=[textwrap.fill(about, width=120, break_on_hyphens=False)],
        tables=[*tables, *_tables(groups)],
    )


def _tables(groups: Sequence[Group]) -> list[Table[_Line]]:
    """One per question that is asked."""
    tables: list[Table[_Line]] = []
    for question, title in _TITLES.items():
        lines = [line for group in groups if group.question == question for line in _lines(group)]
        columns: list[Column[_Line]] = [
            words("dataset", "group.dataset"),
            words("phase", "group.phase"),
            words(families.COLUMNS[question], "group.name"),
            words("best_on_val", "best", label="best on val"),
            words("row_beside_it", "name", label="row beside it"),
            *answer_columns(attrgetter("beside")),
        ]
        if lines:
            tables.append(Table("statistics_2" if tables else "statistics", columns, lines, title))
    return tables


def answer_columns(read: Callable[[Row], AgainstBest]) -> list[Column[Row]]:
    """Verdict, what it would take to tell, seeds, difference, p."""
    return [
        words("verdict", lambda row: read(row).answer.verdict),
        words("needed_to_tell", lambda row: read(row).needed, label="what it would take to tell"),
        figure(
            "seeds",
            value=lambda row: getattr(read(row).result, "seeds", None),
            text=lambda row: read(row).seeds,
            is_number=False,
        ),
        difference("difference", "difference", lambda row: read(row).result),
        adjusted_p(lambda row: read(row).answer),
    ]


def _lines(group: Group) -> list[_Line]:
    """Each row by what it is in its group, with weights where nothing else tells them apart."""
    rows = [group.best, *(other.row for other in group.others)]
    field = "model" if group.question == "models" else "variant"
    weights = weights_where_needed(rows, field)
    best, *names = [
        ", ".join(filter(None, (getattr(row, field) or "the grid's own settings", label)))
        for row, label in zip(rows, weights, strict=True)
    ]
    if tied := [name for name, other in zip(names, group.others, strict=True) if is_tied(other.row, group.best)]:
        best += f", tied with {' and '.join(tied)}"
    return [_Line(group, best, name, other) for name, other in zip(names, group.others, strict=True)]
