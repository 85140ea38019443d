"""jobs/report.py: records -> comparison tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from transfergrid.commands.console import FAILED, OK, make_console, run_script
from transfergrid.config import load_report
from transfergrid.config.help import help_for
from transfergrid.errors import ConfigError
from transfergrid.paths import StorePaths
from transfergrid.records import read_grid

if TYPE_CHECKING:
    from rich.console import Console

HELP = help_for(
    "report.py",
    "Rebuild a grid's comparison tables from its records alone: terminal, comparison.md, comparison.csv.",
    ("python jobs/report.py grid=quickstart", "python jobs/report.py grid=quickstart store.dir=results"),
    keys=False,
)


def main() -> int:
    return run_script(report, HELP)


def report(arguments: Sequence[str]) -> int:
    """Exit code 0 when every row has completed, 1 when some have failed or are missing."""
    grid, store = load_report(arguments)
    try:
        read_grid(store.grid(grid))
    except FileNotFoundError:
        launched = ", ".join(sorted(p.stem for p in store.grid(grid).parent.glob("*.json"))) or "none"
        raise ConfigError(f"grid {grid!r} was never launched in {store.root}; launched there: {launched}") from None
    return OK if show_report(make_console(), grid, store) else FAILED


def show_report(console: Console, grid: str, store: StorePaths) -> bool:
    """Print the table, write the files, print where; True if every row has completed."""
    from transfergrid.commands.tables import errors_table, terminal_table
    from transfergrid.report.comparison import read_comparison
    from transfergrid.report.documents import write_report
    from transfergrid.report.top_errors import top_errors

    comparison = read_comparison(grid, store)
    rows = comparison.rows
    console.print(terminal_table(rows, width=console.width))
    errors = top_errors(comparison)
    if errors:
        console.print()
        console.print(errors_table(errors))
    path = write_report(grid, store)
    console.print(
        f"\nreport: {path} and {path.with_name('comparison.csv').name} beside it", highlight=False, soft_wrap=True
    )
    return all(row.status == "completed" for row in rows)
