"""jobs/status.py: a grid's configurations as they are now, by the grid's name; logs, cancel, retry."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from transfergrid.cli.console import FAILED, JSON, OK, make_console, run_script, say
from transfergrid.cli.for_programs import answer_lines, print_status
from transfergrid.cli.status_actions import cancel, retry
from transfergrid.cli.status_logs import follow, show_run
from transfergrid.cli.status_table import WIDE, failure_lines, reason_lines, status_table
from transfergrid.cli.status_view import View, changes, read_view
from transfergrid.config.arguments import own_keys, takes
from transfergrid.config.help import Help
from transfergrid.config.spelling import command_of_grid, newest_grid
from transfergrid.config.status import StatusRequest, parse_status

WATCH_S = 5.0
REASONS_WATCHED = 4

HELP = Help(
    script="status.py",
    purpose="A grid's configurations as they are now: state and reason, epoch, accuracy, times, and why what failed"
    " failed. Works from a fresh shell; while SLURM does not answer, from the store alone.",
    examples=(
        " # the grid that was launched last",
        "grid=quickstart watch=true",
        "run=ID logs=true  # follow one run; a part of its name will do",
        "grid=quickstart cancel=true",
        "grid=quickstart retry=oom cluster.mem_gb=64",
        "grid=quickstart retry=unknown  # you know that these are gone",
        "grid=quickstart --json  # for programs; exit code 3: not decided",
    ),
    keys=takes(StatusRequest),
    first=own_keys(StatusRequest),
)


def main() -> int:
    return run_script(status, HELP, flags=(JSON,))


def status(arguments: Sequence[str]) -> int:
    """Exit code 1 when some run has failed, is blocked, was cancelled or lost; with --json UNDECIDED as in report."""
    as_json = JSON in arguments
    request = parse_status([argument for argument in arguments if argument != JSON])
    console = make_console(on_stderr=as_json)
    if request.grid is None and request.run is None:
        request = replace(request, grid=newest_grid(request.store))
        say(console, f"grid={request.grid}, the one launched last in {request.store.root}")
    if request.cancel:
        return cancel(console, read_view(request))
    if request.retry:
        return retry(console, read_view(request), request)
    if request.logs:
        return follow(console, request)
    view = watch(console, request) if request.watch else read_view(request)
    if as_json:
        return print_status(view)
    if request.run is not None:
        show_run(console, view)
    else:
        show(console, view)
    return FAILED if view.has_failures else OK


def show(console: Console, view: View) -> None:
    table = status_table(view, width=console.width)
    if table.row_count:
        console.print(table)
    for reason in reason_lines(view) if console.width < WIDE else ():
        say(console, reason)
    for line, style in failure_lines(view):
        say(console, line, style=style)
    for line in filter(None, (view.finish_line, view.summary)):
        say(console, line)
    if view.grid is not None and all(view.state(row).state == "done" for row in view.rows):
        line = command_of_grid("report.py", view.grid, view.store)
        say(console, f"the table: {line}")
        for line in answer_lines(view.grid, view.store):
            say(console, line)


def watch(console: Console, request: StatusRequest) -> View:
    """Redraw until nothing is live; Ctrl-C ends it. In a log: a line per change. Returns the last look."""
    view = read_view(request)
    screen = None
    if console.is_terminal:
        screen = Live(screenful(console, view), console=console, transient=True, auto_refresh=False)
    else:
        say(console, view.summary)
    try:
        with screen or nullcontext():
            while view.may_change:
                time.sleep(WATCH_S)
                before, view = view, read_view(request)
                if screen is not None:
                    screen.update(screenful(console, view), refresh=True)
                else:
                    for line in changes(before, view):
                        say(console, line)
    except KeyboardInterrupt:
        pass
    return view


def screenful(console: Console, view: View) -> Group:
    """As many rows as fit the screen beside the reasons and the summary, which stands at the end and would be cut."""
    texts = list(reason_lines(view))[:REASONS_WATCHED] if console.width < WIDE else []
    texts += [view.finish_line] if view.finish_line else []
    below = Group(*(Text(text, no_wrap=True, overflow="ellipsis") for text in texts), Text(view.summary))
    rows = max(5, console.height - 4)
    while True:
        drawn = Group(status_table(view, width=console.width, fold_above=rows), below)
        lines = len(console.render_lines(drawn))
        if rows == 1 or lines < console.height:
            return drawn
        rows = max(1, min(rows - 1, rows * console.height // lines))
