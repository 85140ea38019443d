"""What a terminal of 80 columns, and of 60, shows: every view whole, no word and no figure cut."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import page_cases
import pytest
import report_cases as cases
from report_cases import completed
from rich.console import Console

from transfergrid.cli import console as terminal
from transfergrid.cli import doctor, list, status, store
from transfergrid.cli.console import say, wrapped
from transfergrid.cli.plan_view import MOST_ROWS, show_runs
from transfergrid.cli.progress import ended_line
from transfergrid.cli.report import show_report
from transfergrid.cli.screen import show_failures, show_plan, show_usage
from transfergrid.cli.status_logs import show_run
from transfergrid.cli.status_view import read_view
from transfergrid.cluster.local import Ended
from transfergrid.cluster.run_state import Failure
from transfergrid.config import load_grid
from transfergrid.config.status import parse_status
from transfergrid.doctor.checks import Check
from transfergrid.errors import ConfigError
from transfergrid.paths import StorePaths
from transfergrid.planning.plan import Plan, PlannedRun, make_plan
from transfergrid.specs import Phase, RunSpec

View = Callable[[Console, Path], None]
JOIN = "mobilenet_v3_large+efficientnet_v2_s"
USAGE = {
    **{"wall_s": 12.5, "cpu_s": 20.0, "max_rss_mib": 900.0, "memory_mib": 16384.0, "cpus": 4},
    **{"gpu_utilisation": 0.45, "gpu_memory_mib": 2048.0},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store with runs that completed, failed and were never started; long names among them."""
    folder = tmp_path_factory.mktemp("views")
    results = StorePaths(folder / "results")
    runs = [*page_cases.small_grid(results, "g").values(), *(cases.spec("finetune", JOIN, seed=s) for s in (0, 1))]
    completed(results, runs[-2], usage=USAGE, metrics={"val_accuracy": 0.5})
    cases.write_grid(results, "g", [(run, "an_adam_variant" if run.model == JOIN else "") for run in runs])
    yield folder


def spec(folder: Path) -> RunSpec:
    return cases.spec("finetune", JOIN, seed=0)


def plan(console: Console, folder: Path) -> None:
    asked = load_grid([f"store.dir={folder / 'none'}", f"cache.dir={folder / 'cache'}", "grid=quickstart"])
    show_plan(console, make_plan([c.run.run_id for c in asked.configurations], asked.runs, asked.runtime), asked)


def short_plan(console: Console, folder: Path) -> None:
    needs = "waits for mnist-resnet18-probe-s0-0123456789ab, which is in flight"
    show_runs(console, Plan((PlannedRun(spec(folder), "blocked", needs),)), {spec(folder).run_id: "an_adam_variant"})


def reasons(console: Console, folder: Path) -> None:
    runs = [cases.spec("finetune", "resnet18", seed=seed) for seed in range(20)]
    why = "failed before (cuda_oom): give phase.finetune.micro_batch=32 and launch again, or a GPU with more memory"
    show_runs(console, Plan(tuple(PlannedRun(run, "run", why) for run in runs)), {})


def ended(console: Console, folder: Path) -> None:
    say(console, ended_line(Ended(spec(folder), "completed"), StorePaths(folder / "results")))
    show_failures(
        console,
        [
            Failure(
                spec(folder).run_id,
                "cuda_oom",
                "out of memory: 20.00 GiB are needed",
                "set data.resident_gb=4 and launch again",
            )
        ],
    )


def usage(console: Console, folder: Path) -> None:
    show_usage(console, [spec(folder).run_id], StorePaths(folder / "results"))


def result(console: Console, folder: Path) -> None:
    show_report(console, ["g"], StorePaths(folder / "results"), figures=None)


def states(console: Console, folder: Path) -> None:
    status.show(console, read_view(parse_status(["grid=g", f"store.dir={folder / 'results'}"])))


def one_run(console: Console, folder: Path) -> None:
    asked = parse_status([f"run={spec(folder).run_id}", "grid=g", f"store.dir={folder / 'results'}"])
    show_run(console, read_view(asked))


def space(console: Console, folder: Path) -> None:
    store.keep_house([f"store.dir={folder / 'results'}", f"cache.dir={folder / 'cache'}"])


def fitness(console: Console, folder: Path) -> None:
    text = "none that torch can use, runs compute on the CPU: Found no NVIDIA driver on your system. Please check"
    doctor._show(console, Check("gpu", False, text, f"give another folder than {folder} as store.dir= and cache.dir="))


def models(console: Console, folder: Path) -> None:
    list.list_names(["models"])


VIEWS: tuple[View, ...] = (*(plan, short_plan, reasons, ended, usage, result, states, one_run, space, fitness, models),)


def seen(view: View, folder: Path, width: int, monkeypatch: pytest.MonkeyPatch) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    for module in (store, list):
        monkeypatch.setattr(module, "make_console", lambda: console)
    view(console, folder)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.__name__)
def test_no_view_cuts_a_word_or_parts_a_figure_from_its_unit(
    view: View, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = seen(view, folder, 400, monkeypatch)
    words = {*whole.split(), *(f"{part}+" for word in whole.split() for part in word.split("+"))}
    words |= {part for word in whole.split() for part in word.split("+")}
    measured = sorted(re.findall(r"\d (?:%|MB|GB|GiB|s|seconds|minutes|points|images)\b", whole))
    for width in (80, 60):
        text = seen(view, folder, width, monkeypatch)
        cut = {w for w in text.replace("─", "").split() if w.rstrip(";") not in words and w not in words}
        assert not cut and text.strip(), text
        assert sorted(re.findall(r"\d (?:%|MB|GB|GiB|s|seconds|minutes|points|images)\b", text)) == measured, text
        too_wide = [line for line in map(str.strip, text.split("\n")) if len(line) > width and "jobs/" not in line]
        assert not [line for line in too_wide if " " in line], text


# ----------------------------------------------------------------------------------------------------------- the matrix
def of_grid(num_models: int, *, done: int = 0) -> Plan:
    """The plan of so many models on three data sets: probes, fine-tunings and evaluations of five seeds. Of the first
    `done` models all probes are done."""
    run = cases.spec("probe", "resnet18")
    places = [(f"model_with_a_name_{i}", f"data_set_{d}") for i in range(num_models) for d in range(3)]
    phases: tuple[Phase, ...] = ("extract", "probe", "finetune", "evaluate")
    runs = [
        PlannedRun(
            replace(run, model=model, phase=phase, seed=seed, dataset=replace(run.dataset, name=dataset)),
            "reuse" if phase == "probe" and int(model.rsplit("_", 1)[1]) < done else "run",
            "not done yet",
        )
        for model, dataset in places
        for phase in phases
        for seed in range(5)
    ]
    return Plan(tuple(runs))


@pytest.mark.parametrize(("num_models", "done", "lines"), [(50, 0, 10), (50, 25, 17), (5, 2, 9)])
def test_a_large_plan_takes_at_most_a_screen_and_counts_every_run(num_models: int, done: int, lines: int) -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    planned = of_grid(num_models, done=done)
    show_runs(console, planned, {})
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert len(text.splitlines()) <= lines
    assert "e extract, p probe, f finetune, v evaluate; n to run" in text
    assert text.count("e5 p=5 f5 v5") == (3 if num_models > MOST_ROWS else 3 * done) * bool(done)
    more = [int(n) for n in re.findall(r"\band\s+(\d+)", text)]
    assert sum(more) == (num_models - 6 * (1 + bool(done)) if num_models > MOST_ROWS else 0)


def test_models_of_which_all_differ_find_room_in_twenty_rows() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    runs = [replace(cases.spec("probe", "resnet18"), model=f"m{i}", seed=s) for i in range(50) for s in range(i + 1)]
    show_runs(console, Plan(tuple(PlannedRun(run, "run", "not done yet") for run in runs)), {})
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert sum(int(p) for p in re.findall(r" p(\d+)", "\n".join(lines))) == len(runs)
    assert len([line for line in lines if re.search(r" p\d+ *$", line)]) == MOST_ROWS


# --------------------------------------------------------------------------------------------------------------- errors
def test_an_error_is_one_line_in_a_pipe_and_ends_its_lines_between_words_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: object) -> int:
        raise ConfigError("the folder " + "of a long name " * 8 + "cannot be used", remedy="give another store.dir=")

    assert terminal.run_script(fails) == 2
    [line] = capsys.readouterr().err.splitlines()
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    assert terminal.run_script(fails) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and max(map(len, lines)) <= 80 and " ".join(map(str.strip, lines)) == line


def test_a_command_stays_on_one_line_and_a_long_row_of_figures_does_not() -> None:
    command = "python jobs/report.py grid=quickstart 'store.dir=/a folder/with a long name'"
    assert wrapped(f"the table: {command}; then look", 40).splitlines()[1:] == [f"  {command};", "  then look"]
    assert max(map(len, wrapped("seeds " + " ".join(map(str, range(90))), 40).splitlines())) <= 40
