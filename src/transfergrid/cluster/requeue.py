"""How a job that was told to stop, and has saved, goes back into SLURM's queue."""

from __future__ import annotations

import time

from transfergrid.attempts import slurm_task
from transfergrid.cluster import slurm
from transfergrid.errors import MachineError

RETRY_S = 5.0
TRIES = 60


def requeue_this_job() -> bool:
    """Put this process's job back into the queue, unless SLURM is ending it for good or requeues it itself.

    The controller may be away for a while; giving up would lose the job, so it is asked for minutes, or until SLURM
    kills this process. Returns whether the job was put back by this call.
    """
    me = slurm_task()
    if me is None:
        return False
    for _ in range(TRIES):
        try:
            state = next((e.state for e in slurm.squeue([me]) if e.job_id == me), "")
            if state != "RUNNING":
                print(f"job {me} is {state or 'not in the queue'}: SLURM is ending it itself", flush=True)
                return False
            slurm.run(["scontrol", "requeue", me])
        except MachineError as error:
            print(f"requeue of job {me}: {error}", flush=True)
            time.sleep(RETRY_S)
        else:
            print(f"job {me} has saved, and is back in the queue", flush=True)
            time.sleep(RETRY_S)  # SLURM ends it now
            return True
    return False


def seconds_left() -> float | None:
    """Until this job's time limit; None where SLURM does not say."""
    me = slurm_task()
    if me is None:
        return None
    try:
        return next((e.left_s for e in slurm.squeue([me]) if e.job_id == me), None)
    except MachineError:
        return None
