"""jobs/report.py: records -> comparison tables, figures and the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transfergrid.commands.console import FAILED, OK, make_console, run_script
from transfergrid.commands.pulled import pull_grids
from transfergrid.config import load_report
from transfergrid.config.help import help_for
from transfergrid.errors import ConfigError
from transfergrid.paths import StorePaths
from transfergrid.records import read_grid

if TYPE_CHECKING:
    from rich.console import Console

    from transfergrid.report.comparison import Comparison

HELP = help_for(
    "report.py",
    "Rebuild a grid's report from its records alone: the table here, and in results/reports/NAME/ index.html (the\n"
    "whole report on one page), comparison.csv, comparison.md, comparison.tex and figures/.\n"
    "compare=[A,B] sets grids side by side, in results/reports/A-vs-B/.\n"
    "figures=false leaves the figures out: seconds instead of minutes.\n"
    "A grid that is not finished yet is shown as far as it is; exit code 1 says that rows have failed or are missing.\n"
    "source=wandb needs no store: it reads the runs from a W&B server (entity=NAME, project=NAME), keeps them in\n"
    "cache/wandb/ENTITY/PROJECT/ (cache.dir=DIR), and says which configurations the server lacks.",
    (
        "python jobs/report.py grid=quickstart",
        "python jobs/report.py grid=quickstart figures=false store.dir=results",
        "python jobs/report.py 'compare=[individual_vs_parallel,individual_vs_parallel_as_published]'",
        "python jobs/report.py grid=quickstart source=wandb entity=my-team project=transfergrid",
    ),
    keys=False,
)


def main() -> int:
    return run_script(report, HELP)


def report(arguments: Sequence[str]) -> int:
    """Exit code 0 when every row has completed, 1 when some have failed or are missing."""
    request = load_report(arguments)
    store = request.store
    is_whole = request.wandb is None or pull_grids(request.grids, store, *request.wandb)
    for grid in request.grids:
        try:
            read_grid(store.grid(grid))
        except FileNotFoundError:
            launched = ", ".join(sorted(p.stem for p in store.grid(grid).parent.glob("*.json"))) or "none"
            raise ConfigError(f"grid {grid!r} was never launched in {store.root}; launched there: {launched}") from None
    is_complete = show_report(make_console(), request.grids, store, figures=request.figures)
    return OK if is_complete and is_whole else FAILED


def show_report(console: Console, grids: Sequence[str], store: StorePaths, *, figures: bool | None) -> bool:
    """Print the tables, write the files, print where; True if every row has completed.

    figures: None leaves the files as another process made them, if they are newer than every record.
    """
    from transfergrid.commands.tables import errors_table, terminal_table
    from transfergrid.report.comparison import read_comparison
    from transfergrid.report.top_errors import top_errors
    from transfergrid.report.write import report_name, write

    comparisons = [read_comparison(grid, store) for grid in grids]
    for comparison in comparisons:
        if len(comparisons) > 1:
            console.print(f"\n{comparison.grid}", highlight=False)
        console.print(terminal_table(comparison.rows, width=console.width))
        if errors := top_errors(comparison):
            console.print()
            console.print(errors_table(errors))
    path = store.report(report_name(grids)) / "comparison.md"
    if figures is not None or not _is_current(path.with_name("index.html"), comparisons):
        path = write(comparisons, figures=bool(figures))
    console.print(
        f"\nreport: {path} and index.html, comparison.csv, comparison.tex beside it", highlight=False, soft_wrap=True
    )
    return all(row.status == "completed" for comparison in comparisons for row in comparison.rows)


def _is_current(page: Path, comparisons: Sequence[Comparison]) -> bool:
    """Whether the page was made after the newest record of its grids."""
    if not page.exists():
        return False
    entries = [(c.store, e.run_id) for c in comparisons for e in read_grid(c.store.grid(c.grid))]
    records = (store.run(run_id).record for store, run_id in entries)
    return page.stat().st_mtime >= max((r.stat().st_mtime for r in records if r.exists()), default=0.0)
