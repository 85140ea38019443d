"""The command line of jobs/status.py, read without Hydra: a status is asked for often, and is to be there at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transfergrid.config.names import grid_name_of
from transfergrid.errors import FAILURE_CLASSES, ConfigError
from transfergrid.paths import StorePaths

UNKNOWN = ("unknown",)  # no failure class: runs that SLURM may still have
# retry=NAME -> failure classes. `failed` takes whatever did not complete.
RETRIED: dict[str, tuple[str, ...]] = {
    "failed": FAILURE_CLASSES,
    "oom": ("host_oom", "cuda_oom"),
    **{name: (name,) for name in FAILURE_CLASSES},
    "unknown": UNKNOWN,
}
KEYS = ("grid", "store.dir", "cache.dir", "run", "logs", "watch", "cancel", "retry")


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusRequest:
    """grid: None where only run= is given: a run is found in whatever grid it stands.

    run: the whole of a run_id, or a part that no other has. retry: failure classes, or UNKNOWN. overrides: of the new
    launch.
    """

    grid: str | None
    store: StorePaths
    run: str | None
    logs: bool
    watch: bool
    cancel: bool
    retry: tuple[str, ...]
    overrides: tuple[str, ...]


def parse_status(arguments: Sequence[str]) -> StatusRequest:
    """Raises ConfigError, in one line, for what makes no sense."""
    values: dict[str, str] = {}
    overrides: list[str] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        passed_on = key.startswith("cluster.")  # to the launch that retry= makes
        if not equals or not (key in KEYS or passed_on):
            raise ConfigError(f"{argument!r}: status takes {'=, '.join(KEYS)}=, and with retry= cluster.*=")
        if key in values:
            raise ConfigError(f"{key!r} is given twice; give it once")
        if not value.strip() or "\0" in value:
            raise ConfigError(f"{argument!r} names nothing; give {key}= a value")
        values[key] = value
        if passed_on:
            overrides.append(argument)
    flags = {name: _flag(name, values.get(name, "false")) for name in ("logs", "watch", "cancel")}
    asked = [name for name in (*flags, "retry") if flags.get(name) or (name == "retry" and name in values)]
    if len(asked) > 1:
        raise ConfigError(f"{asked[0]}= and {asked[1]}= are both given; give one at a time")
    if flags["logs"] and "run" not in values:
        raise ConfigError("logs=true follows one run; name it: run=ID, or a part of its name that no other run has")
    if "retry" not in values and overrides:
        raise ConfigError(f"{overrides[0]!r} is for a new launch; it goes with retry=failed or retry=<failure class>")
    if "retry" in values and values["retry"] not in RETRIED:
        raise ConfigError(f"retry={values['retry']!r}; choose from {', '.join(RETRIED)}")
    grid = None if "run" in values and "grid" not in values else grid_name_of(values.get("grid", "quickstart"))
    return StatusRequest(
        grid=grid,
        store=StorePaths(Path(values.get("store.dir", "results"))),
        run=values.get("run"),
        logs=flags["logs"],
        watch=flags["watch"],
        cancel=flags["cancel"],
        retry=RETRIED[values["retry"]] if "retry" in values else (),
        overrides=tuple(overrides),
    )


def _flag(key: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise ConfigError(f"{key}={value!r}; give true or false")
    return value.lower() == "true"
