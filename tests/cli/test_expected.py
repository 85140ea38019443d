"""What is said of a launch's time: before it, while it runs, and what is kept of it for the next one."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from report_cases import completed
from rich.console import Console
from small_runs import final_run, request

from transfergrid.cli import expected as told
from transfergrid.cli.for_programs import expected_as_json
from transfergrid.cli.progress import BarWatcher, watching
from transfergrid.cli.status_view import read_view
from transfergrid.cluster.child import Answer
from transfergrid.cluster.local import Ended, Ending
from transfergrid.config.status import parse_status
from transfergrid.planning import machine
from transfergrid.planning.plan import Plan, PlannedRun
from transfergrid.planning.wall import Expected, Step
from transfergrid.specs import to_dict
from transfergrid.store import durable
from transfergrid.store.records import write_grid
from transfergrid.training.speed import assumed_speed


def expected(*seconds: float, judged: int = 0, on_gpu: bool = False, names: tuple[str, ...] = ()) -> Expected:
    steps = tuple(
        Step(names[i] if names else f"run{i}", "probe" if i else "extract", f"k{i}", s, "records" if i else "flops")
        for i, s in enumerate(seconds)
    )
    return Expected(steps, 1, on_gpu, 0.0, 6.0, 0.5, 2.0, judged, time.time() - 1)


def said(of: Expected, width: int) -> list[str]:
    file = io.StringIO()
    told.say_expected(Console(file=file, width=width, force_terminal=True, color_system=None), of)
    return file.getvalue().splitlines()


def test_the_time_in_all_per_phase_its_range_and_what_it_rests_on_fit_eighty_columns() -> None:
    lines = said(expected(30.0, 84.0), 80)
    assert all(len(line) <= 80 for line in lines)
    assert " ".join(line.strip() for line in lines) == (
        "expected: 2.0 min (extract 30 s, probe 84 s, report 6 s) from an assumed speed for 1 run, records of this"
        " machine for 1 run; between 60 s and 4.0 min: too few launches here have shown how right that is"
    )
    assert "as right as the last 5 launches here were" in " ".join(said(expected(30.0, 84.0, judged=5), 200))
    assert "expected: 2.0 min, 0.03 GPU-hours (" in said(expected(30.0, 84.0, on_gpu=True), 120)[0]
    assert said(expected(), 80) == []


def test_programs_get_the_same_as_numbers() -> None:
    assert expected_as_json(None) is None
    assert expected_as_json(expected(30.0, 84.0)) == {
        "seconds": 120.0,
        "low_s": 60.0,
        "high_s": 240.0,
        "judged_by_launches": 0,
        "by_phase_s": {"extract": 30.0, "probe": 84.0},
        "report_s": 6.0,
        "gpu_hours": 0.0,
        "runs_by_basis": {"flops": 1, "records": 1},
    }


@pytest.mark.parametrize("ending", ["completed", "failed"])
def test_a_launch_is_kept_for_the_next_range_where_all_of_it_was_done(tmp_path: Path, ending: Ending) -> None:
    asked = request(tmp_path, "phase=scratch", "model=tinynet")
    endings = [Ended(final_run(asked), ending)]
    told.note_launch(asked, expected(30.0), endings, ran_s=33.0, report_s=5.0)
    launches = machine.this_machine(asked.runtime).launches
    assert [(past.expected_s, past.took_s, past.by) for past in launches] == (
        [(36.0, 38.0, "flops")] if ending == "completed" else []
    )


def test_a_bar_and_status_say_how_long_it_still_takes(tmp_path: Path) -> None:
    asked = request(tmp_path, "phase=scratch", "model=tinynet")
    run, store = final_run(asked), asked.store
    of_launch = expected(600.0, 60.0, names=(run.run_id, "another"))
    shown = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None, legacy_windows=False)
    with watching(shown, store, 2, of_launch) as watcher:
        assert isinstance(watcher, BarWatcher)
        planned = PlannedRun(run, "run", "")
        watcher.started(planned)
        watcher.running([planned])
        assert watcher._progress.tasks[0].fields["figures"] == "about 11.1 min to go"
        watcher._looked = 0.0
        completed(store, run)
        watcher.ended(Ended(run, "completed"))
        watcher.running([])
        assert watcher._progress.tasks[0].fields["figures"] == "about 66 s to go"
    store.run(run.run_id).record.unlink()
    write_grid(store.grid("g"), grid="g", entries=asked.entries(), expected=to_dict(of_launch))
    status = parse_status(["grid=g", f"store.dir={store.root}"])
    assert read_view(status).remaining_s is None, "nobody is at work"
    with durable.lock(store.launching("g"), wait=False):
        view = read_view(status)
    assert view.remaining_s == 666.0 and view.summary.startswith("grid g: 1 waiting; about 11.1 min to go")
    write_grid(store.grid("g"), grid="g", entries=asked.entries(), expected={"of": "another release"})
    with durable.lock(store.launching("g"), wait=False):
        assert read_view(status).remaining_s is None


@pytest.mark.parametrize(
    ("work_s", "load", "answer", "measures", "keeps"),
    [
        (100.0, 0.1, Answer(assumed_speed(cores=4, on_gpu=False)), True, True),
        (100.0, 99.0, Answer(assumed_speed(cores=4, on_gpu=False)), True, False),
        (100.0, 0.1, Answer(error="it did not end within 60 s"), True, False),
        (5.0, 0.1, Answer(error="nobody asked"), False, False),
    ],
)
def test_a_machine_is_measured_once_before_a_long_plan_and_a_speed_beside_others_is_not_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    work_s: float,
    load: float,
    answer: Answer,
    measures: bool,
    keeps: bool,
) -> None:
    asked = request(tmp_path, "phase=scratch", "model=tinynet")
    plan, asks = Plan((PlannedRun(final_run(asked), "run", ""),)), list[str]()

    def ask(*_: object, **__: object) -> Answer:
        asks.append("measured")
        return answer

    monkeypatch.setattr(told, "ask", ask)
    monkeypatch.setattr("os.getloadavg", lambda: (load, load, load))
    monkeypatch.setattr("transfergrid.planning.cost.seconds_by_flops", lambda *_: work_s)
    shown = Console(file=io.StringIO())
    first = told.expected_now(shown, plan, asked)
    assert set(first.bases) == ({"measured"} if measures and answer.error is None else {"flops"})
    assert bool(machine.this_machine(asked.runtime).speeds) == keeps
    told.expected_now(shown, plan, asked)
    assert len(asks) == (0 if not measures else 1 if keeps else 2)
