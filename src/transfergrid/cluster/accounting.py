"""What SLURM's accounting keeps of jobs, as sacct tells it: how they ended, where there is a database.

Each call is for any number of jobs. Whose job it is, a number does not tell: see ownership.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from transfergrid.cluster import slurm
from transfergrid.cluster.forms import ANY, JOB_ID, mebibytes, rows, when
from transfergrid.errors import MachineError


@dataclass(frozen=True, slots=True)
class AccountEntry:
    """One job or task of an array as the accounting knows it, its steps folded in.

    cluster, name: of the job. state: a step's OUT_OF_MEMORY stands for the job's, which says only FAILED. exit_code,
    signal: of the job. memory_mib: of host memory it had asked for. max_rss_mib: the most that one of its steps was
    seen to use.
    """

    job_id: str
    cluster: str
    name: str
    state: str
    exit_code: int
    signal: int
    nodes: str
    ended: datetime | None
    elapsed_s: float
    memory_mib: float | None
    max_rss_mib: float | None


# The name comes last, since it may hold whatever a user typed, the separator included.
_ACCOUNT = ("JobID", "State", "ExitCode", "NodeList", "End", "ElapsedRaw", "ReqMem", "MaxRSS", "Cluster", "JobName")
JOB_OR_STEP, SECONDS = rf"{JOB_ID}(?:\.\S+)?", r"\d*"  # `123_4.batch`, `.extern`, `.0`, `.interactive`
STATE = r"[A-Z_]*( by \S+|\+)?"
_OF_ACCOUNT = (JOB_OR_STEP, STATE, r"(\d+:\d+)?", *[ANY] * 2, SECONDS, *[ANY] * 4)


def sacct(
    job_ids: Iterable[str] = (),
    *,
    since: datetime,
    uids: Iterable[int] = (),
    cluster: str | None = None,
    timeout_s: float = slurm.TIMEOUT_S,
) -> list[AccountEntry] | None:
    """These jobs, or all of these users, newest record of each; None where there is no accounting or its database
    does not answer. cluster: whose accounts, since sacct heeds no SLURM_CLUSTERS; None = this machine's."""
    ids, of_users = sorted(set(job_ids)), sorted(set(uids))
    if not ids and not of_users:
        return []
    which = ["-j", ",".join(ids)] if ids else ["-u", ",".join(map(str, of_users))]
    text = accounts(_ACCOUNT, which, since=since, cluster=cluster, timeout_s=timeout_s)
    return None if text is None else parse_sacct(text)


def accounts(
    columns: Sequence[str],
    which: Sequence[str],
    *,
    since: datetime,
    cluster: str | None,
    options: Sequence[str] = (),
    timeout_s: float = slurm.TIMEOUT_S,
) -> str | None:
    """sacct's lines of these columns; None where there is no accounting or its database does not answer."""
    start = (since.astimezone(UTC) - timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%S")  # else it begins at midnight
    where = ["-M", cluster] if cluster is not None else []
    command = ["sacct", *where, "-n", "-P", *options, "-S", start, *which, "-o", ",".join(columns)]
    try:
        return slurm.run(command, timeout_s=timeout_s)
    except MachineError:
        return None


def parse_sacct(text: str) -> list[AccountEntry]:
    jobs: dict[tuple[str, str], dict[str, str]] = {}  # by cluster and id
    steps: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows("sacct", text, _OF_ACCOUNT):
        cells = dict(zip(_ACCOUNT, row, strict=True))
        job_id, _, step = cells["JobID"].partition(".")
        if step:
            steps.setdefault((cells["Cluster"], job_id), []).append(cells)
        elif "[" not in job_id:  # `5_[3-9]`: waiting tasks, of which squeue tells more
            jobs[cells["Cluster"], job_id] = cells  # of a requeued job the last line is the newest
    return [_account_entry(cells, steps.get(key, [])) for key, cells in jobs.items()]


def _account_entry(cells: Mapping[str, str], steps: Sequence[Mapping[str, str]]) -> AccountEntry:
    state = cells["State"].split()[0].rstrip("+") if cells["State"] else "UNKNOWN"  # `CANCELLED by 0`, `CANCELLED+`
    if state not in ("PENDING", "RUNNING", "REQUEUED", "COMPLETED"):
        if any(s["State"].startswith("OUT_OF_ME") for s in steps):
            state = "OUT_OF_MEMORY"
    code, _, number = cells["ExitCode"].partition(":")
    rss = [mib for mib in (mebibytes(s["MaxRSS"]) for s in steps) if mib is not None]
    return AccountEntry(
        job_id=cells["JobID"],
        cluster=cells["Cluster"],
        name=cells["JobName"],
        state=state,
        exit_code=int(code) if code.isdigit() else 0,
        signal=int(number) if number.isdigit() else 0,
        nodes="" if cells["NodeList"] == "None assigned" else cells["NodeList"],
        ended=when(cells["End"]),
        elapsed_s=float(cells["ElapsedRaw"] or 0),
        memory_mib=mebibytes(cells["ReqMem"]),
        max_rss_mib=max(rss) if rss else None,
    )
