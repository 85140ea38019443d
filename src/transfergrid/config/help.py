"""The text of --help, from the schema itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from transfergrid.config.schema import Config
from transfergrid.paths import typed


def help_for(script: str, purpose: str, examples: Sequence[str], *, keys: bool = True) -> str:
    """Purpose, examples (what is typed after the program), exit codes and, with `keys`, every key with its default."""
    program = typed(script)
    lines = [f"usage: {program} key=value ...", "", purpose, "", "examples:"]
    lines += [f"  {program} {example}" for example in examples]
    lines += [
        "",
        "exit codes: 0 completed, 1 something failed (each named with its reason), 2 the request makes no sense",
    ]
    if keys:
        lines += [
            "",
            "Chosen by name from conf/: grid=, dataset=, phase=, cluster=, tracking=",
            "",
            "keys and defaults:",
        ]
        lines += [f"  {key}={_shown(value)}" for key, value in _defaults("", Config())]
    return "\n".join(lines)


def _defaults(prefix: str, node: Any) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for f in fields(node):
        if not f.metadata.get("is_key", True):
            continue
        value = getattr(node, f.name)
        found += _defaults(f"{prefix}{f.name}.", value) if is_dataclass(value) else [(prefix + f.name, value)]
    return found


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(map(_shown, value)) + "]"
    return str(value)
