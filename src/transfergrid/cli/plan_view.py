"""The runs of a plan as the terminal shows them: a line for each of a few, of more a table of models by data sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from transfergrid.cli.console import count, say
from transfergrid.cli.fitting import Fitting
from transfergrid.names import some
from transfergrid.planning.plan import NOT_YET, Plan, PlannedRun, State
from transfergrid.specs import Phase

LISTED = 10  # runs that have a line each
MOST_ROWS = 20  # of the table; above that, models of which the same is planned share one
REASONS = 5  # of each state
LETTERS: Mapping[Phase, str] = {"extract": "e", "probe": "p", "finetune": "f", "scratch": "s", "evaluate": "v"}
SIGNS: Mapping[State, str] = {"run": "", "reuse": "=", "in flight": "~", "blocked": "!"}
IN_WORDS: Mapping[State, str] = {
    "run": "to run",
    "reuse": "done before",
    "in flight": "in flight",
    "blocked": "blocked",
}

Counts = Counter[tuple[Phase, State]]
Row = tuple[tuple[str, ...], list[Counts]]  # models, and what is planned of them on each data set


def show_runs(console: Console, plan: Plan, variants: Mapping[str, str]) -> None:
    """variants: of the rows of the grid, by run_id."""
    if len(plan.runs) > LISTED:
        console.print(_matrix(plan))
        say(console, _legend(plan))
        for line in _reasons(plan):
            say(console, line, indent=12)
        return
    for planned in plan.runs:
        run = planned.run
        # What the readable part of its name does not say.
        more = run.weights_label if run.phase == "extract" else variants.get(run.run_id, "")
        name = f"{run.run_id} ({more})" if more else run.run_id
        say(console, f"  {planned.state:<9} {name}  {planned.why}", indent=12)


def _matrix(plan: Plan) -> Fitting:
    counts: dict[tuple[str, str], Counts] = {}
    for planned in plan.runs:
        place = (planned.run.model, planned.run.dataset.name)
        counts.setdefault(place, Counter())[planned.run.phase, planned.state] += 1
    datasets = list(dict.fromkeys(dataset for _, dataset in counts))
    models = list(dict.fromkeys(model for model, _ in counts))
    rows: list[Row] = [
        ((model,), [counts.get((model, dataset), Counter()) for dataset in datasets]) for model in models
    ]
    table = Table("model", *datasets, box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for names, cells in _few(rows):
        table.add_row(some(names, 6, "models"), *map(_cell, cells))
    return Fitting(table)


def _few(rows: list[Row]) -> list[Row]:
    """At most MOST_ROWS: models of which the same is planned share a row, and those that find none the last."""
    if len(rows) <= MOST_ROWS:
        return rows
    alike: dict[str, Row] = {}
    for names, cells in rows:
        key = " | ".join(map(_cell, cells))
        alike[key] = ((*alike[key][0], *names) if key in alike else names, cells)
    shared = list(alike.values())
    return shared if len(shared) <= MOST_ROWS else [*shared[: MOST_ROWS - 1], _sum(shared[MOST_ROWS - 1 :])]


def _sum(rows: Sequence[Row]) -> Row:
    names = tuple(name for members, _ in rows for name in members)
    return names, [sum(cells, Counter()) for cells in zip(*(cells for _, cells in rows), strict=True)]


def _cell(counts: Counts) -> str:
    """`e1 p=5 f2=3`: one extraction to run, five probes done, of five fine-tunings two to run."""
    by_phase = {phase: [f"{s}{n}" for state, s in SIGNS.items() if (n := counts[phase, state])] for phase in LETTERS}
    return " ".join(LETTERS[phase] + "".join(parts) for phase, parts in by_phase.items() if parts)


def _legend(plan: Plan) -> str:
    phases, states = {p.run.phase for p in plan.runs}, {p.state for p in plan.runs}
    letters = ", ".join(f"{letter} {phase}" for phase, letter in LETTERS.items() if phase in phases)
    signs = ", ".join(f"{SIGNS[state]}n {text}" for state, text in IN_WORDS.items() if state in states)
    return f"{letters}; {signs}"


def _reasons(plan: Plan) -> Iterator[str]:
    """Why runs are held up, or run again, equal reasons once."""
    for state in SIGNS:
        by_reason: dict[str, list[PlannedRun]] = {}
        for planned in plan.runs:
            if planned.state == state != "reuse" and planned.why != NOT_YET:
                by_reason.setdefault(planned.why, []).append(planned)
        for why, members in list(by_reason.items())[:REASONS]:
            yield f"  {state:<9} {some([p.run.run_id for p in members], 1)}  {why}"
        if len(by_reason) > REASONS:
            yield f"  {state:<9} {count(len(by_reason) - REASONS, 'more reason')}"
