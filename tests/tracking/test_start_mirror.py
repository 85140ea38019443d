"""Starting the mirror costs training nothing, also where the mirror's own start hangs."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from tracked_runs import runtime_of, scratch_run

from transfergrid import tracking
from transfergrid.paths import StorePaths
from transfergrid.specs import Configuration

HANGS_S = 20


def test_a_launch_of_a_thousand_runs_does_not_wait_for_a_mirror_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = tmp_path / "python"
    hanging.write_text(f"#!/bin/sh\nexec sleep {HANGS_S}\n")
    hanging.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(hanging))
    configurations = [Configuration(grid="g", variant=f"{'v' * 60}{n}", run=scratch_run(n)) for n in range(1000)]
    began = time.monotonic()
    runtime = runtime_of(StorePaths(tmp_path / "results"), tracking="online")
    process = tracking.start_mirror(runtime, configurations)
    assert process is not None and process.poll() is None
    assert time.monotonic() - began < HANGS_S / 2
    assert not tracking.wait_for_mirror(process, 0.1)  # nor at its end
    process.kill()
    process.wait()
