"""What the finish job does for W&B: it sends what it can, says one line, and never fails for W&B's sake."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from cluster_cases import executable, runtime_in

from transfergrid.paths import store_paths
from transfergrid.specs import Runtime
from transfergrid.tracking import sync_if_possible

KEY = "k" * 40


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """Two offline runs, a home without a key, no network beyond this machine."""
    runtime = replace(runtime_in(tmp_path), tracking="offline")
    for name in ("offline-run-20261120_120000-a", "offline-run-20261120_120001-b", "run-c", "logs"):
        (store_paths(runtime).wandb / "wandb" / name).mkdir(parents=True)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_API_KEY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    return runtime


@contextmanager
def server(answer: bytes) -> Iterator[str]:
    """Whatever it is asked, it answers this; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(30)

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                if answer:
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.join(30)


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for python -m wandb: it notes its arguments, says `says` on standard error, ends with `code`."""
    folder = tmp_path / "python"
    executable(
        folder / "python", f'echo "$*" >> {folder}/calls', f"cat {folder}/says >&2", f"exit $(cat {folder}/code)"
    )
    (folder / "says").touch()
    (folder / "code").write_text("0")
    monkeypatch.setattr("sys.executable", str(folder / "python"))
    return folder


def told(runtime: Runtime) -> list[str]:
    lines: list[str] = []
    sync_if_possible(runtime, lines.append)
    assert all("\n" not in line for line in lines)
    return lines


def by_hand(runtime: Runtime) -> str:
    return f"`wandb sync {store_paths(runtime).wandb}/wandb/offline-run-*` sends them"


def test_where_nothing_is_offline_or_tracking_is_disabled_nothing_is_said(tmp_path: Path, runtime: Runtime) -> None:
    assert told(replace(runtime, tracking="disabled")) == []
    assert told(replace(runtime, store_dir=str(tmp_path / "empty"))) == []


def test_without_a_key_it_says_how_to_send_them_by_hand(runtime: Runtime, python: Path) -> None:
    assert told(runtime) == [f"W&B: 2 offline runs, no key on this machine; {by_hand(runtime)}"]
    assert not (python / "calls").exists()


def test_a_server_that_does_not_answer_is_told_with_its_address(
    runtime: Runtime, python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    [line] = told(runtime)
    assert line.startswith(f"W&B: 2 offline runs, http://127.0.0.1:{port} does not answer (URLError: <urlopen")
    assert line.endswith(f"; {by_hand(runtime)}")
    assert not (python / "calls").exists()


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x", b"\0\0"])
def test_a_port_on_which_something_else_answers_does_no_harm(
    runtime: Runtime, python: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with server(answer) as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        [line] = told(runtime)
    sent = answer.startswith(b"HTTP")  # its header is good enough for a server that is there
    assert line.startswith(f"W&B: 2 runs sent to {url}" if sent else f"W&B: 2 offline runs, {url} does not answer (")
    assert (python / "calls").exists() is sent


@pytest.mark.parametrize("url", ["nonsense", "http://[", "http://127.0.0.1:port", "http://a b/"])
def test_an_address_that_is_none_does_no_harm(
    runtime: Runtime, python: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", url)
    [line] = told(runtime)
    assert line == f"W&B: 2 offline runs, no key on this machine; {by_hand(runtime)}"
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    [line] = told(runtime)
    assert line.startswith(f"W&B: 2 offline runs, {url} does not answer (")
    assert not (python / "calls").exists()


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found", "503 Service Unavailable"])
def test_where_there_is_a_key_and_the_server_answers_every_offline_run_is_sent(
    runtime: Runtime, python: Path, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with server(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()) as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        assert told(runtime) == [f"W&B: 2 runs sent to {url}"]
    folder = store_paths(runtime).wandb / "wandb"
    runs = " ".join(str(folder / f"offline-run-20261120_12000{i}-{name}") for i, name in enumerate("ab"))
    assert (python / "calls").read_text() == f"-m wandb sync {runs}\n"


def test_a_sync_that_fails_is_told_with_its_last_words(
    runtime: Runtime, python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    (python / "code").write_text("1")
    (python / "says").write_bytes("Syncing...\nError: permission denied — \xff\n".encode("latin-1", "replace"))
    with server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        [line] = told(runtime)
    assert line.startswith("W&B: sync did not end well (") and line.endswith(f"; {by_hand(runtime)}")


@pytest.mark.parametrize(
    ("netrc", "has_key"),
    [
        (None, False),
        (f"machine localhost login user password {KEY}\n", False),
        (f"machine 127.0.0.1 login user password {KEY}\n", True),
        ("<html>machine 127.0.0.1 login user password x</html>\n", False),
        ("machine 127.0.0.1 login user passw\xffrd x\n", False),
    ],
)
def test_a_key_is_looked_for_where_wandb_login_leaves_it(
    tmp_path: Path, runtime: Runtime, python: Path, netrc: str | None, has_key: bool
) -> None:
    if netrc is not None:
        (tmp_path / "home" / ".netrc").write_bytes(netrc.encode("latin-1"))
        (tmp_path / "home" / ".netrc").chmod(0o600)
    [line] = told(runtime)
    assert ("no key on this machine" in line) is not has_key
    assert ("http://127.0.0.1:9 does not answer" in line) is has_key
