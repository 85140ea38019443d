"""A real SLURM for tests: what the fixtures `slurm` and `slurm_variant` of conftest.py start."""

from __future__ import annotations

from pathlib import Path

import machine
import pytest
from sandbox import Options, Sandbox, Unsupported


def started(folder: Path, options: Options) -> Sandbox:
    """A sandbox with idle nodes. Skips the test where this machine cannot run one."""
    try:
        machine.check(memory_limits=options.cgroup_memory)
    except Unsupported as reason:
        pytest.skip(str(reason))
    sandbox = Sandbox(folder)
    sandbox.start(options)
    return sandbox
