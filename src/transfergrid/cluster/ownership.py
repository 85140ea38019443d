"""Whose job is it? The cluster that shows it and the mark at the end of its name prove it; its number proves nothing.

Numbers meet: on a site's other cluster, after a reset, when they have wrapped around. So a row of squeue or sacct
counts only where it fits a Proof, and nothing is cancelled, requeued or adopted that does not, as SLURM shows it at
that moment.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from transfergrid.cluster import accounting, slurm
from transfergrid.errors import MachineError
from transfergrid.store.attempts import job_mark, restart_count, slurm_task

Requeued = Literal["back", "left to slurm", "cannot ask"]
RETRY_S = 5.0
TRIES = 60
BLIND_LOOKS = 5  # at a queue that does not show this job, though it runs
UNMARKED = "an older release sent it, and noted neither its cluster nor a mark"


def new_token() -> str:
    """48 random bits, at the end of a job's name; two submissions never have the same."""
    return secrets.token_hex(6)


@dataclass(frozen=True, slots=True)
class Here:
    """The cluster that answers. hides_jobs: it shows a user no jobs of others (PrivateData)."""

    name: str
    hides_jobs: bool = False

    def may_hide(self, proof: Proof) -> bool:
        """Whether such a job may be in the queue though it is not shown."""
        return self.hides_jobs and os.getuid() not in (0, proof.uid)


def here(timeout_s: float = slurm.TIMEOUT_S) -> Here:
    """Raises what read_config() raises."""
    return here_of(read_config(timeout_s))


def here_of(config: Mapping[str, str]) -> Here:
    return Here(config["ClusterName"], "jobs" in config.get("PrivateData", "").lower())


def read_config(timeout_s: float = slurm.TIMEOUT_S) -> dict[str, str]:
    """SLURM's own settings, the cluster's name among them. Raises SlurmDown; SlurmRefused where SLURM_CLUSTERS names no
    single cluster that answers."""
    clusters = slurm.environment().get("SLURM_CLUSTERS", "")
    if "," in clusters or clusters == "all":
        raise slurm.SlurmRefused(
            f"SLURM_CLUSTERS={clusters} names several clusters", remedy="set it to one, or unset it"
        )
    config = slurm.show("config", timeout_s=timeout_s)[0]
    if not config.get("ClusterName"):
        raise slurm.SlurmDown(
            "scontrol show config does not tell the cluster's name (ClusterName)", remedy="try again later"
        )
    return config


@dataclass(frozen=True, slots=True)
class Proof:
    """What must fit before a row of SLURM's counts as that of a job.

    token: the name's end, or the whole name of a job that somebody wrote by hand. cluster and token are None of what an
    older release sent: its unique name (or comment) then serves to show the job, and proves too little to touch it.
    uid: of who sent it.
    """

    cluster: str | None
    token: str | None
    name: str = ""
    uid: int | None = None

    @property
    def is_complete(self) -> bool:
        return self.cluster is not None and self.token is not None

    def is_of(self, cluster: str) -> bool:
        """Whether it proves a job of this cluster, which then may be touched."""
        return self.is_complete and self.cluster == cluster

    def fits(self, cluster: str, name: str, comment: str = "") -> bool:
        """Whether a job of this name, shown by this cluster, is the one."""
        if self.token is None:
            return self.name != "" and self.name in (name, comment)
        return self.cluster == cluster and (name == self.token or name.endswith(f"-{self.token}"))

    def may_be_renamed(self, cluster: str, row: slurm.JobRow) -> bool:
        """Whether a live job of its number, on its cluster and of its user, bears another name: nothing tells whether
        the user has renamed it or the number was given again."""
        same = self.is_of(cluster) and self.uid is not None and self.uid == row.uid
        return same and not self.fits(cluster, row.name) and not row.has_ended


def proof_of_attempt(owner: Mapping[str, Any]) -> Proof:
    """By what an attempt noted of its job."""
    return Proof(owner.get("slurm_cluster"), owner.get("slurm_mark"), uid=owner.get("uid"))


# ------------------------------------------------------------------------------------------------------- what is alive
def live_rows(jobs: Mapping[str, Proof], where: Here | None = None) -> dict[str, slurm.JobRow]:
    """Of these jobs (`123`, which covers an array's tasks, or `123_4`) what is alive now, or ending, and proven: task
    -> its row. where: the cluster, if it is known already. Raises SlurmDown, SlurmRefused."""
    if not jobs:
        return {}
    where = where or here()
    own = {job_id: proof for job_id, proof in jobs.items() if proof.is_of(where.name)}
    rows = {}
    for entry in slurm.squeue(slurm.base_id(job_id) for job_id in own):
        proof = own.get(entry.job_id) or own.get(slurm.base_id(entry.job_id))
        if proof is not None and proof.fits(where.name, entry.name) and not entry.has_ended:
            rows[entry.job_id] = entry
    return rows


def is_alive(owner: Mapping[str, Any]) -> bool | None:
    """Whether the job of a run's newest attempt is alive; None where nothing proves it or the contrary."""
    proof, task = proof_of_attempt(owner), str(owner["slurm_task"])
    if not proof.is_complete:
        return None
    try:
        where = here()
        if proof.cluster != where.name:
            return None
        entries = [e for e in slurm.squeue([task]) if e.job_id == task]
    except MachineError:
        return None
    rows = [e for e in entries if proof.fits(where.name, e.name)]
    if rows:
        return not rows[0].has_ended
    if any(proof.may_be_renamed(where.name, e) for e in entries):
        return None
    if where.may_hide(proof):
        return None
    since = datetime.now(UTC) - timedelta(days=365)
    account = accounting.sacct([task], since=since, cluster=where.name) or ()
    account_rows = [a for a in account if a.job_id == task and proof.fits(a.cluster, a.name)]
    return None if account_rows and not account_rows[-1].has_ended else False


# ----------------------------------------------------------------------------------------------------------- this job
def row_of_this_job(timeout_s: float = slurm.TIMEOUT_S) -> slurm.JobRow | None:
    """As the queue shows the job this process is in; None where it shows none that proves to be it, or a newer copy.
    Raises SlurmDown, SlurmRefused."""
    me, mark, where = slurm_task(), job_mark(), here(timeout_s)
    if me is None or mark is None or where.name != os.environ.get("SLURM_CLUSTER_NAME"):
        return None
    proof = Proof(where.name, mark)
    rows = (e for e in slurm.squeue([me], timeout_s=timeout_s) if e.job_id == me and proof.fits(where.name, e.name))
    return next((e for e in rows if e.restarts == restart_count()), None)


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
            if isinstance(error, slurm.SlurmMissing | slurm.SlurmRefused):
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
