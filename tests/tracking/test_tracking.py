"""What a launch decides about W&B, and what that costs it: a machine without a key loads nothing of W&B."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tracked_runs import environment, runtime_of, scratch_run, wait_until
from wandb_server import StandIn

from transfergrid import tracking
from transfergrid.errors import ConfigError
from transfergrid.paths import StorePaths
from transfergrid.specs import Configuration, Runtime
from transfergrid.tracking import account, description

KEY = "k" * 40


# -------------------------------------------------------------------------------------------------------- tracking=auto
@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home; a server at a port where nobody listens."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC", "WANDB_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    return tmp_path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, nobody: Path) -> Iterator[StandIn]:
    with StandIn() as running:
        monkeypatch.setenv("WANDB_BASE_URL", running.url)
        yield running


def decided(folder: Path) -> tuple[Runtime, str]:
    runtime, line = tracking.decided(runtime_of(StorePaths(folder / "results"), grid="g"))
    assert line is not None
    return runtime, line


def test_without_a_key_nothing_is_sent_and_the_line_says_how_to_turn_it_on(nobody: Path) -> None:
    runtime, line = decided(nobody)
    assert runtime.tracking == "disabled"
    assert line == ("W&B: nothing is sent: no key for http://127.0.0.1:9 here; run `wandb login`, or set WANDB_API_KEY")
    assert list(nobody.iterdir()) == []


def test_a_key_goes_to_no_server_that_only_the_working_folder_names(
    nobody: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.delenv("WANDB_BASE_URL")
    (nobody / "wandb").mkdir()
    (nobody / "wandb/settings").write_text("[default]\nbase_url = http://127.0.0.1:9\n")
    runtime, line = decided(nobody)
    assert runtime.tracking == "disabled"
    assert line.startswith("W&B: nothing is sent: wandb/settings in this folder names http://127.0.0.1:9;")


def test_without_a_server_nothing_is_sent_and_the_line_names_it(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    runtime, line = decided(nobody)
    assert runtime.tracking == "disabled"
    assert line.startswith("W&B: nothing is sent: http://127.0.0.1:9 does not answer (")
    assert line.endswith("; send it later: python jobs/sync.py grid=g")


def test_a_server_that_is_silent_holds_a_launch_up_for_two_seconds_at_most(
    nobody: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert account.DECISION_TIMEOUT_S == 2.0
    monkeypatch.setattr(tracking, "DECISION_TIMEOUT_S", 0.1)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        runtime, line = decided(nobody)
        assert time.monotonic() - began < 2.0
    assert runtime.tracking == "disabled" and "timed out" in line


@pytest.mark.parametrize("place", ["environment", "netrc", "settings file"])
def test_with_a_key_and_a_server_it_is_online_wherever_wandb_finds_the_key(
    server: StandIn, nobody: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    if place == "environment":
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    elif place == "netrc":
        (nobody / ".netrc").write_text(f"machine 127.0.0.1:{server.port}\n  login user\n  password {KEY}\n")
    else:
        (nobody / "settings").write_text(f"[default]\napi_key = {KEY}\n")
        monkeypatch.setenv("WANDB_CONFIG_DIR", str(nobody))
    runtime, line = decided(nobody)
    assert runtime.tracking == "online"
    assert line == f"W&B: the numbers go to {server.url}; tracking=disabled sends nothing"


def test_what_is_asked_for_is_not_decided_again(server: StandIn, nobody: Path) -> None:
    asked = runtime_of(StorePaths(nobody), tracking="offline")
    assert tracking.decided(asked) == (asked, None)
    assert server.requests == []


def test_with_auto_and_no_key_neither_wandb_nor_torch_is_loaded(nobody: Path) -> None:
    code = (
        "import sys, transfergrid.tracking.mirror\n"
        "from transfergrid import specs, tracking\n"
        "runtime = specs.Runtime(store_dir='s', cache_dir='c', data_dir='d', weights_dir='w')\n"
        "print(tracking.decided(runtime)[0].tracking, [n for n in ('wandb', 'torch') if n in sys.modules])"
    )
    without_url = {name: value for name, value in os.environ.items() if name != "WANDB_BASE_URL"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=without_url)
    assert done.stdout == "disabled []\n"


# ------------------------------------------------------------------------------------------------------ without sending
@pytest.mark.parametrize("mode", ["auto", "disabled", "offline"])  # auto, where no launch has decided it
def test_other_tracking_than_online_starts_no_process(tmp_path: Path, mode: str) -> None:
    runtime = runtime_of(StorePaths(tmp_path), tracking=mode)
    assert tracking.start_mirror(runtime, [Configuration(grid="g", variant="", run=scratch_run())]) is None
    assert tracking.wait_for_mirror(None, 0)
    assert list(tmp_path.iterdir()) == []


def test_online_tracking_needs_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = StorePaths(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    online = runtime_of(store, tracking="online")
    with pytest.raises(ConfigError, match="no W&B key for http://127.0.0.1:9 on this machine; run `wandb login`"):
        tracking.validate(online, sends=True)
    tracking.validate(online)  # a launch to SLURM: its jobs send, on other machines
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    tracking.validate(online, sends=True)
    with pytest.raises(ConfigError, match="'a/b' is not a name W&B takes"):
        tracking.validate(runtime_of(store, wandb_project="a/b"))
    assert list(tmp_path.iterdir()) == []


def test_what_looks_like_a_secret_is_redacted_and_tags_are_cut_to_what_wandb_takes() -> None:
    assert description.redacted({"wandb_api_key": "a", "hf_Token": "b", "lr": 0.1, "password2": "c"}) == {
        "wandb_api_key": "redacted",
        "hf_Token": "redacted",
        "lr": 0.1,
        "password2": "redacted",
    }
    told = description.describe(scratch_run(), grid="g" * 200, variant="digits")
    assert told["tags"][1:] == ["baseline_cnn", "digits", "scratch"]
    assert told["tags"][0].startswith("grid:ggg") and len(told["tags"][0]) == 64 and len(told["group"]) == 128


@pytest.mark.slow
def test_a_mirror_without_anything_to_send_ends_with_its_launcher(tmp_path: Path) -> None:
    store = StorePaths(tmp_path / "results")
    launcher = (
        "import os, pathlib, sys\n"
        "from tracked_runs import StorePaths, runtime_of, scratch_run\n"
        "from transfergrid import tracking\n"
        "from transfergrid.specs import Configuration\n"
        "runtime = runtime_of(StorePaths(pathlib.Path(sys.argv[1])), tracking='online')\n"
        "one = Configuration(grid='g', variant='', run=scratch_run())\n"
        "print(tracking.start_mirror(runtime, [one]).pid, flush=True)\n"
        "os._exit(0)"
    )
    support = Path(__file__).parents[1] / "support"
    env = environment(None, tmp_path / "home", PYTHONPATH=str(support), WANDB_API_KEY=KEY)
    command = [sys.executable, "-c", launcher, str(store.root)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    wait_until(lambda: not Path(f"/proc/{int(done.stdout)}").exists())
    assert [path.name for path in store.wandb.rglob("*")] == ["logs"]
