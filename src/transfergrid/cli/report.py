"""jobs/report.py: records -> comparison tables, figures, the page, and all of it in W&B."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from transfergrid.cli.console import FAILED, OK, count, make_console, run_script, say
from transfergrid.cli.pulled import pull_grids
from transfergrid.cli.sync import SHOWN, destination
from transfergrid.cluster.ledger import read_ledger
from transfergrid.cluster.settle import settle_bills
from transfergrid.config.arguments import own_keys, takes
from transfergrid.config.help import Help
from transfergrid.config.report import ReportKeys, ReportRequest, parse_report
from transfergrid.config.spelling import never_launched, newest_grid
from transfergrid.paths import StorePaths
from transfergrid.specs import SelectBy
from transfergrid.store.records import read_grid

if TYPE_CHECKING:
    from rich.console import Console

    from transfergrid.report.analysis.comparison import Comparison, Failure

HELP = Help(
    script="report.py",
    purpose="Rebuild a grid's report from its records: the table here, and in results/reports/NAME/ index.html (all of"
    " it on one page), comparison.csv, comparison.md, comparison.tex and figures/. A grid that is not finished yet is"
    " shown as far as it is. What is sent to W&B, or read from it, goes by WANDB_API_KEY or `wandb login`.",
    examples=(
        " # the grid that was launched last",
        "grid=quickstart figures=false  # seconds instead of minutes",
        "'compare=[small_resnet18,small_resnet18_as_published]'",
        "grid=quickstart publish=true entity=my-team",
        "grid=quickstart source=wandb entity=my-team",
    ),
    keys=takes(ReportKeys),
    first=own_keys(ReportKeys),
)


def main() -> int:
    return run_script(report, HELP)


def report(arguments: Sequence[str]) -> int:
    """Exit code 0 when every row has completed (and what is published is in W&B as it was sent), else 1."""
    request, console = parse_report(arguments), make_console()
    store = request.store
    if not request.grids:
        request = replace(request, grids=(newest_grid(store),))
        say(console, f"grid={request.grids[0]}, the one launched last in {store.root}")
    is_whole = request.wandb is None or pull_grids(request.grids, store, *request.wandb)
    for grid in request.grids:
        try:
            read_grid(store.grid(grid))
        except FileNotFoundError:
            raise never_launched(grid, store) from None
    comparisons, path = _shown(console, request.grids, store, figures=request.figures, select_by=request.select_by)
    is_complete = _all_completed(comparisons)
    for line in _remarks(comparisons):
        say(console, line, style="red")
    is_there = request.publish is None or send_wandb_report(console, comparisons, path.parent, request)
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
    from transfergrid.cli.tables import rich_table, terminal_table
    from transfergrid.report.analysis import handover
    from transfergrid.report.analysis.comparison import read_comparison
    from transfergrid.report.analysis.top_errors import table, top_errors
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
            say(console, f"\n{comparison.grid}")
        console.print(terminal_table(comparison.rows, width=console.width))
        console.print(f"\n{verdict(comparison)}", highlight=False, markup=False)
        if errors := top_errors(comparison):
            console.print()
            console.print(rich_table(table(errors), may_go=("variant", "differs", "as_stated", "corrected")))
        for line in handover.summary(comparison):
            say(console, line, style="yellow")
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


def send_wandb_report(
    console: Console, comparisons: Sequence[Comparison], folder: Path, request: ReportRequest
) -> bool:
    """Send the report that lies in `folder` to W&B and print where it is; whether all of it is there as it was sent.

    Figures, the page, and messages that may name the user's own files are sent only with tracking.images=true. Raises
    Unreachable where W&B cannot be used.
    """
    from transfergrid.report.wandb_report import wandb_report_of
    from transfergrid.tracking.wandb_report_sending import send_report

    entity, project = request.publish or (None, None)
    account, images = destination(request.grids, request.store, project=project, entity=entity, images=request.images)
    sent_ones = comparisons if images else [_without_names(comparison) for comparison in comparisons]
    wandb_report = wandb_report_of(sent_ones, folder, figures=images and request.figures is not False)
    shared = wandb_report if images else wandb_report.without_pictures()
    sent = send_report(account, comparisons[0].store, shared, say=partial(say, console))
    for problem in sent.problems[:SHOWN]:
        say(console, problem)
    if len(sent.problems) > SHOWN:
        say(console, f"... and {len(sent.problems) - SHOWN} more")
    said = f"{len(sent.problems)} things are not there as they were sent" if sent.problems else "all is there"
    say(console, f"W&B: {said}: {sent.report_url}")
    return not sent.problems


def _without_names(comparison: Comparison) -> Comparison:
    """The same without messages that may name the user's own files."""
    from transfergrid.tracking.description import may_name_files, withheld

    def shared(failure: Failure) -> Failure:
        return replace(failure, **withheld(failure.failure_class)) if may_name_files(failure.failure_class) else failure

    return replace(comparison, failures=tuple(map(shared, comparison.failures)))


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
