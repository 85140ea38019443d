"""Several grids in one report: their rows side by side, each grid's own checks below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transfergrid.errors import ConfigError
from transfergrid.report import documents, wording
from transfergrid.report.analysis import costs
from transfergrid.report.analysis.columns import of_rows, pick, use, wilson
from transfergrid.report.analysis.comparison import Comparison
from transfergrid.report.analysis.families import Answer
from transfergrid.report.blocks import Section

SEVERAL = " and "


def joined(comparisons: Sequence[Comparison]) -> Comparison:
    """One comparison with all rows, in the order of the grids; the grids share a store. Raises ConfigError where they
    choose by different scores.

    What it cost counts every run once, however many of the grids have it.
    """
    if len(comparisons) == 1:
        return comparisons[0]
    scores = {row.select_by: c.grid for c in comparisons for row in c.rows}
    if len(scores) > 1:
        named = ", ".join(f"{grid} by {score}" for score, grid in scores.items())
        raise ConfigError(
            f"these grids choose on val by different scores ({named}); give select_by=NAME for all of them"
        )
    failures = {failure.run_id: failure for c in comparisons for failure in c.failures}
    return Comparison(
        grid=SEVERAL.join(c.grid for c in comparisons),
        store=comparisons[0].store,
        stored=comparisons[0].stored,
        rows=tuple(row for c in comparisons for row in c.rows),
        runs=tuple(runs for c in comparisons for runs in c.runs),
        failures=tuple(failures.values()),
        spent=costs.joined(c.spent for c in comparisons),
        notes=tuple(f"{c.grid}: {note}" for c in comparisons for note in c.notes),
        joins=_joins(comparisons),
        within_points=min(c.within_points for c in comparisons),
    )


def _joins(comparisons: Sequence[Comparison]) -> dict[int, Answer]:
    """At the positions that the rows have in the joined comparison."""
    answers: dict[int, Answer] = {}
    before = 0
    for comparison in comparisons:
        answers |= {before + i: answer for i, answer in comparison.joins.items()}
        before += len(comparison.rows)
    return answers


def named_apart(comparison: Comparison) -> Comparison:
    """For figures and LaTeX, which do not name a row's grid: the variant tells it, too, where there are several."""
    if len({row.grid for row in comparison.rows}) < 2:
        return comparison
    rows = [
        replace(row, variant=f"{row.variant} in {row.grid}".strip(), own_variant=row.variant) for row in comparison.rows
    ]
    return replace(comparison, rows=tuple(rows))


def sections(comparisons: Sequence[Comparison]) -> list[Section]:
    """Of several grids one short table of all rows, then what each grid's own report says."""
    if len(comparisons) == 1:
        return documents.sections(comparisons[0])
    whole = joined(comparisons)
    done = sum(row.status == "completed" for row in whole.rows)
    counts = f"{len(whole.rows)} rows of {len(comparisons)} grids: {done} completed."
    names = "grid dataset model phase variant status n_seeds test_accuracy val_accuracy published_accuracy"
    table = of_rows("rows", [*pick(names), *wilson(whole.rows), *use(whole.rows)], whole.rows)
    first = Section(
        "rows", about=[counts, wording.verdict(whole)], tables=[table], below=[costs.total_text(whole.spent)]
    )
    own = [replace(s, grid=c.grid, title=s.title or "rows") for c in comparisons for s in documents.sections(c)]
    return [first, *own]
