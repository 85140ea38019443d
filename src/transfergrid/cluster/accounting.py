"""What SLURM's accounting keeps of jobs, as sacct tells it: how they ended, where there is a database.

Each call is for any number of jobs. Whose job it is, a number does not tell: see ownership.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from transfergrid.cluster import slurm
from transfergrid.cluster.forms import ANY, JOB_ID, mebibytes, rows, tres_of, when
from transfergrid.cluster.slurm import JobRow
from transfergrid.errors import MachineError

_FORM_OF = {
    "JobID": rf"{JOB_ID}(?:\.\S+)?",  # of a step: `123_4.batch`, `.extern`, `.0`, `.interactive`
    "State": r"[A-Z_]*( by \S+|\+)?",
    "ExitCode": r"(\d+:\d+)?",
    "NodeList": ANY,
    "Submit": ANY,
    "Start": ANY,
    "End": ANY,
    "ElapsedRaw": r"\d*",
    "AllocTRES": r"(\S+=\S+)?",
    "ReqMem": ANY,
    "MaxRSS": ANY,
    "Cluster": ANY,
    "JobName": ANY,  # last, since it may hold whatever a user typed, the separator included
}


def sacct(
    job_ids: Iterable[str] = (),
    *,
    since: datetime,
    uids: Iterable[int] = (),
    cluster: str | None = None,
    each_start: bool = False,
    timeout_s: float = slurm.TIMEOUT_S,
) -> list[JobRow] | None:
    """These jobs, or all of these users; None where there is no accounting or its database does not answer.

    cluster: whose accounts, since sacct heeds no SLURM_CLUSTERS; None = this machine's. each_start: an entry for each
    start of a job that was requeued, without what its steps tell; else the newest alone.
    """
    ids, of_users = sorted(set(job_ids)), sorted(set(uids))
    if not ids and not of_users:
        return []
    where = ["-M", cluster] if cluster is not None else []
    options = ["-X", "-D"] if each_start else []
    start = (since.astimezone(UTC) - timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%S")  # else it begins at midnight
    which = ["-j", ",".join(ids)] if ids else ["-u", ",".join(map(str, of_users))]
    command = ["sacct", *where, "-n", "-P", *options, "-S", start, *which, "-o", ",".join(_FORM_OF)]
    try:
        entries = parse_sacct(slurm.run(command, timeout_s=timeout_s))
    except MachineError:
        return None
    return entries if each_start else list({(e.cluster, e.job_id): e for e in entries}.values())


def parse_sacct(text: str) -> list[JobRow]:
    """Of a requeued job the last entry is the newest. `5_[3-9]` are tasks that wait, of which squeue tells more."""
    jobs: list[dict[str, str]] = []
    steps: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows("sacct", text, list(_FORM_OF.values())):
        cells = dict(zip(_FORM_OF, row, strict=True))
        job_id, _, step = cells["JobID"].partition(".")
        if step:
            steps.setdefault((cells["Cluster"], job_id), []).append(cells)
        elif "[" not in job_id:
            jobs.append(cells)
    return [_job_row(cells, steps.get((cells["Cluster"], cells["JobID"]), [])) for cells in jobs]


def _job_row(cells: Mapping[str, str], steps: Sequence[Mapping[str, str]]) -> JobRow:
    state = cells["State"].split()[0].rstrip("+") if cells["State"] else "UNKNOWN"  # `CANCELLED by 0`, `CANCELLED+`
    if state not in ("PENDING", "RUNNING", "REQUEUED", "COMPLETED"):
        if any(s["State"].startswith("OUT_OF_ME") for s in steps):
            state = "OUT_OF_MEMORY"
    code, _, number = cells["ExitCode"].partition(":")
    rss = [mib for mib in (mebibytes(s["MaxRSS"]) for s in steps) if mib is not None]
    return JobRow(
        job_id=cells["JobID"],
        cluster=cells["Cluster"],
        name=cells["JobName"],
        state=state,
        exit_code=int(code) if code.isdigit() else 0,
        signal=int(number) if number.isdigit() else 0,
        nodes="" if cells["NodeList"] == "None assigned" else cells["NodeList"],
        submitted=when(cells["Submit"]),
        started=when(cells["Start"]),
        ended=when(cells["End"]),
        elapsed_s=float(cells["ElapsedRaw"] or 0),
        gpus=gpus_of(cells["AllocTRES"]),
        memory_mib=mebibytes(cells["ReqMem"]),
        max_rss_mib=max(rss) if rss else None,
    )


def gpus_of(tres: str) -> int:
    """`billing=4,cpu=4,gres/gpu:a100=2,gres/gpu=2,mem=16G` -> 2. Where only types are counted, their sum."""
    counted = tres_of(tres)
    return int(counted.get("gres/gpu", sum(n for name, n in counted.items() if name.startswith("gres/gpu:"))))
