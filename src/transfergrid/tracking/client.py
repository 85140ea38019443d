"""W&B's own client: the folder and the environment it works in, the one way to open a run, and how it is ended."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transfergrid.errors import MachineError, one_line
from transfergrid.paths import StorePaths
from transfergrid.store import durable
from transfergrid.store.process import temporary_environment
from transfergrid.tracking.account import SETTINGS_FILE, Account, Unreachable, key_place, settings_file

DELETED = "previously created and deleted"  # in the words of W&B's server: its answer has no code of its own for it
SILENT = "did not respond in time"  # in the words of W&B's own process, which tries again where a server fails (5xx)
KEPT = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_HTTP_TIMEOUT")  # of the user's variables
LEFTOVERS = ("session-*", "syncing-*", "publishing-*", "tmp/*")  # the last three of earlier releases
# On other machines, whose locks may not be seen here; on this one, between making a folder and locking it.
LEFT_BEHIND_S, LEFT_HERE_S = 86_400.0, 1.0
NOT_FINISHED = 75  # W&B's exit code of a run that was interrupted or lost: the next attempt continues it
# Lean, because the mirror shares its cores with training: no console capture, no system statistics, no code, no git.
SETTINGS: dict[str, Any] = {
    "console": "off",
    "silent": True,
    "disable_git": True,
    "disable_code": True,
    "x_disable_stats": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    "init_timeout": 30.0,
    "finish_timeout_raises": True,
}


class DeletedRun(MachineError):
    """Somebody has deleted the run of this id in W&B, which never takes the id again."""


@contextlib.contextmanager
def wandb_session(store: StorePaths, url: str) -> Iterator[Path]:
    """W&B within this block keeps to itself: it gets a folder of its own below the store's, and of the user's variables
    only the key and the way to it. Its process, folder and variables end with the block. url: of the server."""
    variables = {name: v for name, v in os.environ.items() if not name.startswith("WANDB_") or (name in KEPT and v)}
    if key_place(url) == SETTINGS_FILE:  # which lies in a folder that W&B does not get here
        variables["WANDB_API_KEY"] = settings_file()["api_key"]
    variables |= {"WANDB_MODE": "online", "WANDB_BASE_URL": url, "WANDB_ERROR_REPORTING": "false"}
    durable.make_folder(store.wandb)
    _sweep(store)
    place = store.wandb.resolve()  # W&B's own process need not have the same working folder
    prefix = f"session-{socket.gethostname()}-"
    with tempfile.TemporaryDirectory(dir=place, prefix=prefix, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        variables |= {"WANDB_SILENT": "true", "WANDB_DIR": name}
        variables |= {f"WANDB_{kind}_DIR": f"{name}/{kind.lower()}" for kind in ("DATA", "CACHE", "CONFIG")}
        with durable.lock(folder / ".lock", wait=False), temporary_environment(variables), quiet_threads():
            end_wandb()  # one that was set up before would keep to what was set then
            try:
                yield folder
            finally:
                end_wandb()  # it writes there until it ends


@contextlib.contextmanager
def quiet_threads() -> Iterator[None]:
    """W&B's own threads, which ask its process for news, end with a traceback where that dies. It tells nothing: what
    could not be sent is an error of the call that sends it."""
    usual = threading.excepthook

    def tell(ended: threading.ExceptHookArgs) -> None:
        frames = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(ended.exc_traceback))
        outermost = next((module for module in frames if module != "threading"), "")
        if not outermost.startswith("wandb."):
            usual(ended)

    threading.excepthook = tell
    try:
        yield
    finally:
        threading.excepthook = usual


def _sweep(store: StorePaths) -> None:
    """Remove what killed processes left behind."""
    place = store.wandb.resolve()
    in_use = list(files_open())
    for path in [path for pattern in LEFTOVERS for path in place.glob(pattern)]:
        is_own = path.name.startswith(f"session-{socket.gethostname()}-")
        with contextlib.suppress(OSError):
            is_old = time.time() - path.stat().st_mtime > (LEFT_HERE_S if is_own else LEFT_BEHIND_S)
            is_held = durable.is_locked(path / ".lock") or any(name.startswith(f"{path}/") for name in in_use)
            if is_old and not is_held:
                shutil.rmtree(path)


def files_open() -> Iterator[str]:
    """Files that W&B's own processes of this user have open, whoever started them."""
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and (process / "comm").read_text().strip() == "wandb-core":
                yield from [os.readlink(file) for file in (process / "fd").iterdir()]


def open_run(account: Account, folder: Path, *, finish_s: float = 30.0, **described: Any) -> Any:
    """The W&B run of this id, new or continued, whichever attempt or process carries a part of it. folder: what
    wandb_session gave. finish_s: how long its end may take. described: of wandb.init. Raises DeletedRun."""
    import wandb  # here: a process without anything to send should cost nothing

    try:
        run = wandb.init(
            project=account.project,
            entity=account.entity,
            dir=str(folder),
            mode="online",
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(**SETTINGS, finish_timeout=finish_s),
            **described,
        )
    except wandb.errors.CommError as error:
        if DELETED in str(error):
            raise DeletedRun(one_line(error)) from error
        raise
    # Where its folder cannot be written W&B falls back to a temporary one of this machine.
    if not Path(run.dir).is_relative_to(folder):
        run.finish(exit_code=NOT_FINISHED)
        raise MachineError(f"{folder.parent} is not writable (W&B took {run.dir}); mend its permissions")
    return run


def make_api(account: Account, *, timeout_s: int = 20) -> Any:
    """W&B's public API, for reading, within a wandb_session. Raises Unreachable."""
    import wandb

    try:
        return wandb.Api(overrides={"base_url": account.url, "entity": account.entity}, timeout=timeout_s)
    except Exception as error:  # one class of W&B's for a key that is refused and for a server that fails
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        if SILENT in reason:
            message = "it fails or is silent when asked whose key this is; try again when it answers"
        else:
            remedy = "for a key of this server run `wandb login --relogin`, or set WANDB_API_KEY"
            message = f"it does not say whose key this is ({reason}); {remedy}"
        raise Unreachable(f"{account.url}: {message}") from error


def end_wandb(patience_s: float = 5.0) -> None:
    """End W&B's own process, by force if need be: it would go on sending when nobody holds the runs' locks any more."""
    if "wandb" not in sys.modules:
        return
    import wandb

    def ask() -> None:
        # Where its process was killed, W&B ends this thread with that process's exit code.
        with contextlib.suppress(Exception, SystemExit):
            wandb.teardown()

    for wait_s in (patience_s, 1.0):  # once more when it is dead, so that W&B does not look for it at the exit
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(wait_s)
        for pid in wandb_processes():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def wandb_processes() -> list[int]:
    """Ids of W&B's own processes that this one has started and that are alive."""
    pids = []
    for child in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            name, _, rest = (child / "stat").read_text().rpartition(")")
            state, parent = rest.split()[:2]
            if name.endswith("(wandb-core") and int(parent) == os.getpid() and state != "Z":
                pids.append(int(child.name))
    return pids
