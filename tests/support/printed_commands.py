"""Whatever a test prints, raises or writes is searched for commands, and each goes through its own script's parser."""

from __future__ import annotations

import builtins
import html
import logging
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from transfergrid import config
from transfergrid.errors import ConfigError, GridError
from transfergrid.store import durable

# A word of a shell: quoted as shlex quotes, or of letters that need no quotes. What is unquoted is an argument only
# where it holds `=` or is -m, so that a command ends where the sentence goes on.
_QUOTED = r"(?:'[^']*'|\"[^\"]*\"|[\w@%+=:,./<>{}\[\]()*-])"
COMMAND = re.compile(rf"jobs/([a-z]\w*)\.py((?: +(?:-m\b|(?='?[\w./-]+=){_QUOTED}+))*)")
ALWAYS_HELP = "usage: python jobs/"
SUFFIXES = (".json", ".md", ".html", ".csv", ".tex", ".sh", ".txt", ".jsonl")
# What no shell and no parser can know. FILE, FOLDER and DIR are told beside the command: no record knows a place.
TO_FILL_IN = re.compile(r"\b(RUN_ID|PROBE_ID)\b|=(ID|NAME)\b|=\.\.\.|=<\w+>")


@cache
def problem_of(script: str, line: str) -> str | None:
    """What is wrong with `jobs/<script>.py <line>`, None where it can be typed."""
    try:
        arguments = shlex.split(line)
    except ValueError as error:
        return str(error)
    if placeholder := TO_FILL_IN.search(line):
        return f"{placeholder[0]} cannot be typed"
    try:
        _parse(script, arguments)
    except ConfigError as error:
        return str(error)
    return None


def _parse(script: str, arguments: list[str]) -> None:
    # Hydra takes long to load, and most tests print no command.
    from transfergrid.config.arguments import parse
    from transfergrid.config.predict import PredictKeys
    from transfergrid.config.report import parse_report, parse_sync
    from transfergrid.config.status import parse_status
    from transfergrid.config.store import parse_store
    from transfergrid.config.sweep import _options

    if script == "run_phase" and "-m" in arguments:
        words = [a for a in arguments if a != "-m" and not a.startswith("hydra/launcher=")]
        arguments = [_options(word)[1][0] for word in words]
    parsers: dict[str, Any] = {
        "launch_grid": config.compose_grid,
        "run_phase": config.compose_run,
        "doctor": config.compose_doctor,
        "predict": lambda typed: parse(PredictKeys, typed),
        "status": parse_status,
        "report": parse_report,
        "sync": parse_sync,
        "store": parse_store,
    }
    if "--cfg" in arguments or script == "list":
        arguments = [a for a in arguments if "=" in a]
    if script == "list":
        return
    if arguments or script not in ("run_phase", "predict"):  # these two say what they need
        parsers[script](arguments)


def commands_in(text: str) -> Iterator[tuple[str, str]]:
    """(script, arguments) of each command in a text."""
    for match in COMMAND.finditer(text):
        line = match[2].strip()
        if line.endswith((")", "]", "}")) and line.count("(") < line.count(")"):
            line = line.rstrip(")")
        yield match[1], re.sub(r"[.,;:]+$", "", line)


class Collector:
    """What a test has printed, raised and written since the last look."""

    def __init__(self) -> None:
        self.texts: dict[str, None] = {}

    def take(self, text: object) -> None:
        if isinstance(text, str) and "jobs/" in text and ALWAYS_HELP not in text:
            self.texts[text] = None

    def problems(self) -> list[str]:
        found = [(c, problem) for text in self.texts for c in commands_in(text) if (problem := problem_of(*c))]
        self.texts.clear()
        return [f"jobs/{script}.py {line}: {problem}" for (script, line), problem in dict.fromkeys(found)]


def take_renderable(collector: Collector, shown: object) -> None:
    """A text, or a table's cells, or what a group holds."""
    shown = getattr(shown, "table", shown)
    for column in getattr(shown, "columns", ()):
        for cell in column.cells:
            take_renderable(collector, cell)
    for part in getattr(shown, "renderables", ()):
        take_renderable(collector, part)
    collector.take(getattr(shown, "plain", shown))


def watch(patch: pytest.MonkeyPatch, collector: Collector) -> None:
    """Hang the collector into every way by which a text leaves the process, and those of its children come in."""
    real_print, real_console, real_error = builtins.print, Console.print, GridError.__init__
    real_communicate, real_publish, real_handle = subprocess.Popen.communicate, durable.publish, logging.Logger.handle

    def shown(*texts: Any, **options: Any) -> None:
        for text in texts:
            collector.take(text)
        real_print(*texts, **options)

    def on_console(self: Console, *shown: Any, **options: Any) -> None:
        for one in shown:
            take_renderable(collector, one)
        real_console(self, *shown, **options)

    def raised(self: GridError, what: object = "", *, remedy: str = "", known: Sequence[str] = ()) -> None:
        for text in (what, remedy):
            collector.take(text)
        real_error(self, what, remedy=remedy, known=known)

    def logged(self: logging.Logger, line: logging.LogRecord) -> None:
        if self.name.startswith("transfergrid"):
            collector.take(line.getMessage())
        real_handle(self, line)

    def communicated(self: subprocess.Popen[Any], *given: Any, **options: Any) -> tuple[Any, Any]:
        said = real_communicate(self, *given, **options)
        for stream in said:
            collector.take(stream.decode(errors="replace") if isinstance(stream, bytes) else stream)
        return said

    def published(temporary: Path, final: Path) -> None:
        if final.suffix in SUFFIXES and b"jobs/" in (content := temporary.read_bytes()):
            text = content.decode(errors="replace")
            text = html.unescape(re.sub(r"<[^>]*>", "\n", text)) if final.suffix == ".html" else text
            collector.take(text.replace('\\"', '"') if final.suffix == ".json" else text)
        real_publish(temporary, final)

    patch.setattr(builtins, "print", shown)
    patch.setattr(Console, "print", on_console)
    patch.setattr(GridError, "__init__", raised)
    patch.setattr(logging.Logger, "handle", logged)
    patch.setattr(subprocess.Popen, "communicate", communicated)
    patch.setattr(durable, "publish", published)
