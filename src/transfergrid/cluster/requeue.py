"""How a job that was told to stop, and has saved, goes back into SLURM's queue."""

from __future__ import annotations

import os
import time
from typing import Literal

from transfergrid.cluster import slurm
from transfergrid.cluster.ownership import row_of_this_job
from transfergrid.cluster.slurm import SlurmMissing, SlurmRefused
from transfergrid.errors import MachineError
from transfergrid.store.attempts import slurm_task

Requeued = Literal["back", "left to slurm", "cannot ask"]

RETRY_S = 5.0
TRIES = 60
BLIND_LOOKS = 5  # at a queue that does not show this job, though it runs


def requeue_this_job() -> Requeued:
    """Put this process's job back into the queue, unless SLURM is ending it for good or requeues it itself.

    The controller may be away for a while; giving up would lose the job, so it is asked for minutes, or until SLURM
    kills this process. What is put back is the job that SLURM shows as this one at that moment, by cluster, token and
    restart: its number may be another's. `back`: by this call. `cannot ask`: nothing here puts it back, since SLURM's
    commands are missing, as in a container, or the site forbids it; that is not asked for twice, and the batch script
    may do it (batch_script.py).
    """
    me = slurm_task()
    if me is None:
        return "left to slurm"
    unseen = 0
    for _ in range(TRIES):
        try:
            row = row_of_this_job()
            if row is not None and row.state == "RUNNING":
                slurm.run(["scontrol", "requeue", me])
                print(f"job {me} has saved, and is back in the queue", flush=True)
                time.sleep(RETRY_S)  # SLURM ends it now
                return "back"
            if row is not None:
                print(f"job {me} is {row.state}: SLURM is ending it itself", flush=True)
                return "left to slurm"
            unseen += 1
            if unseen == BLIND_LOOKS:
                print(f"job {me} is not in the queue as this one, so it is not put back", flush=True)
                return "left to slurm"
        except MachineError as error:
            print(f"requeue of job {me}: {error}", flush=True)
            if isinstance(error, SlurmMissing | SlurmRefused):
                return "cannot ask"
        time.sleep(RETRY_S)
    return "cannot ask"


def seconds_left() -> float | None:
    """Until this job's time limit; None where SLURM does not say."""
    if slurm_task() is None:
        return None
    try:
        row = row_of_this_job()
    except MachineError:  # as in a container; SLURM sets this in a job's environment
        ends = os.environ.get("SLURM_JOB_END_TIME", "")
        return float(ends) - time.time() if ends.isdigit() else None
    return None if row is None else row.left_s


def rename_this_job(name: str) -> None:
    """Raises SlurmDown, SlurmRefused."""
    row = row_of_this_job(timeout_s=5)
    if row is not None:
        slurm.run(["scontrol", "update", f"jobid={row.job_id}", f"name={name}"], timeout_s=5)
