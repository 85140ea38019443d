"""jobs/report.py: records -> comparison tables, figures, the page, and all of it in W&B."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transfergrid.cli.console import FAILED, OK, count, make_console, run_script
from transfergrid.cli.pulled import pull_grids
from transfergrid.cli.sync import SHOWN, launched_with
from transfergrid.cluster.billing import settle_bills
from transfergrid.cluster.ledger import read_ledger
from transfergrid.config import load_report
from transfergrid.config.help import help_for
from transfergrid.errors import ConfigError
from transfergrid.paths import StorePaths
from transfergrid.specs import SelectBy
from transfergrid.store.records import read_grid

if TYPE_CHECKING:
    from rich.console import Console

    from transfergrid.config.report import ReportRequest
    from transfergrid.report.analysis.comparison import Comparison

HELP = help_for(
    "report.py",
    "Rebuild a grid's report from its records alone: the table here, and in results/reports/NAME/ index.html (the\n"
    "whole report on one page), comparison.csv, comparison.md, comparison.tex and figures/.\n"
    "compare=[A,B] sets grids side by side, in results/reports/A-vs-B/.\n"
    "figures=false leaves the figures out: seconds instead of minutes; figures=keep takes what was made since the\n"
    "last record.\n"
    "A grid that is not finished yet is shown as far as it is; exit code 1 says that rows have failed or are missing.\n"
    "select_by=accuracy|balanced_accuracy|macro_f1 makes every choice on val by that score; else as it was launched.\n"
    "source=wandb needs no store: it reads the runs from a W&B server (entity=NAME, project=NAME), keeps them in\n"
    "cache/wandb/ENTITY/PROJECT/ (cache.dir=DIR), and says which configurations the server lacks.\n"
    "publish=true sends the report to W&B: tables, figures, files, one run per row and the W&B Report; then it reads\n"
    "all of it back. Once more brings it up to date. The key comes from WANDB_API_KEY or `wandb login`, project and\n"
    "entity from the grid's last launch unless given.",
    (
        "grid=quickstart",
        "grid=quickstart figures=false store.dir=results",
        "'compare=[individual_vs_parallel,individual_vs_parallel_as_published]'",
        "grid=quickstart publish=true project=transfergrid entity=my-team",
        "grid=quickstart source=wandb entity=my-team project=transfergrid",
    ),
    keys=False,
)


def main() -> int:
    return run_script(report, HELP)


def report(arguments: Sequence[str]) -> int:
    """Exit code 0 when every row has completed (and what is published is in W&B as it was sent), else 1."""
    request = load_report(arguments)
    store = request.store
    is_whole = request.wandb is None or pull_grids(request.grids, store, *request.wandb)
    for grid in request.grids:
        try:
            read_grid(store.grid(grid))
        except FileNotFoundError:
            launched = ", ".join(sorted(p.stem for p in store.grid(grid).parent.glob("*.json"))) or "none"
            raise ConfigError(f"grid {grid!r} was never launched in {store.root}; launched there: {launched}") from None
    console = make_console()
    comparisons, path = _shown(console, request.grids, store, figures=request.figures, select_by=request.select_by)
    is_complete = _all_completed(comparisons)
    for line in _remarks(comparisons):
        console.print(line, style="red", highlight=False, soft_wrap=True)
    is_there = request.publish is None or publish_report(
        console,
        comparisons,
        path.parent,
        *_destination(request, request.publish),
        figures=request.figures is not False,
    )
    return OK if is_complete and is_whole and is_there else FAILED


def show_report(console: Console, grids: Sequence[str], store: StorePaths, *, figures: bool | None) -> bool:
    """Print the tables, write the files, print where; True if every row has completed.

    figures: None leaves the files as another process made them, if they are newer than every record.
    """
    comparisons, _ = _shown(console, grids, store, figures=figures)
    return _all_completed(comparisons)


def _shown(
    console: Console,
    grids: Sequence[str],
    store: StorePaths,
    *,
    figures: bool | None,
    select_by: SelectBy | None = None,
) -> tuple[list[Comparison], Path]:
    """The comparisons, and the path of comparison.md."""
    from transfergrid.cli.tables import errors_table, terminal_table
    from transfergrid.report.analysis import handover
    from transfergrid.report.analysis.comparison import read_comparison
    from transfergrid.report.analysis.top_errors import top_errors
    from transfergrid.report.page.wording import verdict
    from transfergrid.report.several import joined
    from transfergrid.report.write import report_name, write

    comparisons = [read_comparison(grid, store, select_by=select_by) for grid in grids]
    joined(comparisons)  # grids that cannot stand in one report are refused before anything is shown
    runs = {entry.run_id for grid in grids for entry in read_grid(store.grid(grid))}
    runs |= {run_id for comparison in comparisons for run_id in comparison.spent.costs}
    # A report that another process made stays as it is, its figures with it.
    if figures is not None and settle_bills(store, read_ledger(store), sorted(runs)).changed:
        comparisons = [read_comparison(grid, store, select_by=select_by) for grid in grids]
    for comparison in comparisons:
        if len(comparisons) > 1:
            console.print(f"\n{comparison.grid}", highlight=False)
        console.print(terminal_table(comparison.rows, width=console.width))
        console.print(f"\n{verdict(comparison)}", highlight=False, markup=False)
        if errors := top_errors(comparison):
            console.print()
            console.print(errors_table(errors))
        for line in handover.summary(comparison):
            console.print(line, style="yellow", highlight=False, soft_wrap=True)
    path = store.report(report_name(grids)) / "comparison.md"
    if figures is not None or not _is_current(path.with_name("index.html"), comparisons):
        path = write(comparisons, figures=bool(figures))
    console.print(
        f"\nreport: {path} and index.html, comparison.csv, comparison.tex beside it", highlight=False, soft_wrap=True
    )
    return comparisons, path


def _all_completed(comparisons: Sequence[Comparison]) -> bool:
    return all(row.status == "completed" for comparison in comparisons for row in comparison.rows)


def _remarks(comparisons: Sequence[Comparison]) -> list[str]:
    """What the table on the terminal has no room for, one line per grid and kind; mostly none."""
    from transfergrid.report.analysis.integrity import findings

    lines = []
    for comparison in comparisons:
        if unfinished := sum(row.status != "completed" for row in comparison.rows):
            of = f"{unfinished} of {count(len(comparison.rows), 'row')}"
            lines.append(f"{comparison.grid}: {of} not complete; the report names the runs, why, and the next step")
        if doubtful := sum(map(len, findings(comparison))):
            lines.append(
                f"{comparison.grid}: {count(doubtful, 'record')} at odds with the stored predictions; see the report"
            )
    return lines


def _destination(request: ReportRequest, asked: tuple[str | None, str | None]) -> tuple[str | None, str]:
    """Entity and project: as asked, else as the grid was last launched with."""
    launched = launched_with(request.grids[0], request.store)
    entity = asked[0] or (launched.wandb_entity if launched else None)
    return entity, asked[1] or (launched.wandb_project if launched else "transfergrid")


def publish_report(
    console: Console,
    comparisons: Sequence[Comparison],
    folder: Path,
    entity: str | None,
    project: str,
    *,
    figures: bool,
) -> bool:
    """Send the report that lies in `folder` to W&B and print where it is; whether all of it is there as it was sent.

    Raises Unreachable where W&B cannot be used.
    """
    from transfergrid.report.publication import publication_of
    from transfergrid.report.several import joined
    from transfergrid.tracking.account import find_account
    from transfergrid.tracking.publish import publish

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    target = find_account(project, entity)
    whole = joined(comparisons)
    published = publish(target, whole.store, publication_of(whole, folder, figures=figures), say=say)
    for problem in published.problems[:SHOWN]:
        say(problem)
    if len(published.problems) > SHOWN:
        say(f"... and {len(published.problems) - SHOWN} more")
    said = f"{len(published.problems)} things are not there as they were sent" if published.problems else "all is there"
    say(f"W&B: {said}: {published.report_url}")
    return not published.problems


def _is_current(page: Path, comparisons: Sequence[Comparison]) -> bool:
    """Whether the page was made after the newest record of its grids, and of these very rows: a grid launched anew with
    other rows, or a record that was deleted, leaves no newer record."""
    from transfergrid.names import utf8
    from transfergrid.report.documents import as_csv
    from transfergrid.report.several import joined

    table = page.with_name("comparison.csv")
    if not page.exists() or not table.exists() or table.read_bytes() != utf8(as_csv(joined(comparisons).rows)):
        return False
    entries = [(c.store, e.run_id) for c in comparisons for e in read_grid(c.store.grid(c.grid))]
    records = (store.run(run_id).record for store, run_id in entries)
    return page.stat().st_mtime >= max((r.stat().st_mtime for r in records if r.exists()), default=0.0)


if __name__ == "__main__":
    sys.exit(main())
