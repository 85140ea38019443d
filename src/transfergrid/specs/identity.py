"""Dataclasses as JSON and back, the hashes that tell them apart, and names that are safe everywhere."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import lru_cache
from types import UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

Kind = TypeVar("Kind")
_type_hints = lru_cache(maxsize=64)(get_type_hints)


def safe_name(text: str) -> str:
    """Lower case, anything outside [a-z0-9._+-] becomes `-`, no leading dot or dash: safe in paths, jobs and shells."""
    return re.sub(r"[^a-z0-9._+-]", "-", text.lower()).lstrip(".-") or "x"


def seed_for(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part: how order, augmentation and dropout are keyed by (seed, epoch, ...)."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def canonical_json(value: Any) -> str:
    """One spelling per value: sorted keys, no spaces, tuples as lists, dataclasses as objects; NaN is refused."""
    return json.dumps(to_dict(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any, length: int) -> str:
    """The first `length` hex digits of sha256 over canonical_json(value)."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()[:length]


def _canonical(value: Any) -> str:
    """canonical_json, with the fields that many runs share (backbones, data sets, settings) spelled only once."""
    if is_dataclass(value):
        parts = {f.name: _canonical_part(getattr(value, f.name)) for f in _stored_fields(value)}
        return "{" + ",".join(f'"{name}":{parts[name]}' for name in sorted(parts)) + "}"
    return canonical_json(value)


@lru_cache(maxsize=65536, typed=True)  # else 1.0 would be spelled as 1 is, or 1 as 1.0
def _canonical_part(value: Any) -> str:
    return canonical_json(value)


def to_dict(value: Any) -> Any:
    """Dataclasses, tuples and dicts as plain JSON values."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_dict(getattr(value, f.name)) for f in _stored_fields(value)}
    if isinstance(value, (list, tuple)):
        return [to_dict(v) for v in value]
    if isinstance(value, dict):
        return {str(k): to_dict(v) for k, v in value.items()}
    return value


def _stored_fields(value: Any) -> list[Field[Any]]:
    """All fields, without those of a later release that say what the release before did."""
    return [f for f in fields(value) if not ("later" in f.metadata and getattr(value, f.name) == f.default)]


def from_dict(kind: type[Kind], data: dict[str, Any]) -> Kind:
    """The inverse of to_dict for the dataclasses of this package. Raises ValueError on unknown or missing fields."""
    hints = _type_hints(cast(Any, kind))
    unknown = set(data) - set(hints)
    if unknown:
        raise ValueError(f"{kind.__name__}: unknown field {sorted(unknown)[0]!r}")
    values: dict[str, Any] = {}
    for f in fields(cast(Any, kind)):
        if f.name not in data:
            if f.default is MISSING and f.default_factory is MISSING:
                raise ValueError(f"{kind.__name__}: field {f.name!r} is missing")
            continue
        hint = f.metadata["by_phase"][data["phase"]] if "by_phase" in f.metadata else hints[f.name]
        values[f.name] = _decode(hint, data[f.name])
    return kind(**values)


def _decode(hint: Any, value: Any) -> Any:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        if value is None:
            return None
        return _decode(next(a for a in get_args(hint) if a is not type(None)), value)
    if origin is tuple:
        return tuple(_decode(get_args(hint)[0], v) for v in value)
    if is_dataclass(hint) and isinstance(hint, type):
        return from_dict(hint, value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value
