"""Whose W&B: server, key, entity and project, from where W&B itself looks for them.

The key is looked for, never kept: nothing of this package holds it, so nothing can write it anywhere. Nothing here
loads W&B: a launch without a key costs nothing.
"""

from __future__ import annotations

import configparser
import netrc
import os
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transfergrid.errors import MachineError
from transfergrid.store import network

DEFAULT_URL = "https://api.forge.coreweave.com"  # W&B's own service, as its client has it
FORMER_HOST = "api.wandb.ai"  # the same service: a key for either opens both
ANSWER_TIMEOUT_S = 5.0
DECISION_TIMEOUT_S = 2.0  # for tracking=auto, which may not hold up a launch
ENVIRONMENT_KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
SETTINGS_FILE = "W&B's settings file"
TURN_ON = "run `wandb login`, or set WANDB_API_KEY"


class Unreachable(MachineError):
    """W&B cannot be used from here and now: no key, no server, no permission; one line with the reason."""


@dataclass(frozen=True, slots=True)
class Account:
    """A project on a W&B server. entity: a user's or a team's name; None: the default of whoever the key belongs to."""

    url: str
    project: str
    entity: str | None = None

    def path(self) -> str:
        """`entity/project`, as W&B shows it."""
        return f"{self.entity}/{self.project}" if self.entity else self.project


def find_account(project: str, entity: str | None = None) -> Account:
    """Raises Unreachable where there is no key for the server."""
    url = server_url()
    if key_place(url) is None:
        raise Unreachable(f"no W&B key for {url} on this machine; {TURN_ON}")
    return Account(url, project, entity or os.environ.get("WANDB_ENTITY") or settings_file().get("entity"))


def server_url(environ: Mapping[str, str] = os.environ) -> str:
    """As W&B finds it: WANDB_BASE_URL, else what `wandb login --host` left, else W&B's own service."""
    url = environ.get("WANDB_BASE_URL") or settings_file(environ).get("base_url") or DEFAULT_URL
    parts = urllib.parse.urlsplit(url.rstrip("/"))
    # A name and a password in it would stand in every message; W&B has no use for them.
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def key_place(url: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """Where the key for this server is: a variable's name or a file; None where W&B would find none."""
    for name in ENVIRONMENT_KEYS:
        if environ.get(name):
            return name
    host = urllib.parse.urlsplit(url).netloc  # as `wandb login` writes it and looks for it: with the port
    hosts = (host, FORMER_HOST) if url == DEFAULT_URL else (host,)
    home = Path(environ.get("HOME") or "~").expanduser()
    own = environ.get("NETRC")
    for path in (Path(own).expanduser(),) if own else (home / ".netrc", home / "_netrc"):
        try:
            entries = netrc.netrc(path)
        except (OSError, ValueError, netrc.NetrcParseError):
            continue
        if any((entry := entries.authenticators(name)) and entry[2] for name in hosts):
            return str(path)
    return SETTINGS_FILE if settings_file(environ).get("api_key") else None


def settings_file(environ: Mapping[str, str] = os.environ, *, of_user: bool = False) -> dict[str, str]:
    """What `wandb login --host` and `wandb init` leave; the working folder's file wins. of_user: without that one."""
    user = Path(environ.get("HOME") or "~") / ".config" / "wandb"
    home = Path(environ.get("WANDB_CONFIG_DIR") or user).expanduser()
    parser = configparser.ConfigParser(interpolation=None)
    try:
        here = [] if of_user else [Path("wandb") / "settings"]
        parser.read([home / "settings", *here], encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return {}
    return dict(parser["default"]) if parser.has_section("default") else {}


def is_named_here_alone(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the working folder alone names the server: a copied folder must not decide who gets the user's key."""
    here = settings_file(environ).get("base_url")
    named = environ.get("WANDB_BASE_URL") or settings_file(environ, of_user=True).get("base_url") or DEFAULT_URL
    return here is not None and here.rstrip("/") != named.rstrip("/") and not environ.get("WANDB_BASE_URL")


def why_silent(url: str, *, timeout_s: float | None = None) -> str | None:
    """None where a web server answers at the address, whatever it says; else the reason, on one line."""
    if not url.startswith(("http://", "https://")):
        return "an address begins with http:// or https://; mend WANDB_BASE_URL"
    return network.why_silent(f"{url}/healthz", timeout_s=ANSWER_TIMEOUT_S if timeout_s is None else timeout_s)
