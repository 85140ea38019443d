"""What the terminal shows of an evaluation: how many images it has right, and which classes it takes for which."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from rich.console import Console

from transfergrid.cli.console import say
from transfergrid.errors import DataError, one_line
from transfergrid.names import printable

if TYPE_CHECKING:
    from transfergrid.cli.fitting import Fitting
    from transfergrid.report.analysis.comparison import Comparison
    from transfergrid.report.analysis.per_class import Confusion
    from transfergrid.report.blocks import Table

MOST_SHOWN = 3  # evaluations; the report has more
WORST_CLASSES = 15


def show_evaluations(console: Console, comparison: Comparison, run_ids: Collection[str]) -> None:
    """Of the rows that these runs belong to. The report has the same facts."""
    from transfergrid.cli.tables import rich_table
    from transfergrid.report.analysis.per_class import class_table, confusion_of, in_words

    rows = zip(comparison.rows, comparison.runs, strict=True)
    shown = [(row, runs) for row, runs in rows if any(run.run_id in run_ids for run in runs)]
    for row, runs in shown[:MOST_SHOWN]:
        try:
            found = confusion_of(runs, comparison.stored)
        except DataError as error:
            say(console, f"\n{row.title}: {one_line(error)}", style="yellow")
            continue
        say(console, f"\n{printable(row.title)}")
        say(console, in_words(row, found))
        classes = class_table(found, most=WORST_CLASSES)
        for table, drawn in (_confusions(found, console.width), (classes, rich_table(classes))):
            if table.rows:
                say(console, f"\n{table.title}:")
                console.print(drawn)
        console.print()
        for path in (comparison.store.run(run.run_id).predictions_csv for run in runs):
            if path.exists():
                say(console, f"every image with its prediction: {path}")
    if len(shown) > MOST_SHOWN:
        say(console, f"and {len(shown) - MOST_SHOWN} more evaluations: the report has their classes")


def _confusions(found: Confusion, width: int) -> tuple[Table[Any], Fitting]:
    """A matrix of few classes, headed by their names or, where those are too wide, by their numbers; else the pairs
    that are confused most."""
    from transfergrid.cli.tables import rich_table
    from transfergrid.report.analysis.per_class import MATRIX_CLASSES, matrix, pair_table

    for numbered in (False, True) if len(found.met) <= MATRIX_CLASSES else ():
        table = matrix(found, numbered=numbered)
        drawn = rich_table(table, folded=("true",) if numbered else ())
        if drawn.least_width <= width:
            return table, drawn
    pairs = pair_table(found)
    return pairs, rich_table(pairs)
