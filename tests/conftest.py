"""What all tests share: markers that need something of the machine, and a clean environment."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tracebacks
from printed_commands import Collector, watch
from sandbox import Options, Sandbox
from slurm_sandbox import started

# Each of some hundred processes would compile the package anew, and each job the copy of it that was launched.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
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


_LONG = ("whole", "networks", "export")  # folders whose files take longest, longest first


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker is left alone with one at the end."""

    def place(item: pytest.Item) -> int:
        return next((i for i, name in enumerate(_LONG) if name in item.path.parts), len(_LONG))

    items.sort(key=place)


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


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """Takes every text that this process prints, raises or writes."""
    with pytest.MonkeyPatch.context() as patch:
        watch(patch, collector := Collector())
        yield collector


@pytest.fixture(autouse=True)
def what_was_printed_can_be_typed(collector: Collector) -> Iterator[None]:
    """Every command in a message, a log, a report or a record that a test caused goes through its parser."""
    yield
    if problems := collector.problems():
        pytest.fail("printed, and cannot be typed:\n" + "\n".join(problems))


@pytest.fixture(autouse=True)
def one_thread_for_each_worker() -> Iterator[None]:
    """A run that a test carries out here takes a thread for each core, and the tests after it would keep them."""
    yield
    if "PYTEST_XDIST_WORKER" in os.environ and (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_traceback(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """In the fault suite nothing that a user would look at holds one: see tracebacks.py."""
    if request.node.path.stem not in tracebacks.FAULTS:
        yield
        return
    began = time.time()
    heard = tracebacks.listen(monkeypatch)
    yield
    told = [*heard, *tracebacks.in_logs(tmp_path_factory.getbasetemp(), began)]
    assert not told, "a user would see a traceback:\n" + "\n".join(told)


@pytest.fixture(autouse=True)
def slurm_as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test that failed has killed or paused is brought back before the next."""
    is_asked_for = request.node.get_closest_marker("slurm") is not None and "slurm" in request.fixturenames
    slurm: Sandbox | None = request.getfixturevalue("slurm") if is_asked_for else None
    yield
    if slurm is not None:
        slurm.restore()


@pytest.fixture(scope="session")
def slurm_variant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Sandbox]]:
    """`slurm_variant(preempt="signal", gpus=0)`: a sandbox with these options (slurm_conf.Options), one for all that
    ask for the same; whole again, whatever was done to it before. It lasts until the session ends, or `.stop()`."""
    sandboxes: dict[Options, Sandbox] = {}

    def start(**asked: Any) -> Sandbox:
        options = Options(**asked)
        sandbox = sandboxes.get(options)
        if sandbox is None or not sandbox.exists():
            sandbox = sandboxes[options] = started(tmp_path_factory.mktemp("slurm"), options)
        sandbox.restore()
        return sandbox

    yield start
    for sandbox in sandboxes.values():
        sandbox.stop()
