"""A grid on a sandbox SLURM while things fail: launching it, watching what is said of it, and how to hurt it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sandbox import Sandbox, SandboxError
from slurm_runs import QUICK, Said, assert_same_numbers, jobs, records, submissions

from transfergrid.cli.finish import runs_of
from transfergrid.cluster.ledger import read_ledger
from transfergrid.cluster.run_state import RunState, needs_of
from transfergrid.cluster.states import Snapshot, take_snapshot
from transfergrid.paths import StorePaths

T = TypeVar("T")
TOLD_WITHIN_S = 120.0  # the right state and failure class, after the fault
DONE_WITHIN_S = 480.0  # on a machine that others use as well
BAD = ("failed", "lost", "blocked", "cancelled")
POLL_S = 0.5

_DIGITS = ("grid=quickstart", "grid.variants={}", *QUICK)
# Ten seconds and 246 steps on an idle machine's thread, a checkpoint after each, so that any moment is a good one.
LONG = (
    *(*_DIGITS, "grid.models=[baseline_cnn]", "grid.phases=[scratch]", "grid.seeds=[0]"),
    *("phase.scratch.epochs=6", "checkpoint.min_interval_s=0"),
)
THREE = (
    *_DIGITS,
    "grid.models=[baseline_cnn]",
    "grid.phases=[scratch]",
    "grid.seeds=[0,1,2]",
    "phase.scratch.epochs=1",
)
CHAIN = (
    *(*_DIGITS, "grid.models=[tinynet_mnist]", "grid.phases=[probe,finetune]", "grid.seeds=[0]"),
    "phase.finetune.epochs=1",
)
PAIR = (  # the second needs 1.3 GB of memory, the first a third of that
    *(*QUICK, "grid=quickstart", "grid.models=[baseline_cnn]", "grid.phases=[scratch]", "grid.seeds=[0]"),
    *("grid.variants={wide: {phase.scratch.batch_size: 1293}}", "dataset.image_size_px=32", "phase.scratch.epochs=1"),
)
HELD = "cluster.sbatch={hold: true}"  # until `scontrol release`; a priority of 0 asked of sbatch holds nothing


@dataclass(frozen=True)
class Grid:
    """One grid in a folder of its own. asked: the command line's settings; a later one replaces an earlier one."""

    slurm: Sandbox
    folder: Path
    asked: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)

    @property
    def store(self) -> Path:
        return self.folder / "results"

    # What a user does

    def command_line(self, *more: str) -> list[str]:
        settings = {a.partition("=")[0]: a for a in (*self.asked, "cluster=slurm", *more)}
        return list(settings.values())

    def launch(self, *more: str, check: bool = True, timeout_s: float = 400) -> Said:
        said = jobs(
            "launch_grid.py",
            *self.command_line(*more),
            env=self.slurm.env | self.env,
            cwd=self.folder,
            timeout_s=timeout_s,
        )
        assert said.code == 0 or not check, said.text
        return said

    def status(self, *arguments: str) -> str:
        """What jobs/status.py prints, on one line."""
        said = jobs("status.py", "grid=quickstart", *arguments, env=self.slurm.env, cwd=self.folder)
        assert said.code == (0 if arguments else 1), said.text  # 1: not all is well
        return " ".join(said.text.split())

    # What is seen of it

    def look(self) -> Snapshot:
        store = StorePaths(self.store)
        ledger = read_ledger(store)
        run_ids = runs_of("quickstart", store, ledger)
        return take_snapshot(run_ids, store, ledger, needs=needs_of(ledger, run_ids))

    def is_live(self) -> bool:
        return any(state.is_live for state in self.look().states.values())

    def run_id(self, phase: str = "scratch", seed: int | None = None) -> str:
        """The one of this phase, and of this seed where several have it."""
        sent = {run_id for s in submissions(self.store) for task in s["tasks"] for run_id in task}
        [found] = (r for r in sent if f"-{phase}-" in r and (seed is None or f"-s{seed}-" in r))
        return str(found)

    def state(self, phase: str = "scratch", seed: int | None = None) -> RunState:
        return self.look().states[self.run_id(phase, seed)]

    def job_id(self, phase: str = "scratch") -> str:
        """SLURM's id of the newest submission of a phase."""
        found = [s["job_id"] for s in submissions(self.store) if f"-{phase}-" in s["name"]]
        assert found[-1] is not None
        return str(found[-1])

    def run_folder(self, phase: str = "scratch", seed: int | None = None) -> Path:
        return self.store / "runs" / self.run_id(phase, seed)

    def record(self, phase: str = "scratch", seed: int | None = None) -> dict[str, Any]:
        return records(self.store)[self.run_id(phase, seed)]

    def attempt(self, number: int) -> dict[str, Any] | None:
        with contextlib.suppress(FileNotFoundError, ValueError):
            found: dict[str, Any] = json.loads((self.run_folder() / "attempts" / f"{number:03d}.json").read_text())
            return found
        return None

    def steps(self) -> int:
        """Of the newest checkpoint."""
        names = (path.name for path in (self.run_folder() / "checkpoints").glob("step-*.pt"))
        return max((int(name.split("-")[1]) for name in names), default=0)

    def log(self) -> str:
        """What the jobs printed, of all submissions."""
        return "\n".join(p.read_text() for p in sorted(self.store.glob("launches/*/slurm/*/*_log.*")))

    # Waiting, in which what is said meanwhile must be right

    def wait(self, predicate: Callable[[], T | None], timeout_s: float = DONE_WITHIN_S) -> T:
        """Until it is true; requeued jobs need not wait for their two minutes."""
        deadline = time.monotonic() + timeout_s
        while not (found := predicate()):
            assert time.monotonic() < deadline, f"still {found!r} after {timeout_s:g} s\n{self.look()}\n{self.log()}"
            with contextlib.suppress(SandboxError):  # the controller may be the one that is away
                self.slurm.hurry()
            time.sleep(POLL_S)
        return found

    def working(self, number: int = 1, steps: int = 5) -> dict[str, Any]:
        """Attempt `number`, once it has done so many steps; until then the run is never said to have ended."""
        before = self.steps()

        def begun() -> dict[str, Any] | None:
            state = self.state()
            assert state.state not in BAD, state
            owner = self.attempt(number)
            return owner if owner is not None and self.steps() >= before + steps else None

        return self.wait(begun, DONE_WITHIN_S)

    def told(self, state: str, phase: str = "scratch", seed: int | None = None) -> RunState:
        """What is said of a run once it is said to be in this state, which must be soon."""
        return self.wait(lambda: s if (s := self.state(phase, seed)).state == state else None, TOLD_WITHIN_S)

    def completes(self, reference: Path) -> None:
        """Everything is done in the end, never said to have ended in any other way, and equal to an undisturbed run."""

        def done() -> bool:
            states = self.look().states.values()
            assert not [s for s in states if s.state in BAD], states
            return all(s.state == "done" for s in states)

        self.wait(done, DONE_WITHIN_S)
        assert_same_numbers(self.store, reference)
        assert not list(self.store.glob("runs/*/checkpoints/*.pt"))

    def assert_sent_once(self) -> None:
        """No configuration has two jobs, and SLURM has no job that the ledger does not know."""
        sent = submissions(self.store)
        run_ids = [run_id for s in sent for task in s["tasks"] for run_id in task]
        assert len(run_ids) == len(set(run_ids)), run_ids
        assert all(s["job_id"] for s in sent), sent
        in_slurm = self.slurm.run("squeue", "-h", "-t", "all", "-o", "%A %F %j").splitlines()
        tokens = {s["token"] for s in sent}
        ours = {line.split()[1] for line in in_slurm if line.rpartition("-")[2] in tokens}
        assert ours == {s["job_id"] for s in sent}, in_slurm


# --------------------------------------------------------------------------------------------------------------- harm
@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Inside, the process does not run: what is sent to it waits."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def with_sbatch(folder: Path, before: str = "", after: str = "") -> dict[str, str]:
    """PATH with an sbatch that runs these lines of shell around its first real submission."""
    own = folder / "bin"
    own.mkdir()
    script = own / "sbatch"
    script.write_text(
        f"""#!/bin/sh
case "$*" in *--test-only*) exec {shutil.which("sbatch")} "$@";; esac
first=; mkdir {own}/called 2>/dev/null && first=1
if [ $first ]; then :; {before or ":"}; fi
{shutil.which("sbatch")} "$@"; code=$?
if [ $first ]; then :; {after or ":"}; fi
exit $code
"""
    )
    script.chmod(0o755)
    return {"PATH": f"{own}:{os.environ['PATH']}"}
