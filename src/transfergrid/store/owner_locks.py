"""Locks where the file system has none of its own: a hard link that one process alone can make, to a record of it.

`<file>.owner`, JSON: host, boot, pids (its namespace of process numbers), pid, began (the process's start, in ticks
since the boot), token. On its own machine an owner is alive while that process is; elsewhere, while it touches the
file, which it does every BEAT_S. What is older than STALE_S, by the file system's own clock, is nobody's: it is taken.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transfergrid.errors import MachineError

BEAT_S = 20.0
STALE_S = 180.0
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK)


@dataclass(frozen=True, slots=True)
class OwnerLock:
    """A lock of this process, until release()."""

    path: Path
    content: bytes
    over: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        self.over.set()
        with contextlib.suppress(OSError):
            if self.path.read_bytes() == self.content:  # else another has taken it over
                self.path.unlink()

    def beat(self) -> None:
        """Until it is over, or another's."""
        while not self.over.wait(BEAT_S):
            with contextlib.suppress(OSError):
                if self.path.read_bytes() != self.content:
                    return
                os.utime(self.path)


def acquire(file: Path) -> OwnerLock | None:
    """The lock on a file; None where a live process has it. Raises MachineError where there are no hard links."""
    path, content = owner_file(file), json.dumps(_myself()).encode()
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.chmod(0o644)  # whatever the umask: others of a lab must see whose it is
        for _ in range(3):
            if _linked(temporary, path):
                lock = OwnerLock(path, content)
                threading.Thread(target=lock.beat, daemon=True, name="lock").start()
                return lock
            if not _removed_if_stale(path):
                return None
        return None
    finally:
        temporary.unlink(missing_ok=True)


def is_held(file: Path) -> bool:
    """Whether a live process has acquired it."""
    content = _read(owner_file(file))
    return content is not None and not _is_stale(owner_file(file), content)


def break_lock(file: Path) -> None:
    """Whoever has it: it is to be taken from them. They find that out, and do not release what is not theirs."""
    owner_file(file).unlink(missing_ok=True)


def owner_file(file: Path) -> Path:
    return file.with_name(f"{file.name}.owner")


def _linked(temporary: Path, path: Path) -> bool:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return temporary.stat().st_nlink == 2  # it was made, and the server's answer was lost
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        raise MachineError(
            f"the file system of {path.parent} has neither locks nor hard links, so two processes could do the same"
            " there; give another store.dir= or cache.dir="
        ) from error
    return True


def _removed_if_stale(path: Path) -> bool:
    """Whether nobody has it now."""
    content = _read(path)
    if content is None:
        return True
    if not _is_stale(path, content):
        return False
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.stale")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return True
    try:
        if _read(aside) == content:
            return True
        with contextlib.suppress(FileExistsError):  # between the look and the rename another had taken it
            os.link(aside, path)
        return False
    finally:
        aside.unlink(missing_ok=True)


def _is_stale(path: Path, content: bytes) -> bool:
    me = _myself()
    try:
        owner: dict[str, Any] = json.loads(content)
        if owner["host"] == me["host"] and owner["boot"] != me["boot"]:
            return True  # the machine has been started anew
        if all(owner[key] == me[key] for key in ("host", "boot", "pids")):
            return bool(_began(owner["pid"]) != owner["began"])
    except (ValueError, KeyError, TypeError):
        pass  # of no release that is known: its age tells
    try:
        return _now_at(path.parent) - path.stat().st_mtime > STALE_S
    except FileNotFoundError:
        return True


def _myself() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "pids": os.readlink("/proc/self/ns/pid"),
        "pid": os.getpid(),
        "began": _began(os.getpid()),
        "token": secrets.token_hex(8),
    }


def _began(pid: int) -> int | None:
    """When a process of this machine was started, in ticks since the boot; None where there is none, or it is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


def _now_at(folder: Path) -> float:
    """The time by the file system's own clock, where it may be written to."""
    probe = folder / f".now.{secrets.token_hex(4)}.tmp"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def _read(path: Path) -> bytes | None:
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    return None
