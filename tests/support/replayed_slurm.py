"""Commands of SLURM that print what a test has recorded: executables in a folder that is put before the PATH."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from transfergrid.cluster.ledger import Submission, record
from transfergrid.paths import StorePaths
from transfergrid.store.records import GridEntry, write_grid

CLUSTER = "here"  # the one that answers
TOKEN = "0123456789ab"  # of every submission, unless a test says otherwise


def ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


def stamp(moment: datetime | None) -> str:
    return "N/A" if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%S")


class ReplayedSlurm:
    """squeue and sacct answer with these lines; every call is counted. Nothing else of SLURM is there."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        for name in ("squeue", "sacct", "scancel", "sbatch"):
            self.answers(name, "")
        self.is_cluster(CLUSTER)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def answers(self, command: str, text: str, *, error: str = "", code: int = 0, sleep_s: float = 0) -> None:
        for suffix, content in (("out", text), ("err", error)):
            (self.folder / f"{command}.{suffix}").write_text(content)
        script = self.folder / command
        script.write_text(
            f'#!/bin/sh\necho "{command} $*" >> {self.folder}/calls\nsleep {sleep_s}\n'
            f"cat {self.folder}/{command}.err >&2\ncat {self.folder}/{command}.out\nexit {code}\n"
        )
        script.chmod(0o755)

    def is_cluster(self, name: str, **config: str) -> None:
        """What scontrol says of it; `scontrol requeue` and `update` work."""
        lines = {"ClusterName": name, "PrivateData": "none"} | config
        self.answers("scontrol", "".join(f"{key} = {value}\n" for key, value in lines.items()))

    def takes_jobs(self, number: int, said: str = "Submitted batch job {number}", *, code: int = 0) -> None:
        """Whatever is sent becomes this job, pending in the queue under its script's name; sbatch prints `said`."""
        printed, out = said.format(number=number), "1" if code == 0 else "2"
        (self.folder / "sbatch").write_text(
            f"""#!/bin/sh
echo "sbatch $*" >> {self.folder}/calls
for script in "$@"; do :; done
name=$(sed -n 's/^#SBATCH --job-name=//p' "$script")
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for id in $(if [ "$last" ]; then seq -f {number}_%g 0 "$last"; else echo {number}; fi); do
  printf '%-256s' "$id" PENDING None N/A 0:00 1:00:00 0 "" "$(id -u)" "$name" "(null)" 0 >> {self.folder}/squeue.taken
  echo >> {self.folder}/squeue.taken
done
[ {code} = 0 ] && cp {self.folder}/squeue.taken {self.folder}/squeue.out
echo '{printed}' >&{out}
exit {code}
"""
        )

    def controller_is_down(self) -> None:
        said = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"
        for name in ("squeue", "scontrol"):
            self.answers(name, "", error=said, code=1)

    def has_no_accounting(self) -> None:
        self.answers("sacct", "", error="Slurm accounting storage is disabled\n", code=1)

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def asked(self) -> list[str]:
        """Which commands were run, in order, but for the question which cluster this is."""
        return [call.split()[0] for call in self.calls if call != "scontrol -a show config"]


def queue_line(
    job_id: str,
    state: str,
    reason: str = "None",
    *,
    started: datetime | None = None,
    used: str = "0:00",
    left: str = "1:00:00",
    restarts: int = 0,
    node: str = "",
    uid: int = 0,
    status: int = 0,
    name: str = f"name-{TOKEN}",
    comment: str = "(null)",
) -> str:
    """One line of squeue -O in columns of 256 characters. status: of wait(), as squeue prints it."""
    cells = (job_id, state, reason, stamp(started), used, left, restarts, node, uid, name, comment, status)
    return "".join(f"{cell!s:<256}" for cell in cells) + "\n"


def account_line(
    job_id: str,
    state: str,
    *,
    exit_code: str = "0:0",
    node: str = "n1",
    ended: datetime | None = None,
    elapsed_s: int = 0,
    max_rss: str = "",
    cluster: str = CLUSTER,
    name: str = f"name-{TOKEN}",
    started: datetime | None = None,
    tres: str = "",
) -> str:
    """One line of sacct -P."""
    times = (stamp(started), stamp(started), stamp(ended or ago(600)))
    cells = (job_id, state, exit_code, node, *times, elapsed_s, tres, "1G", max_rss, cluster, name)
    return "|".join(map(str, cells)) + "\n"


def submit(
    store: StorePaths,
    *tasks: tuple[str, ...],
    job_id: str | None = "7",
    seconds_ago: float = 3600,
    grid: str = "g",
    launch: str = "20261120T120000-aaaaaaaa",
    name: str | None = None,
    cluster: str | None = CLUSTER,
    token: str | None = TOKEN,
    uid: int | None = None,
) -> Submission:
    """A line of the ledger; `tasks` are the run_ids of each task. An older release's has neither cluster nor token."""
    submission = Submission(
        name=name or f"sub-{job_id}",
        grid=grid,
        launch=store.launches / launch,
        tasks=tasks,
        job_id=job_id,
        submitted=ago(seconds_ago),
        cluster=cluster,
        token=token,
        uid=os.getuid() if uid is None else uid,
    )
    record(submission)
    return submission


def make_grid(store: StorePaths, *run_ids: str, grid: str = "g") -> None:
    entries = [
        GridEntry(
            run_id=run_id,
            dataset="digits",
            model=f"model_{run_id}",
            phase="probe",
            variant="",
            weights="random",
            protocol="fair",
            seed=0,
        )
        for run_id in run_ids
    ]
    write_grid(store.grid(grid), grid=grid, entries=entries)


def attempt(store: StorePaths, run_id: str, number: int = 1, *, seconds_ago: float = 1800, **owner: Any) -> None:
    """attempts/NNN.json as a job of SLURM's leaves it; `owner` wins."""
    content = {
        **{"host": "n1", "pid": 1, "node": "n1", "started": ago(seconds_ago).isoformat(), "attempt": number},
        **{"slurm_job_id": "7", "slurm_task": "7", "slurm_restart_count": 0},
        **{"slurm_cluster": CLUSTER, "slurm_mark": TOKEN, "uid": os.getuid(), **owner},
    }
    write(store.run(run_id).attempt(number), content)


def completed(store: StorePaths, run_id: str, **values: Any) -> None:
    _record(store, run_id, {"status": "completed", "failure_class": None, "error": None, **values})


def failed(store: StorePaths, run_id: str, failure_class: str = "code", error: str = "it broke", **values: Any) -> None:
    _record(store, run_id, {"status": "failed", "failure_class": failure_class, "error": error, **values})


def _record(store: StorePaths, run_id: str, values: Mapping[str, Any]) -> None:
    common = {"format": 1, "run_id": run_id, "phase_s": 12.5, "attempt": 1, "metrics": {}}
    seconds_ago = values.get("seconds_ago", 1700)
    provenance = {"ended": ago(seconds_ago).isoformat(), "code_hash": "c0de"}
    write(store.run(run_id).record, {**common, "provenance": provenance, **values})


def write(path: Path, content: Any) -> None:
    os.makedirs(path.parent, exist_ok=True)
    path.write_text(json.dumps(content))
