"""Whose W&B: server, key, entity and project, from where W&B itself looks for them; and the environment it runs in.

The key is looked for, never read: nothing of this package holds it, so nothing can write it anywhere.
"""

from __future__ import annotations

import configparser
import contextlib
import http.client
import netrc
import os
import shutil
import signal
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfergrid.errors import MachineError, one_line
from transfergrid.paths import StorePaths
from transfergrid.store import durable

ANSWER_TIMEOUT_S = 5.0
LEFT_BEHIND_S = 86_400.0
SILENT = "did not respond in time"  # in the words of W&B's own process, which tries again where a server fails (5xx)
KEPT = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_HTTP_TIMEOUT")  # of the user's variables, when online


class Unreachable(MachineError):
    """W&B cannot be used from here and now: no key, no server, no permission; one line with the reason."""


@dataclass(frozen=True, slots=True)
class Account:
    """A project on a W&B server. entity: a user's or a team's name; None: the default of whoever the key belongs to."""

    url: str
    project: str
    entity: str | None = None

    def path(self, run_id: str = "") -> str:
        """`entity/project/run_id` as W&B's public API takes it."""
        return "/".join(part for part in (self.entity, self.project, run_id) if part)


def find_account(project: str, entity: str | None = None) -> Account:
    """Raises Unreachable where there is no key for the server."""
    url = server_url()
    if not has_key(url):
        raise Unreachable(f"no W&B key for {url} on this machine; run `wandb login`, or set WANDB_API_KEY")
    return Account(url, project, entity or os.environ.get("WANDB_ENTITY") or _settings_file().get("entity"))


def server_url() -> str:
    """As W&B finds it: WANDB_BASE_URL, else what `wandb login --host` left, else W&B's own service."""
    found = os.environ.get("WANDB_BASE_URL") or _settings_file().get("base_url")
    if not found:
        import wandb  # here, because it takes 0.7 s to load

        found = str(wandb.Settings.model_fields["base_url"].default)
    parts = urllib.parse.urlsplit(found.rstrip("/"))
    # A name and a password in it would stand in every message; W&B has no use for them.
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def has_key(url: str) -> bool:
    """Whether WANDB_API_KEY is set, or a netrc file has a key for this server."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        place = urllib.parse.urlparse(url).netloc  # as `wandb login` writes it and looks for it: with the port
        return netrc.netrc(os.environ.get("NETRC")).authenticators(place) is not None
    except (OSError, ValueError, netrc.NetrcParseError):
        return False


def why_silent(url: str) -> str | None:
    """None where a web server answers at the address, whatever it says; else the reason, on one line."""
    if not url.startswith(("http://", "https://")):
        return "an address begins with http:// or https://; mend WANDB_BASE_URL"
    try:
        urllib.request.urlopen(f"{url}/healthz", timeout=ANSWER_TIMEOUT_S).close()
    except urllib.error.HTTPError as answer:
        answer.close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        return one_line(error)
    return None


def use_environment(store: StorePaths, *, url: str | None) -> None:
    """W&B keeps to the store and to itself: nothing in $HOME or a node's temporary folder, and of the user's settings
    only the key and the way to it. url: of the server; None: no key either, and no network at all."""
    kept = {name: os.environ[name] for name in KEPT if url is not None and os.environ.get(name)}
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]
    for folder in (store.wandb, *(store.wandb / name for name in ("data", "cache", "config", "locks", "tmp"))):
        durable.make_folder(folder)
    _sweep(store)
    os.environ |= kept | {
        # In the environment, not only as an argument: else W&B's exit still looks up its server's address.
        "WANDB_MODE": "offline" if url is None else "online",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_SILENT": "true",
        "WANDB_DIR": str(store.wandb),
        "WANDB_DATA_DIR": str(store.wandb / "data"),
        "WANDB_CACHE_DIR": str(store.wandb / "cache"),
        "WANDB_CONFIG_DIR": str(store.wandb / "config"),
    }
    if url is not None:
        os.environ["WANDB_BASE_URL"] = url
    end_wandb()  # one that was set up before would keep to what was set then


def _sweep(store: StorePaths) -> None:
    """What processes left behind that were killed a day ago or longer."""
    for pattern in ("syncing-*", "publishing-*", "tmp/*"):
        for path in store.wandb.glob(pattern):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > LEFT_BEHIND_S:
                    shutil.rmtree(path)


def make_api(account: Account, *, timeout_s: int = 20) -> Any:
    """W&B's public API, for reading. Raises Unreachable; call use_environment first."""
    import wandb

    try:
        return wandb.Api(overrides={"base_url": account.url, "entity": account.entity}, timeout=timeout_s)
    except Exception as error:  # one class of W&B's for a key that is refused and for a server that fails
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        if SILENT in reason:
            told = "it fails or is silent when asked whose key this is; try again when it answers"
        else:
            remedy = "for a key of this server run `wandb login --relogin`, or set WANDB_API_KEY"
            told = f"it does not say whose key this is ({reason}); {remedy}"
        raise Unreachable(f"{account.url}: {told}") from error


def end_wandb(patience_s: float = 5.0) -> None:
    """End W&B's own process, by force if need be: it would go on sending when nobody holds the runs' locks any more."""
    if "wandb" not in sys.modules:
        return
    import wandb

    def ask() -> None:
        with contextlib.suppress(Exception):
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
    found = []
    for child in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            name, _, rest = (child / "stat").read_text().rpartition(")")
            state, parent = rest.split()[:2]
            if name.endswith("(wandb-core") and int(parent) == os.getpid() and state != "Z":
                found.append(int(child.name))
    return found


def _settings_file() -> dict[str, str]:
    """What `wandb login --host` and `wandb init` leave; a file nearer to the working folder wins."""
    home = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read([home / "settings", Path("wandb") / "settings"], encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return {}
    return dict(parser["default"]) if parser.has_section("default") else {}
