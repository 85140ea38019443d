"""What was sent to SLURM: results/launches/<launch>/slurm/submissions.jsonl, one line before sbatch and one after.

The line before (without a job id) is the intent. Where a launcher died, or sbatch timed out, between the two, the job
may exist all the same: it is looked up by the token in its name and adopted, never sent again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from transfergrid.cluster.ownership import Proof
from transfergrid.paths import StorePaths
from transfergrid.store import durable

Kind = Literal["runs", "finish"]
Sender = Literal["launch", "sweep", "submit.sh"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One sbatch: an array of tasks, or a plain job where there is one task.

    name: unique in the store. tasks: the run_ids of each task, in order (several where runs share a job). launch:
    folder of the launch. job_id: None while only intended. gpus: per task. cluster: SLURM's name of where it was sent.
    token: its own, at the end of the names of its jobs. Both are None in lines of an older release. uid: of who sent
    it. sender: what calls sbatch; of these only a launch holds the store's lock meanwhile.
    """

    name: str
    grid: str
    launch: Path
    tasks: tuple[tuple[str, ...], ...]
    job_id: str | None = None
    kind: Kind = "runs"
    submitted: datetime
    gpus: int = 0
    cluster: str | None = None
    token: str | None = None
    uid: int | None = None
    sender: Sender = "launch"

    @property
    def job_name(self) -> str:
        """As it is sent; its tasks rename themselves, and keep the token."""
        return self.name if self.token is None else f"{self.name}-{self.token}"

    @property
    def proof(self) -> Proof:
        """What a row of SLURM's must fit to be one of its jobs."""
        return Proof(self.cluster, self.token, self.name, self.uid)

    @property
    def folder(self) -> Path:
        """Where its script, its pickles and its logs lie."""
        return self.launch / "slurm" / self.name

    @property
    def was_accepted(self) -> bool:
        """Whether sbatch said that it took it: the tasks' pickles are then in place."""
        return next(self.folder.glob("*_submitted.pkl"), None) is not None

    def task_id(self, index: int) -> str | None:
        if self.job_id is None:
            return None
        return self.job_id if len(self.tasks) == 1 else f"{self.job_id}_{index}"

    def logs(self, index: int) -> tuple[Path, Path]:
        """(output, errors) of one task, as SLURM writes them."""
        name = f"{self.task_id(index)}_0_log"
        return self.folder / f"{name}.out", self.folder / f"{name}.err"


def record(submission: Submission) -> None:
    """Append a submission, or what is now known of it, to its launch's file."""
    path = submission.launch / "slurm" / "submissions.jsonl"
    durable.append_line(path, json.dumps(as_line(submission)).encode())


def as_line(submission: Submission) -> dict[str, Any]:
    line = {f.name: getattr(submission, f.name) for f in fields(submission) if f.name != "launch"}
    return line | {"submitted": submission.submitted.isoformat(timespec="seconds")}


def forget(submission: Submission) -> None:
    """An intent of which SLURM knows nothing: as if it had never been."""
    record(replace(submission, tasks=()))


class Ledger:
    """Every submission of a store that is still on file, oldest first."""

    def __init__(self, submissions: Iterable[Submission]) -> None:
        self.submissions = sorted(submissions, key=lambda s: (s.submitted, s.name))

    @cached_property
    def _newest(self) -> dict[str, tuple[Submission, int]]:
        return {r: (s, i) for s in self.submissions for i, task in enumerate(s.tasks) for r in task}

    def newest(self, run_id: str) -> tuple[Submission, int] | None:
        """The last submission that holds a run, and which of its tasks."""
        return self._newest.get(run_id)

    def of_grid(self, grid: str, kind: Kind) -> list[Submission]:
        return [s for s in self.submissions if s.grid == grid and s.kind == kind and s.tasks]

    @property
    def unsettled(self) -> list[Submission]:
        """Intents without a job id, on whatever cluster."""
        return [s for s in self.submissions if s.job_id is None and s.tasks]


def read_ledger(store: StorePaths) -> Ledger:
    """Later lines of a name replace earlier ones; a torn last line is left out."""
    newest: dict[str, Submission] = {}
    for launch in sorted(store.launches.glob("*/slurm/submissions.jsonl")):
        with contextlib.suppress(FileNotFoundError):  # another process may be clearing up
            for submission in _read(launch):
                newest[submission.name] = submission
    return Ledger(newest.values())


def _read(path: Path) -> Iterator[Submission]:
    for text in path.read_bytes().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        known = {f.name: line[f.name] for f in fields(Submission) if f.name in line}
        known |= {"launch": path.parents[1], "tasks": tuple(tuple(task) for task in line["tasks"])}
        yield Submission(**known | {"submitted": datetime.fromisoformat(line["submitted"]).astimezone(UTC)})
