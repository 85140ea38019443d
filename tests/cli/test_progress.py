"""The bars of a launch on a terminal: nothing is cut off but the middle of a long name."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import report_cases
from rich.console import Console

from transfergrid.cli import console, progress
from transfergrid.cli.console import progress_line
from transfergrid.paths import StorePaths
from transfergrid.planning.plan import PlannedRun
from transfergrid.specs import RunSpec, TrainSettings


def bars(store: StorePaths, run: RunSpec, *, width: int) -> list[str]:
    """What stands on the terminal while this run, the first of ten, is at work."""
    shown = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, legacy_windows=False)
    with progress.watching(shown, store, 10) as watcher:
        assert isinstance(watcher, progress.BarWatcher)
        planned = PlannedRun(run=run, state="run", why="")
        watcher.started(planned)
        watcher.running([planned])
        inside = watcher._progress
        page = Console(file=io.StringIO(), width=width)
        page.print(inside.make_tasks_table(inside.tasks))
    assert isinstance(page.file, io.StringIO)
    return page.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 120])
def test_count_time_loss_and_accuracy_are_whole_beside_a_long_name(tmp_path: Path, width: int) -> None:
    store = StorePaths(tmp_path)
    run = report_cases.spec("finetune", "resnet18+googlenet+vgg16", dataset="photographs_of_leaves")
    assert len(run.slug) > 50 and isinstance(run.settings, TrainSettings)
    paths = store.run(run.run_id)
    paths.root.mkdir(parents=True)
    line = {"kind": "epoch", "epoch": 1, "train/loss": 10.019, "val/accuracy": 0.4}
    paths.metrics.write_text(json.dumps(line) + "\n")
    whole, of_run = bars(store, run, width=width)
    assert "0/10" in whole and "0:00:0" in whole
    assert f"1/{run.settings.epochs}" in of_run and "0:00:0" in of_run and "loss 10.019  val 0.400" in of_run
    assert of_run.startswith("photogr") and "finetune-s0 " in of_run


def test_a_short_name_stays_as_it_is_and_a_long_one_keeps_both_ends() -> None:
    assert progress.shortened("digits-lenet5-scratch-s0", 24) == "digits-lenet5-scratch-s0"
    assert progress.shortened("digits-tinynet_mnist+tinynet_cifar-finetune-s0", 24) == "digits-…ifar-finetune-s0"


def test_a_hash_of_many_pictures_takes_one_line_of_a_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    show = progress_line("checking", in_logs=True)
    for done in range(121):
        show(done, 120)
    assert capsys.readouterr().err == "checking images 120/120\n"
    monkeypatch.setattr(console, "LOGGED_S", 0.0)
    show(60, 120)  # more than ten seconds later
    assert capsys.readouterr().err == "checking images 60/120\n"
