"""Files of published data sets: where they lie, whether they are what was published, and how they get there."""

from __future__ import annotations

import contextlib
import hashlib
import io
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transfergrid.errors import DataError, StoreFull, one_line
from transfergrid.specs import digest
from transfergrid.store import durable

NETWORK_TIMEOUT_S = 4.0
STALL_TIMEOUT_S = 30.0


def published_fingerprint(kind: str, checksums: Mapping[str, str]) -> str:
    """Identity of a published data set: 32 hex digits over its checksums."""
    return f"published:{digest({'kind': kind, 'checksums': dict(checksums)}, 32)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Where the files of a published data set lie, and how they get there.

    folder: below data.dir, as torchvision lays it out. url: who is asked first whether there is a network. fetch:
    torchvision's own download into data.dir.
    """

    kind: str
    folder: str
    url: str
    fetch: Callable[[Path], None]

    def read(
        self,
        wanted: Sequence[tuple[str, ...]],
        *,
        data_dir: Path,
        download: bool,
        checksums: Mapping[str, str],
    ) -> list[tuple[Path, bytes]]:
        """Path and verified bytes of one file per entry of `wanted` (names that serve equally, best first), fetched
        where one is missing. checksums: by name. Raises DataError, without a network within seconds."""
        paths = self.locate(wanted, data_dir=data_dir, download=download)
        return [(path, verified(path, wanted=checksums[path.name])) for path in paths]

    def locate(self, wanted: Sequence[tuple[str, ...]], *, data_dir: Path, download: bool) -> list[Path]:
        """The files alone, as read() finds them."""
        folder = data_dir / self.folder
        found, missing = _look(folder, wanted)
        reason = "download is off"
        if missing and download:
            reason = self._fetched(wanted, data_dir)
            found, missing = _look(folder, wanted)
        if missing:
            names = ", ".join(_told(alternatives) for alternatives in missing)
            raise DataError(
                f"{self.kind}: {names} not found in {folder} ({reason}); put the published files there, or give "
                f"another folder than {data_dir} as data.dir= or in TRANSFERGRID_DATA_DIR"
            )
        return found

    def _fetched(self, wanted: Sequence[tuple[str, ...]], data_dir: Path) -> str:
        """Fetch, and say in a few words how that went."""
        if not reachable(self.url, timeout_s=NETWORK_TIMEOUT_S):
            return f"{self.url} is not reachable from here"
        try:
            durable.make_folder(data_dir)
            # One process fetches; others that wanted the same find it there when the lock is theirs.
            with durable.lock(data_dir / f".{self.kind}.lock", wait=True):
                if _look(data_dir / self.folder, wanted)[1]:
                    with _quiet(), _bounded(), durable.explained(data_dir):
                        self.fetch(data_dir)
        except StoreFull:
            raise
        except Exception as error:  # whatever torchvision or the network raises, the user's next step is the same
            return f"the download failed: {one_line(error)}"
        return "the download does not contain it"


def verified(path: Path, *, wanted: str) -> bytes:
    """The file's bytes. Raises DataError unless their md5 (32 hex digits) or sha256 (64) is `wanted`."""
    content = path.read_bytes()
    method = "md5" if len(wanted) == 32 else "sha256"
    got = hashlib.new(method, content, usedforsecurity=False).hexdigest()
    if got != wanted:
        raise DataError(
            f"{path} is not the published file: {method} {got}, wanted {wanted}; remove it and fetch it again"
        )
    return content


def _told(alternatives: tuple[str, ...]) -> str:
    """`a`, `a or b`; and `a(.gz)` for `a or a.gz`, since a message has one line."""
    first, *others = alternatives
    return f"{first}(.gz)" if others == [f"{first}.gz"] else " or ".join(alternatives)


def _look(folder: Path, wanted: Sequence[tuple[str, ...]]) -> tuple[list[Path], list[tuple[str, ...]]]:
    found: list[Path] = []
    missing: list[tuple[str, ...]] = []
    for alternatives in wanted:
        present = [folder / name for name in alternatives if (folder / name).is_file()]
        found.extend(present[:1])
        missing.extend([] if present else [alternatives])
    return found, missing


def reachable(url: str, *, timeout_s: float) -> bool:
    """Whether the server answers at all, through the proxy the environment names, within the time given."""
    answers: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout_s).close()
        except urllib.error.HTTPError as error:
            error.close()  # an error page is an answer too
        except (OSError, ValueError):
            return
        answers.append(True)

    # In a thread, because looking up a name takes no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return bool(answers)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torchvision's progress bars."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """With an end to every wait on a connection that has gone silent; torchvision sets none."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
