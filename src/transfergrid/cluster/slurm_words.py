"""What SLURM's words mean for a run: its states, its reasons for waiting, what an ending leaves in a job's log.

Names as slurm 22.05 to 25.05 print them (squeue's and sacct's manuals, slurm/src/common/slurm_protocol_defs.c). What
is not in these tables is `unknown`: never success, never failure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
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
    for pattern, found in REASONS:
        if re.search(pattern, reason):
            return Wait(f"{found.words} ({reason[:60]})", found.never, found.for_needs)
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
    found = [(match.start(), name, words) for text, name, words in TRACES for match in re.finditer(text, log)]
    return max(found)[1:] if found else None
