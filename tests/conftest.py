"""What all tests share: markers that need something of the machine, and a clean environment."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sandbox import Options, Sandbox
from slurm_sandbox import started

# Before torch is imported anywhere: waiting threads that spin slow everything else on the machine down.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # there is a worker for each core
# Imports make millions of objects and next to no rubbish. Without a look for it the tests are collected in 4.5 s of
# CPU, not 8; what is there by then stays until the end.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--forbid-skips", action="store_true", help="fail if any test was skipped or none was run")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if not session.config.getoption("--forbid-skips") or exitstatus != 0 or hasattr(session.config, "workerinput"):
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    assert reporter is not None
    skipped = len(reporter.stats.get("skipped", ()))
    if skipped:
        session.exitstatus = 1
        reporter.write_line(f"{skipped} tests were skipped, which --forbid-skips forbids", red=True)


@pytest.fixture(scope="session")
def real_data_dir() -> Path:
    """The unpacked real data sets. Tests that ask for it are marked `realdata`."""
    found = os.environ.get("TRANSFERGRID_DATA_DIR")
    if found is None:
        pytest.skip("TRANSFERGRID_DATA_DIR is not set: no real data")
    return Path(found)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """A real SLURM with the sandbox's defaults, one for the session. Tests that ask for it are marked `slurm`."""
    sandbox = started(tmp_path_factory.mktemp("slurm"), Options())
    yield sandbox
    sandbox.stop()


@pytest.fixture(autouse=True)
def slurm_as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test that failed has killed or paused is brought back before the next."""
    is_asked_for = request.node.get_closest_marker("slurm") is not None and "slurm" in request.fixturenames
    slurm: Sandbox | None = request.getfixturevalue("slurm") if is_asked_for else None
    yield
    if slurm is not None:
        slurm.restore()


@pytest.fixture(scope="module")
def slurm_variant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Sandbox]]:
    """`slurm_variant(preempt="signal", gpus=0)`: a sandbox with these options (slurm_conf.Options), until the module
    ends; `.stop()` ends it earlier."""
    sandboxes: list[Sandbox] = []

    def start(**options: Any) -> Sandbox:
        sandboxes.append(started(tmp_path_factory.mktemp("slurm"), Options(**options)))
        return sandboxes[-1]

    yield start
    for sandbox in sandboxes:
        sandbox.stop()
