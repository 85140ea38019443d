"""What jobs/status.py knows after one look: the rows of a grid, the true state of each, and where they come from."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from transfergrid.cli.console import duration
from transfergrid.cluster.ledger import Ledger, read_ledger
from transfergrid.cluster.run_state import ENDED, RunState, State, needs_of_spec, specs_of
from transfergrid.cluster.states import Snapshot, take_snapshot
from transfergrid.config.spelling import command_of_grid, launch_again, launched_grids, never_launched, where_runs_are
from transfergrid.config.status import StatusRequest
from transfergrid.errors import ConfigError, DataError
from transfergrid.names import fitting, some
from transfergrid.paths import StorePaths
from transfergrid.planning.wall import expected_of, progress_of, remaining_s
from transfergrid.specs import RunSpec
from transfergrid.store import durable
from transfergrid.store.attempts import read_spec
from transfergrid.store.records import GridEntry, entry_of, read_grid

SLURM_TIMEOUT_S = 5.0
ORDER: tuple[State, ...] = (
    *(*ENDED, "unknown", "running", "pending", "waiting", "interrupted", "not started", "not submitted", "done"),
)


def label(row: GridEntry) -> str:
    """A run as a person tells it from the others of its grid."""
    phase = f"{row.phase}/{row.variant}" if row.variant else row.phase
    return " ".join(filter(None, (row.dataset, row.model, phase, "" if row.seed is None else f"s{row.seed}")))


@dataclass(frozen=True, slots=True)
class View:
    """grid: None where a run was asked for by its name alone. specs: of runs that were sent to SLURM.
    remaining_s: how long a launch that is at work on this machine still takes, as far as it was expected."""

    grid: str | None
    store: StorePaths
    rows: tuple[GridEntry, ...]
    ledger: Ledger
    specs: Mapping[str, RunSpec]
    snapshot: Snapshot
    remaining_s: float | None = None

    def state(self, row: GridEntry) -> RunState:
        return self.snapshot.states[row.run_id]

    @property
    def may_change(self) -> bool:
        """Of the runs, and of a finish job that is at work."""
        finish = self.snapshot.finish
        is_last = finish is not None and finish.state == "running"
        return is_last or any(self.state(row).may_change for row in self.rows)

    @property
    def has_failures(self) -> bool:
        return any(self.state(row).state in ENDED for row in self.rows)

    @property
    def summary(self) -> str:
        """Counts by state; what other clusters have; and that SLURM did not answer, where it did not."""
        counts = Counter(self.state(row).state for row in self.rows)
        counted = ", ".join(f"{counts[name]} {name}" for name in reversed(ORDER) if counts[name])
        what = f"grid {self.grid}" if self.grid is not None else self.rows[0].run_id
        counted += "" if self.remaining_s is None else f"; about {duration(self.remaining_s)} to go"
        lines = (f"{what}: {counted or 'nothing was sent'}", *self.snapshot.elsewhere, self.silence, self.unfinished)
        return "\n".join(filter(None, lines))

    @property
    def unfinished(self) -> str:
        """How to go on with a grid of this machine whose launch has ended before its runs."""
        halted = any(self.state(row).state in ("interrupted", "not started") for row in self.rows)
        return f"launch again to continue: {launch_again(self.grid, self.store)}" if halted and self.grid else ""

    @property
    def finish_line(self) -> str:
        """What the finish job, which makes the table, does or did; nothing of one that did its work."""
        state = self.snapshot.finish
        if state is None or self.grid is None or state.state == "done":
            return ""
        job = f"finish job {state.job_id}" if state.job_id is not None else "finish job"
        never = "; never starts" if state.never_starts else ""
        line = f"{job}: {state.state}" + (f": {state.reason}" if state.reason else "") + never
        if state.waits_for_needs or (state.is_live and not state.never_starts):
            return line
        by_hand = command_of_grid("report.py", self.grid, self.store)
        return f"{line}; launch again sends it; the table until then: {by_hand}"

    @property
    def silence(self) -> str:
        """What is to be said where SLURM did not answer."""
        if self.snapshot.slurm_error is None:
            return ""
        source = "the store and the accounting know" if self.snapshot.accounting else "the store knows"
        return f"SLURM does not answer ({self.snapshot.slurm_error}); this is what {source}"


def read_view(request: StatusRequest) -> View:
    """Look at a grid, or at the one run that is asked for. Raises ConfigError for one that does not exist."""
    store, ledger = request.store, read_ledger(request.store)
    named, listed = request.grid, {} if request.grid is not None else _listed(store)
    entries = list(listed) if request.grid is None else _entries(store, request.grid, ledger)
    held = _held(ledger, request.grid)
    known = dict.fromkeys([e.run_id for e in entries] + held)
    if request.run is not None:
        every = known if request.grid is not None else dict.fromkeys([*_stored(store), *known])
        run_id = _resolve(request.run, every, store)
        entries, held, known = [e for e in entries if e.run_id == run_id][-1:], [run_id], {run_id: None}
        named = named or next((listed[entry] for entry in entries), None)
    specs = specs_of(ledger, known)
    needs = {run_id: needs_of_spec(spec) for run_id, spec in specs.items()}
    grid = request.grid if request.run is None else None
    snapshot = take_snapshot(known, store, ledger, needs=needs, grid=grid, timeout_s=SLURM_TIMEOUT_S)
    in_grid = {e.run_id for e in entries}
    needed = {need for run_id in in_grid for need in needs.get(run_id, ())}
    needed |= {need for run_id in needed for need in needs.get(run_id, ())}
    # A run that an earlier launch of this grid sent, and that the grid no longer names, matters while it lives.
    beside = [r for r in held if r not in in_grid and (r in needed or snapshot.states[r].is_live or request.run)]
    others = [_row_of(run_id, specs.get(run_id) or read_spec(store.run(run_id))) for run_id in beside]
    remaining = None
    if named is not None and not ledger.of_grid(named, "runs"):
        is_at_work = durable.is_locked(store.launching(named))
        snapshot = replace(snapshot, states=_in_local_words(snapshot.states, is_at_work=is_at_work))
        expected = expected_of(store.grid(named)) if is_at_work else None
        remaining = None if expected is None else remaining_s(expected, *progress_of(expected, store))
    return View(request.grid, store, tuple(others + entries), ledger, specs, snapshot, remaining)


def _in_local_words(states: Mapping[str, RunState], *, is_at_work: bool) -> dict[str, RunState]:
    """Of a grid of which nothing was sent to SLURM: a run waits for its turn while the launch is at work."""

    def local(state: RunState) -> RunState:
        if state.state != "not submitted":
            return state
        word: State = "waiting" if is_at_work else "interrupted" if state.attempts else "not started"
        return replace(state, state=word, reason="")

    return {run_id: local(state) for run_id, state in states.items()}


def changes(before: View, after: View) -> Iterator[str]:
    """A line for each run whose state is another than before."""
    for row in after.rows:
        old, new = before.snapshot.states.get(row.run_id), after.state(row)
        if old is None or old.state != new.state:
            yield f"{new.state:<13} {row.run_id}  {new.reason}".rstrip()


def _entries(store: StorePaths, grid: str, ledger: Ledger) -> list[GridEntry]:
    try:
        return read_grid(store.grid(grid))
    except FileNotFoundError:
        if ledger.of_grid(grid, "runs"):
            return []
    raise never_launched(grid, store)


def _listed(store: StorePaths) -> dict[GridEntry, str]:
    """The rows of all grids and whose they are, those launched last at the end; none of a file that is damaged."""
    listed: dict[GridEntry, str] = {}
    for grid in launched_grids(store):
        with contextlib.suppress(DataError, FileNotFoundError):
            listed |= dict.fromkeys(read_grid(store.grid(grid)), grid)
    return listed


def _held(ledger: Ledger, grid: str | None) -> list[str]:
    """The runs that a grid's submissions hold, or all that are in the ledger."""
    of_grid = [s for s in ledger.submissions if s.kind == "runs" and grid in (None, s.grid)]
    return list(dict.fromkeys(run_id for s in of_grid for task in s.tasks for run_id in task))


def _stored(store: StorePaths) -> list[str]:
    return sorted(p.name for p in store.runs.iterdir()) if store.runs.is_dir() else []


def _resolve(name: str, known: Iterable[str], store: StorePaths) -> str:
    """A whole run_id, else the one run that has this part."""
    known = list(known)
    matches = fitting(name, known)
    if len(matches) > 1:
        raise ConfigError(f"run={name} fits {len(matches)} runs: {some(matches, 4)}", remedy="give more of the name")
    if not matches:
        raise ConfigError(f"run={name} fits none of {len(known)} runs", remedy=where_runs_are(store))
    return matches[0]


def _row_of(run_id: str, spec: RunSpec | None) -> GridEntry:
    """Extractions of one model differ in their weights alone, and so do their labels."""
    if spec is None:
        return GridEntry(
            run_id=run_id, dataset="", model=run_id, phase="", variant="", weights="", protocol="", seed=None
        )
    return entry_of(spec, spec.weights_label if spec.phase == "extract" else "")
