"""What runs on a node: one task of a group's array. Its argument is the group's folder.

A signal sets a flag, the run checkpoints at its next step boundary, and the job goes back into the queue, unless SLURM
is ending it for good. A job that had finished when it was requeued ends within seconds.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transfergrid import tracking
from transfergrid.cluster import local
from transfergrid.cluster.batch_script import ASKS_FOR_REQUEUE, ends_in_one_line
from transfergrid.cluster.ownership import is_alive, rename_this_job, requeue_this_job, seconds_left
from transfergrid.cluster.staging import staged
from transfergrid.errors import Lost, MachineError
from transfergrid.paths import store_paths
from transfergrid.phases import phase_module
from transfergrid.planning import job
from transfergrid.planning.plan import Plan, PlannedRun
from transfergrid.specs import RunSpec, Runtime, Split
from transfergrid.store import durable
from transfergrid.store.attempts import job_mark, restart_count, slurm_task
from transfergrid.store.checkpoints import checkpoint_files
from transfergrid.training.stopping import StopFlag

logger = logging.getLogger(__name__)
MIRROR_WAIT_S = 10.0  # a GPU is not held for a server: the finish job sends the rest
SIGNAL_EARLY_S = 60  # SLURM may send the signal so much earlier than asked (sbatch --signal)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """What a task must know of its group, beside the payload. tasks: indices into the payload's runs."""

    payload: str
    tasks: tuple[tuple[int, ...], ...]
    signal_delay_s: int
    max_requeues: int
    stage_to: str | None
    asks_for_gpu: bool

    def write(self, folder: Path) -> None:
        durable.write_json(folder / "tasks.json", asdict(self))

    @staticmethod
    def read(folder: Path) -> TaskSettings:
        content: dict[str, Any] = durable.read_json(folder / "tasks.json")
        return TaskSettings(**content | {"tasks": tuple(tuple(task) for task in content["tasks"])})


def run_task(folder: str) -> dict[str, str]:
    """Carry out this task's runs. Returns their outcomes where all are done; else exits with code 1, so that whatever
    waits for this task by `afterok` does not start; with a code of batch_script.py where that tells more."""
    stop = StopFlag()
    with ends_in_one_line(), stop.installed():
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        settings = TaskSettings.read(Path(folder))
        payload = job.read_payload(Path(settings.payload))
        index = int(os.environ.get("SLURM_ARRAY_TASK_ID") or 0)
        runs = [payload.runs[i] for i in settings.tasks[index]]
        runtime = payload.runtime
        if runtime.device == "auto":  # a GPU that torch cannot use is not to stand idle, nor another job's to be taken
            runtime = replace(runtime, device="cuda" if settings.asks_for_gpu else "cpu")
        remaining = [run for run in runs if not phase_module(run.phase).is_done(run, runtime)]
        if not remaining:  # it had finished when it was requeued
            print(f"{', '.join(run.run_id for run in runs)}: completed before", flush=True)
            return {run.run_id: "reused" for run in runs}
        _assert_same_code(payload, remaining)
        _rename(runs)
        rows = [c for c in (payload.configuration(run) for run in remaining) if c is not None]
        mirror = tracking.start_mirror(runtime, rows) if rows else None
        outcomes = _carry_out(remaining, runtime, settings, stop)
        print(*(f"{run_id}: {outcome}" for run_id, outcome in outcomes.items()), sep="\n", flush=True)
        interrupted = [run for run in remaining if outcomes[run.run_id] == "interrupted"]
        if interrupted and _go_on_later(interrupted, runtime, settings):  # before anything that may take time
            sys.exit(ASKS_FOR_REQUEUE)
        tracking.wait_for_mirror(mirror, MIRROR_WAIT_S, by_hand=tracking.by_hand(runtime))
        if any(outcome not in ("completed", "reused") for outcome in outcomes.values()):
            sys.exit(1)
    return outcomes


def _assert_same_code(payload: job.Payload, runs: Sequence[RunSpec]) -> None:
    """Other code than that of the launch is a failure of every run, recorded as such."""
    try:
        payload.assert_same_code()
    except MachineError as error:
        for run in runs:
            job.record_loss(run, payload.runtime, error)
        raise


def _carry_out(runs: Sequence[RunSpec], runtime: Runtime, settings: TaskSettings, stop: StopFlag) -> dict[str, str]:
    """How each run ended."""
    with staged(runtime, [run.dataset.name for run in runs], settings.stage_to) as runtime:
        marks = {run.run_id: progress_mark(run, runtime) for run in runs}
        if len(runs) > 1:
            outcomes = _one_after_the_other(runs, runtime, stop)
        else:
            outcomes = {runs[0].run_id: job.carry_out(runs[0], runtime, stop=stop, is_alive=is_alive)}
        interrupted = [run for run in runs if outcomes[run.run_id] == "interrupted"]
        got_nowhere = all(progress_mark(run, runtime) == marks[run.run_id] for run in runs)
        if len(interrupted) == len(runs) and got_nowhere and time_is_up(settings):
            not_one = "not one step (or split) was done within the time limit, so it would never end"
            remedy = "give a larger cluster.timeout_min, or a smaller batch"
            job.record_loss(runs[0], runtime, Lost(not_one, "timeout", remedy))
            outcomes[runs[0].run_id] = "failed"
        return outcomes


def _one_after_the_other(runs: Sequence[RunSpec], runtime: Runtime, stop: StopFlag) -> dict[str, str]:
    """Runs that share a job, each in a process of its own: one that dies takes no other with it."""
    outcomes = {run.run_id: "interrupted" for run in runs}
    if stop.signal is not None:  # the pool hears only signals that come while it runs
        return outcomes
    try:
        local.run_plan(Plan(tuple(PlannedRun(run, "run", "") for run in runs)), runtime, _Outcomes(outcomes))
    except KeyboardInterrupt:  # how the pool is told of SIGTERM and SIGUSR2; its children have saved
        pass
    return outcomes


class _Outcomes(local.Watcher):
    def __init__(self, outcomes: dict[str, str]) -> None:
        self._outcomes = outcomes

    def ended(self, ended: local.Ended) -> None:
        self._outcomes[ended.run.run_id] = ended.ending


# ---------------------------------------------------------------------------------------------------------- going on
def _go_on_later(runs: Sequence[RunSpec], runtime: Runtime, settings: TaskSettings) -> bool:
    """Whether the batch script is to put the job back into the queue, because this process cannot."""
    if restart_count() < settings.max_requeues:
        return requeue_this_job() == "cannot ask"
    for run in runs:
        error = Lost(f"went on {restart_count()} times and is not done", "timeout", "give cluster.timeout_min more")
        job.record_loss(run, runtime, error)
    return False


def progress_mark(run: RunSpec, runtime: Runtime) -> tuple[str, ...]:
    """What tells whether a run got anywhere: its checkpoints, or the splits it has extracted."""
    if run.phase == "extract":
        from transfergrid.paths import cache_paths
        from transfergrid.store import feature_store

        cache, backbone = cache_paths(runtime), run.backbones[0]
        splits: tuple[Split, ...] = ("train", "val", "test")
        return tuple(s for s in splits if feature_store.find(cache, run.feature_key(backbone, s)) is not None)
    return tuple(c.path.name for c in checkpoint_files(store_paths(runtime).run(run.run_id)))


def time_is_up(settings: TaskSettings) -> bool:
    """Whether this job's time limit is why it was told to stop, not a preemption."""
    left_s = seconds_left()
    return left_s is not None and left_s < settings.signal_delay_s + SIGNAL_EARLY_S + 30


def _rename(runs: Sequence[RunSpec]) -> None:
    """squeue then shows what this task does; by the token at the end it is still known as one of its submission."""
    if slurm_task() is None:
        return
    name = runs[0].slug + (f"+{len(runs) - 1}" if len(runs) > 1 else "")
    try:
        rename_this_job(f"{name}-{job_mark()}")
    except MachineError as error:
        logger.info("the job keeps its name: %s", error)


def main() -> int:
    """`python -m transfergrid.cluster.task FOLDER`: for job scripts that are written out."""
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # until run_task listens
    run_task(sys.argv[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
