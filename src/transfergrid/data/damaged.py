"""Pictures that cannot be used, and why: the errors that every refusal of single files is told by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from transfergrid.errors import DataError
from transfergrid.names import printable

MEND = "mend or remove it"


class DamagedImage(DataError):
    """path: of the file. reason: what is wrong with it, as a predicate ("cannot be read as an image (...)").

    advice: what helps, where that is not to mend the file; empty where `reason` says it. may_pass: the machine's doing,
    so that a later try may read it: such a file is never left out.
    """

    def __init__(self, path: Path, reason: str, advice: str | None = None, may_pass: bool = False) -> None:
        super().__init__(f"{printable(str(path))} {reason}", remedy=MEND if advice is None else advice)
        self.args = (path, reason, advice, may_pass)  # so that it can be sent between processes
        self.path = path
        self.reason = reason
        self.has_own_advice = advice is not None
        self.may_pass = may_pass


class DamagedImages(DataError):
    """Every picture of a folder that cannot be used. The message names the first, `details` has a line for each."""

    def __init__(self, folder: Path, images: Sequence[DamagedImage]) -> None:
        what, remedy, them = images[0].what, images[0].remedy, "it"
        if len(images) > 1:
            what, remedy, them = f"{folder}: {len(images)} files cannot be used", "mend or remove them", "them"
        may_pass = any(image.may_pass for image in images)
        leave_out = "" if may_pass else f"dataset.skip_damaged=true leaves {them} out"
        super().__init__(what, remedy="; ".join(filter(None, (remedy, leave_out))))
        self.args = (folder, tuple(images))
        self.folder = folder
        self.images = tuple(images)

    @property
    def details(self) -> tuple[str, ...]:
        return lines_of((image.path, image.reason) for image in self.images) if len(self.images) > 1 else ()


def lines_of(reasons: Iterable[tuple[Path | str, str]]) -> tuple[str, ...]:
    """A line for each file."""
    return tuple(printable(f"  {path} {reason}") for path, reason in reasons)
