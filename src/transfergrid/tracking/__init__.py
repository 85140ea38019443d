"""Mirror of metrics files to W&B: training writes its own files only, W&B is fed from them by a process of its own.

start_mirror() once per launch or job, before the first of its runs starts; wait_for_mirror() when the last has ended.
Whatever becomes of the mirror changes nothing for training, and a later mirror takes up where it stopped.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import netrc
import os
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from transfergrid import attempts
from transfergrid.errors import ConfigError, one_line
from transfergrid.paths import store_paths
from transfergrid.specs import Configuration, Runtime

logger = logging.getLogger(__name__)
SYNC_TIMEOUT_S = 900.0


def validate(runtime: Runtime) -> None:
    """Raises ConfigError where this version cannot track as asked."""
    if runtime.tracking not in ("offline", "disabled"):
        raise ConfigError(
            f"tracking={runtime.tracking} is not built yet; allowed: offline, disabled; use tracking=offline and bring "
            f"W&B up to date with `wandb sync {Path(runtime.store_dir) / 'wandb' / 'wandb'}/offline-run-*`"
        )
    if not 1 <= len(runtime.wandb_project) <= 128 or set(runtime.wandb_project) & set("/\\#?%:"):
        raise ConfigError(
            f"W&B project {runtime.wandb_project!r} is not a name W&B takes; "
            "give 1 to 128 characters without any of / \\ # ? % :"
        )


def start_mirror(runtime: Runtime, configurations: Sequence[Configuration]) -> subprocess.Popen[bytes] | None:
    """One process for all runs of a launch or a job; None where tracking is disabled or there is nothing to follow.

    Call it before the first of the runs starts: a failed record that stands already is an earlier attempt's. The
    process ends by itself once all runs have their records; or, for those that have none, when this process is gone
    or calls wait_for_mirror. One process and not one per run, because W&B costs 1.5 s of CPU to load and start, and
    5 ms for each further run. It has a session of its own, so Ctrl-C does not reach it.
    """
    validate(runtime)
    if runtime.tracking == "disabled" or not configurations:
        return None
    store = store_paths(runtime)
    followed = [
        Followed(c.run.run_id, c.variant, attempts.newest_attempt(store.run(c.run.run_id))) for c in configurations
    ]
    arguments = ["--store", runtime.store_dir, "--grid", configurations[0].grid, "--project", runtime.wandb_project]
    # The code of this very process, even where it is a snapshot that only sys.path knows.
    import_path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "transfergrid.tracking.mirror", *arguments, "--stdin"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": import_path},
        )
    except OSError as error:
        logger.warning("no W&B mirror: %s", error)
        return None
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps([asdict(f) for f in followed]).encode() + b"\n")
        process.stdin.flush()
    return process


def wait_for_mirror(process: subprocess.Popen[bytes] | None, timeout_s: float) -> bool:
    """Tell the mirror that no more runs will start, and wait for its end; whether it ended well within the time.

    One that is late is left alone: it ends by itself, soon after the last of its runs.
    """
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
        logger.warning("the W&B mirror ended with code %d; the runs are not touched by it, only W&B lacks rows", code)
    return code == 0


@dataclass(frozen=True, slots=True)
class Followed:
    """A run for the mirror to follow. after_attempt: a failed record up to this attempt was there before the launch."""

    run_id: str
    variant: str
    after_attempt: int


def sync_if_possible(runtime: Runtime, say: Callable[[str], None]) -> None:
    """Send what lies offline to W&B, where there is a key and its server answers; `say` gets one line on what was done.

    Never raises: a report does not fail for W&B's sake, and what was not sent now can be sent at any time.
    """
    folder = store_paths(runtime).wandb / "wandb"
    offline = sorted(folder.glob("offline-run-*"))
    if runtime.tracking == "disabled" or not offline:
        return
    by_hand = f"`wandb sync {folder}/offline-run-*` sends them"
    if not _has_key():
        say(f"W&B: {len(offline)} offline runs, no key on this machine; {by_hand}")
        return
    url = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    try:
        urllib.request.urlopen(f"{url}/healthz", timeout=5).close()
    except urllib.error.HTTPError:
        pass  # it answered
    except (OSError, ValueError, http.client.HTTPException) as error:  # nobody, or something that is no web server
        say(f"W&B: {len(offline)} offline runs, {url} does not answer ({one_line(error)}); {by_hand}")
        return
    command = [sys.executable, "-m", "wandb", "sync", *map(str, offline)]
    try:
        subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SYNC_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        say(f"W&B: sync did not end well ({said[-1] if said else error}); {by_hand}")
        return
    say(f"W&B: {len(offline)} runs sent to {url}")


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        host = urllib.parse.urlparse(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
        return netrc.netrc().authenticators(host or "") is not None
    except (OSError, ValueError, netrc.NetrcParseError):
        return False
