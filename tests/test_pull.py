"""The report from W&B: what a server holds of a grid becomes a store, and the same functions make the same report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pull_cases import PROJECT, make_run, put_grid, put_history, small_grid
from wandb_server import StandIn

from transfergrid.commands import report as command
from transfergrid.commands.console import run_script
from transfergrid.config.report import parse_report
from transfergrid.errors import ConfigError, DataError
from transfergrid.paths import StorePaths
from transfergrid.records import read_grid, read_metrics
from transfergrid.tracking import pull, remote
from transfergrid.tracking.account import Account, Unreachable, find_account
from transfergrid.tracking.pull import Pulled, metrics_lines, pull_grid

JOBS = Path(__file__).parents[1] / "jobs"


@pytest.fixture
def server() -> Iterator[StandIn]:
    """With the environment that leads to it; W&B's own variables are afterwards as they were."""
    before = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
    with StandIn() as stand_in:
        os.environ |= stand_in.environment()
        yield stand_in
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]
    os.environ |= before


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return StorePaths(tmp_path / "store")


@pytest.fixture
def pulled(tmp_path: Path) -> StorePaths:
    return StorePaths(tmp_path / "pulled")


def here(server: StandIn) -> Account:
    os.environ["WANDB_API_KEY"] = server.key
    return find_account(PROJECT)


def pull_g(server: StandIn, pulled: StorePaths) -> tuple[Pulled, list[str]]:
    said: list[str] = []
    return pull_grid(here(server), "g", pulled, say=said.append), said


def run_report(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["report.py", "grid=g", "figures=false", *arguments])
    return run_script(command.report, command.HELP)


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
        (["source=mlflow"], "give store or wandb"),
        (["source=wandb", "store.dir=s"], "leave store.dir= out"),
        (["source=wandb", "entity=../x"], "not a name W&B takes"),
        (["source=wandb", f"project={'p' * 129}"], "not a name W&B takes"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused_in_one_line(arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_report(["grid=g", *arguments])


# ------------------------------------------------------------------------------------------------------ the same report
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
        assert (pulled.report("g") / name).read_bytes() == (store.report("g") / name).read_bytes(), name
    assert str(pulled.report("g") / "comparison.md") in out
    for run in runs:
        ours, theirs = pulled.run(run.run_id), store.run(run.run_id)
        assert read_metrics(ours.metrics) == read_metrics(theirs.metrics)
        assert ours.record.read_bytes() == theirs.record.read_bytes()
        assert ours.spec.read_bytes() == theirs.spec.read_bytes()
        assert ours.predictions.exists() == theirs.predictions.exists()
    assert not (pulled.root / "incoming").exists()


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
    assert result.problems == (f"{run_id}: its history has 7 lines of 9; next: jobs/sync.py",)
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


# ----------------------------------------------------------------------------------------------------- hostile servers
@pytest.mark.wandb
@pytest.mark.parametrize("run_id", ["../../evil", "..", "a/b", "/evil", "", "x" * 300, "a\x1b[2Jb"])
def test_a_run_whose_name_leads_elsewhere_is_left_alone(
    server: StandIn, store: StorePaths, pulled: StorePaths, run_id: str
) -> None:
    small_grid(store, seeds=1)
    put_grid(server, store)
    grid = server.run("grid-g")
    listed = json.loads(grid.files["grid.json"])
    listed["configurations"].append(listed["configurations"][0] | {"run_id": run_id})
    grid.files["grid.json"] = json.dumps(listed).encode()
    hostile = make_run(server, run_id, job_type="probe", tags=["grid:g"])
    hostile.files["record.json"] = b"{}"
    around = set(pulled.root.parent.rglob("*"))
    result, _ = pull_g(server, pulled)
    assert len(result.problems) == 1 and result.problems[0].endswith("is no run that a grid can hold")
    assert result.problems[0].isprintable()
    made = set(pulled.root.parent.rglob("*")) - around
    assert all(path.is_relative_to(pulled.root) for path in made)
    assert sorted(p.name for p in pulled.runs.iterdir()) == sorted(result.run_ids)


@pytest.mark.wandb
def test_a_link_in_a_run_s_place_is_not_followed(
    server: StandIn, store: StorePaths, pulled: StorePaths, tmp_path: Path
) -> None:
    run_id = small_grid(store, seeds=1)[0].run_id
    put_grid(server, store)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "record.json").write_text("mine")
    pulled.runs.mkdir(parents=True)
    (pulled.runs / run_id).symlink_to(elsewhere)
    result, _ = pull_g(server, pulled)
    assert result.problems == (f"{run_id}: {pulled.runs / run_id} is a link, which no pull makes; remove it",)
    assert [(p.name, p.read_text()) for p in elsewhere.iterdir()] == [("record.json", "mine")]


@pytest.mark.wandb
@pytest.mark.parametrize("content", [b"not JSON", b'"text"', b"[]", b"{}", b"[" * 100_000, b"\xff\x00"])
def test_a_record_that_is_none_is_a_problem_of_its_row(
    server: StandIn, store: StorePaths, pulled: StorePaths, content: bytes
) -> None:
    run_id = small_grid(store, seeds=1)[0].run_id
    put_grid(server, store)
    pull_g(server, pulled)
    server.run(run_id).files["record.json"] = content
    result, _ = pull_g(server, pulled)
    assert len(result.problems) == 1
    assert result.problems[0].startswith(f"{run_id}: record.json is no record of this version (")
    assert run_id not in result.run_ids and not pulled.run(run_id).record.exists()


@pytest.mark.wandb
def test_a_record_of_another_run_is_not_taken(server: StandIn, store: StorePaths, pulled: StorePaths) -> None:
    first, second, *_ = (run.run_id for run in small_grid(store, seeds=1))
    put_grid(server, store)
    server.run(first).files["record.json"] = server.run(second).files["record.json"]
    result, _ = pull_g(server, pulled)
    assert result.problems == (f"{first}: record.json is that of another run ({second})",)


@pytest.mark.wandb
def test_files_of_absurd_size_are_refused(
    server: StandIn, store: StorePaths, pulled: StorePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, *_ = (run.run_id for run in small_grid(store, seeds=1))
    put_grid(server, store)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("test_index.npy", b"0" * 2_000_000)
    server.run(first).files["predictions.npz"] = (tmp_path / "bomb.npz").read_bytes()
    server.run(second).files["predictions.npz"] = b"0" * 1_000_001
    monkeypatch.setitem(pull.LARGEST_BYTES, "predictions.npz", 1_000_000)
    result, _ = pull_g(server, pulled)
    assert result.problems == (
        f"{first}: predictions.npz unpacks to 2000000 bytes, larger than any of its kind; not kept",
        f"{second}: predictions.npz of 1000001 bytes is larger than any of its kind; not downloaded",
    )
    assert {first, second} <= set(result.run_ids)
    assert not pulled.run(first).predictions.exists() and not pulled.run(second).predictions.exists()


@pytest.mark.wandb
def test_a_history_without_end_is_not_read(server: StandIn, store: StorePaths, pulled: StorePaths) -> None:
    run_id = small_grid(store, seeds=1)[0].run_id
    put_grid(server, store)
    run = server.run(run_id)
    run.history_lines.put(run.history_lines.count, [json.dumps({"line": 7, "kind": "step", "_step": 10**15})])
    result, _ = pull_g(server, pulled)
    assert result.problems == (f"{run_id}: its history ends at step {10**15}, which no run reaches; not read",)


# -------------------------------------------------------------------------------------------- servers that do not serve
@pytest.mark.wandb
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["project=other"], 2, "has no project local/other"),
        (["entity=nobody"], 2, "has no project nobody/transfergrid"),
        (["grid=h"], 2, "no grid 'h' is in local/transfergrid; grids there: g"),
    ],
)
def test_an_argument_that_names_nothing_on_the_server_is_told_in_one_line(
    server: StandIn,
    store: StorePaths,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    small_grid(store, seeds=1)
    put_grid(server, store)
    monkeypatch.setattr(sys, "argv", ["report.py", *({"grid=g"} if "grid=h" not in arguments else ()), *arguments])
    sys.argv += ["source=wandb", f"cache.dir={tmp_path / 'cache'}"]
    assert run_script(command.report, command.HELP) == code
    assert said in capsys.readouterr().err


@pytest.mark.wandb
def test_a_key_that_is_refused_and_a_server_that_is_silent_are_told_in_one_line(
    server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = f"cache.dir={tmp_path / 'cache'}"
    os.environ["WANDB_API_KEY"] = "a" * 40
    assert run_report(monkeypatch, "source=wandb", cache) == 1
    refused = capsys.readouterr().err
    assert refused.startswith(f"error: {server.url}: ") and "verify credentials" in refused
    os.environ["WANDB_API_KEY"] = server.key
    server.stop()
    assert run_report(monkeypatch, "source=wandb", cache) == 1
    silent = capsys.readouterr().err
    assert silent.startswith(f"error: {server.url} does not answer (")
    assert refused.count("\n") == silent.count("\n") == 1


@pytest.mark.wandb
@pytest.mark.parametrize("what", ["Runs", "RunFiles", "storage", "HistoryPage"])
def test_a_server_that_falls_silent_ends_the_pull_and_the_next_completes_it(
    server: StandIn, store: StorePaths, pulled: StorePaths, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    small_grid(store, seeds=1)
    put_grid(server, store)
    monkeypatch.setattr(remote, "ANSWER_TIMEOUT_S", 1)
    monkeypatch.setattr(remote, "TRANSFER_TIMEOUT_S", 1.0)
    server.fail(what, 500, after=1)
    with pytest.raises(Unreachable, match="did not answer in time"):
        pull_g(server, pulled)
    server.clear_faults()
    result, said = pull_g(server, pulled)
    assert (len(result.run_ids), result.missing, result.problems, said) == (5, (), (), [])


@pytest.mark.wandb
def test_a_file_that_cannot_be_had_is_a_problem_and_no_row_is_said_to_be_lacking(
    server: StandIn, store: StorePaths, pulled: StorePaths
) -> None:
    small_grid(store, seeds=1)
    put_grid(server, store)
    server.fail("storage", 404, after=1)
    result, said = pull_g(server, pulled)
    assert result.missing == () and result.run_ids == () and said == []
    assert len(result.problems) == 3 and all("404" in problem for problem in result.problems)
