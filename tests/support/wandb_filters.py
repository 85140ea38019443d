"""The filters and orders of `wandb.Api().runs(...)`: the part of MongoDB's language that W&B documents."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from wandb_state import Json, Refusal, ServerRun

_ABSENT = object()

_FIELDS: dict[str, Callable[[ServerRun], Any]] = {
    "name": lambda run: run.id,
    "display_name": lambda run: run.name,
    "displayName": lambda run: run.name,
    "group": lambda run: run.group,
    "job_type": lambda run: run.job_type,
    "jobType": lambda run: run.job_type,
    "tags": lambda run: run.tags,
    "state": lambda run: run.state,
    "created_at": lambda run: run.created_at,
    "createdAt": lambda run: run.created_at,
    "heartbeat_at": lambda run: run.heartbeat_at,
    "heartbeatAt": lambda run: run.heartbeat_at,
}


def _descend(tree: Any, path: str) -> Any:
    """The value at a dotted path; a key may itself hold dots and slashes."""
    if isinstance(tree, dict):
        if path in tree:
            return tree[path]
        for key, below in tree.items():
            if path.startswith(key + "."):
                found = _descend(below, path[len(key) + 1 :])
                if found is not _ABSENT:
                    return found
    return _ABSENT


def _value(run: ServerRun, name: str) -> Any:
    if name in _FIELDS:
        return _FIELDS[name](run)
    top, _, rest = name.partition(".")
    if top == "config":
        # The real server keeps {"key": {"value": ...}} and takes both spellings.
        found = _descend(run.config, rest)
        return found["value"] if isinstance(found, dict) and "value" in found else found
    if top in ("summary_metrics", "summaryMetrics"):
        return _descend(run.summary, rest)
    raise Refusal(
        400, f"cannot filter or order runs by {name!r}; known: {', '.join(_FIELDS)}, config., summary_metrics."
    )


def _holds(value: Any, wanted: Any) -> bool:
    """Equality as MongoDB means it: a list also equals each of its members."""
    return bool(value == wanted or (isinstance(value, list) and wanted in value))


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def holds(value: Any, wanted: Any) -> bool:
        try:
            return value is not _ABSENT and compare(value, wanted)
        except TypeError:
            return False

    return holds


_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": _holds,
    "$ne": lambda value, wanted: not _holds(value, wanted),
    "$in": lambda value, wanted: any(_holds(value, one) for one in wanted),
    "$nin": lambda value, wanted: not any(_holds(value, one) for one in wanted),
    "$gt": _ordered(lambda value, wanted: value > wanted),
    "$gte": _ordered(lambda value, wanted: value >= wanted),
    "$lt": _ordered(lambda value, wanted: value < wanted),
    "$lte": _ordered(lambda value, wanted: value <= wanted),
    "$exists": lambda value, wanted: (value is not _ABSENT) == bool(wanted),
    "$regex": lambda value, wanted: isinstance(value, str) and re.search(wanted, value) is not None,
}


def matches(run: ServerRun, filters: Json) -> bool:
    return all(_condition(run, name, wanted) for name, wanted in filters.items())


def _condition(run: ServerRun, name: str, wanted: Any) -> bool:
    if name == "$and":
        return all(matches(run, one) for one in wanted)
    if name == "$or":
        return any(matches(run, one) for one in wanted)
    if name == "$nor":
        return not any(matches(run, one) for one in wanted)
    value = _value(run, name)
    if not (isinstance(wanted, dict) and any(key.startswith("$") for key in wanted)):
        return _holds(value, wanted)
    unknown = set(wanted) - set(_OPERATORS)
    if unknown:
        raise Refusal(400, f"unknown filter operators {sorted(unknown)}; known: {', '.join(_OPERATORS)}")
    return all(_OPERATORS[operator](value, operand) for operator, operand in wanted.items())


def ordered(runs: list[ServerRun], order: str) -> list[ServerRun]:
    """By creation first, so that equal ones keep a fixed order; then by `order` ("+created_at", "-config.x.value")."""
    runs = sorted(runs, key=lambda run: run.number)
    field, descending = order.lstrip("+-"), order.startswith("-")
    if field in ("", "created_at", "createdAt"):
        return runs[::-1] if descending else runs

    def key(run: ServerRun) -> tuple[bool, bool, Any]:
        value = _value(run, field)
        known = value is not _ABSENT and value is not None
        return (known == descending, isinstance(value, str), value if known else 0)

    return sorted(runs, key=key, reverse=descending)
