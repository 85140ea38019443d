"""A real SLURM for tests: what the fixtures `slurm` and `slurm_variant` of conftest.py start."""

from __future__ import annotations

from pathlib import Path

import pytest
from sandbox import Sandbox, Unsupported, check_machine
from slurm_conf import Options


def started(folder: Path, options: Options) -> Sandbox:
    """A sandbox with idle nodes. Skips the test where this machine cannot run one."""
    try:
        check_machine(options)
    except Unsupported as reason:
        pytest.skip(str(reason))
    sandbox = Sandbox(folder)
    sandbox.start(options)
    return sandbox
