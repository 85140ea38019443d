"""Files that must survive: whole or absent, one winner, locks that die with their holder."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from multiprocessing.context import ForkContext, ForkProcess
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

import pytest

from transfergrid.errors import MachineError
from transfergrid.store import durable

FORK: ForkContext = multiprocessing.get_context("fork")
ENDED_PID = 2**22 + 1  # above the kernel's largest process number


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    final = tmp_path / "record.json"
    durable.write_json(final, {"a": 1})

    def fail(temporary: Path) -> None:
        temporary.write_text("half of a new")
        raise RuntimeError("killed here")

    with pytest.raises(RuntimeError, match="killed here"):
        durable.write_with(final, fail)
    with pytest.raises(ValueError, match="JSON"):
        durable.write_json(final, {"loss": float("nan")})
    assert durable.read_json(final) == {"a": 1} and names(tmp_path) == ["record.json"]


def test_a_written_file_replaces_the_old_one_whole(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "er" / "record.json"
    for value in range(3):
        durable.write_json(final, {"value": value})
    assert final.read_text() == '{\n  "value": 2\n}\n' and names(final.parent) == ["record.json"]


def test_a_reader_never_sees_half_a_file_while_it_is_replaced(tmp_path: Path) -> None:
    final = tmp_path / "checkpoint"
    contents = {bytes([value]) * 300_000 for value in (1, 2)}
    durable.write_bytes(final, min(contents))

    def replace_for_ever() -> None:
        while True:
            for content in contents:
                durable.write_bytes(final, content)

    writer = FORK.Process(target=replace_for_ever)
    writer.start()
    seen: set[bytes] = set()
    until = time.monotonic() + 0.5
    while time.monotonic() < until or len(seen) < 2:
        seen.add(final.read_bytes())
    writer.kill()
    writer.join()
    assert seen == contents


def test_a_claim_has_one_winner_among_eight_processes(tmp_path: Path) -> None:
    def claim_all(number: int, barrier: Barrier) -> None:
        barrier.wait()
        for round_ in range(20):
            if durable.claim(tmp_path / f"{round_}.json", b"%d" % number * 1000):
                (tmp_path / f"winner-{round_}-{number}").touch()

    barrier = FORK.Barrier(8)
    children = [FORK.Process(target=claim_all, args=(number, barrier)) for number in range(8)]
    run_all(children)
    for round_ in range(20):
        (winner,) = tmp_path.glob(f"winner-{round_}-*")
        assert (tmp_path / f"{round_}.json").read_text() == winner.name[-1] * 1000
    assert len(names(tmp_path)) == 40  # and no temporary file


def test_a_lock_dies_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "run" / ".lock"

    def hold(held: Event) -> None:
        with durable.lock(path, wait=True):
            held.set()
            time.sleep(60)

    held = FORK.Event()
    holder = FORK.Process(target=hold, args=(held,))
    holder.start()
    assert held.wait(10)
    with durable.lock(path, wait=False) as obtained:
        assert not obtained
    assert durable.is_locked(path)
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert not durable.is_locked(path)
    with durable.lock(path, wait=False) as obtained:
        assert obtained and durable.is_locked(path)
    assert not durable.is_locked(tmp_path / "never_made")


def test_sweep_removes_what_ended_processes_of_this_machine_left(tmp_path: Path) -> None:
    mine = durable.temporary_beside(tmp_path / "features.h5")
    ended = mine.with_name(mine.name.replace(f".{os.getpid()}.", f".{ENDED_PID}."))
    elsewhere = tmp_path / f".features.h5.another-node.{ENDED_PID}.00000000.tmp"
    for path in (mine, ended, elsewhere, tmp_path / ".hidden.tmp", tmp_path / "features.h5"):
        path.touch()
    durable.sweep(tmp_path)
    assert not ended.exists()
    assert names(tmp_path) == sorted([mine.name, elsewhere.name, ".hidden.tmp", "features.h5"])
    durable.sweep(tmp_path / "never_made")


def test_a_temporary_file_of_a_killed_writer_is_swept_by_the_next(tmp_path: Path) -> None:
    def write_slowly(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    children = [FORK.Process(target=durable.write_with, args=(tmp_path / "weights.pt", write_slowly)) for _ in range(3)]
    run_all(children, exitcode=-signal.SIGKILL)
    assert len(names(tmp_path)) == 3 and not (tmp_path / "weights.pt").exists()
    durable.sweep(tmp_path)
    assert names(tmp_path) == []


def test_folders_take_the_group_permissions_of_their_parent(tmp_path: Path) -> None:
    shared = tmp_path / "lab"
    shared.mkdir()
    shared.chmod(0o2770)
    durable.make_folder(shared / "runs" / "one")
    for folder in (shared / "runs", shared / "runs" / "one"):
        assert folder.stat().st_mode & 0o2070 == 0o2070


def test_a_file_where_a_folder_is_needed_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "results").touch()
    with pytest.raises(MachineError, match="a file stands where a folder is needed"):
        durable.write_json(tmp_path / "results" / "record.json", {})


def run_all(children: list[ForkProcess], *, exitcode: int = 0) -> None:
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == exitcode


def test_in_a_shared_folder_every_file_can_be_written_by_the_group(tmp_path: Path) -> None:
    """A lab's store is setgid and group-writable: what one makes there under the usual umask, others go on with."""
    shared, own = tmp_path / "shared", tmp_path / "own"
    for folder, mode in ((shared, 0o2775), (own, 0o755)):
        folder.mkdir()
        folder.chmod(mode)
    before = os.umask(0o022)
    try:
        for folder in (shared, own):
            durable.write_json(folder / "deep" / "record.json", {})
            durable.append_line(folder / "ledger.jsonl", b"{}")
            durable.claim(folder / "001.json", b"{}")
            with durable.lock(folder / ".lock", wait=True):
                pass
    finally:
        os.umask(before)
    for name in ("deep/record.json", "ledger.jsonl", "001.json", ".lock"):
        assert (shared / name).stat().st_mode & 0o060 == 0o060, name
        assert (own / name).stat().st_mode & 0o020 == 0, name
    assert (shared / "deep").stat().st_mode & 0o2070 == 0o2070
