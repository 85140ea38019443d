"""Why a job ended that left no record: its class, its cause in words, and what helps. `launch again` alone helps only
where the cause is gone by then; one that stays is the machine's, the cluster's settings' or the launch's.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from transfergrid.cluster.batch_script import ASKS_FOR_REQUEUE, DISK_FULL, OF_MACHINE, SAYS_SETUP_FAILED, SETUP_FAILED
from transfergrid.cluster.slurm_words import trace
from transfergrid.errors import OF_ULIMIT
from transfergrid.paths import typed

NO_LOG = 53  # the signal by which SLURM tells that a node could not open a job's log, or enter its folder
DOCTOR = f"{typed('doctor.py')} looks at a node"


@dataclass(frozen=True, slots=True)
class Cause:
    """failure_class: one of errors.FAILURE_CLASSES. remedy: where that of the class would not help."""

    failure_class: str
    words: str
    remedy: str | None = None


_OF_NODE = f"leave that node out with cluster.exclude=, and launch again; if others do the same, {DOCTOR}"
_CRASHES: dict[int, tuple[str, str]] = {
    signal.SIGSEGV: ("a library crashed, as a driver or a torch that does not fit the node", _OF_NODE),
    signal.SIGABRT: ("a library gave up, as a driver or a torch that does not fit the node", _OF_NODE),
    signal.SIGBUS: ("a file it had mapped was cut or could not be read, or /dev/shm is full", _OF_NODE),
    signal.SIGFPE: ("a library crashed", _OF_NODE),
    signal.SIGSYS: ("a library used what the node's kernel or container forbids", _OF_NODE),
    signal.SIGTRAP: ("a library crashed", _OF_NODE),
    signal.SIGILL: (
        "its python or torch was built for another processor than the node has",
        "name nodes of the right kind in cluster.constraint=, or another python in cluster.python=, and launch again",
    ),
    signal.SIGXCPU: ("it used up the CPU time of ulimit -t, which jobs take from the shell that launched", OF_ULIMIT),
}
_DISK_WORDS = r"No space left on device|Disk quota exceeded|File too large|File size limit exceeded"


def cause_of(code: int, number: int, log: str, *, folder: str = "") -> Cause:
    """Of a job that SLURM says failed with this exit code and signal. log: the end of its output and errors. folder:
    where its logs were to lie."""
    cause = _by_number(code, number, log, folder)
    if cause is not None:
        return cause
    traced = trace(log)
    if traced is not None and traced[0] != "cancelled":
        return Cause(*traced)
    killer = _signal_behind(code, number, log)
    names = {each.value: each.name for each in signal.Signals}
    how = f"exit code {code}" if killer is None else f"signal {names.get(killer, killer)}"
    if killer in _CRASHES:
        if killer == signal.SIGABRT and "bad_alloc" in log:
            return Cause("host_oom", f"ended with {how}: it got no more memory")
        words, remedy = _CRASHES[killer]
        return Cause("environment", f"ended with {how}: {words}", remedy)
    if killer == signal.SIGXFSZ or re.search(_DISK_WORDS, log):
        return Cause("disk_full", f"ended with {how}: its disk or quota was full, or a file larger than ulimit -f")
    if code in (126, 127) and number == 0:
        return Cause("environment", f"ended with {how}: the node could not start python or the script")
    return Cause("lost", f"ended with {how} and without a record; its log may say why")


def _by_number(code: int, number: int, log: str, folder: str) -> Cause | None:
    """Endings that SLURM or the job's own script told by a number of its own."""
    if number == NO_LOG:
        where = folder or "its folder"
        words = f"the node could not open the job's log in {where}: it does not see that folder, or has no room there"
        remedy = f"give a store.dir= that every node sees and may write to, and launch again; {DOCTOR}"
        return Cause("environment", words, remedy)
    if number:
        return None
    if code == SETUP_FAILED:
        lines = re.findall(rf"{re.escape(SAYS_SETUP_FAILED)}( with exit code \d+ at: .+)", log)
        remedy = f"mend that line of cluster.setup=, and launch again; {DOCTOR}"
        return Cause("environment", f"cluster.setup failed on the node{lines[-1] if lines else ''}", remedy)
    if code == DISK_FULL:
        return Cause("disk_full", "found no space left for what it writes")
    if code == OF_MACHINE:
        lines = re.findall(r"^environment: (.+)", log, re.MULTILINE)
        return Cause("environment", lines[-1] if lines else "the node could not do it; its log says why")
    if code == ASKS_FOR_REQUEUE:
        return Cause("timeout", "was told to stop and has saved, and SLURM did not put its job back into the queue")
    return None


def _signal_behind(code: int, number: int, log: str) -> int | None:
    """The signal that ended a run: of the job, told by a shell as 128 more, or by srun as its own exit code, of which
    its words tell."""
    if number:
        return number
    if code > 128:
        return code - 128
    name = signal.strsignal(code) if 0 < code < signal.NSIG else None
    pairs = re.findall(r"srun: error: .*\btasks? \S+ +(.+)|: +\d+ ([A-Z].*) srun", log)
    return code if name is not None and any(name in words for pair in pairs for words in pair) else None
