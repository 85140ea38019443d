"""SLURM's own commands, each with a time limit, and what they print as values. Nothing here decides anything.

squeue tells what lives and, for some minutes, what has just ended; what ended longer ago, accounting.py tells. It is
called once for any number of jobs. A job id is `123`, or `123_4` for task 4 of an array; whose job it is, a number does
not tell: see ownership.py.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from transfergrid.cluster.forms import JOB_ID, duration_s, rows, say_unread, when
from transfergrid.cluster.slurm_words import Answer, answer, meaning
from transfergrid.errors import MachineError

TIMEOUT_S = 30.0
SETTLING_S = 150.0  # a requeue makes a job vanish or look ended for up to two minutes
PROBE_S = 2.0  # auto: a controller that takes longer is not there
SBATCH_S = 240.0  # it tries again for two minutes by itself where the controller is full
NAMES_THE_CLUSTER = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT", "SBATCH_RESERVATION")
# Variables of SLURM's commands: inherited, they would become options of what is asked here. SQUEUE_PARTITION hides jobs
# that are there, SCANCEL_STATE keeps scancel from cancelling, SBATCH_PARTITION outweighs a job script's own lines.
OF_CLIENTS = (
    *("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SCANCEL_", "SINFO_", "SACCT_", "SACCTMGR_", "SCONTROL_"),
    *("SSTAT_", "SPRIO_", "SSHARE_", "SDIAG_", "SATTACH_", "SBCAST_", "PMI"),
)


class SlurmDown(MachineError):
    """SLURM's controller (or its database, for sacct) does not answer."""


class SlurmMissing(SlurmDown):
    """The command is not here, and will not be: inside a container, or on a machine that is none of SLURM's."""


class SlurmRefused(MachineError):
    """The command failed, with other words than those of silence. words: its own, all of them on one line."""

    def __init__(self, what: str, words: str = "", *, remedy: str = "") -> None:
        super().__init__(what, remedy=remedy)
        self.words = words

    @property
    def answer(self) -> Answer:
        """Whether these words are a refusal at all."""
        return answer(self.words)


def environment() -> dict[str, str]:
    """This process's environment without the variables of SLURM's commands, those that SLURM sets in a job included.

    What names the cluster stays, and times are told in UTC. SBATCH_CLUSTERS, which sbatch alone would follow, counts
    for every command, as SLURM_CLUSTERS.
    """
    variables = {k: v for k, v in os.environ.items() if not k.startswith(OF_CLIENTS) or k in NAMES_THE_CLUSTER}
    if os.environ.get("SBATCH_CLUSTERS"):
        variables["SLURM_CLUSTERS"] = os.environ["SBATCH_CLUSTERS"]
    # An array's waiting tasks would be cut short to `5_[0-3,5,7,...]`.
    return variables | {"TZ": "UTC", "SLURM_TIME_FORMAT": "standard", "SLURM_BITSTR_LEN": "0", "LC_ALL": "C"}


def run(command: Sequence[str], *, timeout_s: float = TIMEOUT_S, environ: Mapping[str, str] | None = None) -> str:
    """The command's output; bytes that are no UTF-8 stand as replacements. Raises SlurmDown where nothing answers
    within the time, SlurmRefused for any other failure."""
    return _output(command, timeout_s, environ).decode(errors="replace")


def _output(command: Sequence[str], timeout_s: float, environ: Mapping[str, str] | None = None) -> bytes:
    done = _call(command, timeout_s, environ)
    if done.returncode == 0:
        return done.stdout
    words = " ".join((done.stderr or done.stdout).decode(errors="replace").split())
    what = f"{command[0]}: {words[-300:] or f'exit code {done.returncode}'}"  # what it failed of comes last
    if answer(words) is Answer.SILENCE:
        raise SlurmDown(what)
    raise SlurmRefused(what, words)


def _call(
    command: Sequence[str], timeout_s: float, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """The one place that runs a command of SLURM's."""
    env = dict(environ if environ is not None else environment())
    try:
        return subprocess.run(list(command), env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s)
    except FileNotFoundError:
        raise SlurmMissing(f"{command[0]} is not on the PATH", remedy="run this where SLURM's commands are") from None
    except OSError as error:  # as a list of jobs too long for one command
        raise SlurmRefused(f"{command[0]} cannot be run: {error.strerror}", str(error.strerror)) from error
    except subprocess.TimeoutExpired:
        raise SlurmDown(
            f"{command[0]} got no answer from SLURM within {timeout_s:.0f} s", remedy="try again later"
        ) from None


def sbatch(arguments: Sequence[str], *, environ: Mapping[str, str] | None = None) -> str | None:
    """The id that it says it gave the job; None where no line of its answer tells one. A banner may tell one as well:
    the job's own is that of its name (adopt.py). Raises SlurmDown, SlurmRefused."""
    text = run(["sbatch", *arguments], timeout_s=SBATCH_S, environ=environ)
    form = r"^[ \t]*(?:Submitted batch job (\d+)(?: on cluster \S+)?|(\d+)(?:;\S+)?)[ \t\r]*$"
    ids = re.findall(form, text, re.MULTILINE)  # `1;cluster` with SBATCH_PARSABLE
    return "".join(ids[-1]) if ids else None


def inside_job() -> bool:
    return "SLURM_JOB_ID" in os.environ


def answers(timeout_s: float = PROBE_S) -> bool:
    """Whether this machine has SLURM's commands and its controller answers at once."""
    if shutil.which("sbatch") is None:
        return False
    try:
        run(["sinfo", "-h", "-o", "%P"], timeout_s=timeout_s)
    except MachineError:
        return False
    return True


def test_only(options: Sequence[str]) -> str | None:
    """`to start at 2026-11-20 13:00 UTC on n1`: SLURM's own estimate for such a job; None where it gives none. Raises
    SlurmRefused where it would not take the job."""
    try:
        done = _call(["sbatch", "--test-only", *options, "--wrap=true"], 5.0)
    except (SlurmDown, SlurmRefused):
        return None
    words = done.stderr.decode(errors="replace")
    estimate = re.search(r"to start at (\S+?)T(\d\d:\d\d):\d\d .*?on nodes? (\S+)", words)
    if estimate is not None:
        return f"to start at {estimate[1]} {estimate[2]} UTC on {estimate[3]}"
    if done.returncode == 0 or answer(words) is Answer.SILENCE:
        return None
    refused = re.search(r"allocation failure: (.+)", words)
    lines = [re.sub(r"^(sbatch: )?(error: )?", "", line.strip()) for line in words.splitlines()]
    reason = refused[1].strip() if refused is not None else "; ".join(filter(None, lines))
    raise SlurmRefused(reason[:300] or f"sbatch ends with code {done.returncode}", reason)  # without a banner


def flags(options: Mapping[str, str | bool]) -> list[str]:
    """As on a command line; True for those without a value."""
    return [f"--{key}" if value is True else f"--{key}={value}" for key, value in options.items()]


def count_own_jobs() -> int:
    """How many jobs of this user are in the queue, each task of an array counted."""
    return len(rows("squeue", run(["squeue", "-h", "-r", "-u", str(os.getuid()), "-o", "%i"]), [JOB_ID]))


# -------------------------------------------------------------------------------------------------------------- squeue
@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """One job, or one task of an array, as squeue or sacct shows it; or one start of a requeued job.

    state: SLURM's word; of sacct's a step's OUT_OF_MEMORY stands for the job's, which says only FAILED. started:
    expected or true start. ended: of a job that has ended. elapsed_s, exit_code: None where SLURM does not say.

    Of squeue alone: reason, why it waits or how it ended; uid, of whose job it is; comment, the user's, but of jobs
    that an older release sent, whose group it names. Of sacct alone: gpus, that it was given; memory_mib, of host
    memory it had asked for; max_rss_mib, the most that one of its steps was seen to use.
    """

    job_id: str
    name: str
    state: str
    nodes: str
    started: datetime | None
    ended: datetime | None
    elapsed_s: float | None
    exit_code: int | None
    signal: int
    reason: str = ""
    left_s: float | None = None
    restarts: int = 0
    uid: int | None = None
    comment: str = ""
    cluster: str = ""
    submitted: datetime | None = None
    gpus: int = 0
    memory_mib: float | None = None
    max_rss_mib: float | None = None

    @property
    def has_ended(self) -> bool:
        return meaning(self.state).kind == "ended"

    @property
    def memory(self) -> str:
        """What it used of what it had asked for, in words; empty where that is not known."""
        used, requested = self.max_rss_mib, self.memory_mib
        return f"seen using {used / 1024:.1f} of {requested / 1024:.1f} GiB" if used and requested else ""


_QUEUE = (
    *("JobArrayID", "State", "Reason", "StartTime", "TimeUsed", "TimeLeft", "RestartCnt", "NodeList", "UserID", "Name"),
    *("Comment", "exit_code"),
)
_WIDTH = 256  # bytes of a column, as squeue counts them
_is_job = re.compile(JOB_ID.encode() + rb" *").fullmatch


def squeue(
    job_ids: Iterable[str] = (),
    *,
    names: Iterable[str] = (),
    uids: Iterable[int] = (),
    timeout_s: float = TIMEOUT_S,
) -> list[JobRow]:
    """These jobs (array ids cover their tasks), those of these names, or all of these users; unknown ones are left
    out."""
    choices = (("-j", job_ids), ("--name", names), ("-u", map(str, uids)))
    which = next(([option, ",".join(v)] for option, values in choices if (v := sorted(set(values)))), None)
    if which is None:
        return []
    fields = ",".join(f"{name}:{_WIDTH}" for name in _QUEUE)
    try:
        # -a: jobs in hidden partitions too.
        output = _output(["squeue", "-a", "-h", "-r", "-t", "all", *which, "-O", fields], timeout_s)
    except SlurmRefused as error:
        if "Invalid job id" in error.words:  # all of them were forgotten
            return []
        raise
    entries, unread = [], []
    for line in output.split(b"\n"):
        cells = [line[i : i + _WIDTH] for i in range(0, len(line), _WIDTH)]
        if len(cells) >= len(_QUEUE) and _is_job(cells[0]):
            if b"[" not in cells[0]:  # what -r leaves of an array at most
                entries.append(_job_row(cells))
        else:
            unread.append(line.decode(errors="replace"))
    say_unread("squeue", unread)
    return entries


def _job_row(row: Sequence[bytes]) -> JobRow:
    cells = [cell.decode(errors="replace").strip() for cell in row[: len(_QUEUE)]]
    job_id, state, reason, starts, used, left, restarts, nodes, uid, name, comment, status = cells
    started, elapsed_s = when(starts), duration_s(used)
    exit_code, number = divmod(int(status), 256) if status.isdigit() else (None, 0)  # the status as wait() gives it
    return JobRow(
        job_id=job_id,
        name=name,
        state=state,
        nodes=nodes,
        started=started,
        ended=None if started is None else started + timedelta(seconds=elapsed_s or 0),
        elapsed_s=elapsed_s,
        exit_code=exit_code,
        signal=number & 0x7F,
        reason="" if reason == "None" else reason,
        left_s=duration_s(left),
        restarts=int(restarts) if restarts.isdigit() else 0,
        uid=int(uid) if uid.isdigit() else None,
        comment="" if comment == "(null)" else comment,
    )


def was_taken(state: str, nodes: str) -> bool:
    """Whether SLURM has taken such a job. One that sbatch refused for what no node has (BadConstraints) is shown all
    the same, as FAILED and without ever a node."""
    return state != "FAILED" or bool(nodes)


def base_id(job_id: str) -> str:
    """`123` of `123_4`: the id that covers all tasks of an array."""
    return job_id.partition("_")[0]


# ------------------------------------------------------------------------------------------------------------- control
def scancel(job_ids: Iterable[str], *, pending_only: bool = False) -> None:
    """Cancel these; what has ended already is no error. Raises SlurmDown, SlurmRefused."""
    ids = sorted(set(job_ids))
    for first in range(0, len(ids), 500):
        try:
            run(["scancel", *(["-t", "PENDING"] if pending_only else []), *ids[first : first + 500]])
        except SlurmRefused as error:
            if "Invalid job id" not in error.words:
                raise


_MARKS = {"partition": "PartitionName=", "node": "NodeName=", "job": "JobId="}


def show(what: str, name: str | None = None, *, timeout_s: float = TIMEOUT_S) -> list[dict[str, str]]:
    """`scontrol show config|partition|node|job` as dictionaries, one per entry."""
    command = ["scontrol", "-a", "show", what, *([name] if name is not None else [])]  # hidden partitions, too
    if what == "config":
        text = run(command, timeout_s=timeout_s)
        return [{key: value.strip() for key, value in re.findall(r"^(\w\S*) *=(?: (.*)|)$", text, re.MULTILINE)}]
    lines = run([*command[:2], "-o", *command[2:]], timeout_s=timeout_s).splitlines()
    entries = [line.strip() for line in lines if line.strip().startswith(_MARKS[what])]
    say_unread("scontrol", (line for line in lines if line.strip() not in entries))
    return [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in entries]
