"""`profile=true`: what using the network of an evaluation costs, measured in a process of its own.

The evaluation has ended by then: its record, its attempts and its seconds do not change.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from subprocess import PIPE
from typing import TYPE_CHECKING

from transfergrid.errors import Interrupted, MachineError, MissingInput
from transfergrid.paths import RunPaths, store_paths
from transfergrid.specs import Precision, RunSpec, Runtime, from_dict, to_dict
from transfergrid.store import durable
from transfergrid.store.attempts import read_spec
from transfergrid.store.profiles import Profile, add_profiles, measured_run, read_profiles
from transfergrid.store.provenance import cpu_name, import_path
from transfergrid.training.usage import cpu_threads

if TYPE_CHECKING:
    from transfergrid.training.stopping import StopFlag

logger = logging.getLogger(__name__)
POLL_S = 0.2
MARK = "profiles: "  # before the child's answer, on a line of its own


def is_measured(spec: RunSpec, runtime: Runtime) -> bool:
    """Whether all that `profile=true` asks of this evaluation is there; without torch.

    On this machine: on its processor, with as many threads, and on its GPU unless the run is kept off it. In a job:
    whatever node an earlier one landed on.
    """
    known = {p.precision for p in read_profiles(_paths(spec, runtime)) if _is_of(p, runtime)}
    return known.issuperset(precisions(spec, runtime))


def _is_of(profile: Profile, runtime: Runtime) -> bool:
    if runtime.profile == "in a job":
        return profile.job is not None
    here = (profile.kind, profile.device, profile.threads) == ("cpu", cpu_name(), cpu_threads(runtime))
    return here and (profile.sought_gpu or runtime.device == "cpu")


def _paths(spec: RunSpec, runtime: Runtime) -> RunPaths:
    return store_paths(runtime).run(measured_run(spec))


def precisions(spec: RunSpec, runtime: Runtime) -> tuple[Precision, ...]:
    """The evaluation's own arithmetic, and that of the run whose network it is: each stands beside its own accuracy."""
    trained = read_spec(_paths(spec, runtime)) or spec
    return tuple(dict.fromkeys((trained.precision, spec.settings.precision)))


def measure(spec: RunSpec, runtime: Runtime, stop: StopFlag | None = None) -> None:
    """Measure and keep what is_measured() lacks.

    Raises Interrupted where `stop` is set meanwhile, MissingInput where the network has gone, MachineError where the
    child gives no answer.
    """
    paths = _paths(spec, runtime)
    if read_spec(paths) is None:
        raise MissingInput(f"{paths.root} has gone, and its network with it")
    with durable.lock(paths.lock, wait=True):  # two at once would only measure each other
        if is_measured(spec, runtime):
            return
        measured = _ask_child(spec, runtime, stop)
        add_profiles(paths, measured)
    for one in measured:
        single, fastest = one.single, one.fastest
        logger.info(
            "%s, %d threads, %s: %.3f ms per image, %.1f images/s in batches of %d",
            *(one.device, one.threads, one.precision, 1e3 * single.median_s),
            *(fastest.images_per_s, fastest.batch_size),
        )


def _ask_child(spec: RunSpec, runtime: Runtime, stop: StopFlag | None) -> list[Profile]:
    command = [sys.executable, "-m", "transfergrid.phases._profile_child"]
    question: str | None = json.dumps({"spec": to_dict(spec), "runtime": to_dict(runtime)})
    environment = os.environ | {"PYTHONPATH": import_path()}
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True, env=environment) as process:
        try:
            while True:
                try:
                    told, log = process.communicate(question, timeout=POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    question = None  # it has been asked
                if stop is not None and stop.signal is not None:
                    raise Interrupted("stopped while its network was measured", remedy="launch again")
        finally:
            process.kill()  # nothing, to one that has ended
    answers = [line for line in told.splitlines() if line.startswith(MARK)]
    if process.returncode or not answers:
        reason = (log.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        raise MachineError(f"the network of {measured_run(spec)} was not measured: {reason}")
    return [from_dict(Profile, one) for one in json.loads(answers[-1].removeprefix(MARK))]
