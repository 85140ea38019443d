"""Groups -> SLURM, through submitit: one sbatch per group, edges to live parents only, nothing sent twice.

Sequence of one group: its folder and tasks.json; its intent in the ledger; sbatch; its job id in the ledger. Where
sbatch gets no answer the job may exist all the same: it is looked up by its unique name before anything is sent again.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import submitit

from transfergrid import durable
from transfergrid.cluster import ledger as ledgers
from transfergrid.cluster import slurm
from transfergrid.cluster.groups import Group
from transfergrid.cluster.ledger import Ledger, Submission
from transfergrid.cluster.slurm import SlurmDown, SlurmRefused
from transfergrid.cluster.snapshot import import_path
from transfergrid.cluster.task import TaskSettings, run_task
from transfergrid.errors import ConfigError, one_line
from transfergrid.resources import ClusterSettings, Resources

GIVE_UP_S = 300.0  # for a controller that does not answer
RETRY_S = 3.0
LOOKS = 3  # at the queue, before a job of which sbatch said nothing counts as never sent
FINISH_CPUS, FINISH_MEM_GB, FINISH_MIN = 2, 4.0, 60
OF_NODES_WITH_GPUS = ("gres", "gpus", "gpus-per-node", "gpus-per-task", "nodelist", "nodes", "ntasks", "exclusive")
# What sbatch says of a job that it would never take -> the setting that asks for it, and what there is.
NEVER_TAKEN = {
    "Invalid feature specification": "cluster.constraint: no node has it; sinfo -o %f lists the features there are",
    "Invalid node name specified": "cluster.exclude: it names no node of this cluster; sinfo -N lists them",
    "unrecognized option": "cluster.sbatch: sbatch --help lists its options",
}
_UNENDING = 1_000_000  # submitit's own count of timeouts; ours is max_requeues


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What all groups of one launch share. folder: results/launches/<launch>. source: goes in front of PYTHONPATH.

    notify: the shell command by which the finish job tells that all has ended. finish: what that job asks for.
    """

    grid: str
    folder: Path
    payload: Path
    source: Path
    settings: ClusterSettings
    finish: Resources
    notify: str | None = None


# --------------------------------------------------------------------------------------------------------------- send
class Sender:
    """Sends groups in order and remembers which task carries which run. Lives for one launch."""

    def __init__(self, launch: Launch, ledger: Ledger, indices: Mapping[str, int]) -> None:
        self.launch = launch
        self.ledger = ledger
        self.indices = indices  # run_id -> place in the payload
        self.sent: list[Submission] = []
        self._task_of: dict[str, str] = {}

    def send(self, group: Group) -> Submission:
        """Raises SlurmRefused, SlurmDown."""
        parents = [task for task in map(self._parent, group.waits_for) if task is not None]
        submission = self._intend(group.name, group.run_ids, "runs", group.resources.gpus)
        write_tasks(self.launch, group, self.indices)
        parameters = sbatch_parameters(self.launch, group, dependency=dependency(group.edge, parents))
        submission = _send(submission, self.launch, parameters, run_task)
        self.sent.append(submission)
        for i, run_ids in enumerate(group.run_ids):
            self._task_of |= {run_id: submission.task_id(i) or "" for run_id in run_ids}
        return submission

    def send_finish(self, function: Callable[[str], Any], after: Sequence[str]) -> Submission:
        """The job that comes when all of `after` (job ids) have ended, however they ended."""
        name = finish_name(self.launch)
        submission = self._intend(name, ((),), "finish", 0)
        write_finish(self.launch)
        parameters = finish_parameters(self.launch, name, dependency=dependency("afterany", after))
        submission = _send(submission, self.launch, parameters, function)
        self.sent.append(submission)
        return submission

    def _parent(self, run_id: str) -> str | None:
        if run_id in self._task_of:
            return self._task_of[run_id]
        known = self.ledger.newest(run_id)  # in flight since an earlier launch
        return None if known is None else known[0].task_id(known[1])

    def _intend(self, name: str, tasks: tuple[tuple[str, ...], ...], kind: ledgers.Kind, gpus: int) -> Submission:
        submission = Submission(
            name=name,
            grid=self.launch.grid,
            launch=self.launch.folder,
            tasks=tasks,
            kind=kind,
            submitted=datetime.now(UTC),
            gpus=gpus,
        )
        durable.make_folder(submission.folder)
        ledgers.record(submission)
        return submission


def write_tasks(launch: Launch, group: Group, indices: Mapping[str, int]) -> None:
    settings = launch.settings
    TaskSettings(
        payload=str(launch.payload),
        tasks=tuple(tuple(indices[run_id] for run_id in task) for task in group.run_ids),
        signal_delay_s=settings.signal_delay_s,
        max_requeues=settings.max_requeues,
        stage_to=settings.scratch_dir if settings.stage_folders else None,
        asks_for_gpu=group.resources.gpus > 0,
    ).write(launch.folder / "slurm" / group.name)


def write_finish(launch: Launch) -> None:
    content = {"grid": launch.grid, "payload": str(launch.payload), "notify": launch.notify}
    durable.write_json(launch.folder / "slurm" / finish_name(launch) / "finish.json", content)


def dependency(edge: str, job_ids: Sequence[str]) -> str | None:
    return f"{edge}:{':'.join(dict.fromkeys(job_ids))}" if job_ids else None


def finish_name(launch: Launch) -> str:
    return f"tg-{launch.grid[:40]}-finish-{launch.folder.name.rpartition('-')[2]}"


def _send(
    submission: Submission, launch: Launch, parameters: dict[str, Any], function: Callable[[str], Any]
) -> Submission:
    folder, deadline = submission.folder, time.monotonic() + GIVE_UP_S
    while True:
        executor = make_executor(folder, launch.settings, parameters)
        try:
            with slurm_environment(), contextlib.redirect_stderr(io.StringIO()):  # which it prints as well as raises
                # The same call for every task: a task finds its own by its array index, and so any pickle fits any.
                jobs = executor.map_array(function, [str(folder)] * len(submission.tasks))
            submission = replace(submission, job_id=slurm.base_id(jobs[0].job_id))
            ledgers.record(submission)
            return submission
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            said = " ".join(str(error).split())
            has_answered = isinstance(error, submitit.core.utils.FailedJobError) and not slurm.is_silence(said)
            if has_answered:
                ledgers.forget(submission)
                shutil.rmtree(folder, ignore_errors=True)
                raise SlurmRefused(f"sbatch refused {submission.name}: {said[-300:]}") from error
        adopted = _look_up(submission, deadline)
        if adopted is not None:
            return adopted
        if time.monotonic() > deadline:
            raise SlurmDown(
                f"sbatch has got no answer for {GIVE_UP_S / 60:.0f} minutes ({said[-200:]}); launch again once it does:"
                " what was sent is found, what was not is sent"
            )
        for pickle in folder.glob("*.pkl"):
            pickle.unlink()


def _look_up(submission: Submission, deadline: float) -> Submission | None:
    """The job of an intent, if SLURM has it; None once SLURM has answered several times that it does not."""
    looks = 0
    while looks < LOOKS:
        try:
            found = adopt([submission])
        except SlurmDown as error:
            if time.monotonic() > deadline:
                raise SlurmDown(
                    f"SLURM's controller has not answered for {GIVE_UP_S / 60:.0f} minutes ({one_line(error)});"
                    " launch again once it does: what was sent is found, what was not is sent"
                ) from error
            looks = 0
        else:
            if found:
                return found[0]
            looks += 1
        time.sleep(RETRY_S)
    return None


def adopt(intents: Sequence[Submission]) -> list[Submission]:
    """Those intents that became jobs after all, recorded with their ids and their pickles put in place."""
    adopted = []
    in_queue: dict[str, str] = {}
    missing = [s for s in intents if _submitted_id(s) is None]
    for entry in slurm.squeue(names=[s.name for s in missing]):
        in_queue[entry.comment or entry.name] = slurm.base_id(entry.job_id)
    for intent in intents:
        job_id = _submitted_id(intent) or in_queue.get(intent.name)
        if job_id is None:
            continue
        submission = replace(intent, job_id=job_id)
        _put_pickles(submission)
        ledgers.record(submission)
        adopted.append(submission)
    return adopted


def _submitted_id(intent: Submission) -> str | None:
    """The job id where submitit got as far as to put the pickles in place, under names that begin with it."""
    found = next(iter(intent.folder.glob("*_submitted.pkl")), None)
    return None if found is None else slurm.base_id(found.name)


def _put_pickles(submission: Submission) -> None:
    """What submitit does after sbatch: each task's pickle under the task's name, where the task waits for it."""
    pickles = [p for p in submission.folder.glob("*.pkl") if not p.name.endswith(("_submitted.pkl", "_result.pkl"))]
    if not pickles:
        return
    content = pickles[0].read_bytes()
    for index in range(len(submission.tasks)):
        durable.write_bytes(submission.folder / f"{submission.task_id(index)}_submitted.pkl", content)
    for pickle in pickles:
        pickle.unlink()


def adopt_intents(ledger: Ledger) -> bool:
    """Before anything is sent: what became of intents that a launcher left behind. True if there were any."""
    intents = ledger.unsettled
    if not intents:
        return False
    for look in range(LOOKS):
        found = {s.name for s in adopt(intents)}
        intents = [s for s in intents if s.name not in found]
        if not intents:
            return True
        if look + 1 < LOOKS:
            time.sleep(RETRY_S)
    for intent in intents:
        ledgers.forget(intent)
    return True


# --------------------------------------------------------------------------------------------------- sbatch parameters
def make_executor(folder: Path, settings: ClusterSettings, parameters: dict[str, Any]) -> submitit.SlurmExecutor:
    """A fresh one: parameters of an earlier submission would stick to it."""
    executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=_UNENDING, python=python_command(settings))
    executor.update_parameters(**parameters)
    return executor


def python_command(settings: ClusterSettings) -> str:
    """Signals that come before Python listens must not kill it: it starts with them ignored."""
    python = settings.python or shlex.quote(sys.executable)
    return f"""sh -c 'trap "" USR2 TERM; exec "$0" "$@"' {python}"""


def sbatch_parameters(launch: Launch, group: Group, *, dependency: str | None) -> dict[str, Any]:
    settings = launch.settings
    parameters = _common(launch, group.name, group.resources, dependency)
    parameters["array_parallelism"] = settings.array_parallelism or len(group.tasks)
    parameters["signal_delay_s"] = settings.signal_delay_s
    if dependency is not None and group.edge == "afterok":
        parameters["additional_parameters"]["kill-on-invalid-dep"] = "yes"
    return parameters


def finish_resources(settings: ClusterSettings, *, max_time_min: int | None) -> Resources:
    """Of a job that needs no GPU, nor a node that has one. max_time_min: what its partition allows."""
    own_partition = settings.finish_partition is not None
    return replace(
        settings.resources,
        gpus=0,
        gpu_type=None,
        constraint=None,
        qos=None if own_partition else settings.resources.qos,
        cpus=min(FINISH_CPUS, settings.resources.cpus),
        mem_gb=min(FINISH_MEM_GB, settings.resources.mem_gb),
        timeout_min=min(FINISH_MIN, max_time_min or FINISH_MIN),
        partition=settings.finish_partition or settings.resources.partition,
    )


def finish_parameters(launch: Launch, name: str, *, dependency: str | None) -> dict[str, Any]:
    parameters = _common(launch, name, launch.finish, dependency)
    for option in OF_NODES_WITH_GPUS:
        parameters["additional_parameters"].pop(option, None)
    return parameters


def _common(launch: Launch, name: str, resources: Resources, dependency: str | None) -> dict[str, Any]:
    settings = launch.settings
    gpu: dict[str, Any] = {}
    if resources.gpu_type is not None and resources.gpus:
        gpu = {"gres": f"gpu:{resources.gpu_type}:{resources.gpus}"}
    elif resources.gpus:
        gpu = {"gpus_per_node": resources.gpus}
    return {
        "job_name": name,
        "comment": name,  # stays when a task renames itself
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "exclude": settings.exclude,
        "time": resources.timeout_min,
        "cpus_per_task": resources.cpus,
        "mem": f"{round(resources.mem_gb * 1024)}M",
        "ntasks_per_node": 1,
        "nodes": 1,
        "dependency": dependency,
        "wckey": settings.wckey,
        # srun since 22.05 does not inherit --cpus-per-task; sites with --export=NONE would lose the environment.
        "srun_args": [f"--cpus-per-task={resources.cpus}", "--export=ALL"],
        "setup": [
            "set -eo pipefail",  # else a failing line is passed over
            *settings.setup,
            f"export PYTHONPATH={shlex.quote(import_path(launch.source))}",
            "export PYTHONUNBUFFERED=1",
        ],
        "additional_parameters": {"requeue": True, **settings.sbatch},
    } | gpu


@contextlib.contextmanager
def slurm_environment() -> Iterator[None]:
    """sbatch without what SLURM set in this process: from inside a job it would become options of the new one."""
    before, kept = dict(os.environ), slurm.environment()
    os.environ.clear()
    os.environ.update(kept)
    for name in ("TZ", "LC_ALL"):  # those are for reading SLURM's times and words, not for the job
        os.environ.pop(name, None)
        if name in before:
            os.environ[name] = before[name]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def start_estimate(settings: ClusterSettings, phases: Sequence[str]) -> dict[str, str]:
    """When SLURM expects a job of each phase to start, were it sent now; phases of one shape are asked about once.

    Raises ConfigError for a feature or a node that the cluster does not have: to sbatch it would say the same, perhaps
    after other phases were sent.
    """
    by_shape: dict[Resources, list[str]] = {}
    for phase in phases:
        by_shape.setdefault(settings.of_phase(phase), []).append(phase)
    told = {}
    for resources, members in by_shape.items():
        named = {key: getattr(resources, key) for key in ("partition", "account", "qos", "constraint")}
        gpu = f"gpu:{resources.gpu_type + ':' if resources.gpu_type else ''}{resources.gpus}"
        named |= {"gres": gpu if resources.gpus else None, "exclude": settings.exclude}
        options = [f"--{key}={value}" for key, value in named.items() if value]
        options += [f"--cpus-per-task={resources.cpus}", f"--mem={round(resources.mem_gb * 1024)}M"]
        options += [f"--time={resources.timeout_min}"]
        options += [f"--{key}" if value is True else f"--{key}={value}" for key, value in settings.sbatch.items()]
        try:
            told[", ".join(members)] = slurm.test_only(options)
        except SlurmRefused as error:
            remedy = next((r for text, r in NEVER_TAKEN.items() if str(error).startswith(text)), None)
            if remedy is not None:
                raise ConfigError(f"phase {members[0]}: SLURM refuses {remedy} ({error})") from error
            told[", ".join(members)] = f"to be refused now: {error}"
    return {phase: text for phase, text in told.items() if text is not None}
