"""The sentences of the page that are not in a table: the verdict at the top, and what failed or is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transfergrid.report.analysis import integrity
from transfergrid.report.analysis.answer import DatasetAnswer, GridAnswer, answer_of, seconds_in_words
from transfergrid.report.analysis.cells import accuracy_with_interval, in_points
from transfergrid.report.analysis.comparison import Comparison, failure_lines
from transfergrid.report.analysis.families import p_in_words
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.analysis.selection import WORDS
from transfergrid.report.analysis.worth import row_names, winners


def verdict(comparison: Comparison, answer: GridAnswer | None = None) -> str:
    """A line per data set, from the answer: the winner, how sure that is, and what it cost.

    answer: of this comparison, where the caller has it already.
    """
    rows = comparison.rows
    answer = answer or answer_of(comparison)
    if not answer.datasets:
        return "No answer yet: no row has a test accuracy."
    answer_by_dataset = {of_dataset.dataset: of_dataset for of_dataset in answer.datasets}
    lines = [
        _headline(answer_by_dataset[dataset])
        if dataset in answer_by_dataset
        else f"On {dataset} no row has a result yet."
        for dataset in dict.fromkeys(row.dataset for row in rows)
    ]
    return "\n".join(lines) + _passed_over(len(rows) - len(integrity.trusted(comparison))) + _unfinished(rows)


def ties(comparison: Comparison) -> list[str]:
    """Per data set whose winner is none: which rows are tied on val."""
    return [
        f"Tied on val on {winner.dataset}: {_listed(row_names(*(comparison.rows[i] for i in winner.first)))}."
        for winner in winners(comparison)
        if len(winner.first) > 1 and not winner.on_test
    ]


def _passed_over(count: int) -> str:
    if not count:
        return ""
    return f" Passed over: {count} {'row' if count == 1 else 'rows'} whose records do not agree with their predictions."


def _headline(answer: DatasetAnswer) -> str:
    winner, score = answer.winner, WORDS[answer.select_by]
    by = "" if score == "accuracy" else f" by {score}"
    of = f"{answer.candidates} {'row' if answer.candidates == 1 else 'rows'}"
    tied = f", tied with {len(answer.tied)} more" if answer.tied else ""
    how = f"best on val{by} of {of}{tied}"
    if answer.chosen_on == "test":
        how = f"highest on test of {of}{tied}; nothing is chosen on val"
    if answer.candidates == 1:
        how = "the only row with a result"
    reached = (
        f"On {answer.dataset}, {winner.name} reaches {accuracy_with_interval(winner)} % on the test images ({how})."
    )
    return " ".join([reached, *_beside_the_next(answer), *_cost(answer)])


def _beside_the_next(answer: DatasetAnswer) -> Iterator[str]:
    rival = answer.runner_up
    if rival is None:
        return
    against = f"Against {'' if answer.tied else 'the runner-up on val, '}{rival.row.name}"
    if rival.difference is None or rival.low is None or rival.high is None or rival.p_value is None:
        yield f"{against}: {rival.reason if rival.difference is not None else f'not compared: {rival.reason}'}."
        return
    over = f" after Holm over {rival.family_size}" if rival.family_size > 1 else ""
    difference = in_points(rival.difference, rival.low, rival.high)
    yield f"{against}: {rival.verdict} ({difference}, p {p_in_words(rival.p_value)}{over})."


def _cost(answer: DatasetAnswer) -> Iterator[str]:
    winner = answer.winner
    if winner.cost.wall_s or winner.cost.gpu_s:
        yield f"It cost {seconds_in_words(winner.cost)}{' per seed' if len(winner.run_ids) > 1 else ''}."


def _listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`"""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _unfinished(rows: Sequence[ComparisonRow]) -> str:
    open_rows = sum(row.status != "completed" for row in rows)
    return f" {open_rows} of {len(rows)} rows have not completed." if open_rows else ""


def missing(comparison: Comparison) -> list[str]:
    """Rows that have not completed, failed runs with reason and next step, records that contradict predictions."""
    return [*_rows(comparison), *failure_lines(comparison.failures), *_findings(comparison)]


def _rows(comparison: Comparison) -> Iterator[str]:
    for row in comparison.rows:
        if row.status != "completed":
            parts = (row.grid, row.dataset, row.model, row.phase, row.variant, row.weights)
            why = f": {row.failure_class}" if row.failure_class else ""
            started = "" if why or row.n_seeds else "; no run has a record yet: not started, or still running"
            yield f"{' · '.join(part for part in parts if part)}: {row.status}{why}{started}."


def _findings(comparison: Comparison) -> Iterator[str]:
    for of_row in integrity.findings(comparison):
        yield from (f"{finding.sentence}." for finding in of_row)
