"""What a node, or this machine, answered to the probe, judged: one function per line of jobs/doctor.py."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

from transfergrid.doctor.checks import Check
from transfergrid.doctor.nodecheck_jobs import ProbeAnswer
from transfergrid.errors import OF_ULIMIT
from transfergrid.store.provenance import code_hash

MAX_SKEW_S = 5.0
LEAST_ULIMITS = {"t": 86_400, "f": 2_000_000, "v": 32_000_000, "n": 256}  # CPU seconds, KiB, KiB, open files
MIN_GPU_GIB = 2.0  # CUDA itself takes about half of one
MIN_MEMORY_GIB = 2.0  # torch with a small network and a data set in memory
NOT_SHARED = "it must be a folder that every node sees under the same name; give another {name}.dir="
NO_LOCKS = "mount it so that locks reach other nodes (NFS without nolock and local_lock, Lustre with flock)"


def check_probe(answer: ProbeAnswer) -> Check:
    """Whether a job starts, finds python, and is heard."""
    if answer.unsure:
        return Check("probe job", None, f"could not be checked: {answer.problem}")
    if not answer.problem:
        return Check("probe job", True, f"job {answer.job_id} ran on {answer.findings.get('host', 'a node')}")
    if answer.is_unheard:
        return Check("probe job", False, answer.problem, NOT_SHARED.format(name="store"))
    remedy = "these are SLURM's or the node's own words; cluster.python= and cluster.setup=[...] say how python starts"
    return Check("probe job", False, answer.problem, remedy)


def check_python(answer: ProbeAnswer) -> Check:
    finding = answer.findings.get("python")
    if finding is None:
        return _unknown("python")
    here = platform.python_version()
    if finding.split(".")[:2] != here.split(".")[:2]:
        remedy = "start the same python there: cluster.python=, or cluster.setup=[...] that makes it the first"
        return Check("python", False, f"{finding} there, {here} here", remedy)
    return Check("python", True, finding if finding == here else f"{finding} there, {here} here")


def check_commands(answer: ProbeAnswer) -> Check:
    """Whether a run can put its job back into the queue, or its batch script can, outside a container."""
    inside, outside = answer.findings.get("commands"), answer.findings.get("batch_script")
    if inside is None or outside is None:
        return _unknown("commands")
    missing = [name for name, is_there in inside.items() if not is_there]
    if not missing:
        return Check("commands", True, "squeue and scontrol are there")
    message = f"where cluster.python= runs, as in a container, there is no {' and no '.join(missing)}"
    if all(outside.values()):
        return Check("commands", True, f"{message}; the batch script puts jobs back into the queue")
    remedy = "have SLURM's commands on the nodes or in the container; until then a run ends at its time limit, so give"
    remedy += " cluster.timeout_min= for all of it, or launch again to continue"
    return Check("commands", False, f"{message}, nor in the batch script", remedy)


def check_ulimits(answer: ProbeAnswer) -> Check:
    """Jobs take the limits of the shell that launches along, unless the site says otherwise."""
    finding = answer.findings.get("ulimits")
    if finding is None:
        return _unknown("ulimits")
    low = [f"ulimit -{u} is {finding[u]}" for u, least in LEAST_ULIMITS.items() if finding.get(u, least) < least]
    if low:
        return Check("ulimits", False, "; ".join(low), OF_ULIMIT)
    return Check("ulimits", True, "none that a run would meet")


def check_code(answer: ProbeAnswer) -> Check:
    finding = answer.findings.get("code")
    if finding is None:
        return _unknown("code")
    if "error" in finding:
        remedy = "install what is missing into that python (uv sync), or name another in cluster.python="
        return Check("code", False, finding["error"], remedy)
    if finding["hash"] != code_hash():
        remedy = "something there hides the launch's own copy; see PYTHONPATH in cluster.setup= and cluster.python="
        return Check("code", False, f"another transfergrid is imported, from {finding['folder']}", remedy)
    return Check("code", True, f"transfergrid {finding['hash']} is imported")


def check_torch(answer: ProbeAnswer) -> Check:
    finding = answer.findings.get("torch")
    if finding is None:
        return _unknown("torch")
    if "error" in finding:
        remedy = "install torch and torchvision into that python (uv sync), or name another in cluster.python="
        return Check("torch", False, finding["error"], remedy)
    return Check("torch", True, f"torch {finding['version']}, torchvision {finding['torchvision']}")


def check_gpu(answer: ProbeAnswer, *, device: str, gpus: int, on_slurm: bool) -> Check:
    """gpus: of a run's job. A machine without GPU is fit for device=auto, a job that asked for one is not."""
    if device == "cpu":
        return Check("gpu", None, "not looked at: device=cpu")
    if on_slurm and gpus == 0:
        return Check("gpu", None, "not looked at: cluster.gpus=0")
    finding = answer.findings.get("gpu")
    if finding is None:
        return _unknown("gpu")
    if finding.get("names"):
        return _usable_gpus(finding)
    if not on_slurm and device == "auto":
        return Check("gpu", True, f"none that torch can use, runs compute on the CPU: {finding.get('error')}")
    remedy = "check the node's driver and that torch is built for it, or compute without: device=cpu"
    of_what = "the GPU of the job" if on_slurm else "a GPU here"
    return Check("gpu", False, f"torch cannot use {of_what}: {finding.get('error')}", remedy)


def _usable_gpus(finding: Mapping[str, Any]) -> Check:
    """finding: of nodecheck._gpu; one of an earlier release has names alone."""
    names, free, total = finding["names"], finding.get("free_gib", []), finding.get("total_gib", [])
    sizes = [f" ({f:.0f} of {t:.0f} GiB free)" for f, t in zip(free, total, strict=True)] or [""] * len(names)
    parts = [", ".join(name + size for name, size in zip(names, sizes, strict=True))]
    parts += [f"driver {finding['driver']}"] if finding.get("driver") else []
    parts += [f"cuDNN {finding['cudnn']}"] if finding.get("cudnn") else []
    parts += [f"not used: {finding['problem']}"] if finding.get("problem") else []
    if finding.get("without_bf16"):
        slow = ", ".join(dict.fromkeys(finding["without_bf16"]))
        parts.append(f"{slow} only emulates bfloat16, so phase.<name>.precision=fp32 is faster there")
    if free and min(free) < MIN_GPU_GIB:
        remedy = f"end other programs on it: {MIN_GPU_GIB:g} GiB are needed"
        return Check("gpu", False, "; ".join(parts), remedy)
    return Check("gpu", True, "; ".join(parts))


def check_clock(answer: ProbeAnswer) -> Check:
    """Nothing is decided by comparing clocks; what people read in logs and tables is."""
    there = answer.findings.get("time_s")
    if there is None or not answer.seen_s:
        return _unknown("clock")
    skew_s = max(answer.sent_s - there, there - answer.seen_s, 0.0)
    if skew_s > MAX_SKEW_S:
        ahead = "behind" if there < answer.sent_s else "ahead"
        remedy = "have the clocks set (chrony, ntpd); times in records and in squeue will not agree until then"
        return Check("clock", False, f"the node's clock is at least {skew_s:.0f} s {ahead} of this machine's", remedy)
    return Check("clock", True, "the node's clock agrees with this machine's")


def check_memory(answer: ProbeAnswer) -> Check:
    finding = answer.findings.get("memory_gib")
    if finding is None:
        return _unknown("memory")
    if finding < MIN_MEMORY_GIB:
        remedy = f"end other programs: {MIN_MEMORY_GIB:g} GiB are needed"
        return Check("memory", False, f"{finding:.1f} GiB available", remedy)
    return Check("memory", True, f"{finding:.1f} GiB available")


def check_cores(answer: ProbeAnswer, *, num_threads: int) -> Check:
    finding = answer.findings.get("cores")
    if finding is None:
        return _unknown("cores")
    if num_threads > finding:
        remedy = f"give cluster.num_threads={finding} or less, or 0 for all there are"
        return Check("cores", False, f"{finding}, and cluster.num_threads={num_threads}", remedy)
    return Check("cores", True, f"{finding}")


# ------------------------------------------------------------------------------------------------------ shared folders
def check_shared(name: str, answer: ProbeAnswer, *, here: Mapping[str, Any]) -> Check:
    """What this machine (`here`) and the node found of a folder, see nodecheck.meet."""
    there = answer.findings.get("folders", {}).get(name)
    if there is None:
        return _unknown(f"{name} shared")
    return _judged(f"{name} shared", name, here, there, "this machine and the node")


def check_two_nodes(answer: ProbeAnswer | None) -> Check:
    """What the two nodes of one job found of all folders. answer: None where the partition has one node."""
    if answer is None:
        return Check("two nodes", None, "not looked at: the partition has no second node that takes jobs")
    first, second = answer.findings.get("first"), answer.findings.get("second")
    if first is None or second is None:
        if answer.unsure or not answer.job_id:  # the queue is long, or a job of two nodes without GPU is not allowed
            return Check("two nodes", None, f"could not be checked: {answer.problem}")
        message = answer.problem or "a job of two nodes said nothing"
        return Check("two nodes", False, message, "run it once more; see the line")
    between = f"{first['host']} and {second['host']}"
    of_folders = [
        _judged("two nodes", name, one, second["folders"][name], f"{name} of {between}")
        for name, one in first["folders"].items()
    ]
    well = Check("two nodes", True, f"locks and claims hold ({between})")
    return next((check for check in of_folders if not check.ok), well)


def _judged(line: str, name: str, one: Mapping[str, Any], other: Mapping[str, Any], between: str) -> Check:
    not_shared = NOT_SHARED.format(name=name)
    for machine in (one, other):
        if "error" in machine:
            return Check(line, False, machine["error"], not_shared)
    if not one["seen"] or not other["seen"]:
        return Check(line, False, f"what one writes does not show on the other ({between})", not_shared)
    if one["claim"] == other["claim"]:
        return Check(line, False, f"a claim by hard link is given twice ({between})", not_shared)
    if one["lock"] == other["lock"]:
        return Check(line, False, f"a lock held on one is free on the other ({between})", NO_LOCKS)
    locks = "locks" if one["kernel_locks"] and other["kernel_locks"] else "hard links in place of locks"
    return Check(line, True, f"files show after {other['seconds']:.1f} s, {locks} and claims hold ({between})")


def _unknown(name: str) -> Check:
    return Check(name, None, "could not be checked: the probe did not get so far")
