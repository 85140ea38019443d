"""A command line read without Hydra, by a dataclass that declares its keys; and what was probably meant by a wrong one.

Scripts that only look at a store are asked often, and are to answer at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Generic, TypeVar, cast, get_origin

from transfergrid.config.folders import choices
from transfergrid.config.keys import Key, about_of, checked, keys_of, kind_in_words
from transfergrid.config.schema import GROUPS, KEYS
from transfergrid.errors import ConfigError
from transfergrid.names import closest
from transfergrid.paths import typed

T = TypeVar("T")
# What every script takes, so that one line of places serves them all.
SHARED = tuple(
    "store.dir cache.dir cache.also_read data.dir data.resident_gb weights_dir device"
    " tracking.mode tracking.project tracking.entity cluster.num_threads".split()
)
MULTIRUN = ("-m", "--multirun")
CFG = ("--cfg", "--resolve", "job")  # the first asks; the others are what users of Hydra add


@dataclass(frozen=True, slots=True)
class Parsed(Generic[T]):
    """values: of the declared keys. keys: those that were typed. passed_on: arguments that are not for us."""

    values: T
    keys: frozenset[str]
    passed_on: tuple[str, ...]


def shared(name: str, default: Any = ...) -> Any:
    """A field that stands for a key of the configuration, which says what it means and, unless told, its default."""
    key = KEYS[name]
    default = key.default if default is ... else default
    return field(default_factory=partial(copy, default), metadata={"about": replace(key.about, key=name)})


def takes(kind: Any) -> dict[str, Key]:
    """All keys of such a command line: its own, then those that every script takes."""
    others = {name: KEYS[name] for name in SHARED} | {name: GROUPS[name] for name in ("grid", "tracking", "cluster")}
    return {**keys_of(kind), **{name: key for name, key in others.items() if name not in keys_of(kind)}}


def own_keys(kind: Any) -> tuple[str, ...]:
    """Those that its help shows first; a launch's names for the same are not among them."""
    return tuple(name for name in keys_of(kind) if not name.startswith("tracking."))


def parse(kind: type[T], arguments: Sequence[str], *, passed_on: str | None = None) -> Parsed[T]:
    """Each `key=value` in its key's type. passed_on: the beginning of keys that are another's, and kept as typed.

    Raises ConfigError, in one line, for a key that is unknown or twice there, and for a value that its key cannot have.
    """
    known, values_by_key, others = takes(kind), dict[str, Any](), list[str]()
    seen: set[str] = set()
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals:
            raise ConfigError(f"{argument!r} is not of the form key=value; see --help")
        if name in seen:
            raise ConfigError(f"{name!r} is given twice; give it once")
        seen.add(name)
        if passed_on is not None and name.startswith(passed_on):
            others.append(argument)
        elif (key := _owner(name, known)) is not None:
            values_by_key.setdefault(key.name, {})[name.removeprefix(f"{key.name}.")] = _filled(name, text)
        elif name in known:
            values_by_key[name] = read_value(known[name], _filled(name, text))
        else:
            close, own_ones = closest(name, known), list(keys_of(cast(Any, kind)))
            remedy = f"did you mean {close!r}?" if close else ""
            raise ConfigError(f"unknown key {name!r}", remedy=remedy, known=[] if close else own_ones or list(known))
    own = {f.name: about_of(f).key or f.name for f in fields(cast(Any, kind))}
    values = kind(**{name: values_by_key[key] for name, key in own.items() if key in values_by_key})
    return Parsed(values, frozenset(values_by_key), tuple(others))


def _filled(name: str, text: str) -> str:
    if not text.strip():
        raise ConfigError(f"'{name}={text}' is empty; give {name}= a value")
    return text


def _owner(name: str, known: Mapping[str, Key]) -> Key | None:
    """The dictionary that a key is an entry of, as weights_files.resnet18 is."""
    return next((k for k in known.values() if get_origin(k.hint) is dict and name.startswith(f"{k.name}.")), None)


def read_value(key: Key, text: str) -> Any:
    """What was typed, in the key's type. Raises ConfigError that says what the key takes."""
    if key.optional and text == "null":
        return None
    if key.is_list:
        if not (text.startswith("[") and text.endswith("]")):
            raise ConfigError(f"{key.name}={text} is not {kind_in_words(key.name, key)}")
        return checked(key, [_read(key, item.strip(), text) for item in text[1:-1].split(",") if text[1:-1].strip()])
    if get_origin(key.hint) is dict:
        raise ConfigError(f"{key.name}={text}: give each entry by itself, as {key.name}.NAME={text.strip('{}')[:40]}")
    return checked(key, _read(key, text, text))


def _read(key: Key, text: str, whole: str) -> Any:
    if key.choices:
        return next((known for known in key.choices if str(known).lower() == text.lower()), text)
    try:
        if key.plain is bool:
            return {"true": True, "false": False}[text.lower()]
        return key.plain(text) if key.plain in (int, float) else text
    except (KeyError, ValueError):
        raise ConfigError(f"{key.name}={whole} is not {kind_in_words(key.name, key)}") from None


# ------------------------------------------------------------------------------------------------- what is no key=value
def without_cfg(arguments: Sequence[str]) -> list[str] | None:
    """The other arguments, where --cfg asks for the configuration; else None."""
    names = [argument.partition("=")[0] for argument in arguments]
    return [a for a, name in zip(arguments, names, strict=True) if name not in CFG] if CFG[0] in names else None


def assert_spelled(
    arguments: Sequence[str], keys: Mapping[str, Key], *, flags: Sequence[str] = (), words: int = 0
) -> None:
    """Raises ConfigError for the first argument that is no `key=value`, with how it is written.

    words: so many plain words may stand there."""
    for place, argument in enumerate(arguments):
        if argument.partition("=")[0] in flags or ("=" in argument and not argument.startswith("-")):
            continue
        following = arguments[place + 1] if place + 1 < len(arguments) else ""
        if words and not argument.startswith("-"):
            words -= 1
            continue
        if argument.startswith("-"):
            spelling = _of_option(argument, following, keys)
        else:
            spelling = _of_word(argument, keys)
        hint = f"write {spelling}" if spelling else "see --help"
        if argument in MULTIRUN:
            hint = f"a sweep belongs to {typed('run_phase.py')}"
        raise ConfigError(f"{argument!r} is not of the form key=value; {hint}")


def _of_option(argument: str, following: str, keys: Mapping[str, Key]) -> str | None:
    """`--grid quickstart`, `--grid=quickstart` and `--dry-run` as they are written here."""
    name, equals, value = argument.lstrip("-").partition("=")
    close = closest(name.replace("-", "_"), keys, cutoff=0.75)
    if close is None:
        return None
    if not equals:
        value = "true" if keys[close].plain is bool else following
    takes_value = value and (equals or ("=" not in value and not value.startswith("-")))
    return f"{close}={value if takes_value else '...'}"


def _of_word(word: str, keys: Mapping[str, Key]) -> str | None:
    """`quickstart` is the name of a grid, `mnist` that of a data set."""
    if word in keys:
        return f"{word}=..." if keys[word].plain is not bool else f"{word}=true"
    groups = [group for group in GROUPS if group in keys]
    for group in groups:
        if word in choices(group):
            return f"{group}={word}"
    if "grid.models" in keys or "model" in keys:
        from transfergrid.networks import architectures, backbones

        if word.partition("+")[0] in (*backbones.names(), *architectures.names()):
            return f"model={word}" if "model" in keys else f"grid.models=[{word}]"
    for group in groups:
        if re.fullmatch(r"[\w.-]+", word) and (close := closest(word, choices(group), cutoff=0.75)):
            return f"{group}={close}"
    return None
