"""What --json prints of a launch and of status: the plan, the state of each run, and the answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from transfergrid.cli.console import FAILED, OK, UNDECIDED
from transfergrid.cli.status_view import View
from transfergrid.errors import GridError
from transfergrid.paths import StorePaths
from transfergrid.planning.plan import Plan
from transfergrid.planning.wall import Expected

if TYPE_CHECKING:
    from transfergrid.report.analysis.answer import GridAnswer
    from transfergrid.report.analysis.comparison import Comparison


def answer_of_grid(grid: str, store: StorePaths) -> GridAnswer | None:
    """None of a grid that was not launched here, or whose files cannot be read."""
    from transfergrid.report.analysis.answer import answer_of

    comparison = _comparison(grid, store)
    return None if comparison is None else answer_of(comparison)


def answer_lines(grid: str, store: StorePaths) -> list[str]:
    """The answer for people, the winners first; nothing where there is none."""
    from transfergrid.report.analysis.answer import answer_of
    from transfergrid.report.wording import in_words, verdict

    comparison = _comparison(grid, store)
    rest = [] if comparison is None else list(in_words(answer_of(comparison)))
    return [*verdict(comparison).splitlines(), *rest] if comparison is not None and rest else []


def _comparison(grid: str, store: StorePaths) -> Comparison | None:
    from transfergrid.report.analysis.comparison import read_comparison

    try:
        return read_comparison(grid, store)
    except (GridError, OSError):
        return None


def print_json(content: Mapping[str, Any], answer: GridAnswer | None) -> None:
    whole = {"format": 1, **content, "answer": None if answer is None else answer.as_json()}
    print(json.dumps(whole, indent=2, sort_keys=True), flush=True)


def exit_code_of(code: int, answer: GridAnswer | None) -> int:
    """UNDECIDED for what has gone well, where some row is not told apart from a winner."""
    return code if code != OK or answer is None or answer.open_rows or answer.decided else UNDECIDED


def plan_as_json(grid: str, plan: Plan) -> dict[str, Any]:
    """state: run, reuse, in flight or blocked; needs: run ids that must complete first."""
    runs = [
        {
            "run_id": planned.run.run_id,
            "phase": planned.run.phase,
            "model": planned.run.model,
            "dataset": planned.run.dataset.name,
            "seed": planned.run.seed,
            "state": planned.state,
            "why": planned.why,
            "needs": list(planned.needs),
        }
        for planned in plan.runs
    ]
    return {"grid": grid, "plan": runs, "counts": dict(plan.counts())}


def expected_as_json(expected: Expected | None) -> dict[str, Any] | None:
    """seconds: by the clock, from the first run to the table; low_s and high_s around it, which the last
    `judged_by_launches` launches here have kept to. runs_by_basis: on what the times of so many runs rest."""
    if expected is None:
        return None
    return {
        "seconds": round(expected.seconds, 1),
        "low_s": round(expected.low * expected.seconds, 1),
        "high_s": round(expected.high * expected.seconds, 1),
        "judged_by_launches": expected.judged,
        "by_phase_s": {phase: round(s, 1) for phase, s in expected.by_phase().items()},
        "report_s": round(expected.report_s, 1),
        "gpu_hours": round(expected.gpu_hours, 3),
        "runs_by_basis": dict(expected.bases),
    }


def print_status(view: View) -> int:
    """The exit code of `status --json`."""
    runs = []
    for row in view.rows:
        state = view.state(row)
        starts = None if state.starts is None else state.starts.isoformat()
        runs.append({**asdict(row), **asdict(state), "starts": starts})
    answer = None if view.grid is None else answer_of_grid(view.grid, view.store)
    finish = view.snapshot.finish
    content = {"grid": view.grid, "runs": runs, "finish_job": finish and finish.state}
    print_json(content | {"remaining_s": view.remaining_s}, answer)
    return exit_code_of(FAILED if view.has_failures else OK, answer)
