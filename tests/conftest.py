"""What all tests share: markers that need something of the machine, and a clean environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is imported anywhere: waiting threads that spin slow everything else on the machine down.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--forbid-skips", action="store_true", help="fail if any test was skipped or none was run")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if not session.config.getoption("--forbid-skips") or exitstatus != 0:
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
