"""--json of launch and status: the plan, the state of each run and the answer, with an exit code that says decided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_cases as cases
from prediction_cases import finished
from replayed_slurm import attempt, completed, failed, make_grid

from transfergrid.cli.console import FAILED, OK, UNDECIDED
from transfergrid.cli.launch import launch
from transfergrid.cli.status import status
from transfergrid.cli.status_view import read_view
from transfergrid.config.status import parse_status
from transfergrid.paths import StorePaths
from transfergrid.store import durable

SMALL = ["dataset=digits", "dataset.max_images=100", "dataset.image_size_px=32", "device=cpu", "tracking=disabled"]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StorePaths:
    monkeypatch.chdir(tmp_path)
    return StorePaths(Path("results"))


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_a_launch_prints_its_plan_and_then_the_answer_that_the_report_holds(
    store: StorePaths, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [
        "grid=quickstart",
        "grid.models=[tinynet_mnist]",
        "grid.phases=[probe]",
        "grid.variants={}",
        "grid.rules=[]",
    ]
    asked += [*SMALL, "cluster=local", "--json"]
    assert launch([*asked, "dry_run=true"]) == OK
    plan = printed(capsys)
    assert plan["counts"] == {"run": 2} and plan["answer"] is None and not store.root.exists()
    assert plan["expected"]["runs_by_basis"] == {"flops": 2} and plan["expected"]["seconds"] > 0
    extraction, probe = plan["plan"]
    assert (extraction["phase"], probe["phase"], probe["needs"]) == ("extract", "probe", [extraction["run_id"]])
    assert launch(asked) == OK  # of one row, which wins
    whole = printed(capsys)
    assert whole["answer"] == json.loads((store.report("quickstart") / "answer.json").read_text())
    assert sum(whole["expected"]["runs_by_basis"].values()) == 2 and whole["expected"]["low_s"] > 0
    assert whole["answer"]["datasets"][0]["winner"]["run_ids"] == [probe["run_id"]]
    assert status(["--json"]) == OK and printed(capsys)["answer"] == whole["answer"]


@pytest.mark.parametrize(("wrong", "code"), [(101, UNDECIDED), (900, OK)])
def test_status_says_by_its_exit_code_whether_the_grid_is_decided(
    wrong: int, code: int, store: StorePaths, capsys: pytest.CaptureFixture[str]
) -> None:
    index_N = np.arange(2_000)
    for name, few, val in (("resnet18", 100, 0.95), ("resnet34", wrong, 0.9)):
        finished(store, run := cases.spec("probe", name), index_N >= few, val=val)
        store.run(run.run_id).weights.write_bytes(b"weights")
    cases.write_grid(store, "g", [(cases.spec("probe", name), "") for name in ("resnet18", "resnet34")])
    assert status(["grid=g", "--json"]) == code
    content = printed(capsys)
    assert [run["state"] for run in content["runs"]] == ["done", "done"]
    assert content["answer"]["decided"] is (code == OK)
    assert status(["grid=g"]) == OK  # for people a finished grid is no failure
    assert "Use it: python jobs/predict.py run=" in capsys.readouterr().out


def test_a_failed_run_is_the_exit_code_whatever_the_answer(
    store: StorePaths, capsys: pytest.CaptureFixture[str]
) -> None:
    make_grid(store, "a")
    failed(store, "a", "code", "it broke")
    assert status(["grid=g", "--json"]) == FAILED
    (run,) = printed(capsys)["runs"]
    assert (run["run_id"], run["state"], run["failure_class"], run["reason"]) == ("a", "failed", "code", "it broke")


def test_of_a_launch_on_this_machine_runs_wait_while_it_lives_and_can_be_continued_afterwards(
    store: StorePaths, capsys: pytest.CaptureFixture[str]
) -> None:
    make_grid(store, "a", "b", "c")
    completed(store, "a")
    attempt(store, "b", slurm_job_id=None, slurm_task=None)
    request = parse_status(["grid=g"])
    with durable.lock(store.launching("g"), wait=False):
        view = read_view(request)
        assert [view.state(row).state for row in view.rows] == ["done", "waiting", "waiting"]
        assert view.may_change and view.unfinished == ""  # so watch=true goes on between two runs
    view = read_view(request)
    assert [view.state(row).state for row in view.rows] == ["done", "interrupted", "not started"]
    assert not view.may_change
    assert status(["grid=g"]) == OK
    out = capsys.readouterr().out
    assert "grid g: 1 done, 1 not started, 1 interrupted\n" in out and "launch again to continue: a launch as it" in out
