"""The command line of jobs/status.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transfergrid.config.arguments import SHARED, own_keys, parse, shared
from transfergrid.config.spelling import grid_name_of
from transfergrid.errors import FAILURE_CLASSES, ConfigError
from transfergrid.paths import StorePaths
from transfergrid.specs import setting

UNKNOWN = ("unknown",)  # no failure class: runs that SLURM may still have
# retry=NAME -> failure classes. `failed` takes whatever did not complete.
RETRIED: dict[str, tuple[str, ...]] = {
    "failed": FAILURE_CLASSES,
    "oom": ("host_oom", "cuda_oom"),
    **{name: (name,) for name in FAILURE_CLASSES},
    "unknown": UNKNOWN,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusRequest:
    """run: found in whatever grid it stands. overrides: `cluster.*` of the launch that retry= makes."""

    grid: str | None = setting(None, "a grid; left out: the one launched last in the store")
    run: str | None = setting(None, "one run: its id, or a part that no other has")
    logs: bool = setting(False, "follow the logs of run=")
    watch: bool = setting(False, "redraw until nothing is live any more")
    cancel: bool = setting(False, "cancel the grid's jobs, or those of run=")
    retried: str | None = setting(
        None, "send such runs again, with cluster.* as it is given", choices=tuple(RETRIED), key="retry"
    )
    store_dir: str = shared("store.dir")
    overrides: tuple[str, ...] = ()

    @property
    def store(self) -> StorePaths:
        return StorePaths(Path(self.store_dir))

    @property
    def retry(self) -> tuple[str, ...]:
        """Failure classes, or UNKNOWN."""
        return () if self.retried is None else RETRIED[self.retried]


def parse_status(arguments: Sequence[str]) -> StatusRequest:
    """Raises ConfigError, in one line, for what makes no sense."""
    parsed = parse(StatusRequest, arguments, passed_on="cluster.")
    keys = parsed.values
    actions = [name for name in ("logs", "watch", "cancel", "retry") if getattr(keys, name)]
    if len(actions) > 1:
        raise ConfigError(f"{actions[0]}= and {actions[1]}= are both given; give one at a time")
    if keys.logs and keys.run is None:
        raise ConfigError("logs=true follows one run; name it: run=ID, or a part of its name that no other run has")
    for_a_launch = [argument for argument in parsed.passed_on if argument.partition("=")[0] not in SHARED]
    if keys.retried is None and for_a_launch:
        raise ConfigError(
            f"{for_a_launch[0]!r} is for a new launch; it goes with retry=failed or retry=<failure class>"
        )
    if keys.retried is not None and (fixed := parsed.keys - {*own_keys(StatusRequest), "store.dir"}):
        raise ConfigError(f"{min(fixed)}= cannot be changed for a retry; cluster.* can, the rest needs a launch")
    grid = None if keys.grid is None else grid_name_of(keys.grid)
    return replace(keys, grid=grid, overrides=parsed.passed_on)
