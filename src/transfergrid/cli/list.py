"""jobs/list.py: the models, data sets, grids and clusters that can be named, with what is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transfergrid.cli.console import OK, make_console, run_script, say
from transfergrid.config.arguments import parse, takes
from transfergrid.config.help import Help
from transfergrid.errors import ConfigError, hints
from transfergrid.paths import typed

KINDS = ("models", "datasets", "grids", "clusters")
MOST_ROWS = 200  # a word as short as `e` stands in a thousand names of timm


@dataclass(frozen=True)
class ListKeys:
    """None of its own: it takes what every script takes, and needs none of it."""


HELP = Help(
    script="list.py",
    purpose="What can be named: models, data sets, grids or clusters, with what is known of each. A second word shows"
    " those in whose line it stands. Your own files in ./conf and TRANSFERGRID_CONF_DIR are among them.",
    examples=("models", "models resnet  # also those of timm", "datasets", "grids cifar", "clusters"),
    keys=takes(ListKeys),
    first=("store.dir",),
    usage="models|datasets|grids|clusters [WORD]",
)


def main() -> int:
    return run_script(list_names, HELP, words=2)


def list_names(arguments: Sequence[str]) -> int:
    words = [a for a in arguments if "=" not in a]
    parse(ListKeys, [a for a in arguments if "=" in a])
    if not words:
        raise ConfigError(f"give one of {', '.join(KINDS)}, as {typed('list.py')} models")
    kind = words[0].lower() if words[0].lower() in KINDS else f"{words[0].lower()}s"
    if kind not in KINDS:
        raise ConfigError(f"unknown list {words[0]!r}", **hints(words[0], KINDS))
    from transfergrid.config.catalog import LISTS, rows_of

    word = words[1] if len(words) > 1 else None
    rows = rows_of(kind, word)
    if not rows:
        raise ConfigError(f"no line of {typed('list.py')} {kind} holds {word!r}; leave it out to see all")
    show(LISTS[kind][0], rows[:MOST_ROWS])
    if len(rows) > MOST_ROWS:
        print(f"and {len(rows) - MOST_ROWS} more: give a longer word")
    elif kind == "models" and word is None:
        print("and timm/<name>, a thousand more: give a word to search them")
    return OK


def show(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """In columns, numbers to the right; on a terminal the last one is wrapped, in a pipe it is one line."""
    console = make_console()
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns) - 1)]
    for row in (columns, *rows):
        aligned = (
            f"{cell:<{width}}" if i == 0 or not rows[0][i][:1].isdigit() else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        )
        say(console, "  ".join((*aligned, row[-1])).rstrip(), indent=sum(widths) + 2 * len(widths))
