"""What each script beside it does: find the package, and carry out one of its commands."""

from __future__ import annotations

import importlib
import shlex
import sys
from typing import NoReturn

INTERRUPTED = 130


def start(command: str) -> NoReturn:
    try:
        main = importlib.import_module(f"transfergrid.cli.{command}").main
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except ModuleNotFoundError as error:
        command_line = shlex.join(["uv", "run", *sys.argv])
        remedy = f"run `{command_line}`, or activate the environment first (`source .venv/bin/activate`)"
        sys.exit(f"error: {sys.executable} has no module {error.name!r}; {remedy}")
    sys.exit(main())
