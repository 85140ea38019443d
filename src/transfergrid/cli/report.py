"""jobs/report.py: records -> comparison tables, figures, the page, and all of it in W&B."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from transfergrid.cli.console import (
    FAILED,
    JSON,
    OK,
    UNDECIDED,
    count,
    make_console,
    progress_line,
    run_script,
    say,
    say_first,
)
from transfergrid.cli.sync import destination
from transfergrid.cluster.ledger import read_ledger
from transfergrid.cluster.settle import settle_bills
from transfergrid.config.arguments import own_keys, takes
from transfergrid.config.help import Help
from transfergrid.config.report import ReportKeys, ReportRequest, parse_report
from transfergrid.config.spelling import never_launched, newest_grid
from transfergrid.paths import StorePaths, store_paths
from transfergrid.specs import Runtime
from transfergrid.store.records import GridEntry, read_grid

if TYPE_CHECKING:
    from transfergrid.report.analysis.comparison import Comparison
    from transfergrid.tracking.wandb_report_sending import SentReport

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
        "grid=quickstart --json  # for programs; exit code 3: not decided",
    ),
    keys=takes(ReportKeys),
    first=own_keys(ReportKeys),
)


def main() -> int:
    return run_script(report, HELP, flags=(JSON,))


def report(arguments: Sequence[str]) -> int:
    """Exit code 0 when every row has completed (and what is published is in W&B as it was sent), else 1; with --json
    UNDECIDED where all is complete, and some data set has a row that is not told apart from its winner."""
    request = parse_report([argument for argument in arguments if argument != JSON])
    as_json, store = JSON in arguments, request.store
    console = make_console(on_stderr=as_json)
    if not request.grids:
        request = replace(request, grids=(newest_grid(store),))
        say(console, f"grid={request.grids[0]}, the one launched last in {store.root}")
    is_whole = request.wandb is None or pull_grids(console, request.grids, store, *request.wandb)
    for grid in request.grids:
        try:
            read_grid(store.grid(grid))
        except FileNotFoundError:
            raise never_launched(grid, store) from None
    comparisons, path = _shown(console, request)
    is_complete = _all_completed(comparisons)
    for line in _remarks(comparisons):
        say(console, line, style="red")
    is_there = request.publish is None or send_wandb_report(console, comparisons, path.parent, request)
    is_decided = not as_json or print_answer(comparisons)
    return FAILED if not (is_complete and is_whole and is_there) else OK if is_decided else UNDECIDED


def print_answer(comparisons: Sequence[Comparison]) -> bool:
    """answer.json on standard output; whether every data set is decided."""
    from transfergrid.report.analysis.answer import answer_of
    from transfergrid.report.several import joined

    answer = answer_of(joined(comparisons))
    print(json.dumps(answer.as_json(), indent=2, sort_keys=True))
    return answer.decided


def show_report(
    console: Console,
    grids: Sequence[str],
    store: StorePaths,
    *,
    figures: bool | None,
    evaluations: Collection[str] = (),
) -> bool:
    """Print the tables, write the files, print where; True if every row has completed.

    figures: None leaves the files as another process made them, if they are newer than every record. evaluations: runs
    whose classes are told, too.
    """
    comparisons, _ = _shown(console, ReportRequest(grids=tuple(grids), store=store, figures=figures), evaluations)
    return _all_completed(comparisons)


def _shown(
    console: Console, request: ReportRequest, evaluations: Collection[str] = ()
) -> tuple[list[Comparison], Path]:
    """The comparisons, and the path of comparison.md."""
    from transfergrid.cli.evaluations import show_evaluations
    from transfergrid.cli.tables import rich_table, terminal_table
    from transfergrid.report.analysis import handover
    from transfergrid.report.analysis.answer import answer_of
    from transfergrid.report.analysis.comparison import read_comparison
    from transfergrid.report.analysis.predictions import StoredPredictions
    from transfergrid.report.analysis.top_errors import table, top_errors
    from transfergrid.report.several import joined
    from transfergrid.report.wording import in_words, verdict
    from transfergrid.report.write import report_name, write, write_answer

    grids, store, figures = request.grids, request.store, request.figures
    chosen = partial(read_comparison, select_by=request.select_by, within_points=request.within_points)
    read = partial(chosen, store=store, stored=StoredPredictions(store))
    comparisons = list(map(read, grids))
    joined(comparisons)  # grids that cannot stand in one report are refused before anything is shown
    runs = {entry.run_id for grid in grids for entry in read_grid(store.grid(grid))}
    runs |= {run_id for comparison in comparisons for run_id in comparison.spent.costs}
    # A report that another process made stays as it is, its figures with it. One that goes elsewhere leaves the store.
    settles = figures is not None and request.output is None
    if settles and settle_bills(store, read_ledger(store), sorted(runs)).changed:
        comparisons = list(map(read, grids))
    for comparison in comparisons:
        if len(comparisons) > 1:
            say(console, f"\n{comparison.grid}")
        console.print(terminal_table(comparison.rows, width=console.width))
        say(console, f"\n{verdict(comparison)}")
        for line in in_words(answer_of(comparison)):
            say(console, line)
        if errors := top_errors(comparison):
            console.print()
            console.print(rich_table(table(errors), may_go=("variant", "differs", "as_stated", "corrected")))
        show_evaluations(console, comparison, evaluations)
        for line in handover.summary(comparison):
            say(console, line, style="yellow")
    path = (request.output or store.report(report_name(grids))) / "comparison.md"
    if figures is not None or not _is_current(path.with_name("index.html"), comparisons):
        show = progress_line("drawing", noun="figures")
        path = write(comparisons, figures=bool(figures), folder=path.parent, show=show)
    elif not path.with_name("answer.json").exists():  # an older release made the rest
        write_answer(joined(comparisons), path.parent)
    say(console, f"\nreport: {path} and index.html, comparison.csv, comparison.tex, answer.json beside it")
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


def pull_grids(console: Console, grids: Sequence[str], store: StorePaths, entity: str | None, project: str) -> bool:
    """Make the store from what a W&B server holds; True if it lacks nothing. Raises Unreachable or ConfigError."""
    from transfergrid.tracking.account import find_account
    from transfergrid.tracking.pull import pull_grid

    account = find_account(project, entity)
    is_whole = True
    for grid in grids:
        pulled = pull_grid(account, grid, store, say=partial(say, console))
        for what, lines in (
            ("not usable as the server has it:", pulled.problems),
            (f"grid {grid} lacks on the server:", list(map(_named, pulled.missing))),
        ):
            say_first(console, [f"{what} {line}" for line in lines], more=what)
        runs = count(len(pulled.run_ids), "run")
        say(console, f"{grid}: {runs} of {account.url}/{account.path()} in {store.root}")
        is_whole = is_whole and not pulled.missing and not pulled.problems
    return is_whole


def _named(entry: GridEntry) -> str:
    seed = "" if entry.seed is None else f"seed {entry.seed}"
    parts = (entry.dataset, entry.model, entry.phase, entry.variant, seed)
    return f"{' '.join(filter(None, parts))} ({entry.run_id})"


def send_wandb_report(
    console: Console, comparisons: Sequence[Comparison], folder: Path, request: ReportRequest
) -> bool:
    """Send the report that lies in `folder` to W&B and print where it is; whether all of it is there as it was sent.

    Figures, the page, and messages that may name the user's own files are sent only with tracking.images=true. Raises
    Unreachable where W&B cannot be used.
    """
    sent = _send(console, comparisons, folder, request)
    say_first(console, sent.problems)
    say(console, sent_line(sent))
    return not sent.problems


def publish_as_launched(grid: str, runtime: Runtime) -> SentReport:
    """Send the report that the finish job has made to W&B; its part of it, for a child process."""
    from transfergrid.report.analysis.comparison import read_comparison

    store = store_paths(runtime)
    request = ReportRequest(
        grids=(grid,), store=store, figures=None, publish=(runtime.wandb_entity, runtime.wandb_project)
    )
    return _send(make_console(), [read_comparison(grid, store)], store.report(grid), request)


def _send(console: Console, comparisons: Sequence[Comparison], folder: Path, request: ReportRequest) -> SentReport:
    from transfergrid.report.wandb_report import wandb_report_of
    from transfergrid.tracking.wandb_report_sending import send_report

    entity, project = request.publish or (None, None)
    account, images = destination(request.grids, request.store, project=project, entity=entity, images=request.images)
    sent_ones = comparisons if images else [_without_names(comparison) for comparison in comparisons]
    wandb_report = wandb_report_of(sent_ones, folder, figures=images and request.figures is not False)
    shared = wandb_report if images else wandb_report.without_pictures()
    return send_report(account, comparisons[0].store, shared, say=partial(say, console))


def sent_line(sent: SentReport) -> str:
    verdict = f"{len(sent.problems)} things are not there as they were sent" if sent.problems else "all is there"
    return f"W&B: {verdict}: {sent.report_url}"


def _without_names(comparison: Comparison) -> Comparison:
    """The same without messages that may name the user's own files."""
    from transfergrid.tracking.description import withheld

    failures = tuple(replace(failure, **withheld(failure.failure_class)) for failure in comparison.failures)
    return replace(comparison, failures=failures)


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
