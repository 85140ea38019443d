"""The key of W&B is in no file, in no output and in nothing that was sent but where it belongs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tracked_runs import (
    PATIENCE_S,
    Ended,
    assert_holds,
    carry_out,
    checkpoint,
    fail,
    scratch_run,
    start_mirror,
    sync,
    wait_until,
    write_grid,
    write_lines,
)
from wandb_server import StandIn

from transfergrid import tracking
from transfergrid.paths import StorePaths
from transfergrid.store import attempts
from transfergrid.store.records import RunRecord
from transfergrid.tracking.description import summarise

pytestmark = pytest.mark.wandb

KEY = "canary-of-the-environment-0123456789abcdef0123456789"
NETRC_KEY = "canary-of-netrc-fedcba9876543210fedcba9876543210ab"
CANARIES = (KEY, NETRC_KEY)


@dataclass
class Seen:
    """What was left by runs that were sent in every way, well and badly, with keys that are easy to find."""

    server: StandIn
    folder: Path
    ended: list[Ended] = field(default_factory=list)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("secrets")
    store = StorePaths(folder / "results")
    online, offline, failed = runs = [scratch_run(seed) for seed in range(3)]
    write_grid(store, runs)
    with StandIn(key=KEY, record_bodies=True) as server:
        told = Seen(server, folder)
        mirror = start_mirror(server, store, [online, failed])
        carry_out(store, online)
        with attempts.begin_attempt(store.run(failed.run_id), failed) as attempt:
            write_lines(store.run(failed.run_id), upto=6)
            checkpoint(attempt, lines=6)
            fail(store.run(failed.run_id), failed, attempt.number)
        assert tracking.wait_for_mirror(mirror, PATIENCE_S)
        mirror = start_mirror(server, store, [offline], mode="offline")
        carry_out(store, offline)
        assert tracking.wait_for_mirror(mirror, PATIENCE_S)
        for what in ("file_stream", "GetDefaultEntity", "Viewer"):
            server.fail(what, 403)
            told.ended.append(sync(server, store))
            server.clear_faults()
        told.ended.append(sync(server, store, WANDB_API_KEY=NETRC_KEY))  # well formed, and another's
        netrc = folder / "home" / ".netrc"
        netrc.write_text(f"machine 127.0.0.1:{server.port}\n  login user\n  password {NETRC_KEY}\n")
        netrc.chmod(0o600)
        server.key, server.authorization = NETRC_KEY, StandIn(key=NETRC_KEY).authorization
        told.ended.append(sync(server, store, WANDB_API_KEY=""))
        for run in (online, offline):
            assert_holds(server, store, run.run_id)
        yield told


def test_every_way_was_gone(seen: Seen) -> None:
    """Else the tests below would say nothing: two failed, two were refused, one sent what was missing."""
    assert [one.code for one in seen.ended] == [1, 1, 1, 1, 0], [one.out for one in seen.ended]
    assert seen.ended[-1].lines[0].endswith("3 read back and equal")
    assert len(seen.server.received) > 100


def test_no_key_is_in_any_file_or_output(seen: Seen) -> None:
    files = [path for path in seen.folder.rglob("*") if path.is_file() and path.name != ".netrc"]
    assert len(files) > 20
    for canary in CANARIES:
        assert [path for path in files if canary.encode() in path.read_bytes()] == []
        assert [one.out for one in seen.ended if canary in one.out] == []


def test_no_key_is_in_what_the_server_received_but_in_the_header_for_it(seen: Seen) -> None:
    for canary in CANARIES:
        assert not seen.server.seen_bytes(canary)
    assert seen.server.seen_bytes("baseline_cnn")


def test_the_mirror_has_the_key_in_its_environment_and_not_on_its_command_line(tmp_path: Path) -> None:
    """Command lines are there for every user of the machine to read."""
    store = StorePaths(tmp_path / "results")
    with StandIn(key=KEY) as server:
        mirror = start_mirror(server, store, [scratch_run()])
        process = Path(f"/proc/{mirror.pid}")
        wait_until(lambda: b"tracking.mirror" in (process / "cmdline").read_bytes())
        assert KEY.encode() not in (process / "cmdline").read_bytes()
        assert KEY.encode() in (process / "environ").read_bytes()
        assert tracking.wait_for_mirror(mirror, PATIENCE_S)


def test_what_looks_like_a_secret_in_a_record_does_not_leave_the_machine_in_the_clear() -> None:
    """Whatever a later version may write there; the files that are sent hold settings and numbers alone."""
    record = RunRecord(
        run_id="r", spec=scratch_run(), status="completed", metrics={"api_key": 1.5, "test_accuracy": 0.5}
    )
    told = summarise(record)
    assert (told["api_key"], told["test_accuracy"]) == ("redacted", 0.5)
