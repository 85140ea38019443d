"""Before runs are started or sent: what SLURM has already, the folders, the device, data and weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transfergrid import durable
from transfergrid.cluster.child import ask, gpus_for
from transfergrid.cluster.ledger import Ledger, read_ledger
from transfergrid.cluster.states import Snapshot, take_snapshot
from transfergrid.config import Request
from transfergrid.errors import ConfigError, DataError, MachineError, StoreFull
from transfergrid.plan import Plan
from transfergrid.specs import RunSpec, Runtime

if TYPE_CHECKING:
    from rich.console import Console


def sent_states(request: Request, ledger: Ledger | None = None) -> Snapshot:
    """The states of this store's runs that were sent to SLURM."""
    ledger = ledger or read_ledger(request.store)
    sent = dict.fromkeys(r for s in ledger.submissions for task in s.tasks for r in task)
    return take_snapshot(sent, request.store, ledger, grid=request.grid)


def queued(snapshot: Snapshot) -> dict[str, str]:
    """Runs that SLURM has, or may have, with a word on each: they are not sent again."""
    found = {}
    for run_id, state in snapshot.states.items():
        if state.undecided:
            found[run_id] = f"unknown: {state.reason}"
        elif state.is_live and (state.job_id is not None or state.state == "unknown"):
            job = f"job {state.job_id} " if state.job_id is not None else ""
            found[run_id] = f"{job}{state.state}" + (f": {state.reason}" if state.reason else "")
    return found


def prepare_folders(runtime: Runtime) -> None:
    """Make store and cache, and write to each once. A folder that cannot be written is a bad argument."""
    for folder in (Path(runtime.store_dir), Path(runtime.cache_dir)):
        try:
            durable.make_folder(folder)
            probe = durable.temporary_beside(folder / "writable")
            with durable.explained(folder):
                probe.write_bytes(b"?")
                probe.unlink()
        except StoreFull:
            raise
        except (MachineError, OSError) as error:
            reason = error.strerror or type(error).__name__ if isinstance(error, OSError) else error
            raise ConfigError(f"{folder} cannot be used ({reason}); give another store.dir= or cache.dir=") from error


def preflight(console: Console, plan: Plan, runtime: Runtime, *, runs_follow: bool) -> None:
    """The GPU, data and weights of what is about to run, the latter fetched where there is a network, and verified.

    runs_follow: they are carried out by this process's children. Raises MachineError where device=cuda cannot be.
    """
    runs = [p.run for p in plan.to_run]
    if not runs:
        return
    # The first use of torch, some seconds: say what the silence is.
    with console.status("checking data and weights"):
        if runs_follow:
            _tell_device(console, runtime)
        answer = ask(check_inputs, (runs, runtime), runs_follow=runs_follow)
    if answer.error is not None:
        raise DataError(answer.error)
    for line in answer.value:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _tell_device(console: Console, runtime: Runtime) -> None:
    """One line where a GPU stays unused, or none is there; each run would say it to its own log alone."""
    found = gpus_for(runtime)
    if found.problem is None:
        return
    if found.visible:
        console.print(f"not every GPU is used: {found.problem}", style="yellow", highlight=False, soft_wrap=True)
    elif runtime.device == "cuda":
        raise MachineError(f"device=cuda, but torch can use no GPU here: {found.problem}; device=cpu goes without")
    else:
        console.print(f"runs compute on the CPU: {found.problem}", highlight=False, soft_wrap=True)


def check_inputs(runs: Sequence[RunSpec], runtime: Runtime) -> tuple[str, ...]:
    """A line on each weights file that holds more than the network. Raises DataError for the first data set or weights
    that cannot be used. Loads torch where there are weights to check: call it in a child."""
    from transfergrid import data
    from transfergrid.specs import ProbeSettings

    for dataset in dict.fromkeys(run.dataset for run in runs):
        folder = runtime.data_folders.get(dataset.name)
        data.find(dataset.kind, data_dir=Path(runtime.data_dir), folder=None if folder is None else Path(folder))
    on_features = (run for run in runs if isinstance(run.settings, ProbeSettings) and run.settings.source == "features")
    reading = set(on_features)
    told: list[str] = []
    for backbone in dict.fromkeys(b for run in runs if run not in reading for b in run.backbones):
        if not backbone.weights.identity.startswith("random:"):
            from transfergrid.backbones.build import build

            build(
                backbone,
                weights_dir=Path(runtime.weights_dir),
                weights_files=runtime.weights_files,
                told=told.append,
            )
    return tuple(dict.fromkeys(told))
