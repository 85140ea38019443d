"""The names of timm's networks, read from its source: importing it takes seconds, a misspelt name is told at once."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@cache
def timm_names() -> frozenset[str]:
    """Every network that timm registers, as `timm.list_models()` names them; a test holds the two equal."""
    spec = find_spec("timm")
    assert spec is not None and spec.origin is not None, "timm is a dependency"
    sources = (path.read_text(encoding="utf-8") for path in (Path(spec.origin).parent / "models").rglob("*.py"))
    registered = re.compile(r"^@register_model\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
    return frozenset(name for source in sources for name in registered.findall(source))
