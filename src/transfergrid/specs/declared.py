"""How a field says what it means and may be: command line, help and checks follow from it (config/keys.py)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

ABOVE_ZERO = 5e-324  # the smallest positive float, as a lowest value
ANY_NUMBER = (-math.inf, math.inf)
T = TypeVar("T")
Metadata: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """doc: one line. usual: the value where nobody sets it; `...` = the field's own default, or one of its phase.
    span: lowest and highest value of a number, or of each in a list. also: values outside it that mean something.
    choices: those that a type, a Literal, does not list. unit: of a number. filled: a list that must hold something.
    key: on the command line, where the field has another name. not_set: how else it is chosen, of what cannot be set;
    empty where it can.
    """

    doc: str
    usual: Any = ...
    span: tuple[float, float] = ANY_NUMBER
    also: tuple[float, ...] = ()
    choices: tuple[str, ...] = ()
    unit: str = ""
    filled: bool = False
    key: str = ""
    not_set: str = ""


def about(doc: str, usual: Any = ..., span: tuple[float, float] = ANY_NUMBER, **more: Any) -> Metadata:
    """The metadata of a field that is a setting."""
    return {"about": About(doc=doc, usual=usual, span=span, **more)}


def required(doc: str, usual: Any = ..., span: tuple[float, float] = ANY_NUMBER, **more: Any) -> Any:
    """A field that is a setting, and that every stored spec must hold: no default of its own."""
    return field(metadata=about(doc, usual, span, **more))


def setting(default: T, doc: str, span: tuple[float, float] = ANY_NUMBER, **more: Any) -> T:
    """A field that is a setting, and has a default."""
    metadata = about(doc, span=span, **more)
    if isinstance(default, (list, dict)):
        return field(default_factory=partial(copy, default), metadata=metadata)
    return field(default=default, metadata=metadata)


def later(former: T, metadata: Metadata = MappingProxyType({})) -> T:
    """A field that the first release did not have; `former` is the value that stands for what that release did."""
    return field(default=former, metadata={"later": True, **metadata})
