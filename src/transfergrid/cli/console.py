"""What every script does alike: help, one line per error, exit codes."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from transfergrid.config.arguments import assert_spelled
from transfergrid.errors import ConfigError, GridError, classify, next_step, one_line, remedy_of
from transfergrid.names import spelled_out

if TYPE_CHECKING:
    from transfergrid.config.help import Help


_MOST_LINES = 100
FIRST_LINES = 20
OK, FAILED, BAD_ARGUMENTS, UNDECIDED, INTERRUPTED = 0, 1, 2, 3, 130
JSON = "--json"  # the answer on standard output for programs, all else on standard error


def run_script(
    main: Callable[[Sequence[str]], int], about: Help | None = None, *, flags: Sequence[str] = (), words: int = 0
) -> int:
    """main(arguments) with its errors told in one line each: 2 for a request that makes no sense, 1 for the rest.

    about: the answer to --help, and the keys that it takes; without it main reads all arguments by itself. flags: the
    arguments that are no `key=value` and that it takes. words: how many names it takes beside them."""
    arguments = sys.argv[1:]
    write_whatever_names()
    try:
        if about is not None:
            if (page := about.answer(arguments)) is not None:
                print(page, flush=True)
                return OK
            assert_spelled(arguments, about.keys, flags=flags, words=words)
        return main(arguments)
    except ConfigError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return BAD_ARGUMENTS
    except GridError as error:
        lines = as_many_as_fit(error.details, on_terminal=sys.stderr.isatty())
        print(f"error: {one_line(error)}", *lines, sep="\n", file=sys.stderr)
        return FAILED
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            sys.stderr.close()  # the reader of a pipe has gone, as `| head` does
            return OK
        if classify(error) == "code":
            raise
        step = next_step(classify(error), remedy_of(error))
        print(f"error: {one_line(error, with_remedy=False)}; {step}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("interrupted; launch again to continue", file=sys.stderr)
        return INTERRUPTED


def as_many_as_fit(lines: Sequence[str], *, on_terminal: bool) -> list[str]:
    """All lines in a file; on a terminal a hundred, and how to come by the others."""
    more = len(lines) - _MOST_LINES if on_terminal else 0
    return [*lines[:_MOST_LINES], f"  and {more} more: send the output to a file to see all"] if more > 0 else [*lines]


def write_whatever_names() -> None:
    """What the terminal's encoding cannot hold is spelled out: a name of a file is no reason for an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=spelled_out())


def make_console(*, on_stderr: bool = False) -> Console:
    """The terminal as it is; where the output goes to a file or a pipe, 100 columns."""
    write_whatever_names()
    # No markup and no emoji: a message may well hold brackets, as [Errno 28] does, and a name `:x:`.
    console = Console(markup=False, emoji=False, stderr=on_stderr)
    return console if console.is_terminal else Console(markup=False, emoji=False, width=100, stderr=on_stderr)


def say(console: Console, text: str, *, style: str | None = None) -> None:
    """A text as it is: no part of it is coloured, and no line is broken where a terminal ends."""
    console.print(text, style=style, markup=False, emoji=False, highlight=False, soft_wrap=True)


def say_first(console: Console, lines: Sequence[str], *, more: str = "...") -> None:
    """The first of many lines, and how many more there are."""
    for line in lines[:FIRST_LINES]:
        say(console, line)
    if len(lines) > FIRST_LINES:
        say(console, f"{more} and {len(lines) - FIRST_LINES} more")


def progress_line(doing: str, *, noun: str = "images", in_logs: bool = False) -> Callable[[int, int], None]:
    """show(done, total) of them, on stderr: on a terminal rewritten in place, at most ten times a second; with in_logs
    a line for every tenth where there is none."""
    on_terminal = sys.stderr.isatty()
    last_tenth, at_s = [-1], [0.0]

    def show(done: int, total: int) -> None:
        tenth, now_s = 10 * done // max(total, 1), time.monotonic()
        if on_terminal:
            if done == total or now_s - at_s[0] >= 0.1:
                at_s[0] = now_s
                end = "\n" if done == total else ""
                print(f"\r{doing} {noun} {done}/{total}", end=end, file=sys.stderr, flush=True)
        elif in_logs and tenth > last_tenth[0]:
            last_tenth[0] = tenth
            print(f"{doing} {noun} {done}/{total}", file=sys.stderr, flush=True)

    return show


def duration(seconds: float) -> str:
    """`45 s`, `3.1 min`, `2.4 h`."""
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s"


def count(number: int, noun: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
