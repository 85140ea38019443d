"""The report from W&B: what a server holds of a grid becomes a store, and the same functions make the same report."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pull_cases import make_run, pull_g, put_grid, put_history, run_report, small_grid, stand_in
from wandb_server import StandIn

from transfergrid.config.report import parse_report
from transfergrid.errors import ConfigError, DataError
from transfergrid.paths import StorePaths
from transfergrid.store.metrics_log import read_metrics
from transfergrid.store.records import read_grid, selected_by
from transfergrid.tracking.pull import metrics_lines

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.fixture
def server() -> Iterator[StandIn]:
    with stand_in() as found:
        yield found


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return StorePaths(tmp_path / "store")


@pytest.fixture
def pulled(tmp_path: Path) -> StorePaths:
    return StorePaths(tmp_path / "pulled")


# --------------------------------------------------------------------------------------------------- rows become lines
def test_rows_of_wandb_become_the_lines_they_were() -> None:
    rows = [
        {
            "line": 2,
            "kind": "epoch",
            "epoch": 1,
            "batch": 7,
            "val/accuracy": 1,
            "time": "t2",
            "_step": 1,
            "_runtime": 3,
        },
        {"line": 1, "kind": "step", "epoch": 1, "batch": 7, "train/loss": 0.1, "time": "t1", "_step": 0, "head": None},
    ]
    assert metrics_lines(rows) == {
        1: {"line": 1, "kind": "step", "epoch": 1, "step": 7, "train/loss": 0.1, "time": "t1"},
        2: {"line": 2, "kind": "epoch", "epoch": 1, "step": 7, "val/accuracy": 1.0, "time": "t2"},
    }
    assert list(metrics_lines(rows)) == [1, 2]


def test_of_two_rows_with_one_number_the_later_counts_and_media_are_no_lines() -> None:
    rows: list[dict[str, Any]] = [
        {"line": 1, "kind": "step", "a": 1},
        {"confusion": {"_type": "image-file"}},
        {"line": 1, "kind": "step", "a": 2},
    ]
    assert metrics_lines(rows) == {1: {"line": 1, "kind": "step", "a": 2}}


def test_a_line_number_may_come_back_as_a_float() -> None:
    assert metrics_lines([{"line": 3.0, "kind": "step"}]) == {3: {"line": 3, "kind": "step"}}


@pytest.mark.parametrize(
    "row", [{"line": 0, "kind": "step"}, {"line": "1", "kind": "step"}, {"line": 1.5, "kind": "s"}]
)
def test_a_row_that_no_run_wrote_is_refused(row: dict[str, object]) -> None:
    with pytest.raises(DataError, match="no line of a run"):
        metrics_lines([row])


def test_a_row_without_a_kind_is_refused() -> None:
    with pytest.raises(DataError, match="kind None"):
        metrics_lines([{"line": 1}])


# ---------------------------------------------------------------------------------------------------- the command line
def test_what_is_pulled_lies_in_the_cache_by_entity_and_project() -> None:
    asked = parse_report(["grid=g", "source=wandb", "entity=My-Team", "project=p", "cache.dir=c"])
    assert asked.wandb == ("My-Team", "p") and asked.store.root == Path("c/wandb/my-team/p")
    asked = parse_report(["grid=g", "source=wandb"])
    assert asked.wandb == (None, "transfergrid") and asked.store.root == Path("cache/wandb/default/transfergrid")
    assert parse_report(["grid=g", "source=store", "store.dir=s"]).store.root == Path("s")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["source=mlflow"], "is not one of store, wandb"),
        (["source=wandb", "entity=../x"], "not a name W&B takes"),
        (["source=wandb", f"project={'p' * 129}"], "not a name W&B takes"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused_in_one_line(arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_report(["grid=g", *arguments])


# ------------------------------------------------------------------------------------------------------ the same report
@pytest.mark.parametrize(("written", "read"), [("macro_f1", "macro_f1"), ("f1", "accuracy"), ([], "accuracy")])
def test_the_score_that_the_grid_chooses_by_comes_with_its_list(
    server: StandIn, store: StorePaths, pulled: StorePaths, written: object, read: str
) -> None:
    small_grid(store)
    put_grid(server, store)
    files = server.run("grid-g").files
    files["grid.json"] = json.dumps(json.loads(files["grid.json"]) | {"select_by": written}).encode()
    _, said = pull_g(server, pulled)
    assert selected_by(pulled.grid("g")) == read
    assert any("grid.json of grid 'g' is damaged" in line for line in said) == (read != written)


@pytest.mark.wandb
def test_the_report_from_the_server_is_the_report_from_the_store(
    server: StandIn,
    store: StorePaths,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = small_grid(store)
    put_grid(server, store)
    code = run_report(monkeypatch, f"store.dir={store.root}")
    table = capsys.readouterr().out.partition("report:")[0]
    assert run_report(monkeypatch, "source=wandb", f"cache.dir={tmp_path / 'cache'}") == code == 1  # one run has failed
    out = capsys.readouterr().out
    assert table in out and "lacks" not in out and "8 runs of" in out
    pulled = StorePaths(tmp_path / "cache/wandb/default/transfergrid")
    for name in ("comparison.csv", "comparison.md", "comparison.tex", "index.html"):
        content, other = ((place.report("g") / name).read_bytes() for place in (pulled, store))
        if name == "index.html":  # a row's command names the place of the run's spec.json
            folder, place = f"again={pulled.runs}/".encode(), f" store.dir={store.root}".encode()
            assert folder in content and place in other
            content, other = content.replace(folder, b"again="), other.replace(place, b"")
        assert content == other, name
    assert str(pulled.report("g") / "comparison.md") in out
    for run in runs:
        ours, theirs = pulled.run(run.run_id), store.run(run.run_id)
        assert read_metrics(ours.metrics) == read_metrics(theirs.metrics)
        assert ours.record.read_bytes() == theirs.record.read_bytes()
        assert ours.spec.read_bytes() == theirs.spec.read_bytes()
        assert ours.predictions.exists() == theirs.predictions.exists()
    assert not list(pulled.wandb.glob("session-*"))  # where files arrive


@pytest.mark.wandb
def test_what_sync_sends_is_what_a_pull_brings_back(server: StandIn, store: StorePaths, pulled: StorePaths) -> None:
    runs = small_grid(store, seeds=1)
    command = [sys.executable, str(JOBS / "sync.py"), "grid=g", f"store.dir={store.root}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result, said = pull_g(server, pulled)
    assert (result.missing, result.problems, said) == ((), (), [])
    assert read_grid(pulled.grid("g")) == read_grid(store.grid("g"))
    for run in runs:
        ours, theirs = pulled.run(run.run_id), store.run(run.run_id)
        assert read_metrics(ours.metrics) == read_metrics(theirs.metrics)
        assert ours.record.read_bytes() == theirs.record.read_bytes()


@pytest.mark.wandb
def test_a_long_history_comes_whole_and_unsampled(server: StandIn, store: StorePaths, pulled: StorePaths) -> None:
    run_id = small_grid(store, seeds=1)[0].run_id
    put_grid(server, store)
    lines = [
        {"line": n, "kind": "step", "epoch": 1, "batch": n, "train/loss": 1 / n, "time": "t"} for n in range(7, 2500)
    ]
    put_history(server.run(run_id), lines)
    assert pull_g(server, pulled)[0].problems == ()
    read = read_metrics(pulled.run(run_id).metrics)
    assert [line["line"] for line in read] == list(range(1, 2500))
    assert all(line["train/loss"] == 1 / line["step"] for line in read[6:])


@pytest.mark.wandb
def test_lines_that_the_server_lacks_are_a_problem_of_their_run(
    server: StandIn, store: StorePaths, pulled: StorePaths
) -> None:
    run_id = small_grid(store, seeds=1)[0].run_id
    put_grid(server, store)
    put_history(server.run(run_id), [{"line": 9, "kind": "step", "epoch": 1, "batch": 9}])
    result, _ = pull_g(server, pulled)
    assert result.problems == (f"{run_id}: its history has 7 lines of 9; next: python jobs/sync.py",)
    assert result.missing == () and run_id in result.run_ids
    assert pull_g(server, pulled)[0].problems == result.problems  # told until it is mended
    put_history(server.run(run_id), [{"line": n, "kind": "step", "epoch": 1, "batch": n} for n in (7, 8)])
    assert pull_g(server, pulled)[0].problems == ()


# ---------------------------------------------------------------------------------------------------- only what changed
@pytest.mark.wandb
def test_a_second_pull_brings_only_what_has_changed(server: StandIn, store: StorePaths, pulled: StorePaths) -> None:
    runs = small_grid(store)
    put_grid(server, store)
    pull_g(server, pulled)
    server.requests.clear()
    pull_g(server, pulled)
    assert server.counts()["storage"] == 1  # grid.json
    assert server.counts()["HistoryPage"] == server.counts()["RunParquetHistory"] == 0
    changed = server.run(runs[0].run_id)
    record = json.loads(changed.files["record.json"])
    record["metrics"]["test_accuracy"] = 0.5
    changed.files["record.json"] = json.dumps(record).encode()
    del changed.files["predictions.npz"]
    server.requests.clear()
    pull_g(server, pulled)
    assert server.counts()["storage"] == 2 and server.counts()["HistoryPage"] == 0
    assert json.loads(pulled.run(runs[0].run_id).record.read_bytes())["metrics"]["test_accuracy"] == 0.5
    assert not pulled.run(runs[0].run_id).predictions.exists()


# ------------------------------------------------------------------------------------------------ what the server lacks
@pytest.mark.wandb
def test_configurations_that_the_server_lacks_are_named(
    server: StandIn,
    store: StorePaths,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = small_grid(store, seeds=12)
    put_grid(server, store)
    cache = f"cache.dir={tmp_path / 'cache'}"
    run_report(monkeypatch, "source=wandb", cache)
    for run in runs[2:]:
        server.state.delete_run(server.run(run.run_id))
    del server.run(runs[1].run_id).files["record.json"]  # it is still at work
    capsys.readouterr()
    assert run_report(monkeypatch, "source=wandb", cache) == 1
    lines = capsys.readouterr().out.splitlines()
    lacking = [line for line in lines if line.startswith("grid g lacks on the server: ")]
    assert lacking[0] == f"grid g lacks on the server: mnist vgg16 probe seed 1 ({runs[1].run_id})"
    assert len(lacking) == 21 and lacking[-1] == "grid g lacks on the server: and 15 more"
    assert any("resnet18" in line and "missing" in line for line in lines)


@pytest.mark.wandb
def test_without_its_list_a_grid_is_the_runs_that_carry_its_tag(
    server: StandIn, store: StorePaths, pulled: StorePaths
) -> None:
    runs = small_grid(store)
    put_grid(server, store)
    del server.run("grid-g").files["grid.json"]
    del server.run(runs[0].run_id).files["record.json"]
    make_run(server, "final-g", job_type="report", tags=["grid:g"])
    result, said = pull_g(server, pulled)
    assert said == ["grid 'g' has no grid.json on the server; its rows are those of the 8 runs that carry its tag"]
    assert {e.run_id for e in read_grid(pulled.grid("g")) if e.phase == "probe"} == {run.run_id for run in runs}
    assert [e.run_id for e in result.missing] == [runs[0].run_id]
    in_store = {e.run_id: e for e in read_grid(store.grid("g"))}
    assert all(e == in_store[e.run_id] for e in read_grid(pulled.grid("g")) if e.phase == "probe")


@pytest.mark.wandb
def test_extractions_that_are_not_on_the_server_are_told(
    server: StandIn, store: StorePaths, pulled: StorePaths
) -> None:
    extraction = small_grid(store, seeds=1)[0].extractions[0].run_id
    put_grid(server, store)
    server.state.delete_run(server.run(extraction))
    result, said = pull_g(server, pulled)
    assert (result.missing, result.problems) == ((), ())
    assert said == [f"used by runs of the grid, but not on the server, so its cost is not shown: {extraction}"]
