"""One picture that cannot be used, and why: the one error that every refusal of a single file is told by."""

from __future__ import annotations

from pathlib import Path

from transfergrid.errors import DataError


class DamagedImage(DataError):
    """path: of the file. reason: what is wrong with it, as a predicate ("cannot be read as an image (...)")."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)  # both, so that it can be sent between processes
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"
