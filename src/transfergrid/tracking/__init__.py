"""Mirror of metrics files to W&B: training writes its own files only, W&B is fed from them by a process of its own.

start_mirror() once per launch or job, before the first of its runs starts; wait_for_mirror() when the last has ended.
Whatever becomes of the mirror changes nothing for training, and a later mirror takes up where it stopped.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from transfergrid.config.spelling import command_of_grid
from transfergrid.errors import ConfigError
from transfergrid.paths import store_paths, typed
from transfergrid.specs import Configuration, Runtime
from transfergrid.store import attempts
from transfergrid.store.provenance import import_path
from transfergrid.tracking.account import (
    DECISION_TIMEOUT_S,
    TURN_ON,
    Unreachable,
    find_account,
    is_named_here_alone,
    key_place,
    server_url,
    why_silent,
)

logger = logging.getLogger(__name__)


def validate(runtime: Runtime, *, sends: bool = False) -> None:
    """Raises ConfigError where W&B would not take what is asked for. sends: from this machine, and now."""
    if not 1 <= len(runtime.wandb_project) <= 128 or set(runtime.wandb_project) & set("/\\#?%:"):
        raise ConfigError(
            f"W&B project {runtime.wandb_project!r} is not a name W&B takes; "
            "give 1 to 128 characters without any of / \\ # ? % :"
        )
    if runtime.tracking == "online" and sends:
        try:
            find_account(runtime.wandb_project, runtime.wandb_entity)
        except Unreachable as error:
            instead = f"tracking=online: {error}; or take tracking=offline, and later: {by_hand(runtime)}"
            raise ConfigError(instead) from None


def decided(runtime: Runtime) -> tuple[Runtime, str | None]:
    """The runtime with tracking=auto decided (`online` where this machine has a key and reaches the server), and the
    line that says how; None where nothing was to decide. Asked once per launch: jobs get the answer."""
    if runtime.tracking != "auto":
        return runtime, None
    url = server_url()
    if is_named_here_alone():
        line = f"W&B: nothing is sent: wandb/settings in this folder names {url}; tracking=online sends there"
        return replace(runtime, tracking="disabled"), line
    if key_place(url) is None:
        return replace(runtime, tracking="disabled"), f"W&B: nothing is sent: no key for {url} here; {TURN_ON}"
    if reason := why_silent(url, timeout_s=DECISION_TIMEOUT_S):
        line = f"W&B: nothing is sent: {url} does not answer ({reason}); send it later: {by_hand(runtime)}"
        return replace(runtime, tracking="disabled"), line
    return replace(runtime, tracking="online"), f"W&B: the numbers go to {url}; tracking=disabled sends nothing"


def by_hand(runtime: Runtime) -> str:
    """The command that sends what W&B lacks."""
    return command_of_grid("sync.py", runtime.grid, store_paths(runtime))


def start_mirror(runtime: Runtime, configurations: Sequence[Configuration]) -> subprocess.Popen[bytes] | None:
    """One process for all runs of a launch or a job; None where nothing is sent, or there is nothing to follow.

    Call it before the first of the runs starts: a failed record that stands already is an earlier attempt's. The
    process ends by itself once all runs have their records; or, for those that have none, when this process is gone
    or calls wait_for_mirror. One process and not one per run, because W&B costs 1.5 s of CPU to load and start, and
    5 ms for each further run. It has a session of its own, so Ctrl-C does not reach it.
    """
    if runtime.tracking != "online" or not configurations:
        return None
    store = store_paths(runtime)
    variants = {needed.run_id: "" for c in configurations for needed in c.run.extractions}
    variants |= {c.run.run_id: c.variant for c in configurations}
    followed = tuple(Followed(i, variant, attempts.newest_attempt(store.run(i))) for i, variant in variants.items())
    grid, project, entity = configurations[0].grid, runtime.wandb_project, runtime.wandb_entity
    assignment = Assignment(grid=grid, project=project, entity=entity, images=runtime.wandb_images, followed=followed)
    # The code of this very process, even where it is a snapshot that only sys.path knows.
    command = [sys.executable, "-P", "-m", "transfergrid.tracking.mirror", runtime.store_dir]
    try:
        # In a file, for a pipe holds 64 KiB: with many runs a mirror that is slow to read would make training wait.
        with tempfile.TemporaryFile() as file:
            file.write(json.dumps(asdict(assignment)).encode())
            file.seek(0)
            return subprocess.Popen(
                [*command, str(file.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env=os.environ | {"PYTHONPATH": import_path()},
                pass_fds=[file.fileno()],
            )
    except OSError as error:
        logger.warning("no W&B mirror: %s", error)
        return None


def wait_for_mirror(process: subprocess.Popen[bytes] | None, timeout_s: float, *, by_hand: str | None = None) -> bool:
    """Tell the mirror that no more runs will start, and wait for its end; whether it ended well within the time. One
    that is late is left alone: it ends by itself, soon after the last of its runs."""
    if process is None:
        return True
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        logger.warning("the W&B mirror (process %d) is still at work after %.0f s; not waiting", process.pid, timeout_s)
        return False
    if code != 0:
        rest = f"`{by_hand or typed('sync.py')}` sends the rest"
        logger.warning("the W&B mirror ended with code %d; the runs are not touched by it; %s", code, rest)
    return code == 0


@dataclass(frozen=True, slots=True)
class Followed:
    """A run for the mirror to follow. after_attempt: a failed record up to this attempt was there before the launch."""

    run_id: str
    variant: str
    after_attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What a mirror is to do. images: whether it sends pictures and names of files, too."""

    grid: str
    project: str
    entity: str | None
    images: bool
    followed: tuple[Followed, ...]
