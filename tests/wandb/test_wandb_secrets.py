"""The key of W&B is in no file, in no output and in nothing that was sent but where it belongs; pictures and names of
files are sent only where the user asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from PIL import Image
from tracked_runs import (
    CLASS_NAMES,
    PATIENCE_S,
    Ended,
    assert_holds,
    carry_out,
    checkpoint,
    environment,
    fail,
    scratch_run,
    script,
    start_mirror,
    sync,
    verified,
    wait_until,
    write_grid,
    write_lines,
)
from wandb_server import StandIn

from transfergrid import tracking
from transfergrid.paths import StorePaths
from transfergrid.specs import RunSpec
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
        carry_out(store, offline)
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


# --------------------------------------------------------------------------------------- pictures and names of files
PICTURE = "portrait-of-somebody.png"


def with_pictures(store: StorePaths) -> RunSpec:
    """A grid on a folder of the user's: a run that left a picture out, and one that failed of it. The first."""
    done, broken = (scratch_run(seed) for seed in range(2))
    done, broken = (replace(r, dataset=replace(r.dataset, kind="image_folder", name="mine")) for r in (done, broken))
    write_grid(store, [done, broken])
    inventory = {"damaged": 1, "damaged_files": [f"train/cat/{PICTURE}"]}
    carry_out(store, done, details={"n_test": 50, "class_names": CLASS_NAMES, "inventory": inventory})
    with attempts.begin_attempt(store.run(broken.run_id), broken) as attempt:
        write_lines(store.run(broken.run_id), upto=6)
        error = f"mine/train/cat/{PICTURE} cannot be read"
        fail(store.run(broken.run_id), broken, attempt.number, error=error, failure_class="data")
    return done


def test_pictures_and_names_of_files_are_sent_only_where_the_user_asks_for_it(tmp_path: Path) -> None:
    store = StorePaths(tmp_path / "results")
    done = with_pictures(store)
    where = ["grid=g", f"store.dir={store.root}"]
    figure = store.report("g") / "figures" / "errors-mine.png"
    with StandIn(record_bodies=True) as server:
        env = environment(server, tmp_path / "home")

        def publish(*more: str) -> list[str]:
            ended = script(
                "report.py", *where[:2], "figures=keep", "publish=true", *more, env=env, cwd=tmp_path / "home"
            )
            assert ended.lines[-1].startswith("W&B: all is there"), ended.out
            files = server.run("report-g").files
            return sorted(Path(name).suffix for name in files if name.startswith("media/") and "table" not in name)

        assert sync(server, store).lines == [verified(2, sent=2)]
        script("report.py", *where, "figures=false", env=env, cwd=tmp_path / "home")
        figure.parent.mkdir(exist_ok=True)
        Image.new("RGB", (9, 9)).save(figure)
        assert publish() == []
        assert server.seen_bytes("baseline_cnn") and server.seen_bytes("may name files")
        assert not server.seen_bytes(PICTURE)
        assert not server.seen_bytes("<html")
        assert sync(server, store).lines == [verified(2, sent=0)]

        assert sync(server, store, arguments=["tracking.images=true"]).lines == [verified(2, sent=2)]
        assert server.seen_bytes(PICTURE)
        assert server.run(done.run_id).files["record.json"] == store.run(done.run_id).record.read_bytes()
        assert publish("tracking.images=true") == [".png"]
        assert server.seen_bytes("<html")
