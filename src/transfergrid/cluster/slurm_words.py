"""What SLURM's words mean: a run's states, its reasons for waiting, its traces in a job's log; and failed commands.

Words as slurm 22.05 to 25.05 print them (squeue's and sacct's manuals, slurm/src/common/slurm_protocol_defs.c and
slurm_errno.c, slurm/src/sbatch/opt.c). A state that is not in these tables is `unknown`: never success, never failure.
Only words that stand here are a refusal: a job may have been taken whatever else sbatch says, so it is looked up first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Literal

Kind = Literal["waits", "runs", "ended", "unknown"]


@dataclass(frozen=True, slots=True)
class Meaning:
    """kind: what a job in this state does. failure_class: of an ending; None where only more can tell (FAILED).

    words: for people. may_return: SLURM itself may put such a job back into the queue, so the state is not final yet.
    """

    kind: Kind
    failure_class: str | None = None
    words: str = ""
    may_return: bool = False


STATES: dict[str, Meaning] = {
    "PENDING": Meaning("waits"),
    "CONFIGURING": Meaning("waits", words="its node is being made ready"),
    "POWER_UP_NODE": Meaning("waits", words="its node is being started"),
    "REQUEUED": Meaning("waits", words="is back in the queue"),
    "REQUEUE_FED": Meaning("waits", words="is back in the queue"),
    "REQUEUE_HOLD": Meaning("waits", words="is back in the queue, and held; `scontrol release` lets it start"),
    "SPECIAL_EXIT": Meaning("waits", words="is back in the queue, and held; `scontrol release` lets it start"),
    "RESV_DEL_HOLD": Meaning("waits", words="held because its reservation was deleted"),
    "EXPEDITING": Meaning("waits", words="is about to start again"),
    "RUNNING": Meaning("runs"),
    "SUSPENDED": Meaning("runs", words="suspended"),
    "STOPPED": Meaning("runs", words="stopped"),
    "SIGNALING": Meaning("runs"),
    "RESIZING": Meaning("runs"),
    "STAGE_OUT": Meaning("runs", words="its files are being copied out"),
    "COMPLETING": Meaning("runs", words="is ending"),
    "COMPLETED": Meaning("ended"),
    "FAILED": Meaning("ended"),
    "CANCELLED": Meaning("ended", "cancelled", "was cancelled"),
    "REVOKED": Meaning("ended", "cancelled", "was revoked: another cluster took it"),
    "TIMEOUT": Meaning("ended", "timeout", "reached its time limit"),
    "DEADLINE": Meaning("ended", "timeout", "reached its deadline"),
    "OUT_OF_MEMORY": Meaning("ended", "host_oom", "used more memory than it had asked for"),
    "PREEMPTED": Meaning("ended", "preempted", "had to make room for a job of higher priority", may_return=True),
    "NODE_FAIL": Meaning("ended", "node_failure", "its node failed", may_return=True),
    "BOOT_FAIL": Meaning("ended", "node_failure", "its node could not be started", may_return=True),
    "LAUNCH_FAILED": Meaning("ended", "node_failure", "its node could not start it", may_return=True),
    "RECONFIG_FAIL": Meaning("ended", "node_failure", "its node could not be made ready", may_return=True),
}


def meaning(state: str) -> Meaning:
    """Of a state as squeue or sacct print it."""
    return STATES.get(state.split()[0].rstrip("+") if state.strip() else "", Meaning("unknown"))


# ------------------------------------------------------------------------------------------------------------- reasons
@dataclass(frozen=True, slots=True)
class Wait:
    """never: SLURM will not start such a job, however long it waits, unless the job or the cluster's rules change.

    for_needs: what holds it up is another job that it depends on.
    """

    words: str
    never: bool = False
    for_needs: bool = False


# The first pattern that is found counts. A held job waits for a person, a used-up budget for its next period, and a
# limit per user or group for other jobs to end: they can start. A limit per job or per node cannot be waited out.
REASONS: tuple[tuple[str, Wait], ...] = (
    ("DependencyNeverSatisfied", Wait("what it needs did not complete", never=True, for_needs=True)),
    ("Dependency", Wait("waits for what it needs", for_needs=True)),
    ("PartitionTimeLimit", Wait("asks for more time than its partition allows; lower cluster.timeout_min", never=True)),
    (
        "(Association|QOS)TimeLimit|MaxWallDurationPerJob",
        Wait("asks for more time than its account or QOS allows; lower cluster.timeout_min", never=True),
    ),
    (r"Max\w*Per(Job|Node)|MaxMemPerLimit", Wait("asks for more than one job may have", never=True)),
    (r"QOSMin", Wait("asks for less than its QOS demands", never=True)),
    ("BadConstraints", Wait("no node can ever give what it asks for", never=True)),
    ("(Invalid|)Account(NotAllowed|$)", Wait("its account may not be used here; see cluster.account", never=True)),
    ("InvalidQOS|QOSNotAllowed", Wait("its QOS may not be used here; see cluster.qos", never=True)),
    ("ReservationDeleted", Wait("its reservation was deleted", never=True)),
    ("DeadLine|Deadline", Wait("cannot end before its deadline", never=True)),
    ("held|Held|JobHold|special exit", Wait("held; `scontrol release` lets it start")),
    ("BeginTime", Wait("may start only at a set time, as after a requeue")),
    ("JobArrayTaskLimit", Wait("waits for other runs of its array")),
    (r"Grp\w*Minutes|GrpBilling", Wait("the budget of its account or QOS is used up for now")),
    (
        r"MaxJobs|MaxSubmit|Per(User|Account)|Grp|(Association|QOS)(Job|Resource)Limit|QOSUsage",
        Wait("waits for other jobs of its user, account or QOS to end"),
    ),
    ("Priority", Wait("jobs of higher priority come first")),
    ("Resources", Wait("waits for resources to become free")),
    ("ReqNodeNotAvail|Nodes.required|NodeDown", Wait("the nodes it needs are down, draining or reserved")),
    ("PartitionNodeLimit", Wait("asks for more nodes than its partition has or allows")),
    ("PartitionDown|PartitionInactive", Wait("its partition is closed")),
    ("Reservation", Wait("waits for its reservation")),
    ("Licenses", Wait("waits for licences")),
    ("Prolog|Cleaning|BurstBuffer", Wait("is being made ready")),
)


def wait(reason: str) -> Wait:
    """What a pending job waits for, with SLURM's own word."""
    if not reason or reason == "None":
        return Wait("")
    for pattern, cause in REASONS:
        if re.search(pattern, reason):
            return Wait(f"{cause.words} ({reason[:60]})", cause.never, cause.for_needs)
    return Wait(f"waits ({reason[:60]})")


# ------------------------------------------------------------------------------------------------------------- endings
# What slurmstepd, the shell, python and submitit write where a job dies without a word of our own.
TRACES: tuple[tuple[str, str, str], ...] = (
    (r"oom-kill|oom_kill|Out Of Memory", "host_oom", "used more memory than it had asked for"),
    (r"CANCELLED AT \S+ DUE TO TIME LIMIT", "timeout", "reached its time limit"),
    (r"CANCELLED AT \S+ DUE TO PREEMPTION", "preempted", "had to make room for a job of higher priority"),
    (r"CANCELLED AT \S+ DUE TO NODE FAILURE", "node_failure", "its node failed"),
    (r"CANCELLED AT \S+ \*\*\*", "cancelled", "was cancelled"),
    (r"(ModuleNotFoundError|ImportError): [^\n]*", "environment", "python on the node lacks what it needs"),
    (r"could not find submitted jobs in path", "environment", "the node does not see the store's folder"),
)


def trace(log: str) -> tuple[str, str] | None:
    """(failure class, words) of the last trace of an ending in a log; None where there is none."""
    endings = [(match.start(), name, words) for text, name, words in TRACES for match in re.finditer(text, log)]
    return max(endings)[1:] if endings else None


# ------------------------------------------------------------------------------------------------------------- answers
class Answer(Enum):
    """REFUSED: sbatch will not take such a job, now or later. NO_ROOM: not now; later it may. SILENCE: the controller
    was not heard, so what was asked may have happened. UNKNOWN: other words, so it may have happened, too."""

    REFUSED = "refused"
    NO_ROOM = "no room"
    SILENCE = "silence"
    UNKNOWN = "unknown"


# Limits of jobs in the queue, of a user, an account, a QOS or the whole controller. The first line of what sbatch says
# names the limit; EAGAIN is MaxJobCount, after sbatch has tried for minutes by itself.
_NO_ROOM = (
    r"\b(Assoc|QOS)(Max|Grp)SubmitJobs?(PerUser|PerAccount|)Limit\b",
    r"\bMaxSubmitJobs?(PerUser|PerAccount|PU|PA|)\b",
    r"Resource temporarily unavailable",
    r"temporarily unable to accept job",
    r"MaxJobCount",
    r"Job array .*exceeds .*limit",
    r"Burst Buffer resource limit exceeded",
)
_REFUSED = (
    r"Invalid partition name specified",
    r"No partition specified or system default partition",
    r"Required partition not available",
    r"Requested partition configuration not available",
    r"User's group not permitted to use this partition",
    r"Requested nodes not in this partition",
    r"Access/permission denied",
    r"Invalid account or account/partition combination",
    r"Invalid qos",
    r"Invalid wckey specification",
    r"Job violates accounting/QOS policy",
    r"Requested time limit is invalid",
    r"Time limit specification required",
    r"Invalid time(-min)? spec",
    r"Requested (node|topology) configuration is not available",
    r"Memory specification can not be satisfied",
    r"CPU count per node can not be satisfied",
    r"CPU count specification invalid",
    r"More processors requested than permitted",
    r"(Node|Task) count specification invalid",
    r"Task distribution specification invalid",
    r"Job size specification needs to be provided",
    r"Required node not available",
    r"Invalid node name specified",
    r"Invalid feature specification",
    r"Invalid generic resource \(gres\) specification",
    r"Invalid GRES (specification|job|count|type)",
    r"Requested GRES option unsupported",
    r"Invalid Trackable RESource",
    r"Invalid license specification",
    r"Invalid job array specification",
    r"Invalid cluster name specified",
    r"Access denied to requested reservation",
    r"Requested reservation (is invalid|not usable|is in use)",
    r"Invalid dependency|Job dependency problem|Circular job dependency",
    r"Invalid (user|group) id",
    r"Burst Buffer (request invalid|permission denied)",
    r"Job --batch option is invalid",
    r"System submissions disabled",
    r"Only batch jobs are accepted",
    r"Pathname of a file, directory or other parameter too long",
    # sbatch itself, before it asks anybody
    r"(unrecognized|invalid|ambiguous) option|option '\S+' (requires an|doesn't allow an|is ambiguous)",
    r"are mutually exclusive",
    r"Invalid (directive|numeric value|argument|--\S+)",
    r"Unable to open file|Batch script is empty|does not look like a batch script|[Bb]atch script contains DOS",
)
# Words of the client's own side of the line. Some follow a job that was taken all the same.
_SILENCE = (
    r"unable to contact|timed out|connection (refused|reset|failure|timed)|no route to host|network is unreachable",
    r"controller.*(down|not respond)|in standby mode|unable to create job record",
    r"\((connect|send|receive|shutdown) failure\)|(message|communication) (send|receive|shutdown|connection) failure",
    r"zero bytes were transmitted|unexpected message received|header lengths are longer|insane message length",
    r"broken pipe|transport endpoint is not connected|interrupted system call",
)
SILENCE = "|".join(_SILENCE)  # for grep -iE
_VERDICT = "submission failed:"  # what sbatch says before it is of its tries, or names the limit


def answer(words: str) -> Answer:
    """Of what a command printed when it failed, on one line or several."""
    verdict = words.rpartition(_VERDICT)[2]
    if re.search(SILENCE, verdict.lower()):
        return Answer.SILENCE
    if re.search("|".join(_NO_ROOM), words):
        return Answer.NO_ROOM
    return Answer.REFUSED if re.search("|".join(_REFUSED), verdict) else Answer.UNKNOWN
