"""What every script does alike: help, one line per error, exit codes."""

from __future__ import annotations

import io
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO

from rich.cells import cell_len
from rich.console import Console

from transfergrid.config.arguments import assert_spelled
from transfergrid.errors import ConfigError, GridError, classify, next_step, one_line, remedy_of
from transfergrid.names import spelled_out
from transfergrid.paths import TYPED

if TYPE_CHECKING:
    from transfergrid.config.help import Help


_MOST_LINES = 100
FIRST_LINES = 20
LOGGED_S = 10.0  # between two lines on how far something is, in a log
OK, FAILED, BAD_ARGUMENTS, UNDECIDED, INTERRUPTED = 0, 1, 2, 3, 130
JSON = "--json"  # the answer on standard output for programs, all else on standard error
# What stands on one line: a command to be copied; figures with what follows them, their unit; a word.
_COMMAND = rf"[(`]?(?:{TYPED})(?: (?:'[^']*'|[^\s'=]+=(?:'[^']*'|[^\s'])*)+)*"
_INTERVAL = r"\[[-+\d., ]+\]"
_FIGURES = rf"(?:(?:\w+ [=<>] )?(?:[-+<~(]*\d(?:[\d.,:/]*\d)?|{_INTERVAL}) )+"
_UNIT = re.compile(rf"(\s*)({_COMMAND}\S*|(?:{_FIGURES})?{_INTERVAL}\S*|{_FIGURES}\S+|\w+ [=<>] \S+|\S+)")


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
                _tell(page, file=sys.stdout)
                return OK
            assert_spelled(arguments, about.keys, flags=flags, words=words)
        return main(arguments)
    except ConfigError as error:
        _tell(f"error: {one_line(error)}")
        return BAD_ARGUMENTS
    except GridError as error:
        lines = as_many_as_fit(error.details, on_terminal=sys.stderr.isatty())
        _tell(f"error: {one_line(error)}", *lines)
        return FAILED
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            sys.stderr.close()  # the reader of a pipe has gone, as `| head` does
            return OK
        if classify(error) == "code":
            raise
        step = next_step(classify(error), remedy_of(error))
        _tell(f"error: {one_line(error, with_remedy=False)}; {step}")
        return FAILED
    except KeyboardInterrupt:
        print("interrupted; launch again to continue", file=sys.stderr)
        return INTERRUPTED


def _tell(*texts: str, file: TextIO | None = None) -> None:
    """On standard error where no file is given: as say() on the console."""
    file = file or sys.stderr
    width = shutil.get_terminal_size().columns if file.isatty() else None
    lines = "\n".join(texts).split("\n")
    print("\n".join(line if width is None else wrapped(line, width) for line in lines), file=file, flush=True)


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


def say(console: Console, text: str, *, style: str | None = None, indent: int | None = None) -> None:
    """A text as it is: no part of it is coloured. On a terminal its lines end between words, and what goes on is
    indented by so much, by default two more than it begins with; elsewhere no line is broken."""
    if console.is_terminal:
        text = "\n".join(wrapped(line, console.width, indent=indent) for line in text.split("\n"))
    console.print(text, style=style, markup=False, emoji=False, highlight=False, soft_wrap=True)


def wrapped(line: str, width: int, *, indent: int | None = None) -> str:
    """The line in as many as are needed for `width` columns. No word is cut, no figure parted from its unit, and a
    command to be copied stays whole: of these alone a line may be longer."""
    lines, hanging = [""], " " * (len(line) - len(line.lstrip()) + 2 if indent is None else indent)
    for gap, unit in _UNIT.findall(line):
        # A long row of figures may be parted.
        parts = unit.split(" ") if cell_len(unit) > width and not re.match(_COMMAND, unit) else [unit]
        for space, part in zip([gap, *" " * (len(parts) - 1)], parts, strict=True):
            if lines[-1].strip() and cell_len(lines[-1] + space + part) > width:
                lines.append(hanging + part)
            else:
                lines[-1] += space + part
    return "\n".join(lines)


def say_first(console: Console, lines: Sequence[object], *, more: str = "...") -> None:
    """The first of many lines, and how many more there are."""
    for line in lines[:FIRST_LINES]:
        say(console, str(line))
    if len(lines) > FIRST_LINES:
        say(console, f"{more} and {len(lines) - FIRST_LINES} more")


def progress_line(doing: str, *, noun: str = "images", in_logs: bool = False) -> Callable[[int, int], None]:
    """show(done, total) of them, on stderr: on a terminal rewritten in place, at most ten times a second; with in_logs,
    where there is none, a line at most every ten seconds, and one at the end."""
    on_terminal = sys.stderr.isatty()
    at_s = [0.0 if on_terminal else time.monotonic()]

    def show(done: int, total: int) -> None:
        now_s = time.monotonic()
        if (on_terminal or in_logs) and (done == total or now_s - at_s[0] >= (0.1 if on_terminal else LOGGED_S)):
            at_s[0] = now_s
            text = f"{doing} {noun} {done}/{total}"
            begin, end = ("\r", "\n" if done == total else "") if on_terminal else ("", "\n")
            print(f"{begin}{text}", end=end, file=sys.stderr, flush=True)

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


def amount(num_bytes: int) -> str:
    """`12.3 MB`, `4.50 GB`."""
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:,.2f} GB"
