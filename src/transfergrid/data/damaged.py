"""Pictures that cannot be used, and why: the errors that every refusal of single files is told by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from transfergrid.errors import TOLD, DataError
from transfergrid.names import shown

MEND = "mend or remove it"


class DamagedImage(DataError):
    """path: of the file. reason: what is wrong with it, as a predicate ("cannot be read as an image (...)"), with what
    helps where that is special. advice: what helps otherwise.

    may_pass: the machine's doing, so that a later try may read it: such a file is never left out.
    """

    def __init__(self, path: Path, reason: str, advice: str = MEND, may_pass: bool = False) -> None:
        super().__init__(path, reason, advice, may_pass)  # all of it, so that it can be sent between processes
        self.path = path
        self.reason = reason
        self.advice = advice
        self.may_pass = may_pass

    def __str__(self) -> str:
        return f"{shown(str(self.path))} {self.reason}" + (f"; {self.advice}" if self.advice else "")


class DamagedImages(DataError):
    """Every picture of a folder that cannot be used. The message names the first, `details` has a line for each."""

    def __init__(self, folder: Path, images: Sequence[DamagedImage]) -> None:
        super().__init__(folder, tuple(images), remedy=TOLD)
        self.folder = folder
        self.images = tuple(images)

    def __str__(self) -> str:
        first = self.images[0]
        leave_out = "" if any(i.may_pass for i in self.images) else "dataset.skip_damaged=true leaves {} out"
        if len(self.images) == 1:
            return "; ".join(part for part in (str(first), leave_out.format("it")) if part)
        many = f"{self.folder}: {len(self.images)} files cannot be used; mend or remove them"
        return "; ".join(part for part in (many, leave_out.format("them")) if part)

    @property
    def details(self) -> tuple[str, ...]:
        return told((image.path, image.reason) for image in self.images) if len(self.images) > 1 else ()


def told(reasons: Iterable[tuple[Path | str, str]]) -> tuple[str, ...]:
    """A line for each file."""
    return tuple(shown(f"  {path} {reason}") for path, reason in reasons)
