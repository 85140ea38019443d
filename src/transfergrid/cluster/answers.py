"""What SLURM's commands mean by the words with which they fail: refused, no room now, no answer, or nothing certain.

Texts as slurm 22.05 to 25.05 print them (slurm/src/common/slurm_errno.c, slurm/src/sbatch/opt.c). Only words that
stand here are a refusal: a job may have been taken whatever else sbatch says, so it is looked up first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum


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


def answer(said: str) -> Answer:
    """Of what a command printed when it failed, on one line or several."""
    verdict = said.rpartition(_VERDICT)[2]
    if _has(_SILENCE, verdict.lower()):
        return Answer.SILENCE
    if _has(_NO_ROOM, said):
        return Answer.NO_ROOM
    return Answer.REFUSED if _has(_REFUSED, verdict) else Answer.UNKNOWN


def _has(texts: Iterable[str], said: str) -> bool:
    return any(re.search(text, said) for text in texts)
