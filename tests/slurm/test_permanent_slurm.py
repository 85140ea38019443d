"""What launching again alone does not cure, and a container without SLURM's commands, on a real SLURM."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_runs import HELD, LONG, THREE, Grid
from sandbox import Sandbox
from slurm_runs import BRISK, ROOT, jobs, without_slurm

pytestmark = pytest.mark.slurm

Begin = Callable[..., Grid]
ONE = (*THREE, "grid.seeds=[0]")


@pytest.fixture(scope="module")
def brisk(slurm_variant: Callable[..., Sandbox]) -> Sandbox:
    return slurm_variant(**BRISK)


@pytest.fixture
def begin(tmp_path: Path, brisk: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    monkeypatch.setenv("SLURM_CONF", str(brisk.conf))

    def make(name: str, *asked: str) -> Grid:
        (tmp_path / name).mkdir()
        return Grid(brisk, tmp_path / name, asked, {})

    yield make
    brisk.run("scancel", "-u", "root")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    said = jobs("launch_grid.py", *LONG, "cluster=local", env=without_slurm(), cwd=folder)
    assert said.code == 0, said.text
    return folder / "results"


@pytest.mark.full
@pytest.mark.parametrize("kind", ["mounts", "processes"])
def test_in_a_container_without_slurms_commands_a_run_goes_on_by_its_batch_script(
    kind: str, brisk: Sandbox, begin: Begin, tmp_path: Path, undisturbed: Path
) -> None:
    """A root of its own without anything of SLURM's; as docker makes it, also process numbers and a host name of its
    own."""
    folders = tmp_path / "folders"
    folders.write_text("\n".join([str(ROOT), sys.base_prefix, sys.prefix, str(tmp_path)]))
    grid = begin("contained", *LONG)
    grid.launch(f"cluster.python='bash {ROOT}/tests/support/contained.sh {folders} {kind} {sys.executable}'")
    first = grid.working()
    assert (first["host"] == "contained", first["pid"] == 1) == (kind == "processes", kind == "processes")
    brisk.run("scancel", "--signal=USR2", grid.job_id())
    grid.completes(undisturbed)
    second = grid.attempt(2)
    assert second is not None and second["slurm_restart_count"] == 1 and second["slurm_job_id"] == grid.job_id()
    assert "is not on the PATH" in grid.log() and "its batch script has put it back into the queue" in grid.log()
    assert "Traceback" not in grid.log()


def test_setup_crash_and_log_folder_are_told_as_what_they_are(brisk: Sandbox, begin: Begin, tmp_path: Path) -> None:
    crash = tmp_path / "crash.sh"
    crash.write_text("kill -SEGV $$\n")
    grids = {
        "setup": begin(
            "setup", *ONE, "cluster.setup=['module() { echo no such module >&2; return 1; }','module load x']"
        ),
        "crash": begin("crash", *ONE, f"cluster.python=sh {crash}"),
        "folder": begin("folder", *ONE, HELD),
    }
    for grid in grids.values():
        grid.launch()
    [folder] = (grids["folder"].store / "launches").glob("*/slurm/*scratch*")
    shutil.rmtree(folder)
    brisk.run("scontrol", "release", grids["folder"].job_id())
    expected = {
        "setup": (
            "cluster.setup failed on the node with exit code 1 at: module load x",
            "mend that line of cluster.setup=",
        ),
        "crash": ("ended with signal SIGSEGV: a library crashed", "leave that node out with cluster.exclude="),
        "folder": (f"the node could not open the job's log in {folder}", "give a store.dir= that every node sees"),
    }
    for name, grid in grids.items():
        # The accounting's word on how it ended comes some seconds after the queue's.
        state, (words, remedy) = grid.told("failed"), expected[name]
        assert (state.state, state.failure_class) == ("failed", "environment"), (name, state)
        assert words in state.reason and state.remedy is not None and remedy in state.remedy
        said = grid.status()
        assert words in said and remedy in said and "continues from its checkpoint" not in said
        assert "Traceback" not in said


def test_a_job_that_finds_its_disk_full_says_so_by_its_exit_code_and_a_launch_with_room_completes(
    brisk: Sandbox, begin: Begin, tmp_path: Path
) -> None:
    grid = begin("disk", *ONE)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", grid.folder]).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        ballast = grid.folder / "ballast"
        ballast.write_bytes(bytes(11_500_000))
        said = grid.launch(f"cache.dir={tmp_path}/cache", check=False)
        assert said.code == 1
        [line] = [line for line in said.text.splitlines() if "no space left" in line]
        assert line.startswith("error: ") and len(line) < 400 and "Traceback" not in said.text
        assert list(grid.folder.glob("results/launches/2*")) == []
        ballast.unlink()
        grid.launch(f"cache.dir={tmp_path}/cache", HELD)
        with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        brisk.run("scontrol", "release", grid.job_id())
        assert grid.told("failed").failure_class == "disk_full"
        said_of_it = grid.status()
        assert "1 x disk_full: free space in the store or the cache" in said_of_it and "Traceback" not in said_of_it
        ballast.unlink()
        grid.launch(f"cache.dir={tmp_path}/cache")
        grid.told("done")
    finally:
        brisk.run("scancel", "-u", "root")
        brisk.wait_for(lambda: not brisk.run("squeue", "-h", "-o", "%i"), 120)
        subprocess.run(["umount", "-l", grid.folder], check=True)
