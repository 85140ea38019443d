"""A command as a person types it: bash at a terminal of 80 columns, what it shows, and its exit code."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def typed(command: str, folder: Path, *, columns: int = 80, lines: int = 24) -> tuple[int, str]:
    """(exit code, what was shown without its colours), in `folder`, with this Python as `python`."""
    own, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    unset = {"COLUMNS", "LINES"}
    environment = {k: v for k, v in os.environ.items() if k not in unset} | {"PATH": path, "TERM": "xterm-256color"}
    with subprocess.Popen(
        ["bash", "-c", command], cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                block = os.read(own, 65_536)
            except OSError:  # Linux says so when the last program at the terminal has ended
                break
            shown += block
        os.close(own)
    return process.returncode, _CONTROL.sub("", shown.decode(errors="replace")).replace("\r\n", "\n")
