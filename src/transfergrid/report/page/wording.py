"""The sentences of the page that are not in a table: the verdict at the top, and what failed or is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transfergrid.report.analysis import integrity
from transfergrid.report.analysis.cells import accuracy_with_interval
from transfergrid.report.analysis.comparison import Comparison, failure_lines
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.analysis.selection import WORDS
from transfergrid.report.analysis.worth import Winner, contests_about, row_names, winners

MOST_PAIRS = 3  # in the verdict


def verdict(comparison: Comparison) -> str:
    """Per data set the row that a careful reader would take: best on val, told with its test accuracy, beside the next.

    Rows with the same score on val are all named. Rows with a record that contradicts its predictions are passed over.
    """
    rows = comparison.rows
    if not any(row.test_accuracy is not None for row in rows):
        return "No answer yet: no row has a test accuracy."
    winner_of = {winner.dataset: winner for winner in winners(comparison)}
    sentences = [
        _best(comparison, winner_of[dataset]) if dataset in winner_of else f"On {dataset} no row has a result yet."
        for dataset in dict.fromkeys(row.dataset for row in rows)
    ]
    return " ".join(sentences) + _passed_over(len(rows) - len(integrity.trusted(comparison))) + _unfinished(rows)


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


def _best(comparison: Comparison, winner: Winner) -> str:
    rows, dataset = comparison.rows, winner.dataset
    score = WORDS[rows[winner.first[0]].select_by]
    by = "" if score == "accuracy" else f" by {score}"
    of = f"{winner.candidates} {'row' if winner.candidates == 1 else 'rows'}"
    how = f"highest on test of {of}; nothing is chosen on val" if winner.on_test else f"best on val{by} of {of}"
    reached = [f"{accuracy_with_interval(rows[i])} %" for i in winner.first]
    names = row_names(*(rows[i] for i in (*winner.first, *winner.runners_up)))
    if len(winner.first) == 1:
        text = f"On {dataset}, {names[0]} reaches {reached[0]} on the test images ({how})."
    else:
        tied = "tied on test" if winner.on_test else f"tied on val{by}"
        each = _listed([f"{name} with {accuracy}" for name, accuracy in zip(names, reached, strict=False)])
        text = f"On {dataset}, {tied}: {each} on the test images ({how})."
    return " ".join([text, *_beside_the_next(comparison, winner, names)])


def _beside_the_next(comparison: Comparison, winner: Winner, names: Sequence[str]) -> Iterator[str]:
    """The tests of the winner, or of the first of those that are tied, beside the others."""
    named = dict(zip((*winner.first, *winner.runners_up), names, strict=True))
    contests = contests_about(comparison, "winner", winner.dataset)
    for (a, b), contest in list(zip(winner.pairs, contests, strict=True))[:MOST_PAIRS]:
        role = "" if b in winner.first else "the runner-up on val, "
        yield f"{named[a]} against {role}{named[b]}: {contest.second.answer.in_words}."
    if len(contests) > MOST_PAIRS:
        yield f"{len(contests) - MOST_PAIRS} more are below."


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
