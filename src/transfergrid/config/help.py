"""The text of --help, from the declared keys themselves: plain text, as wide as the terminal, at most 100 columns."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from transfergrid.config import DoctorKeys
from transfergrid.config.keys import Key, keys_of, nearest_key, nodes_of
from transfergrid.config.schema import GROUPS, KEYS
from transfergrid.config.spelling import hydra_value
from transfergrid.errors import ConfigError
from transfergrid.paths import typed
from transfergrid.specs import ABOVE_ZERO, ANY_NUMBER

WIDEST, NARROWEST = 100, 40
_AS_GOOD_AS_ANY = 100_000  # a highest value that nobody comes near
WORDS = ("--help", "-h", "help")
EXIT_CODES = "exit codes: 0 completed, 1 something failed, 2 the request makes no sense"
# Where something is done, and where its files lie.
_PLACE = "cluster cluster.partition cluster.mem_gb cluster.timeout_min device store.dir cache.dir data.dir tracking"
_GRID = (
    "grid grid.models grid.datasets grid.phases grid.seeds grid_name dataset dataset.folder weights protocol select_by"
)
_RUN = "model dataset dataset.folder phase seed run profile again needs grid_name weights select_by"
OF_A_PLACE = tuple(_PLACE.split())
# The keys that people use.
MOST_USED = (*_GRID.split(), *OF_A_PLACE, "wait", "dry_run")
MOST_USED_OF_RUN = (*_RUN.split(), *OF_A_PLACE, "dry_run")
_ALL = {**GROUPS, **KEYS}
_OF_GRID = {n: key for n, key in _ALL.items() if n not in ("model", "seed", "run", "again", "needs", "phase")}
OF_LAUNCH = _OF_GRID | {"grid": replace(GROUPS["grid"], default="quickstart")}
OF_RUN = {n: key for n, key in _ALL.items() if n != "replace" and not n.startswith("grid.")}
OF_DOCTOR = {**keys_of(DoctorKeys), **_OF_GRID}


@dataclass(frozen=True, slots=True, kw_only=True)
class Help:
    """What --help says of one script.

    examples: what is typed after the program. keys: all that it takes. first: those on the first page. usage: what
    follows the program.
    """

    script: str
    purpose: str
    examples: tuple[str, ...]
    keys: Mapping[str, Key]
    first: tuple[str, ...]
    usage: str = "key=value ..."

    def answer(self, arguments: Sequence[str]) -> str | None:
        """The page that is asked for, None where none is. Raises ConfigError for a prefix that no key has."""
        words = [argument.partition("=")[0] if argument.startswith("--help=") else argument for argument in arguments]
        place = next((i for i, word in enumerate(words) if word in WORDS), None)
        if place is None:
            return None
        _, equals, after = arguments[place].partition("=")
        topic = after if equals else next(iter(arguments[place + 1 :]), "")
        if not topic or ("=" in topic and not equals):
            return self.first_page()
        return self.page_of(topic.partition("=")[0].strip(".").lower())

    def first_page(self) -> str:
        program = typed(self.script)
        lines = [f"usage: {program} {self.usage}", "", *_wrapped(self.purpose), "", "examples:"]
        lines += [f"  {program} {example}".rstrip() for example in self.examples]
        first_keys = [self.keys[name] for name in self.first if not self.keys[name].about.not_set]
        lines += ["", "keys, with their defaults:", *_rows(first_keys, brief=True), ""]
        group = "phase.finetune" if "phase.finetune.lr" in self.keys else self.first[:2][-1]
        lines += [
            "more:",
            f"  {program} --help {group:<15} one key or group, with choices and ranges",
            f"  {program} --help all             every key, and those that all scripts take",
        ]
        return "\n".join([*lines, *_wrapped(EXIT_CODES)])

    def page_of(self, topic: str) -> str:
        """One key, or all keys that begin so; `all` for every key."""
        keys = [key for key in self.keys.values() if not key.about.not_set]
        matches = [key for key in keys if f"{key.name}.".startswith(f"{topic}.") or key.name.endswith(f".{topic}")]
        matches = keys if topic == "all" else matches or [key for key in keys if key.name.startswith(topic)]
        if not matches:
            raise ConfigError(f"no key begins with {topic!r}{self._nearest(topic)}")
        return "\n".join(_rows(matches, brief=False))

    def _nearest(self, topic: str) -> str:
        fixed = self.keys.get(topic)
        if fixed is not None:
            return f" that can be set; {fixed.about.not_set}"
        close = nearest_key(topic, [*self.keys, *nodes_of(self.keys)])
        return f"; did you mean --help {close}?" if close else "; --help all shows every key"


def _width() -> int:
    """Of a terminal what it has, of a pipe 100."""
    return max(NARROWEST, min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns))


def _wrapped(text: str) -> list[str]:
    return [line for part in text.splitlines() for line in textwrap.wrap(part, _width())]


def _rows(keys: Iterable[Key], *, brief: bool) -> list[str]:
    """`key=default` and what it means, in two columns; beneath each other where the terminal is narrow."""
    cells = [(f"{key.name}={default_text(key)}", meaning_of(key, brief=brief)) for key in keys]
    width = _width()
    column = min(max(len(spelled) for spelled, _ in cells) + 2, 40 if width >= 80 else 4)
    lines = []
    for spelled, right in cells:
        wrapped = textwrap.wrap(right, width - column - 2) or [""]
        if len(spelled) <= column - 2:
            lines.append(f"  {spelled:<{column}}{wrapped.pop(0)}".rstrip())
        else:
            lines.append(f"  {spelled}")
        lines += [f"  {'':<{column}}{line}" for line in wrapped]
    return lines


def default_text(key: Key) -> str:
    """As it can be typed; dots where there is none."""
    if key.default is None:
        return "null" if "null =" in key.about.doc else "..."
    if key.default in ([], {}):
        return "[...]" if key.is_list else "{...}"
    if isinstance(key.default, float):
        return f"{key.default:g}"
    if isinstance(key.default, str):
        return "..." if key.default == "" or "$" in key.default else key.default
    return hydra_value(key.default)


def meaning_of(key: Key, *, brief: bool = False) -> str:
    """What a key means; then its choices, or its range and unit."""
    low, high = key.about.span
    allowed = " | ".join(map(str, key.choices))
    if key.about.span != ANY_NUMBER and not brief:
        lowest = "above 0" if low == ABOVE_ZERO else f"{low:.10g}"
        highest = f" to {high:.10g}" if high < _AS_GOOD_AS_ANY else "" if low == ABOVE_ZERO else " or more"
        allowed = lowest + highest
    facts = " ".join(filter(None, (allowed, key.about.unit)))
    return f"{key.about.doc} ({facts})" if facts else key.about.doc
