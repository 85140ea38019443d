"""Before runs are started or sent: what SLURM has already, the folders, the device, data and weights."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from transfergrid import tracking
from transfergrid.cli.console import amount, say
from transfergrid.cluster.child import Answer, ask, gpus_for
from transfergrid.cluster.ledger import Ledger, read_ledger
from transfergrid.cluster.states import Snapshot, take_snapshot
from transfergrid.config import Request
from transfergrid.errors import ConfigError, DataError, MachineError, MissingWeights, StoreFull, UnusableWeights
from transfergrid.networks.backbones.weight_files import Taken
from transfergrid.planning.plan import Plan, make_plan
from transfergrid.planning.space import Volume, volumes
from transfergrid.specs import EvaluateSettings, ProbeSettings, RunSpec, Runtime
from transfergrid.store import durable


def sent_states(request: Request, ledger: Ledger | None = None) -> Snapshot:
    """The states of this store's runs that were sent to SLURM."""
    ledger = ledger or read_ledger(request.store)
    sent = dict.fromkeys(r for s in ledger.submissions for task in s.tasks for r in task)
    return take_snapshot(sent, request.store, ledger, grid=request.grid)


def queued(snapshot: Snapshot) -> dict[str, str]:
    """Runs that SLURM has, or may have, with a word on each: they are not sent again."""
    reasons = {}
    for run_id, state in snapshot.states.items():
        if state.undecided:
            reasons[run_id] = f"unknown: {state.reason}"
        elif state.is_live and (state.job_id is not None or state.state == "unknown"):
            job = f"job {state.job_id} " if state.job_id is not None else ""
            reasons[run_id] = f"{job}{state.state}" + (f": {state.reason}" if state.reason else "")
    return reasons


def plan_here(request: Request) -> Plan:
    """What this machine would run: all that is neither done nor sent to SLURM."""
    rows = [c.run.run_id for c in request.configurations]
    return make_plan(rows, request.runs, request.runtime, queued=queued(sent_states(request)))


def look_at_folders(console: Console, plan: Plan, request: Request) -> None:
    """Whether there is room for what is to be written, and anybody may write; then the folders are made, unless it is
    a dry run."""
    assert_writable(request.runtime)
    show_space(console, plan, request.runtime)
    if not request.dry_run:
        prepare_folders(request.runtime)


def made_ready(
    console: Console, plan: Plan, request: Request, *, runs_follow: bool, not_done: str = "started"
) -> Request | None:
    """Look at all else that can refuse the plan's runs. Returns the request with its tracking decided; None of a dry
    run, which ends here and writes nothing. runs_follow: they are carried out by this process's children."""
    if request.dry_run:
        _check_without_writing(console, plan, request.runtime, runs_follow=runs_follow)
        console.print(f"dry run: nothing was {not_done} or written")
        return None
    preflight(console, plan, request.runtime, runs_follow=runs_follow)
    # tracking=auto is decided here, for all jobs of the launch, once nothing else is refused.
    runtime, line = tracking.decided(request.runtime)
    if line is not None:
        say(console, line)
    return replace(request, runtime=runtime)


def show_space(console: Console, plan: Plan, runtime: Runtime) -> None:
    """A line for each file system on what is to be written there, and what is free. Raises StoreFull where it cannot
    fit."""
    found = volumes((p.run for p in plan.to_run), runtime)
    for volume in found:
        writes, free = amount(volume.writes.total()), amount(volume.free)
        where = " and ".join(volume.places)
        if volume.cannot_fit:
            what = f"no space left in {volume.folder}: {free} are free, {writes} are to be written there ({where})"
            raise StoreFull(what, remedy=_more_room(volume))
        kinds = ", ".join(f"{kind} {amount(num_bytes)}" for kind, num_bytes in volume.writes.most_common())
        text = f"{f'{where}: ' if len(found) > 1 else ''}writes about {writes} ({kinds}); {free} are free"
        if volume.is_tight:
            checkpoints = f", checkpoints take up to {amount(volume.at_work)} for a while" if volume.at_work else ""
            text += f"{checkpoints}; {_more_room(volume)}"
        say(console, text, style="yellow" if volume.is_tight else None)


def _more_room(volume: Volume) -> str:
    weights = volume.writes["weights"]
    less = f"keep_weights=none writes {amount(weights)} less; " if weights > 0.1 * volume.writes.total() else ""
    return f"{less}free some space, or give another {' or '.join(f'{name}=' for name in volume.places)}"


def prepare_folders(runtime: Runtime) -> None:
    """Make store and cache, and write to each once. A folder that cannot be written is a bad argument."""
    for key, folder in _folders(runtime).items():
        try:
            durable.make_folder(folder)
            probe = durable.temporary_beside(folder / "writable")
            with durable.explained(folder):
                probe.write_bytes(b"?")
                probe.unlink()
        except StoreFull:
            raise
        except MachineError as error:  # of explained(), which names the path once more
            number = getattr(error.__cause__, "errno", None)
            reason = os.strerror(number) if number in (errno.EACCES, errno.EPERM, errno.EROFS) else error.fact
            raise _unwritable(key, folder, reason) from error
        except OSError as error:
            raise _unwritable(key, folder, error.strerror or type(error).__name__) from error


def assert_writable(runtime: Runtime) -> None:
    """What can be known of prepare_folders() without writing: who may write, and whether anybody can. Raises as it
    does."""
    for key, folder in _folders(runtime).items():
        there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        if os.statvfs(there).f_flag & os.ST_RDONLY:
            raise _unwritable(key, folder, os.strerror(errno.EROFS))
        if not os.access(there, os.W_OK | os.X_OK):
            raise _unwritable(key, folder, os.strerror(errno.EACCES))


def preflight(console: Console, plan: Plan, runtime: Runtime, *, runs_follow: bool) -> None:
    """The GPU, data and weights of what is about to run, the latter fetched where there is a network, and verified.

    Raises MachineError where device=cuda cannot be.
    """
    runs = [p.run for p in plan.to_run]
    if not runs:
        return
    # The first use of torch, some seconds: say what the silence is.
    with console.status("checking data and weights"):
        if runs_follow:
            _tell_device(console, runtime)
        answer = ask(check_inputs, (runs, runtime), runs_follow=runs_follow)
    _tell(console, answer)


def _check_without_writing(console: Console, plan: Plan, runtime: Runtime, *, runs_follow: bool) -> None:
    """What a dry run can say of what prepare_folders() and preflight() refuse: nothing is written or fetched, and torch
    is loaded, in a child, only where the user names weights files or asks for a GPU. Raises as they do."""
    if runs_follow and runtime.device == "cuda" and plan.to_run:
        _tell_device(console, runtime)
    runs = [p.run for p in plan.to_run if reads_file(p.run)]
    if runs:
        with console.status("checking weights files"):
            _tell(console, ask(check_weights, (runs, runtime), runs_follow=False))


def _tell(console: Console, answer: Answer) -> None:
    if answer.error is not None:
        raise _Unusable(answer)
    for line in answer.value:
        say(console, line)


class _Unusable(DataError):
    """Data or weights, as a child process told of them."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.error, remedy=answer.remedy)
        self._details = answer.details

    @property
    def details(self) -> tuple[str, ...]:
        return self._details


def _folders(runtime: Runtime) -> dict[str, Path]:
    return {"store.dir": Path(runtime.store_dir), "cache.dir": Path(runtime.cache_dir)}


def _unwritable(key: str, folder: Path, reason: str) -> ConfigError:
    return ConfigError(f"{key}={folder} cannot be used ({reason})", remedy=f"give another {key}=")


def _tell_device(console: Console, runtime: Runtime) -> None:
    """One line where a GPU stays unused, or none is there; each run would say it to its own log alone."""
    gpus = gpus_for(runtime)
    if gpus.problem is None:
        return
    if gpus.visible:
        say(console, f"not every GPU is used: {gpus.problem}", style="yellow")
    elif runtime.device == "cuda":
        problem = f"device=cuda is set, but torch cannot use a GPU here: {gpus.problem}"
        raise MachineError(problem, remedy="use device=cpu")
    else:
        say(console, f"runs compute on the CPU: {gpus.problem}")


def check_inputs(runs: Sequence[RunSpec], runtime: Runtime) -> tuple[str, ...]:
    """A line on what is taken of each of the user's weights files. Raises DataError for the first data set, or for all
    weights, that cannot be used. Loads torch where there are weights to check: call it in a child."""
    from transfergrid import data

    for dataset in dict.fromkeys(run.dataset for run in runs):
        folder, table = runtime.data_folders.get(dataset.name), runtime.data_tables.get(dataset.name)
        data.find(
            dataset.kind,
            data_dir=Path(runtime.data_dir),
            folder=None if folder is None else Path(folder),
            table=None if table is None else Path(table),
        )
    return check_weights(runs, runtime)


def check_weights(runs: Sequence[RunSpec], runtime: Runtime) -> tuple[str, ...]:
    """The weights' part of check_inputs()."""
    from transfergrid.networks.backbones.build import build
    from transfergrid.phases.evaluate import network_from_file

    lines: dict[str, None] = {}

    def note(taken: Taken, *, is_users: bool) -> None:
        if is_users or not taken.is_plain:
            lines[taken.line] = None

    errors: list[DataError] = []

    def look(function: Callable[..., object], *arguments: object, **more: object) -> None:
        try:
            function(*arguments, **more)
        except DataError as error:
            errors.append(error)

    from_files = {run for run in runs if isinstance(run.settings, EvaluateSettings) and reads_file(run)}
    for run in runs:
        if run in from_files:
            look(network_from_file, run, runtime, note=partial(note, is_users=True))
    on_features = {r for r in runs if isinstance(r.settings, ProbeSettings) and r.settings.source == "features"}
    for backbone in dict.fromkeys(b for run in runs if run not in from_files | on_features for b in run.backbones):
        if not backbone.weights.identity.startswith("random:"):
            look(
                build,
                backbone,
                weights_dir=Path(runtime.weights_dir),
                weights_files=runtime.weights_files,
                # Where one could not be fetched, the others are only looked for: each would wait for the network.
                download=not any(isinstance(error, MissingWeights) for error in errors),
                note=partial(note, is_users=backbone.weights.is_file),
            )
    if errors:
        raise errors[0] if len(errors) == 1 else UnusableWeights(errors)
    return tuple(lines)


def reads_file(run: RunSpec) -> bool:
    """Whether a run reads a weights file of the user's."""
    if isinstance(run.settings, EvaluateSettings):
        if run.settings.source.startswith("run:"):
            return False
        if run.settings.source.startswith("file:"):
            return True
    return any(b.weights.is_file for b in run.backbones)
