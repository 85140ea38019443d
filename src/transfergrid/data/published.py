"""Files of published data sets: where they lie, whether they are what was published, and how they get there."""

from __future__ import annotations

import contextlib
import hashlib
import io
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transfergrid.data.images import ArrayImages, DatasetFacts
from transfergrid.errors import DataError, MissingFiles, StoreFull, one_line
from transfergrid.specs import Split, digest
from transfergrid.store import durable
from transfergrid.store.network import why_silent

NETWORK_TIMEOUT_S = 4.0
STALL_TIMEOUT_S = 30.0  # of a download that neither fails nor goes on


def fingerprint_of(kind: str, checksums: Mapping[str, str]) -> str:
    """Identity of a published data set: 32 hex digits over its checksums."""
    return f"published:{digest({'kind': kind, 'checksums': dict(checksums)}, 32)}"


def by_torchvision(name: str, *calls: Mapping[str, str]) -> Callable[[Path], None]:
    """The download of torchvision's class of this name; one call, or one for each of these further arguments."""

    def fetch(data_dir: Path) -> None:
        from torchvision import datasets

        for arguments in calls or ({},):
            getattr(datasets, name)(str(data_dir), download=True, **arguments)

    return fetch


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedSet:
    """A published data set: what the plan knows of it, where its files lie, how they get there and how they are read.

    folder: below data.dir, as torchvision lays it out. checksums: file name -> md5 or sha256; no other file is read.
    files: split -> its files, each as the names that serve equally, best first. parse(files, class_names=): (path,
    verified bytes) of a split's files -> its images; raises DataError. fetch: the download into data.dir; without it
    the user puts the files there. url: who is asked first whether there is a network. The rest is DatasetFacts'.
    """

    kind: str
    folder: str
    url: str = ""
    checksums: Mapping[str, str]
    files: Mapping[str, Sequence[tuple[str, ...]]]
    parse: Callable[..., ArrayImages]
    fetch: Callable[[Path], None] | None = None
    class_names: tuple[str, ...]
    image_size_px: int | None
    mirror_ok: bool
    num_images: dict[str, int]
    train_counts: tuple[int, ...]

    @property
    def facts(self) -> DatasetFacts:
        return DatasetFacts(
            kind=self.kind,
            fingerprint=fingerprint_of(self.kind, self.checksums),
            num_classes=len(self.class_names),
            class_names=self.class_names,
            image_size_px=self.image_size_px,
            mirror_ok=self.mirror_ok,
            num_images=self.num_images,
            train_counts=self.train_counts,
        )

    def load(
        self, *, split: Split, data_dir: Path, download: bool, checksums: Mapping[str, str] | None = None
    ) -> ArrayImages:
        """One split. checksums: instead of the published ones."""
        files = self._read(self.files[split], data_dir, download, checksums or self.checksums)
        return self.parse(files, class_names=self.class_names)

    def find(self, *, data_dir: Path, download: bool, checksums: Mapping[str, str] | None = None) -> None:
        """Make sure that the files of all splits are there and verified."""
        every = [names for split in self.files.values() for names in split]
        self._read(every, data_dir, download, checksums or self.checksums)

    def _read(
        self, files: Sequence[tuple[str, ...]], data_dir: Path, download: bool, checksums: Mapping[str, str]
    ) -> list[tuple[Path, bytes]]:
        """Path and verified bytes of each file, fetched where one is missing. Raises DataError, without a network
        within seconds."""
        accepted = [tuple(name for name in names if name in checksums) for names in files]
        paths = self.locate(accepted, data_dir=data_dir, download=download)
        return [(path, verified(path, checksum=checksums[path.name])) for path in paths]

    def locate(self, files: Sequence[tuple[str, ...]], *, data_dir: Path, download: bool) -> list[Path]:
        """The files alone."""
        folder, reason = data_dir / self.folder, "download is off"
        if download and _missing(folder, files):
            reason = self._fetched(files, data_dir)
        if missing := _missing(folder, files):
            names = ", ".join(map(_as_text, missing))
            raise MissingFiles(
                f"{self.kind}: {names} not found in {folder} ({reason})",
                remedy=f"put the published files there, or give another folder than {data_dir} as data.dir= or in"
                " TRANSFERGRID_DATA_DIR",
            )
        return [next(filter(Path.is_file, (folder / name for name in names))) for names in files]

    def _fetched(self, files: Sequence[tuple[str, ...]], data_dir: Path) -> str:
        """Fetch, and say in a few words how that went."""
        if self.fetch is None:
            return "nothing fetches them"
        if why_silent(self.url, timeout_s=NETWORK_TIMEOUT_S):
            return f"{self.url} is not reachable from here"
        try:
            durable.make_folder(data_dir)
            # One process fetches; others that wanted the same find it there when the lock is theirs.
            with durable.lock(data_dir / f".{self.kind}.lock", wait=True):
                if _missing(data_dir / self.folder, files):
                    bars = io.StringIO()  # torchvision's
                    with contextlib.redirect_stderr(bars), contextlib.redirect_stdout(bars), stalls_end():
                        with durable.explained(data_dir):
                            self.fetch(data_dir)
        except StoreFull:
            raise
        except Exception as error:  # whatever torchvision or the network raises, the user's next step is the same
            return f"the download failed: {one_line(error)}"
        return "the download does not contain it"


def verified(path: Path, *, checksum: str) -> bytes:
    """The file's bytes. Raises DataError unless their md5 (32 hex digits) or sha256 (64) is `checksum`."""
    content = path.read_bytes()
    method = "md5" if len(checksum) == 32 else "sha256"
    got = hashlib.new(method, content, usedforsecurity=False).hexdigest()
    if got != checksum:
        raise DataError(
            f"{path} is not the published file: {method} {got}, wanted {checksum}",
            remedy="remove it and fetch it again",
        )
    return content


def _as_text(alternatives: tuple[str, ...]) -> str:
    """`a`, `a or b`; and `a(.gz)` for `a or a.gz`, since a message has one line."""
    first, *others = alternatives
    return f"{first}(.gz)" if others == [f"{first}.gz"] else " or ".join(alternatives)


def _missing(folder: Path, files: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return [names for names in files if not any((folder / name).is_file() for name in names)]


@contextlib.contextmanager
def stalls_end() -> Iterator[None]:
    """Connections opened inside end with an error when nothing comes for STALL_TIMEOUT_S; torchvision sets no end."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
