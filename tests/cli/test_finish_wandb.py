"""What the finish job does for W&B where it cannot: one line, never an error. Where it can, see test_slurm_grid."""

from __future__ import annotations

import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from cluster_cases import console, runtime_in, said

from transfergrid.cli.finish import sync_and_report
from transfergrid.cluster.child import ask
from transfergrid.config.spelling import command_of_grid
from transfergrid.paths import store_paths
from transfergrid.specs import Runtime

KEY = "k" * 40


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """A home without a key; a server at a port where nobody listens."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_API_KEY", "NETRC", "WANDB_CONFIG_DIR", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    return replace(runtime_in(tmp_path), tracking="online")


def told(runtime: Runtime) -> str:
    screen = console()
    lines = sync_and_report(screen, runtime, "quickstart")
    assert lines == said(screen)  # what a launcher that waits is told is what the log holds
    return " ".join(lines)


@pytest.mark.parametrize("mode", ["disabled", "offline"])
def test_where_tracking_is_disabled_nothing_is_said(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, mode: Literal["disabled", "offline"]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert told(replace(runtime, tracking=mode)) == ""


def test_without_a_key_it_says_how_to_send_it_later(runtime: Runtime) -> None:
    text = told(runtime)
    assert "no W&B key for http://127.0.0.1:9 on this machine" in text
    by_hand = command_of_grid("sync.py", "quickstart", store_paths(runtime))
    assert f"`{by_hand}` sends what the server lacks" in text


def test_a_key_in_netrc_is_one(runtime: Runtime, tmp_path: Path) -> None:
    netrc = tmp_path / "home" / ".netrc"
    netrc.write_text(f"machine 127.0.0.1:9\n  login user\n  password {KEY}\n")
    netrc.chmod(0o600)
    assert "http://127.0.0.1:9 does not answer" in told(runtime)


def test_a_server_that_does_not_answer_is_told_with_its_address(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    text = told(runtime)
    assert "http://127.0.0.1:9 does not answer" in text and KEY not in text


def test_an_address_that_is_none_does_no_harm(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "not an address")
    assert "not an address does not answer" in told(runtime)


def test_a_server_that_hangs_is_given_up(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr("transfergrid.tracking.account.ANSWER_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "timed out" in told(runtime)


def test_what_hangs_is_ended_in_time_and_the_reason_says_so() -> None:
    began = time.monotonic()
    answer = ask(time.sleep, (60,), runs_follow=False, timeout_s=0.2)
    assert answer.error == "it did not end within 0.2 s" and time.monotonic() - began < 10
