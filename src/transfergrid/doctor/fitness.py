"""Every line of jobs/doctor.py in its order: first this machine, then SLURM's settings, then what nodes answer."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from transfergrid import data
from transfergrid.cluster import slurm
from transfergrid.cluster.limits import read_limits
from transfergrid.cluster.possible import fitted, named_partitions
from transfergrid.cluster.snapshot import take_snapshot_of_code
from transfergrid.doctor import checks, node_findings
from transfergrid.doctor.checks import Check
from transfergrid.doctor.nodecheck import shows, tried
from transfergrid.doctor.nodecheck_jobs import ProbeAnswer, ProbeJobs, job_script, parse_output
from transfergrid.errors import ConfigError, GridError, one_line
from transfergrid.paths import cache_paths, store_paths
from transfergrid.resources import ClusterSettings
from transfergrid.specs import Runtime
from transfergrid.store import durable
from transfergrid.store.provenance import import_path

LOCAL_TIMEOUT_S = 120.0  # of importing torch, from a slow disk


def machine_checks(runtime: Runtime, *, weights_named: bool) -> Iterator[Check]:
    """What holds wherever runs go."""
    for name, folder in (("store", store_paths(runtime).root), ("cache", cache_paths(runtime).root)):
        yield checks.check_folder(name, folder)
        yield checks.check_space(name, folder)
    yield checks.check_tracking(runtime, os.environ)
    yield checks.check_data(Path(runtime.data_dir), [k for k in data.kinds() if k != "image_folder"])
    yield checks.check_weights(Path(runtime.weights_dir), was_named=weights_named)


def local_checks(runtime: Runtime) -> Iterator[Check]:
    """What holds where runs are carried out on this machine."""
    answer = _probe_here(skip_gpu=runtime.device == "cpu")
    yield node_findings.check_python(answer)
    yield node_findings.check_code(answer)
    yield node_findings.check_torch(answer)
    yield node_findings.check_gpu(answer, device=runtime.device, gpus=0, on_slurm=False)
    yield node_findings.check_memory(answer)
    yield node_findings.check_ulimits(answer)
    yield node_findings.check_cores(answer, num_threads=runtime.num_threads)


def slurm_checks(
    runtime: Runtime,
    settings: ClusterSettings,
    *,
    queue_s: float,
    visible_s: float,
    waiting: Callable[[str], None] = lambda text: None,
) -> Iterator[Check]:
    """queue_s: how long probe jobs may wait to start. visible_s: how long a file may take to show on another machine.
    waiting(text) is called before the one long wait."""
    try:
        resources = settings.resources
        limits = read_limits(account=resources.account, qos=resources.qos)
    except GridError as error:
        remedy = "run this where SLURM's commands are and its controller answers, or give cluster=local"
        yield Check("slurm", False, one_line(error), remedy)
        return
    yield Check("slurm", True, f"answers; partitions: {', '.join(limits.partitions)}")
    partition = checks.check_partition(settings, limits)
    yield partition
    yield checks.check_arrays(limits)
    yield checks.check_queue(limits)
    yield checks.check_accounting(limits)
    yield checks.check_requeue(settings, limits)
    try:
        yield checks.check_preemption(settings, limits)
        two_nodes = any(p.usable_nodes > 1 for p in named_partitions(settings.resources, limits))
    except ConfigError:  # an unknown partition, as told above
        yield Check("preemption", None, "could not be checked: see the line partition")
    if partition.ok is False:
        yield Check("probe job", None, "could not be checked: see the line partition")
        return
    settings = settings.all_as(fitted(settings.resources, limits, what="runs")[0])  # as a launch would send them
    waiting(f"waiting for the queue, at most {queue_s:.0f} s")
    yield from _node_lines(runtime, settings, ProbeJobs(queue_s=queue_s, visible_s=visible_s), two_nodes=two_nodes)


def _node_lines(runtime: Runtime, settings: ClusterSettings, jobs: ProbeJobs, *, two_nodes: bool) -> Iterator[Check]:
    token = f"doctor-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"
    jobs_folder = (store_paths(runtime).launches / token).absolute()
    # In the store the folder of the jobs themselves, so that one failing folder is told once.
    folders = {"store": jobs_folder, "cache": (cache_paths(runtime).root / f".{token}").absolute()}
    try:
        answers, here = _probe_nodes(runtime, settings, jobs, folders, two_nodes=two_nodes)
    except (GridError, OSError) as error:
        remedy = "see the lines of the store and the cache, and SLURM's own word"
        yield Check("probe job", False, one_line(error), remedy)
        return
    finally:
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # it holds the folders of launches
            jobs_folder.parent.rmdir()
    node = answers["node"]
    yield node_findings.check_probe(node)
    yield node_findings.check_python(node)
    yield node_findings.check_commands(node)
    yield node_findings.check_ulimits(node)
    yield node_findings.check_code(node)
    yield node_findings.check_torch(node)
    gpus = settings.resources.gpus
    yield node_findings.check_gpu(node, device=runtime.device, gpus=gpus, on_slurm=True)
    yield node_findings.check_clock(node)
    for name in folders:
        yield node_findings.check_shared(name, node, here=here[name])
    yield node_findings.check_two_nodes(answers.get("pair"))


def _probe_nodes(
    runtime: Runtime, settings: ClusterSettings, jobs: ProbeJobs, folders: Mapping[str, Path], *, two_nodes: bool
) -> tuple[dict[str, ProbeAnswer], dict[str, dict[str, Any]]]:
    """(answers of the jobs `node` and `pair`, what this machine found of each folder, see nodecheck.meet)."""
    here = {name: folder / "here" for name, folder in folders.items()}
    pair = {name: folder / "pair" for name, folder in folders.items()}
    source = take_snapshot_of_code(folders["store"])
    with ExitStack() as held, jobs:
        for folder in (*here.values(), *pair.values()):
            durable.make_folder(folder)
        own_findings = {name: held.enter_context(tried(folder, "here")) for name, folder in here.items()}
        for name, offered, nodes in (("node", here, 1), *([("pair", pair, 2)] if two_nodes else [])):
            arguments = [name, *(f"--folder={key}={folder}" for key, folder in offered.items())]
            arguments += [f"--visible-s={jobs.visible_s:g}", *(["--skip-gpu"] if runtime.device == "cpu" else [])]
            script, folder = job_script(settings, source, arguments, nodes=nodes), folders["store"] / f"{name}-job"
            gpus = 0 if runtime.device == "cpu" or nodes > 1 else 1
            jobs.send(name, script, folder=folder, settings=settings, gpus=gpus, nodes=nodes)
        answers = jobs.wait()
        # A file of the node's that does not show was never written, or is late: the node has said which.
        there = answers["node"].findings.get("folders", {})
        for name, folder in here.items():
            wrote = "lock" in there.get(name, {})
            own_findings[name] |= {"seen": shows(folder / "node", jobs.visible_s if wrote else 0.0)}
        return answers, own_findings


def _probe_here(*, skip_gpu: bool) -> ProbeAnswer:
    command = [sys.executable, "-m", "transfergrid.doctor.nodecheck", "node", *(["--skip-gpu"] if skip_gpu else [])]
    try:
        done = subprocess.run(
            command,
            env=os.environ | {"PYTHONPATH": import_path()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=LOCAL_TIMEOUT_S,
        )
        output: bytes = done.stdout
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
    return ProbeAnswer(findings=parse_output(output.decode(errors="replace"))[0])


def is_on_slurm(settings: ClusterSettings) -> bool:
    """What cluster=auto means here."""
    if settings.kind != "auto":
        return settings.kind == "slurm"
    return not slurm.inside_job() and slurm.answers()
