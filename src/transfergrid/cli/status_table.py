"""A grid's state as a table, and what is to be said of runs that did not complete."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any

from transfergrid.cli.progress import last_line
from transfergrid.cli.status_view import View, label
from transfergrid.cluster.evidence import log_tail, read_object
from transfergrid.cluster.run_state import ENDED, RunState, State
from transfergrid.config.spelling import command, command_of_grid
from transfergrid.errors import next_step
from transfergrid.names import some
from transfergrid.store import durable
from transfergrid.store.records import GridEntry

if TYPE_CHECKING:
    from transfergrid.cli.fitting import Fitting

FOLD_ABOVE = 40
WIDE = 120  # columns from which the reasons stand in the table
WITH_IDS = 100  # columns from which the ends of the runs' ids do
FAILURES_SHOWN = 20
FAILURES_WITH_LOG = 5
LOG_LINES = 6
METRICS_TAIL_BYTES = 2_000_000
_QUIET: tuple[State, ...] = ("waiting", "not started", "not submitted")
SHOWN_FIRST: tuple[State, ...] = (
    *("running", "unknown", "failed", "lost", "blocked", "pending", "cancelled", "interrupted"),
    *(*_QUIET, "done"),
)
STYLES = {"failed": "red", "lost": "red", "blocked": "red", "cancelled": "yellow", "unknown": "yellow"}


# --------------------------------------------------------------------------------------------------------------- table
def status_table(view: View, *, width: int, fold_above: int = FOLD_ABOVE) -> Fitting:
    """One line per run; of more than `fold_above` those that live or failed, the rest counted."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from transfergrid.cli.fitting import Fitting

    rows, folded = _with_own_lines(view, fold_above)
    lines = [_cells(view, row, width) for row in rows]
    names = ("run", "state", "epoch", "val", "elapsed", "to go", "node", "tries", "id")
    used = [i for i, name in enumerate(names) if i < 2 or any(line[i] for line in lines)]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for i in used:
        table.add_column(names[i], justify="left" if names[i] in ("run", "state", "node", "id") else "right")
    for row, line in zip(rows, lines, strict=True):
        table.add_row(*(Text(printable(line[i])) for i in used), style=STYLES.get(view.state(row).state))
    for text, state in folded:
        table.add_row(Text(text), Text(state))
    return Fitting(table, whole=frozenset(at for at, i in enumerate(used) if i >= 2))


def _with_own_lines(view: View, fold_above: int) -> tuple[Sequence[GridEntry], list[tuple[str, str]]]:
    """(rows with a line of their own, (what, state) of the others)."""
    if len(view.rows) <= fold_above:
        return view.rows, []
    ranked = sorted(view.rows, key=lambda row: SHOWN_FIRST.index(view.state(row).state))
    running = [row for row in ranked if view.state(row).state == "running"]
    # Half of the room at most, so that running ones hide no failure.
    others = [row for row in ranked[len(running) :] if view.state(row).state not in ("done", *_QUIET)]
    own_lines = running[: max(fold_above // 2, fold_above - len(others))]
    own_lines += others[: fold_above - len(own_lines)]
    key = operator.attrgetter("phase", "dataset")
    rest = sorted(set(view.rows) - set(own_lines), key=lambda row: (SHOWN_FIRST.index(view.state(row).state), key(row)))
    folded: list[tuple[str, str]] = []
    for (state, (phase, dataset)), group in groupby(rest, key=lambda row: (view.state(row).state, key(row))):
        members = list(group)
        models = sorted({row.model for row in members})
        folded.append((f"{len(members)} x {phase} on {dataset}: {some(models, 4, 'models')}", state))
    return own_lines, folded


def reason_lines(view: View) -> Iterator[str]:
    """For a terminal too narrow for them in the table: why runs wait or did not run, equal reasons once."""
    rows_by_reason: dict[tuple[str, str], list[GridEntry]] = {}
    for row in view.rows:
        state = view.state(row)
        if state.state not in ("done", "failed", "lost") and state_text(state) != state.state:
            rows_by_reason.setdefault((state.state, state_text(state)), []).append(row)
    for (_, text), rows in rows_by_reason.items():
        yield f"{printable(text)}: {some([label(row) for row in rows], 1)}"


def _cells(view: View, row: GridEntry, width: int) -> tuple[str, ...]:
    state = view.state(row)
    progress = read_progress(view, row) if state.attempts else _Progress()
    to_go = progress.to_go_s if state.state == "running" else None
    time_left = (
        f"< {clock(state.left_s)}" if to_go is None and state.state == "running" and state.left_s else clock(to_go)
    )
    return (
        label(row),
        state_text(state) if width >= WIDE else _short(state),
        progress.epochs,
        "" if progress.best_val is None else f"{progress.best_val:.2%}",
        clock(state.elapsed_s),
        time_left,
        state.node,
        str(state.attempts) if state.attempts > 1 else "",
        row.run_id.rpartition("-")[2] if width >= WITH_IDS else "",  # its hash; run= takes a part of an id
    )


def _short(state: RunState) -> str:
    if state.state == "failed":
        return f"failed ({state.failure_class})"
    return f"{state.state}, never starts" if state.never_starts else state.state


def state_text(state: RunState) -> str:
    """`pending: waits for ...; never starts`; of failures the class, since the reason stands below the table."""
    if state.state in ("failed", "lost"):
        return _short(state)
    text = f"{state.state}: {state.reason}" if state.reason else state.state
    if state.never_starts:
        text += "; never starts"
    if state.starts is not None:
        text += f"; to start {state.starts.astimezone():%a %H:%M}"
    return text


# ------------------------------------------------------------------------------------------------------------ progress
@dataclass(frozen=True, slots=True)
class _Progress:
    """epochs: `3/10`; `3/11 C` of a solved probe, which counts strengths of its penalty. to_go_s: from those so far."""

    epochs: str = ""
    best_val: float | None = None
    to_go_s: float | None = None


def read_progress(view: View, row: GridEntry) -> _Progress:
    total, unit = _total_epochs(view, row.run_id)
    if view.state(row).state == "done":
        metrics = (read_object(view.store.run(row.run_id).record) or {}).get("metrics") or {}
        return _Progress(f"{total}/{total}{unit}" if total else "", metrics.get("val_accuracy"))
    newest = last_line(view.store, row.run_id)
    if newest is None:
        return _Progress()
    lines = epoch_lines(view, row.run_id)
    values = [line["val/accuracy"] for line in lines if line.get("val/accuracy") is not None]
    to_go_s = None
    if total and len(lines) > 1:
        first, last = (datetime.fromisoformat(lines[i]["time"]) for i in (0, -1))
        per_epoch_s = (last - first).total_seconds() / max(1, lines[-1]["epoch"] - lines[0]["epoch"])
        since_s = (datetime.now(UTC) - last).total_seconds()
        to_go_s = max(0.0, (total - lines[-1]["epoch"]) * per_epoch_s - since_s)
    done = newest["epoch"]
    epochs = f"{done}/{max(total, done)}{unit}" if total else str(done)  # a path goes on while its end is the best
    return _Progress(epochs, max(values, default=None), to_go_s)


def epoch_lines(view: View, run_id: str) -> list[dict[str, Any]]:
    """The newest epochs' lines of a run's metrics."""
    import json

    text = log_tail(view.store.run(run_id).metrics, METRICS_TAIL_BYTES)
    lines = []
    for line in text.splitlines():
        if '"kind": "epoch"' in line and line.endswith("}"):
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue
    return lines


def _total_epochs(view: View, run_id: str) -> tuple[int | None, str]:
    """What a run's progress ends at, and what is counted where that is no epoch."""
    if run_id in view.specs:
        spec = view.specs[run_id]
        return spec.epochs, " C" if spec.is_solved else ""
    settings = (read_object(view.store.run(run_id).spec) or {}).get("settings") or {}
    if settings.get("solver") == "lbfgs":
        return len(settings["cs"]), " C"
    total = settings.get("epochs")
    return (total if isinstance(total, int) else None), ""


# ------------------------------------------------------------------------------------------------------------ failures
def failure_lines(view: View) -> Iterator[tuple[str, str | None]]:
    """(line, style): what failed and why, equal reasons once, with the end of a log; then what to do."""
    runs_by_reason: dict[tuple[str, str], list[str]] = {}
    for row in view.rows:
        state = view.state(row)
        if state.state in ("failed", "lost"):
            runs_by_reason.setdefault((state.failure_class or "lost", state.reason), []).append(row.run_id)
    for number, ((name, reason), run_ids) in enumerate(list(runs_by_reason.items())[:FAILURES_SHOWN]):
        yield f"{name}: {some(run_ids, 1)}: {printable(reason)}", "red"
        if number < FAILURES_WITH_LOG:
            yield from ((f"    {line}", "dim") for line in last_words(view, run_ids[0], LOG_LINES))
    if len(runs_by_reason) > FAILURES_SHOWN:
        unseen = list(runs_by_reason.values())[FAILURES_SHOWN][0]
        one = command("status.py", f"run={unseen}", f"store.dir={view.store.root}")
        yield f"... and {len(runs_by_reason) - FAILURES_SHOWN} more reasons; {one} shows one run", "red"
    yield from ((line, None) for line in next_steps(view))


def next_steps(view: View) -> Iterator[str]:
    """One line per failure class, and remedy, that is there."""
    states = [view.state(row) for row in view.rows if view.state(row).state in ENDED]
    classes = [(state.failure_class or "lost", state.remedy or "") for state in states]
    for name, remedy in dict.fromkeys(classes):
        more = _more_memory(view, [s.run_id for s in states if s.failure_class == name]) if name == "host_oom" else ()
        again = command_of_grid("status.py", view.grid, view.store, f"retry={name}", *more) if view.grid else ""
        step = next_step(name, remedy or None) + (f" ({again})" if again and name != "blocked" else "")
        yield f"next, {classes.count((name, remedy))} x {name}: {step}"
    if doubtful := sum(view.state(row).undecided for row in view.rows):
        again = command_of_grid("status.py", view.grid, view.store, "retry=unknown") if view.grid else "retry=unknown"
        yield f"next, {doubtful} x unknown: never sent again by itself; if you know that it is gone: {again}"


def _more_memory(view: View, run_ids: Sequence[str]) -> tuple[str, ...]:
    """`cluster.mem_gb=32`, where the launch of these runs asked for 16; nothing where it asked in another way."""
    newest = next((sent for run_id in run_ids if (sent := view.ledger.newest(run_id)) is not None), None)
    try:
        asked_gb = None if newest is None else durable.read_json(newest[0].launch / "specs.json")["cluster"]["mem_gb"]
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    return (f"cluster.mem_gb={2 * asked_gb:g}",) if isinstance(asked_gb, (int, float)) and asked_gb > 0 else ()


def last_words(view: View, run_id: str, count: int) -> list[str]:
    """The last lines of the run's own log where it recorded its failure itself; else of what SLURM kept."""
    record, state = read_object(view.store.run(run_id).record) or {}, view.snapshot.states[run_id]
    own = log_tail(view.store.run(run_id).log)
    newest = view.ledger.newest(run_id)
    slurm = "" if newest is None else log_tail(newest[0].logs(newest[1])[1])
    recorded = record.get("status") == "failed" and record.get("attempt") == state.attempts
    text = own if (recorded and own.strip()) or not slurm.strip() else slurm
    lines = [printable(line.rstrip()) for line in text.splitlines() if line.strip()]
    return [line if len(line) <= 200 else line[:197] + "..." for line in lines[-count:]]


def printable(text: str) -> str:
    """Without what would move the cursor, colour the terminal or break the line."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]", "", text).replace("\n", " ")


def clock(seconds: float | None) -> str:
    """`1-02:03:04`, `2:03:04`, `3:04`."""
    if seconds is None:
        return ""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}-{hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
