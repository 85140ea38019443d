"""What this process was started with, changed for a while: for libraries that read nothing else."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from unittest import mock


@contextlib.contextmanager
def temporary_environment(variables: Mapping[str, str], *, arguments: Sequence[str] | None = None) -> Iterator[None]:
    """Inside the block the environment holds these variables and no others; afterwards what it held before, whatever
    was set meanwhile. arguments: likewise, of `sys.argv`. Not for two threads at once."""
    argv = sys.argv if arguments is None else list(arguments)
    with mock.patch.dict(os.environ, dict(variables), clear=True), mock.patch.object(sys, "argv", argv):
        yield
