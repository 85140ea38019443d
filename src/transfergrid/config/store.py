"""The command line of jobs/store.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transfergrid.config.arguments import parse, shared
from transfergrid.errors import ConfigError
from transfergrid.specs import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreKeys:
    action: Literal["size", "check", "repair", "gc"] = setting("size", "what to do; gc collects what can go")
    dry_run: bool = setting(True, "repair and gc: only say what would be done; false does it")
    runs: bool = setting(False, "gc: also runs that no grid of the store refers to")
    features: bool = setting(False, "gc: also features that no grid of this store needs; another store may")
    store_dir: str = shared("store.dir")
    cache_dir: str = shared("cache.dir")
    weights_dir: str | None = shared("weights_dir")


def parse_store(arguments: Sequence[str]) -> StoreKeys:
    """Raises ConfigError, in one line, for what makes no sense."""
    parsed = parse(StoreKeys, arguments)
    action = parsed.values.action
    if action != "gc" and (of_gc := parsed.keys & {"runs", "features"}):
        raise ConfigError(f"{min(of_gc)}= belongs to action=gc, which is not given")
    if action not in ("repair", "gc") and "dry_run" in parsed.keys:
        raise ConfigError(f"action={action} changes nothing; leave dry_run= out")
    return parsed.values
