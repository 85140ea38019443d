"""The keys of a command line, from the dataclasses that declare them: name, type, default, and what stands about it.

A setting is described once, at its field (specs.About). What it takes, the help and the checks all follow from there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from transfergrid.errors import ConfigError
from transfergrid.names import closest
from transfergrid.specs import ABOVE_ZERO, ANY_NUMBER, About


@dataclass(frozen=True, slots=True)
class Key:
    """name: dotted. hint: its type, with the choices of a Literal. default: where nobody sets it."""

    name: str
    hint: Any
    default: Any
    about: About

    @property
    def plain(self) -> Any:
        """The type of one value: without `| None`, of a list that of its items."""
        hint = self.hint
        if get_origin(hint) in (Union, UnionType):
            hint = next(a for a in get_args(hint) if a is not type(None))
        return get_args(hint)[0] if get_origin(hint) in (list, tuple) else hint

    @property
    def choices(self) -> tuple[Any, ...]:
        return self.about.choices or (get_args(self.plain) if get_origin(self.plain) is Literal else ())

    @property
    def optional(self) -> bool:
        return type(None) in get_args(self.hint)

    @property
    def is_list(self) -> bool:
        return any(get_origin(hint) in (list, tuple) for hint in (self.hint, *get_args(self.hint)))


def about_of(member: Field[Any]) -> About:
    return cast(About, member.metadata.get("about", About(doc="")))


def usual_of(member: Field[Any]) -> Any:
    """The value of a setting that nobody sets; MISSING where its phase gives it."""
    if (usual := about_of(member).usual) is not ...:
        return usual
    return member.default if member.default_factory is MISSING else member.default_factory()


@cache
def keys_of(kind: Any) -> Mapping[str, Key]:
    """Every key of a dataclass of dataclasses, by its dotted name, in order; nodes and what nobody sets are none."""
    return {key.name: key for key in _walk("", kind) if not is_dataclass(key.plain)}


def _walk(prefix: str, kind: type[Any]) -> Iterator[Key]:
    hints = get_type_hints(kind)
    for member in fields(kind):
        described = about_of(member)
        if described.doc:
            hint = member.metadata.get("hint", hints[member.name])
            yield Key(prefix + (described.key or member.name), hint, usual_of(member), described)
        elif isinstance(hint := hints[member.name], type) and is_dataclass(hint):
            yield from _walk(f"{prefix}{member.name}.", hint)


# -------------------------------------------------------------------------------------------------------------- checks
def checked(key: Key, value: Any, *, name: str = "") -> Any:
    """A value of the key's type, tuples for lists. Raises ConfigError for one that it may not have.

    name: what the message calls it, where that is not the key's own."""
    name = name or key.name
    if value is None and key.optional:
        return None
    if key.is_list:
        items = tuple(_checked_item(key, item, name) for item in value)
        if key.about.filled and not items:
            raise ConfigError(f"{name} is empty; give at least one value")
        return items
    return _checked_item(key, value, name)


def _checked_item(key: Key, value: Any, name: str) -> Any:
    if key.choices:
        return choice(name, value, key.choices)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value not in key.about.also:
        return in_range(name, value, *key.about.span)
    return value


def choice(key: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    if value not in allowed:
        close = closest(str(value), map(str, allowed))
        remedy = f"did you mean {close!r}?" if close else ""
        raise ConfigError(f"{key}={value!r} is not one of {', '.join(map(str, allowed))}", remedy=remedy)
    return value


def in_range(key: str, value: Any, low: float, high: float) -> Any:
    if (low, high) == ANY_NUMBER:
        return value
    if not math.isfinite(value) or not low <= value <= high:
        lowest = "above 0" if low == ABOVE_ZERO else f"at least {low:g}"
        raise ConfigError(f"{key}={value} is out of range; it must be {lowest} and at most {high:.10g}")
    return value


# ------------------------------------------------------------------------------------------------------ in plain words
_ONE = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_SEVERAL = {int: "whole numbers", float: "numbers", str: "names"}


def kind_in_words(name: str, key: Key | None) -> str:
    """What a key takes, in words; of None, a group of keys."""
    if key is None:
        return f"a value: {name} is a group of keys; --help {name} shows them"
    if key.is_list:
        words = f"a list of {_SEVERAL.get(key.plain, 'values')}; a list is written {name}=[a,b]"
    elif get_origin(key.hint) is dict:
        words = f"a dictionary; it is written {name}={{a:value}}"
    elif key.choices:
        words = f"one of {', '.join(map(str, key.choices))}"
    else:
        words = _ONE.get(key.plain, "a value of its type")
    return f"{words} or null" if key.optional else words


# ------------------------------------------------------------------------------------------------------ the nearest one
def nodes_of(names: Iterable[str]) -> tuple[str, ...]:
    """The groups that dotted names stand in."""
    return tuple(dict.fromkeys(name[:dot] for name in names for dot in range(len(name)) if name[dot] == "."))


def nearest_key(name: str, known: Sequence[str]) -> str | None:
    """The key that was probably meant: by its whole name, within its group, or by its last part."""
    if close := closest(name, known, cutoff=0.75):
        return close
    group, _, leaf = name.rpartition(".")
    if group and (close := closest(name, [k for k in known if k.startswith(f"{group}.")])):
        return close
    leaves = {k.rpartition(".")[2]: k for k in known}
    return leaves.get(closest(leaf, leaves, cutoff=0.75) or "")
