"""Groups -> SLURM, through submitit: one sbatch per group, edges to live parents only, nothing sent twice.

Sequence of one group: its folder and tasks.json; its intent in the ledger; sbatch; its job id in the ledger. The id is
that of the job which SLURM shows with the submission's token in its name, whatever sbatch printed (adopt.py). Where
sbatch does not say one of its known refusals (slurm_words.py) the job may exist all the same: it is looked up likewise
before anything is decided.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import submitit

from transfergrid.cluster import ledger as ledgers
from transfergrid.cluster import slurm
from transfergrid.cluster.adopt import LAUNCH_AGAIN, adopt, look_up, put_pickles
from transfergrid.cluster.batch_script import prelude
from transfergrid.cluster.finish_job import settings_of_finish
from transfergrid.cluster.groups import Group
from transfergrid.cluster.ledger import Ledger, Submission
from transfergrid.cluster.ownership import new_token
from transfergrid.cluster.slurm import SlurmDown, SlurmRefused
from transfergrid.cluster.slurm_words import Answer
from transfergrid.cluster.task import TaskSettings, run_task
from transfergrid.errors import MachineError, StoreFull, one_line
from transfergrid.resources import ONE_TASK, ClusterSettings, Resources
from transfergrid.store import durable
from transfergrid.store.process import temporary_environment

GIVE_UP_S = 300.0  # for a controller that does not answer
OF_SUBMITIT = ("time", "wckey", *ONE_TASK)
_UNENDING = 1_000_000  # submitit's own count of timeouts; ours is max_requeues


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What all groups of one launch share. folder: results/launches/<launch>. source: goes in front of PYTHONPATH.

    notify: the shell command by which the finish job tells that all has ended. finish: what that job asks for. cluster:
    SLURM's name of where it is sent; None where files are written and no SLURM answers.
    """

    grid: str
    folder: Path
    payload: Path
    source: Path
    settings: ClusterSettings
    finish: Resources
    cluster: str | None
    notify: str | None = None


# --------------------------------------------------------------------------------------------------------------- send
@dataclass(slots=True)
class Sender:
    """Sends groups in order and remembers which task carries which run. indices: run_id -> place in the payload."""

    launch: Launch
    ledger: Ledger
    indices: Mapping[str, int]
    sent: list[Submission] = field(default_factory=list)
    _task_of: dict[str, str] = field(default_factory=dict)

    def send(self, group: Group) -> Submission:
        """Raises SlurmRefused, SlurmDown."""
        submission = self._send(group, group.edge, parents_of(group, self._task_of, self.ledger), run_task)
        for i, run_ids in enumerate(group.run_ids):
            self._task_of |= {run_id: submission.task_id(i) or "" for run_id in run_ids}
        return submission

    def send_finish(self, function: Callable[[str], Any], after: Sequence[str]) -> Submission:
        """The job that comes when all of `after` (job ids) have ended, however they ended."""
        return self._send(None, "afterany", after, function)

    def _send(self, group: Group | None, edge: str, after: Sequence[str], function: Callable[[str], Any]) -> Submission:
        submission = self._intend(group)
        with _withdrawn_on_a_full_disk(submission):
            write_orders(self.launch, group, self.indices)
            parameters = sbatch_parameters(self.launch, group, submission, dependency=dependency(edge, after))
            submission = _send(submission, self.launch, parameters, function)
        self.sent.append(submission)
        return submission

    def _intend(self, group: Group | None) -> Submission:
        submission = intended(self.launch, group)
        durable.make_folder(submission.folder)
        ledgers.record(submission)
        return submission


def parents_of(group: Group, task_of: Mapping[str, str], ledger: Ledger) -> list[str]:
    """SLURM's ids of what the group waits for: of this launch, or in flight since an earlier one."""
    earlier = {run_id: newest for run_id in group.waits_for if (newest := ledger.newest(run_id)) is not None}
    tasks = {run_id: submission.task_id(index) for run_id, (submission, index) in earlier.items()} | dict(task_of)
    return [task for run_id in group.waits_for if (task := tasks.get(run_id)) is not None]


def intended(launch: Launch, group: Group | None) -> Submission:
    """A group, or else the launch's finish job, with a token of its own."""
    return Submission(
        name=finish_name(launch) if group is None else group.name,
        grid=launch.grid,
        launch=launch.folder,
        tasks=((),) if group is None else group.run_ids,
        kind="finish" if group is None else "runs",
        submitted=datetime.now(UTC),
        gpus=0 if group is None else group.resources.gpus,
        cluster=launch.cluster,
        token=new_token(),
        uid=os.getuid(),
    )


def write_orders(launch: Launch, group: Group | None, indices: Mapping[str, int]) -> None:
    """What a group's tasks, or the finish job, find in their folder. indices: run_id -> place in the payload."""
    settings = launch.settings
    if group is None:
        content = {"grid": launch.grid, "payload": str(launch.payload), "notify": launch.notify}
        durable.write_json(launch.folder / "slurm" / finish_name(launch) / "finish.json", content)
        return
    TaskSettings(
        payload=str(launch.payload),
        tasks=tuple(tuple(indices[run_id] for run_id in task) for task in group.run_ids),
        signal_delay_s=settings.signal_delay_s,
        max_requeues=settings.max_requeues,
        stage_to=settings.scratch_dir if settings.stage_folders else None,
        asks_for_gpu=group.resources.gpus > 0,
    ).write(launch.folder / "slurm" / group.name)


def dependency(edge: str, job_ids: Sequence[str]) -> str | None:
    return f"{edge}:{':'.join(dict.fromkeys(job_ids))}" if job_ids else None


def finish_name(launch: Launch) -> str:
    return f"tg-{launch.grid[:40]}-finish-{launch.folder.name.rpartition('-')[2]}"


def _send(
    submission: Submission, launch: Launch, parameters: dict[str, Any], function: Callable[[str], Any]
) -> Submission:
    script, deadline = _write_script(submission, launch.settings, parameters, function), time.monotonic() + GIVE_UP_S
    while True:
        refusal, silence = None, ""
        try:
            job_id = slurm.sbatch([str(script)], environ=environment_of_jobs())
        except SlurmRefused as error:
            refusal = error
        except SlurmDown as error:
            silence = one_line(error)
        else:
            put_pickles(replace(submission, job_id=job_id or "accepted"))
        adopted, is_shown = None, True
        if refusal is not None and refusal.answer in (Answer.REFUSED, Answer.NO_ROOM):
            try:  # it may have been taken, and the answer be about another thing
                adopted = next(iter(adopt([submission])), None)
            except MachineError:  # SLURM does not show its queue
                is_shown = False
        else:
            adopted = look_up(submission, deadline)
        if adopted is not None:  # whatever sbatch said
            script.rename(submission.folder / f"{adopted.job_id}_{script.name}")
            return adopted
        if refusal is not None:
            raise _refused(submission, refusal, is_shown=is_shown) from refusal
        if not silence:  # sent again, it might be there twice
            raise MachineError(
                f"sbatch took {submission.job_name}, and SLURM shows no job of that name; is it renamed by a plugin of"
                " this cluster? What was sent stays as it is"
            )
        if time.monotonic() > deadline:
            raise SlurmDown(
                f"sbatch has got no answer for {GIVE_UP_S / 60:.0f} minutes ({silence[-200:]})", remedy=LAUNCH_AGAIN
            )


def _write_script(
    submission: Submission, settings: ClusterSettings, parameters: dict[str, Any], function: Callable[[str], Any]
) -> Path:
    """What submitit would send, and the call that the job finds. sbatch itself is run by slurm.py: submitit reads no
    answer that is not UTF-8, and waits for one for good."""
    folder = submission.folder
    text = script_text(submission, settings, parameters)
    # The same call for every task: a task finds its own by its array index, and so any pickle fits any.
    call = submitit.core.utils.DelayedSubmission(function, str(folder))
    call.set_timeout(parameters["time"], _UNENDING)
    call.dump(folder / "call.pkl")
    script = folder / "submission.sh"
    durable.write_bytes(script, os.fsencode(text))
    return script


def _refused(submission: Submission, refusal: SlurmRefused, *, is_shown: bool) -> SlurmRefused:
    """The error to raise. The intent is forgotten only once SLURM has shown that there is no such job."""
    text = f"sbatch refused {submission.name}: {refusal.words[-300:]}"
    if not is_shown:
        return SlurmRefused(f"{text}; SLURM does not show its queue now, so the next launch looks again", refusal.words)
    ledgers.forget(submission)
    shutil.rmtree(submission.folder, ignore_errors=True)
    return SlurmRefused(text, refusal.words)


@contextlib.contextmanager
def _withdrawn_on_a_full_disk(submission: Submission) -> Iterator[None]:
    """Where its files find no room: as if it had never been meant. SLURM may have it already, and without its files it
    would fail; so what SLURM shows under its token is cancelled. Raises StoreFull."""
    try:
        with durable.explained(submission.folder):
            yield
    except StoreFull:
        with contextlib.suppress(SlurmRefused):  # it has ended
            rows = slurm.squeue(names=[submission.job_name])
            proof, cluster = submission.proof, str(submission.cluster)
            slurm.scancel({slurm.base_id(row.job_id) for row in rows if proof.fits(cluster, row.name)})
        shutil.rmtree(submission.folder, ignore_errors=True)  # first: the ledger needs its room
        ledgers.forget(submission)
        raise


# --------------------------------------------------------------------------------------------------- sbatch parameters
class _Writer(submitit.SlurmExecutor):
    @classmethod
    def affinity(cls) -> int:
        """Of a script that may be sent from another machine: this one need not have srun."""
        return 2


def script_text(
    submission: Submission, settings: ClusterSettings, parameters: dict[str, Any], *, module: str | None = None
) -> str:
    """The job script that submitit itself would send. module: what python runs in place of submitit's own."""
    # Signals that come before Python listens must not kill it: it starts with them ignored.
    python = f"""sh -c 'trap "" USR2 TERM; exec "$0" "$@"' {settings.python or shlex.quote(sys.executable)}"""
    # A fresh executor: parameters of an earlier submission would stick to it.
    executor = _Writer(folder=submission.folder, max_num_timeout=_UNENDING, python=python)
    executor.update_parameters(**parameters)
    if len(submission.tasks) > 1:
        executor.parameters["map_count"] = len(submission.tasks)
    command = executor._submitit_command_str
    if module is not None:
        command = f"{python} -m {module} {shlex.quote(str(submission.folder))}"
    return executor._make_submission_file_text(command, "")


def sbatch_parameters(
    launch: Launch, group: Group | None, submission: Submission, *, dependency: str | None
) -> dict[str, Any]:
    """What is asked for a group, or else for the launch's finish job, in submitit's words."""
    settings = launch.settings if group is not None else settings_of_finish(launch.settings, launch.finish)
    resources = launch.finish if group is None else group.resources
    options = settings.options(resources)
    parameters: dict[str, Any] = {
        "job_name": submission.job_name,
        # Named here, each with submitit's own default otherwise, as a time of five minutes and a wckey.
        **{name.replace("-", "_"): options.pop(name, None) for name in OF_SUBMITIT},
        "dependency": dependency,
        # srun since 22.05 does not inherit --cpus-per-task; sites with --export=NONE would lose the environment.
        "srun_args": [f"--cpus-per-task={resources.cpus}", "--export=ALL"],
        "setup": prelude(settings, launch.source, "export PYTHONUNBUFFERED=1", token=submission.token),
    }
    if group is not None:
        parameters["array_parallelism"] = settings.array_parallelism or len(group.tasks)
        parameters["signal_delay_s"] = settings.signal_delay_s
        options |= {"kill-on-invalid-dep": "yes"} if dependency is not None and group.edge == "afterok" else {}
    return parameters | {"additional_parameters": {"requeue": True, **options}}


def environment_of_jobs() -> dict[str, str]:
    """For sbatch, which hands it on: this process's without variables of SLURM's commands."""
    variables = slurm.environment()
    for name in ("TZ", "LC_ALL"):  # those are for reading SLURM's times and words, not for the job
        variables.pop(name, None)
        if name in os.environ:
            variables[name] = os.environ[name]
    return variables


@contextlib.contextmanager
def slurm_environment() -> Iterator[None]:
    """For what calls sbatch in this process, as hydra-submitit-launcher does; submitit itself reads UTF-8 alone."""
    in_utf_8 = mock.patch.object(submitit.core.utils, "copy_process_streams", _copy_streams)
    with temporary_environment(environment_of_jobs()), in_utf_8:
        yield


def _copy_streams(process: subprocess.Popen[bytes], out: io.StringIO, err: io.StringIO, verbose: bool = False) -> None:
    for output, stream in zip(process.communicate(), (out, err), strict=True):
        stream.write(output.decode(errors="replace"))
