"""runs/<run_id>/bill.json: what SLURM's accounting said that a run cost, kept because accounting forgets.

It stands beside the record, which a run writes before its job has ended, and is brought up to date until every job in
it has ended. Reports read it; they never ask SLURM.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, fields

from transfergrid.paths import RunPaths
from transfergrid.specs import from_dict, to_dict
from transfergrid.store import durable

BILL_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BilledJob:
    """One allocation of SLURM's that was spent on a run; a restart is one of its own. gpus: of AllocTRES. elapsed_s:
    ElapsedRaw, of the whole job. share: of the run, in [0, 1]; below 1 where runs share a job."""

    job: str
    cluster: str
    start: str
    elapsed_s: float
    gpus: int
    share: float
    has_ended: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """attempt: the newest that is in it. is_closed: every job in it has ended, and every attempt is in one of them."""

    jobs: tuple[BilledJob, ...]
    attempt: int
    is_closed: bool

    @property
    def wall_s(self) -> float:
        return sum(job.elapsed_s * job.share for job in self.jobs)

    @property
    def gpu_s(self) -> float:
        return sum(job.elapsed_s * job.gpus * job.share for job in self.jobs)


def read_bill(paths: RunPaths) -> Bill | None:
    """None where there is none that can be read: it is made again from the accounting."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        content = durable.read_json(paths.bill)
        if content["format"] == BILL_FORMAT:
            return from_dict(Bill, {f.name: content[f.name] for f in fields(Bill)})
    return None


def write_bill(paths: RunPaths, bill: Bill) -> None:
    durable.write_json(paths.bill, {"format": BILL_FORMAT, **to_dict(bill)})


def joined(former: Bill | None, jobs_now: Iterable[BilledJob]) -> tuple[BilledJob, ...]:
    """What was kept, brought up to date: accounting may have forgotten jobs that an earlier report still saw."""
    jobs = {(job.job, job.cluster, job.start): job for job in (() if former is None else former.jobs)}
    jobs |= {(job.job, job.cluster, job.start): job for job in jobs_now}
    return tuple(jobs[key] for key in sorted(jobs, key=lambda key: (key[2], key[0])))
