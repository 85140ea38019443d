"""File systems without locks: what stands in for them keeps second processes out, and nobody waits for the dead."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.context import ForkContext
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

import pytest
import small_runs

from transfergrid.errors import AlreadyRunning, MachineError
from transfergrid.paths import store_paths
from transfergrid.planning import job
from transfergrid.store import durable, owner_locks
from transfergrid.store.attempts import begin_attempt

FORK: ForkContext = multiprocessing.get_context("fork")


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], ids=["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def no_kernel_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process and those it forks."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def hold(path: Path, held: Event) -> None:
    with durable.lock(path, wait=True):
        held.set()
        time.sleep(60)


def test_it_keeps_a_second_process_out_and_dies_with_its_holder(no_kernel_locks: None, tmp_path: Path) -> None:
    path, held = tmp_path / ".lock", FORK.Event()
    holder = FORK.Process(target=hold, args=(path, held))
    holder.start()
    assert held.wait(10) and durable.is_locked(path)
    with durable.lock(path, wait=False) as obtained:
        assert not obtained
    assert durable.is_locked(path)  # what was not obtained is not released
    owner = json.loads((tmp_path / ".lock.owner").read_text())
    assert owner["pid"] == holder.pid and owner["host"] == os.uname().nodename
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # a process that has ended, and is not yet waited for
    assert not durable.is_locked(path)
    with durable.lock(path, wait=False) as obtained:
        assert obtained and durable.is_locked(path)
    assert not durable.is_locked(path) and names(tmp_path) == [".lock"]
    holder.join()


def test_of_many_processes_one_at_a_time_is_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(durable, "POLL_S", 0.002)
    counter = tmp_path / "counter"
    counter.write_text("0")

    def count(barrier: Barrier) -> None:
        barrier.wait()
        for _ in range(10):
            with durable.lock(tmp_path / ".lock", wait=True):
                value = int(counter.read_text())
                time.sleep(0.001)
                counter.write_text(str(value + 1))

    barrier = FORK.Barrier(4)
    children = [FORK.Process(target=count, args=(barrier,)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert counter.read_text() == "40"


def owned_by(path: Path, *, age_s: float = 0.0, **changed: object) -> Path:
    """An owner as this process would be, with these changes."""
    path.touch()
    file = owner_locks.owner_file(path)
    file.write_text(json.dumps(owner_locks._myself() | changed))
    os.utime(file, (time.time() - age_s, time.time() - age_s))
    return file


OWNERS = {
    "this process": ({}, 1e6, True),
    "its number is another process's by now": ({"began": 1}, 0.0, False),
    "no such process": ({"pid": 2**22 + 1, "began": 5}, 0.0, False),
    "the machine was started anew": ({"boot": "another"}, 0.0, False),
    "another machine, beating": ({"host": "n2", "pid": 2**22 + 1}, 100.0, True),
    "another machine, silent": ({"host": "n2"}, 200.0, False),
    "a container of this machine, beating": ({"pids": "pid:[1]", "pid": 2**22 + 1}, 100.0, True),
    "a container of this machine, silent": ({"pids": "pid:[1]"}, 200.0, False),
}


@pytest.mark.parametrize("kernel", [True, False], ids=["kernel locks", "none"])
@pytest.mark.parametrize(("changed", "age_s", "lives"), OWNERS.values(), ids=OWNERS)
def test_who_is_alive(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, object],
    age_s: float,
    lives: bool,
    kernel: bool,
) -> None:
    """Also for a machine that has kernel locks there, while the owner's has none."""
    if not kernel:
        monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "none")))
    path = tmp_path / ".lock"
    file = owned_by(path, age_s=age_s, **changed)
    assert durable.is_locked(path) is lives
    with durable.lock(path, wait=False) as obtained:
        assert obtained is not lives
    assert file.exists() is (lives or kernel)
    assert [name for name in names(tmp_path) if name.endswith((".tmp", ".stale"))] == []


def test_what_cannot_be_read_is_judged_by_its_age(tmp_path: Path) -> None:
    file = owned_by(tmp_path / ".lock")
    file.write_text("{")
    assert durable.is_locked(tmp_path / ".lock")
    os.utime(file, (1, 1))
    assert not durable.is_locked(tmp_path / ".lock")


def test_a_holder_is_seen_from_another_machine_as_long_as_it_lives(
    no_kernel_locks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner_locks, "BEAT_S", 0.01)
    path = tmp_path / ".lock"
    with durable.lock(path, wait=False) as obtained:
        assert obtained
        file = owner_locks.owner_file(path)
        os.utime(file, (1, 1))
        deadline = time.monotonic() + 10
        while file.stat().st_mtime == 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert time.time() - file.stat().st_mtime < 10


def test_one_that_was_taken_over_does_not_release_what_is_anothers(no_kernel_locks: None, tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with durable.lock(path, wait=False) as first:
        durable.break_lock(path)
        with durable.lock(path, wait=False) as second:
            assert first and second
            theirs = owner_locks.owner_file(path).read_bytes()
            owner_locks.OwnerLock(owner_locks.owner_file(path), b"mine").release()
            assert owner_locks.owner_file(path).read_bytes() == theirs
    assert not durable.is_locked(path)


def test_where_there_are_no_hard_links_either_one_line_says_so(
    no_kernel_locks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with (
        pytest.raises(MachineError, match="neither locks nor hard links.*give another store.dir= or cache.dir="),
        durable.lock(tmp_path / ".lock", wait=False),
    ):
        pass
    with pytest.raises(MachineError, match="makes no hard links; give another store.dir="):
        durable.claim(tmp_path / "claim", b"")
    assert [name for name in names(tmp_path) if name != ".lock"] == []


def test_a_run_is_claimed_once_and_taken_over_from_a_job_that_slurm_has_ended(
    no_kernel_locks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = small_runs.request(tmp_path, "phase=scratch", "model=lenet5")
    run = small_runs.final_run(asked)
    paths = store_paths(asked.runtime).run(run.run_id)
    held = FORK.Event()

    def begin() -> None:
        os.environ |= {"SLURM_JOB_ID": "7"}
        with begin_attempt(paths, run):
            held.set()
            time.sleep(60)

    other = FORK.Process(target=begin)
    other.start()
    assert held.wait(10)
    assert job.carry_out(run, asked.runtime) == "in flight"
    with (
        pytest.raises(AlreadyRunning, match="job 7"),
        begin_attempt(paths, run, is_alive=lambda owner: True),
    ):
        pass
    # On another node, where SLURM says that its job is over, though it still holds the lock.
    monkeypatch.setattr("transfergrid.store.attempts.socket.gethostname", lambda: "n2")
    with begin_attempt(paths, run, is_alive=lambda owner: False) as attempt:
        assert attempt.number == 2 and durable.is_locked(paths.lock)
        other.kill()
        other.join()
        assert durable.is_locked(paths.lock)
    assert not durable.is_locked(paths.lock)


SHIM = """
#include <errno.h>
#include <fcntl.h>
int flock(int descriptor, int operation) { errno = ENOLCK; return -1; }
"""


def test_where_the_systems_own_call_fails_processes_keep_each_other_out(tmp_path: Path) -> None:
    shim = tmp_path / "no_locks.so"
    (tmp_path / "no_locks.c").write_text(SHIM)
    try:
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", shim, tmp_path / "no_locks.c"], check=True)
    except FileNotFoundError:
        pytest.skip("no C compiler here")
    code = (
        "import sys, pathlib; from transfergrid.store import durable\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "assert not durable.has_kernel_locks(path.parent)\n"
        "with durable.lock(path, wait=False) as obtained:\n"
        "    print(obtained, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / ".lock")]
    environ = os.environ | {"LD_PRELOAD": str(shim)}
    with subprocess.Popen(
        command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None and first.stdout.readline() == "True\n"
        second = subprocess.run(command, env=environ, input="", capture_output=True, text=True, timeout=30)
        assert second.stdout == "False\n" and durable.is_locked(tmp_path / ".lock")
        first.kill()
    third = subprocess.run(command, env=environ, input="", capture_output=True, text=True, timeout=30)
    assert third.stdout == "True\n" and third.stderr == ""
