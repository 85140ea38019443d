"""The sentences of a report that are not in a table: the answer, and what failed or is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transfergrid.report.analysis import integrity, power
from transfergrid.report.analysis.answer import (
    AnswerRow,
    Cheapest,
    Cost,
    DatasetAnswer,
    GridAnswer,
    Rival,
    Use,
    answer_of,
)
from transfergrid.report.analysis.cells import accuracy_with_interval, in_points, points
from transfergrid.report.analysis.comparison import Comparison, failure_lines
from transfergrid.report.analysis.families import p_in_words
from transfergrid.report.analysis.rows import ComparisonRow
from transfergrid.report.analysis.selection import WORDS
from transfergrid.report.analysis.worth import row_names, winners

MOST_NAMED = 3


def verdict(comparison: Comparison) -> str:
    """A line per data set, from the answer: the winner, how sure that is, and what it cost."""
    rows, answer = comparison.rows, answer_of(comparison)
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
    if told := _difference_in_words(rival):
        yield f"{against}: {rival.verdict} ({told})."
    else:
        yield f"{against}: {rival.reason if rival.difference is not None else f'not compared: {rival.reason}'}."


def _cost(answer: DatasetAnswer) -> Iterator[str]:
    winner = answer.winner
    if winner.cost.wall_s or winner.cost.gpu_s:
        it = "It" if answer.runner_up is None else "The winner"
        yield f"{it} cost {seconds_in_words(winner.cost)}{' per seed' if len(winner.run_ids) > 1 else ''}."


def _listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`"""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _unfinished(rows: Sequence[ComparisonRow]) -> str:
    open_rows = sum(row.status != "completed" for row in rows)
    return f" {open_rows} of {len(rows)} rows have not completed." if open_rows else ""


# --------------------------------------------------------------------------------------- a paragraph per data set
def in_words(answer: GridAnswer) -> Iterator[str]:
    """A few sentences per data set, a paragraph each: what is as good, what is cheaper, the cost, how to use it."""
    are_several = len(answer.datasets) > 1
    for of_dataset in answer.datasets:
        of = f"{of_dataset.dataset}: " if are_several else ""
        yield from (of + sentence for sentence in _of_dataset_in_words(of_dataset, answer.within))
    if are_several:
        yield f"The whole grid cost {seconds_in_words(answer.cost)}."


def _of_dataset_in_words(answer: DatasetAnswer, within: float) -> Iterator[str]:
    if answer.tied:
        tied = (f"{row.name} ({accuracy_with_interval(row)} %)" for row in answer.tied)
        yield f"Tied with it on {answer.chosen_on}: {', '.join(tied)}."
    yield from _real(answer)
    if answer.cheapest is not None:
        yield _cheapest_in_words(answer.cheapest, within, answer)
    yield f"All of {answer.dataset} cost {seconds_in_words(answer.cost)}."
    yield _use_in_words(answer.use, answer.winner)


def _use_in_words(use: Use, winner: AnswerRow) -> str:
    if use.predict:
        return f"Use it: {use.predict}"
    if (
        winner.phase == "evaluate" and use.run_id in winner.run_ids
    ):  # of a file or a published head: it makes no weights
        return f"Run it again: {use.again}"
    return f"No weights of it are here. To make them, delete its record.json, and run: {use.again}"


def _real(answer: DatasetAnswer) -> Iterator[str]:
    rivals, others = answer.not_told_apart, answer.candidates - 1
    if answer.chosen_on == "test" or not others:
        return
    if answer.decided:
        yield f"It is better than every other of the {answer.candidates} rows."
    if answer.better_on_test:
        yield f"Val missed {_named(answer.better_on_test)}: better on the test images."
    if not rivals:
        return
    verb = "is" if len(rivals) == 1 else "are"
    yield f"{len(rivals)} of {others} other rows {verb} not told apart from it: {_named(rivals)}."
    first = rivals[0]
    numbers = ((first.images_needed, answer.n_test), (first.seeds_needed, len(answer.winner.run_ids)))
    if any(needed is not None and there is not None and needed <= there for needed, there in numbers):
        if first.difference:
            yield f"The difference from {first.row.name} would be shown if it were the only comparison."
    elif effort := _effort(first):
        least = "" if first.difference else f" by {100 * power.SMALLEST_DIFFERENCE:g} points"
        yield f"To tell it from {first.row.name}{least} takes {effort}."


def _named(rivals: Sequence[Rival]) -> str:
    more = f" and {len(rivals) - MOST_NAMED} more" if len(rivals) > MOST_NAMED else ""
    return ", ".join(_rival_in_words(rival) for rival in rivals[:MOST_NAMED]) + more


def _rival_in_words(rival: Rival) -> str:
    if rival.difference is not None and rival.low is None:
        return f"{rival.row.name} ({points(rival.difference)} points, {rival.reason})"
    told = _difference_in_words(rival)
    return f"{rival.row.name} ({told or f'not compared: {rival.reason}'})"


def _difference_in_words(rival: Rival) -> str:
    """`+0.03 points [-0.05, +0.11], p = 0.400 after Holm over 3`; nothing where the two were not compared."""
    if rival.difference is None or rival.low is None or rival.high is None or rival.p_value is None:
        return ""
    difference = in_points(rival.difference, rival.low, rival.high)
    fewer = f", from {rival.seeds} of {rival.of_seeds} seeds" if rival.seeds < rival.of_seeds else ""
    return f"{difference}, {_p_in_words(rival.p_value, rival.family_size)}{fewer}"


def _p_in_words(p_value: float, family_size: int) -> str:
    """`p = 0.012 after Holm over 3`"""
    over = f" after Holm over {family_size}" if family_size > 1 else ""
    return f"p {p_in_words(p_value)}{over}"


def _effort(rival: Rival) -> str:
    ways = [
        (rival.seeds_needed, "seeds"),
        (rival.images_needed, "test images"),
        (rival.groups_needed, "groups of test images"),
    ]
    return " or ".join(f"about {number:,} {noun}" for number, noun in ways if number is not None)


def _cheapest_in_words(cheapest: Cheapest, within: float, answer: DatasetAnswer) -> str:
    own, best = seconds_in_words(cheapest.row.cost), seconds_in_words(answer.winner.cost)
    return (
        f"{cheapest.row.name} costs {own} in place of {best}, and is not worse by more than {100 * within:g}"
        f" {'point' if within == 0.01 else 'points'} ({_p_in_words(cheapest.p_value, cheapest.family_size)})."
    )


def seconds_in_words(cost: Cost) -> str:
    """`1.2 GPU hours`, `34 GPU seconds`; where nothing ran on a GPU, of the clock: `3.1 minutes`."""
    least = "" if cost.is_whole else "at least "
    seconds, kind = (cost.gpu_s, "GPU ") if cost.gpu_s else (cost.wall_s, "")
    for size, unit in ((3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size:
            return f"{least}{seconds / size:,.1f} {kind}{unit}"
    return f"{least}{seconds:.{0 if seconds >= 10 else 1}f} {kind}seconds"


# ---------------------------------------------------------------------------------------------- failed or missing
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
