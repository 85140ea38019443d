"""The check of nodecheck.py as short SLURM jobs, and what they answered: sent, waited for, cancelled where late."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transfergrid.cluster import slurm
from transfergrid.cluster.batch_script import prelude
from transfergrid.cluster.ownership import new_token
from transfergrid.cluster.slurm_words import meaning
from transfergrid.doctor.nodecheck import shows
from transfergrid.resources import ClusterSettings
from transfergrid.store import durable

JOB_NAME = "tg-doctor"  # and a token, by which each is known
LOOKS = 3  # at the queue, for a job that sbatch took
LIMIT_MIN = 2
POLL_S = 0.5
RUN_S = LIMIT_MIN * 60 + 60.0  # SLURM ends a job at its limit, give or take


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeAnswer:
    """What came of one probe. findings: as it told them, together.

    problem: why there are no findings, or not all; empty where the probe came to its end. sent_s, seen_s: clock of this
    machine before it was sent and after its answer was read. unsure: it never got to start. is_unheard: what it wrote
    does not show here.
    """

    findings: Mapping[str, Any] = field(default_factory=dict)
    job_id: str = ""
    problem: str = ""
    unsure: bool = False
    is_unheard: bool = False
    sent_s: float = 0.0
    seen_s: float = 0.0


@dataclass(slots=True)
class _Job:
    """name: by which SLURM shows it. entry: as it was last shown. unseen: how often it was not, since then."""

    name: str
    output: Path
    sent_s: float
    entry: slurm.JobRow | None = None
    unseen: int = 0
    started: float | None = None

    @property
    def state(self) -> str:
        if self.unseen >= LOOKS:
            return "ENDED"  # SLURM has forgotten it
        return "PENDING" if self.entry is None else self.entry.state

    @property
    def is_live(self) -> bool:
        return meaning(self.state).kind in ("waits", "runs")

    @property
    def job_id(self) -> str:
        return "" if self.entry is None else self.entry.job_id


def job_script(settings: ClusterSettings, source: Path, arguments: Sequence[str], *, nodes: int) -> str:
    """Shell that starts the probe as a run is started: the same setup lines, python and code."""
    python = settings.python or shlex.quote(sys.executable)
    several = f"srun --mpi=none --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 " if nodes > 1 else ""
    return "\n".join(
        [
            "#!/bin/bash",
            *prelude(settings, source, "export OMP_NUM_THREADS=1", token=None),
            "has() { if command -v $1 >/dev/null; then echo true; else echo false; fi; }",
            """echo '{"batch_script": {"squeue": '$(has squeue)', "scontrol": '$(has scontrol)'}}'""",
            f"{several}{python} -m transfergrid.doctor.nodecheck {shlex.join(arguments)}",
            "",
        ]
    )


@dataclass(slots=True, kw_only=True)
class ProbeJobs:
    """The probes of one call of doctor. Leaving the block cancels what has not ended.

    queue_s: how long they may wait to start. visible_s: how long a file may take to show on another machine.
    """

    queue_s: float
    visible_s: float
    _jobs: dict[str, _Job] = field(default_factory=dict)
    _refused: dict[str, ProbeAnswer] = field(default_factory=dict)

    def __enter__(self) -> ProbeJobs:
        return self

    def __exit__(self, *_: object) -> None:
        late = [job.name for job in self._jobs.values() if job.is_live]
        with contextlib.suppress(slurm.SlurmDown, slurm.SlurmRefused):  # they end by themselves after two minutes
            slurm.scancel(entry.job_id for entry in slurm.squeue(names=late) if entry.name in late)

    def send(self, name: str, script: str, *, folder: Path, settings: ClusterSettings, gpus: int, nodes: int) -> None:
        """A job whose script and output lie in `folder`. It asks for the same place and kind of node as a run, and
        little of it, so that it starts soon."""
        job = _Job(f"{JOB_NAME}-{new_token()}", folder / "output", time.time())
        durable.write_bytes(folder / "job.sh", os.fsencode(script))
        small = settings.resources.at_most(gpus=gpus, cpus=2, mem_gb=4.0, timeout_min=LIMIT_MIN)
        options = {key: value for key, value in settings.options(small).items() if not key.startswith("mail")}
        options |= {"job-name": job.name, "nodes": str(nodes), "output": str(job.output)}
        try:
            try:
                slurm.sbatch(["--no-requeue", *slurm.flags(options), str(folder / "job.sh")])
            except (slurm.SlurmRefused, slurm.SlurmDown):  # it may have been taken all the same
                names = [e.name for e in slurm.squeue(names=[job.name]) if slurm.was_taken(e.state, e.nodes)]
                if job.name not in names:
                    raise
            self._jobs[name] = job
        except (slurm.SlurmRefused, slurm.SlurmDown) as error:
            self._refused[name] = ProbeAnswer(problem=str(error))

    def wait(self) -> dict[str, ProbeAnswer]:
        """Until each has ended, or did not start in time."""
        began = time.monotonic()
        while any(self._is_awaited(job, began) for job in self._jobs.values()):
            time.sleep(POLL_S)
            self._look()
        return {name: self._answer(job) for name, job in self._jobs.items()} | self._refused

    def _is_awaited(self, job: _Job, began: float) -> bool:
        since, limit_s = (began, self.queue_s) if job.started is None else (job.started, RUN_S)
        return job.is_live and time.monotonic() - since < limit_s

    def _look(self) -> None:
        try:
            entries = {entry.name: entry for entry in slurm.squeue(names=(job.name for job in self._jobs.values()))}
        except slurm.SlurmDown:
            return  # asked again; the wait has an end
        for job in self._jobs.values():
            if job.name in entries:
                job.entry, job.unseen = entries[job.name], 0
            else:
                job.unseen += 1
            if job.started is None and meaning(job.state).kind != "waits":
                job.started = time.monotonic()

    def _answer(self, job: _Job) -> ProbeAnswer:
        if job.started is None:
            why = f" (SLURM says: {job.entry.reason})" if job.entry is not None and job.entry.reason else ""
            return ProbeAnswer(
                job_id=job.job_id, problem=f"the probe job did not start in {self.queue_s:.0f} s{why}", unsure=True
            )
        text = job.output.read_text(errors="replace") if shows(job.output, self.visible_s) else None
        findings, last_line = parse_output(text or "")
        ended = f"job {job.job_id or job.name} ended as {job.state}"
        problem = ""
        if text is None:
            problem = f"{ended} and its output does not show in {job.output.parent}"
        elif job.state not in ("COMPLETED", "COMPLETING", "ENDED"):
            problem = f"{ended}: {last_line or 'without a word'}"
        return ProbeAnswer(
            findings=findings,
            job_id=job.job_id,
            problem=problem,
            is_unheard=text is None,
            sent_s=job.sent_s,
            seen_s=time.time(),
        )


def parse_output(text: str) -> tuple[dict[str, Any], str]:
    """(all findings together, the last line that is none): setup lines and modules may print what they like."""
    findings: dict[str, Any] = {}
    last_line = ""
    for line in text.splitlines():
        try:
            finding = json.loads(line)
        except ValueError:
            finding = None
        if isinstance(finding, dict):
            findings |= finding
        elif line.strip():
            last_line = line.strip()
    return findings, last_line[:300]
