"""The one writer of files that must survive: temporary name in the same folder, fsync, rename, fsync of the folder.

A final name that exists is a whole file. A reader never needs a lock; a writer that is killed leaves only a temporary
file, which sweep() removes once its owner is gone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from transfergrid.errors import DISK_FULL, NO_LOCKS, MachineError, StoreFull
from transfergrid.names import spelled_out
from transfergrid.store import owner_locks

POLL_S = 0.2  # for a lock that cannot be waited for otherwise


def temporary_beside(final: Path) -> Path:
    """A name in the same folder that no other process or attempt uses; starts with a dot, ends with `.tmp`."""
    return final.with_name(f".{final.name}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def publish(temporary: Path, final: Path) -> None:
    """Make a written file durable under its final name, replacing what was there."""
    with open(temporary, "rb+") as file:
        share(file.fileno(), final.parent)
        os.fsync(file.fileno())
    os.replace(temporary, final)
    fsync_folder(final.parent)


@contextlib.contextmanager
def temporary_for(final: Path) -> Iterator[Path]:
    """A path to write to, and then to publish() as `final`: whatever happens, nothing else is left of it."""
    make_folder(final.parent)
    temporary = temporary_beside(final)
    try:
        with explained(final):
            yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            temporary.unlink()


def write_with(final: Path, write: Callable[[Path], None]) -> None:
    """Call write(temporary), then publish it as `final`; on any error `final` is untouched."""
    with temporary_for(final) as temporary:
        write(temporary)
        publish(temporary, final)


def write_bytes(final: Path, content: bytes | memoryview) -> None:
    write_with(final, lambda temporary: _write_all(temporary, content))


def write_json(final: Path, value: Any) -> None:
    """Readable JSON: sorted keys, two spaces, NaN refused."""
    write_bytes(final, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def append_line(path: Path, line: bytes) -> None:
    """Add one whole line, durable before this returns; appends of several processes do not mix. What a killed writer
    left of a line is closed first, so that it takes no other with it. Raises StoreFull."""
    make_folder(path.parent)
    with explained(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o664)
        try:
            share(descriptor, path.parent)
            size = os.fstat(descriptor).st_size
            is_torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            content = b"\n" * is_torn + line + b"\n"
            if os.write(descriptor, content) < len(content):
                raise OSError(errno.ENOSPC, "only a part of a line was written")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def claim(final: Path, content: bytes) -> bool:
    """Create `final` with this content if and only if it does not exist yet; True for the one caller who did. The
    content is whole as soon as the name is visible: a temporary file is hard-linked to its final name."""
    with temporary_for(final) as temporary:
        _write_all(temporary, content)
        with open(temporary, "rb") as file:
            share(file.fileno(), final.parent)
        try:
            os.link(temporary, final)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in owner_locks.NO_LINKS:
                raise
            message = f"the file system of {final.parent} makes no hard links"
            raise MachineError(message, remedy="give another store.dir=") from error
        fsync_folder(final.parent)
        return True


@contextlib.contextmanager
def lock(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock on a file that is there for nothing else; yields whether it was obtained.

    It is the kernel's, which releases it when its holder ends, however it ends; where the file system has none, it is
    that of owner_locks.py. Correctness never depends on it: on a shared file system it may be local to a node, so what
    it guards is fenced by attempt numbers or content-addressed as well. Raises MachineError where neither is there.
    """
    make_folder(path.parent)
    with explained(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o664)
    try:
        share(descriptor, path.parent)
        if (in_kernel := _flock(descriptor, wait=wait)) is not None:
            while is_owned := in_kernel and owner_locks.is_held(path):  # by a machine that sees no kernel locks here
                if not wait:
                    break
                time.sleep(POLL_S)
            yield in_kernel and not is_owned
            return
        with explained(path):
            while (owner_lock := owner_locks.acquire(path)) is None and wait:
                time.sleep(POLL_S)
        try:
            yield owner_lock is not None
        finally:
            if owner_lock is not None:
                owner_lock.release()
    finally:
        os.close(descriptor)


def has_kernel_locks(folder: Path) -> bool:
    """Whether the kernel locks files there. The folder must be there, and may be written to."""
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".lock.", suffix=".tmp")
    try:
        return _flock(descriptor, wait=False) is not None
    finally:
        os.close(descriptor)
        os.unlink(name)


def break_lock(path: Path) -> None:
    """Whoever holds it holds a file that nobody looks at any more."""
    path.unlink(missing_ok=True)
    owner_locks.break_lock(path)


def _flock(descriptor: int, *, wait: bool) -> bool | None:
    """Whether the kernel's lock was obtained; None where the file system has none. Not waiting, it is asked for a few
    times, because is_locked() holds it for the blink of an eye."""
    for pause_s in (0.01, 0.01, 0.02, 0.04, 0.0):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            time.sleep(pause_s)
        except OSError as error:
            if error.errno in NO_LOCKS:
                return None
            raise
        else:
            return True
    return False


def is_locked(path: Path) -> bool:
    """Whether a live process holds lock(path)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    finally:
        os.close(descriptor)
    return owner_locks.is_held(path)


def share(descriptor: int, folder: Path) -> None:
    """Give an open file its folder's rights for the group, whatever the umask: others of a lab write it, too."""
    with contextlib.suppress(PermissionError):  # another user's: its owner has done so
        mode, of_group = os.fstat(descriptor).st_mode, folder.stat().st_mode & 0o060
        if mode & of_group != of_group:
            os.fchmod(descriptor, (mode | of_group) & 0o7777)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents with the parent's group permissions (setgid), as a shared store needs."""
    if folder.is_dir():
        return
    with explained(folder):
        make_folder(folder.parent)
        with contextlib.suppress(FileExistsError):
            try:
                folder.mkdir()
            except FileNotFoundError as error:
                if not folder.parent.is_dir():  # removed meanwhile
                    raise
                message = f"{folder} cannot be made there"  # as in /proc
                raise MachineError(message, remedy="give another store.dir= or cache.dir=") from error
            mode = folder.parent.stat().st_mode
            with contextlib.suppress(PermissionError):
                folder.chmod((folder.stat().st_mode | (mode & 0o2070)) & 0o7777)


def sweep(folder: Path) -> None:
    """Remove temporary files of ended processes of this machine; those of other machines are left alone."""
    for path in abandoned(folder):
        path.unlink(missing_ok=True)


def abandoned(folder: Path, pattern: str = ".*.tmp") -> Iterator[Path]:
    """The files that sweep() removes."""
    here = f".{socket.gethostname()}"
    for path in folder.glob(pattern) if folder.is_dir() else ():
        owner, pid, *_ = [*path.name.rsplit(".", 3), ""]
        if owner.endswith(here) and pid.isdigit() and not Path(f"/proc/{pid}").exists():
            yield path


def copy_tree(
    source: Path, target: Path, *, ignore: Callable[[str, list[str]], Iterable[str]] = lambda folder, names: ()
) -> None:
    """Copy a folder, what its links lead to included. ignore: as of shutil.copytree, which tells of a full disk in as
    many words as there are files. The first error ends it; what was copied by then is the caller's to remove."""

    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(source, onerror=refuse, followlinks=True):
        here, left_out = target / Path(folder).relative_to(source), set(ignore(folder, [*folders, *files]))
        folders[:] = [name for name in folders if name not in left_out]
        with explained(here):
            here.mkdir(parents=True, exist_ok=True)
            for name in files:
                if name not in left_out:
                    shutil.copy2(Path(folder, name), here / name)


class LogFile(logging.FileHandler):
    """A log beside what is done, which goes on where the log finds no room: those lines are missing."""

    def __init__(self, path: Path, *, delay: bool = False) -> None:
        super().__init__(path, encoding="utf-8", delay=delay, errors=spelled_out())

    def handleError(self, record: logging.LogRecord) -> None:
        """By default logging prints a traceback for every line."""

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into errors that name the path and the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise StoreFull(
                f"{path} would be larger than a file may be here (ulimit -f)",
                remedy="raise that limit and launch again",
            ) from error
        if error.errno in DISK_FULL:
            raise StoreFull(
                f"no space left for {path} ({_free(path)} free)", remedy="free some space and launch again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise MachineError(f"{path} is not writable", remedy="give another store.dir= or cache.dir=") from error
        if error.errno == errno.ENOTDIR:
            raise MachineError(f"{path} cannot be made: a file stands where a folder is needed") from error
        raise


def _free(path: Path) -> str:
    for folder in (path, *path.parents):
        with contextlib.suppress(OSError):
            return f"{shutil.disk_usage(folder).free / 1e6:.0f} MB"
    return "unknown"


def _write_all(path: Path, content: bytes | memoryview) -> None:
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
